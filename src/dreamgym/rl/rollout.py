"""The rollout engine: many episodes at once, in any environment that speaks ``Env``.

Every episode is a coroutine; their policy calls (and a dream's experience-model calls) are gathered into batches by
``Lockstep``. A failed environment makes its own episode invalid and stops nobody else's, nor does one that takes its time or never
answers; what failed is logged. Where only so many may live at once, stragglers keep their places and the next ones take the others'.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from traceback import extract_tb
from typing import TypeVar

from dreamgym.core.env import Env, Info, Step
from dreamgym.core.errors import DreamgymError
from dreamgym.core.lockstep import BatchFunction, Lockstep
from dreamgym.core.record import stop_of, transition_of
from dreamgym.core.state import state_of_text
from dreamgym.core.types import Episode, Source, StopReason, Task, Transition
from dreamgym.rl.context import Turn
from dreamgym.rl.policy import Actor, Sample

log = logging.getLogger(__name__)
PATIENCE_S = 600.0
"""How long a real environment that sets no limit itself (``patience``) may take over one answer; then its episode is invalid."""
STRAGGLING_S = 10
"""How long nothing has happened when those that wait for their environments are stragglers, for whom the next ones do not wait."""


@dataclass(frozen=True)
class Rollout:
    """An episode and the policy's tokens at each of its steps."""

    episode: Episode
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """One episode to play: a task, the member of its group, and the seed and iteration that key its draws."""

    task: Task
    member: int
    seed: int
    iteration: int = 0


T = TypeVar("T")
MakeEnv = Callable[[Seat, Lockstep], Env]


def rollouts(
    policy: Actor,
    make_env: MakeEnv,
    seats: Sequence[Seat],
    source: Source,
    env_name: str,
    behaviour: str = "policy",
    services: Mapping[str, BatchFunction] | None = None,
    longest: int | None = None,
    live: int | None = None,
) -> list[Rollout]:
    """Play all ``seats`` with ``policy``; results in their order.

    ``services``: further batch functions, by name. ``longest``: steps after which an episode is over, where the environment has not
    ended it before. ``live``: how many environments there may be at once; None = one for each seat.
    """
    lockstep = Lockstep({"policy": policy.act, **(services or {})})
    failures: Counter[str] = Counter()
    places, ended = live or len(seats), 0

    async def play(seat: Seat) -> Rollout:
        nonlocal ended
        told = _Told(seat.task)
        try:
            made = make_env(seat, lockstep)
            env = made if source == "dream" else _Patient(made, lockstep)
            try:
                await _episode(seat, env, lockstep, longest, told)
            finally:
                with nullcontext() if source == "dream" else lockstep.away():
                    await env.close()
        except DreamgymError:
            raise
        except Exception as e:  # the user's code, or a server's: one broken world is not the end of the others
            place = extract_tb(e.__traceback__)[-1]
            failures[f"{type(e).__name__}: {e} ({place.filename}:{place.lineno})"] += 1
        ended += 1
        return Rollout(told.episode(seat, source, env_name, behaviour), tuple(told.samples))

    async def waves() -> list[Rollout]:
        begun, going = 0, list[asyncio.Future[list[Rollout]]]()
        while begun < len(seats):
            wave = seats[begun : begun + places - (begun - ended)]
            begun += len(wave)
            going.append(asyncio.ensure_future(lockstep.run([play(s) for s in wave])))
            still, before = 0, ended
            while ended < begun < len(seats) and not (still >= STRAGGLING_S and 2 * (begun - ended) <= places):
                done, _ = await asyncio.wait(going, timeout=1, return_when=asyncio.FIRST_EXCEPTION)
                for over in done:
                    over.result()
                still, before = still + 1 if lockstep.deserted and ended == before else 0, ended
        return [r for played in going for r in await played]

    played = asyncio.run(waves())
    for what, n in failures.items():
        log.warning("%s failed in %d of %d episodes: %s", env_name, n, len(seats), what)
    return played


class _Patient:
    """A real environment: the others' batches do not wait for its answers, nor does its own episode for ever."""

    def __init__(self, env: Env, lockstep: Lockstep) -> None:
        self._env, self._lockstep = env, lockstep
        self._limit = None if hasattr(env, "patience") else PATIENCE_S

    async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
        return await self._soon(self._env.reset(task, seed))

    async def step(self, action: str) -> Step:
        return await self._soon(self._env.step(action))

    async def close(self) -> None:
        async with asyncio.timeout(self._limit):
            await self._env.close()

    async def _soon(self, answer: Awaitable[T]) -> T:
        try:
            with self._lockstep.away():
                async with asyncio.timeout(self._limit):
                    return await answer
        except TimeoutError as e:
            raise TimeoutError(f"no answer for {PATIENCE_S:g} s") from e


@dataclass
class _Told:
    """What is known of an episode so far; without an end it is invalid."""

    task: Task
    samples: list[Sample] = field(default_factory=list)
    steps: list[Transition] = field(default_factory=list)
    stop: StopReason = StopReason.INVALID_ENV

    def episode(self, seat: Seat, source: Source, env_name: str, behaviour: str) -> Episode:
        return Episode(
            id=f"{self.task.id}#{env_name}{seat.seed}.{seat.iteration}.{seat.member}",
            env=env_name,
            task=self.task,
            source=source,
            behaviour=behaviour,
            policy_version=seat.iteration,
            seed=seat.seed,
            member=seat.member,
            transitions=tuple(self.steps),
            stop=self.stop,
        )


async def _episode(seat: Seat, env: Env, lockstep: Lockstep, longest: int | None, told: _Told) -> None:
    observation, info = await env.reset(seat.task, seat.seed)
    state = state_of_text(observation)
    instruction = str(info.get("instruction", seat.task.instruction))
    told.task = seat.task.model_copy(update={"instruction": instruction, "first_state": state})
    stop: StopReason | None = None
    while stop is None:
        said = (*told.samples[-1].prompt, *told.samples[-1].ids) if told.samples else ()
        key = (seat.seed, seat.iteration, seat.task.id, seat.member, len(told.steps))
        turn = Turn(instruction, state, key, tuple(told.steps), said)
        sample = await lockstep.call("policy", turn.key, turn)
        assert isinstance(sample, Sample)
        answer = await env.step(sample.action)
        after = state_of_text(answer.observation)
        step = transition_of(state, sample.action, answer, after)
        stop = stop_of(answer)
        told.samples.append(sample)
        told.steps.append(step)
        state = after
        if stop is None and len(told.steps) == longest:
            stop = StopReason.MAX_STEPS
    told.stop = stop
