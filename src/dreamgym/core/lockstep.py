"""Gathers the calls of many live episodes into one batch when all that live are waiting, never by a clock.

    lockstep = Lockstep({"policy": policy.act, "experience": model.predict})
    results = await lockstep.run([episode(i) for i in range(128)])
    # inside an episode: prediction = await lockstep.call("experience", key=(task, member, turn), request=request)

The functions are named in their order: while anybody waits for an earlier one, the later ones gather more calls. So the costly
function comes last. A batch is sorted by key: its composition depends on the episodes and not on the event loop. An
exception in a batch function reaches every episode that waits for it, as a ``BatchError``: it is nobody's own failure.

Who waits for something from elsewhere (``apart``: the reply of a server; ``away``: a slow environment) holds nobody up: batches are
then of those who are here, and who that is depends on what they wait for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from dreamgym.core.errors import BatchError, DreamgymError

T = TypeVar("T")
Key = tuple[str | int, ...]
BatchFunction = Callable[..., Sequence[object]]
"""Requests in, as one sequence; answers out, in the same order."""


class Lockstep:
    """Named batch functions shared by concurrently running coroutines."""

    def __init__(self, functions: Mapping[str, BatchFunction]) -> None:
        self._functions = functions
        self._waiting: dict[str, list[tuple[Key, object, asyncio.Future[object]]]] = {name: [] for name in functions}
        self._live = 0

    @property
    def deserted(self) -> bool:
        """Whether nobody is here: all that live wait for something from elsewhere."""
        return self._live == 0

    async def run(self, episodes: Sequence[Awaitable[T]]) -> list[T]:
        """Run all coroutines to their end, beside those of earlier calls; results in their order."""
        self._live += len(episodes)

        async def one(episode: Awaitable[T]) -> T:
            try:
                return await episode
            finally:
                self._live -= 1
                self._flush_if_all_wait()

        return list(await asyncio.gather(*(one(e) for e in episodes)))

    async def call(self, name: str, key: Key, request: object) -> object:
        """The answer of batch function ``name`` to ``request``, when every live episode waits for something."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting[name].append((key, request, future))
        self._flush_if_all_wait()
        return await future

    async def apart(self, elsewhere: Awaitable[T]) -> T:
        """What ``elsewhere`` gives, while the others go on: their batches do not wait for this episode until then."""
        try:
            with self.away():
                return await elsewhere
        except DreamgymError:
            raise
        except Exception as error:  # as in a batch function: not the failure of this episode's environment
            raise BatchError(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def away(self) -> Iterator[None]:
        """While an episode waits for something that is nobody else's, such as its own environment; it calls no batch function meanwhile."""
        self._live -= 1
        self._flush_if_all_wait()
        try:
            yield
        finally:
            self._live += 1

    def _flush_if_all_wait(self) -> None:
        if 0 < self._live <= sum(len(w) for w in self._waiting.values()):
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if sum(len(w) for w in self._waiting.values()) < self._live:
            return
        name = next((name for name in self._functions if self._waiting[name]), None)
        if name is None:
            return
        waiting, self._waiting[name] = self._waiting[name], []
        batch = sorted((w for w in waiting if not w[2].done()), key=lambda w: tuple(map(str, w[0])))
        if not batch:  # their episodes were cancelled
            return
        try:
            answers = self._functions[name]([request for _, request, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"batch function {name!r} gave {len(answers)} answers to {len(batch)} requests")
        except Exception as error:  # every waiting episode must hear of it, or it waits for ever
            failure = error if isinstance(error, DreamgymError) else BatchError(f"{name}: {type(error).__name__}: {error}")
            failure.__cause__ = error if failure is not error else None
            for _, _, future in batch:
                future.set_exception(failure)
            return
        for (_, _, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
