"""Gymnasium, both ways: any text environment as an ``Env`` and an ``Adapter``, and any ``Env`` as a Gymnasium environment.

    adapter = GymAdapter("shop", make=lambda: MyShop(), panels={"train": range(300), "test": range(1000, 1050)},
                         instruction="buy the cheapest shirt", cap=15, explorers={"random": my_random, "expert": my_expert})
    env = TextGym(dream_env, tasks)                     # reset(seed=), step(text) -> Gymnasium's 5-tuple

Observations become states by a text-only mapper: by default one line of text is one line of state. Task ids are
``<name>/<seed>``; the same seed must give the same world, and seeds of different panels different worlds.
"""

import asyncio
import logging
import string
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from dreamgym.core.env import Env, Info, RealSteps, Step
from dreamgym.core.errors import DataError, DreamgymError, MissingExtraError
from dreamgym.core.record import stop_of, transition_of
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import LINE, Change, InconsistentChange, State, apply_change, entity, make_state, text_of_state
from dreamgym.core.types import Episode, Panel, StopReason, Task, Transition
from dreamgym.envs.adapter import Explorer
from dreamgym.experience.annotate import GenericTeacher, Teacher

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as e:
    raise MissingExtraError("gymnasium", "gym") from e

log = logging.getLogger(__name__)
Mapper = Callable[[str], State]
T = TypeVar("T")
PATIENCE = 600.0
"""Seconds that an environment is waited for."""
MAX_TEXT = 4096
CHARSET = frozenset(string.printable)
"""What the declared text spaces hold. Other characters work too; only Gymnasium's checker objects to them."""


def text_lines(observation: str) -> State:
    """The text-only mapper: each line of the observation is a line of the state."""
    return make_state(observation.splitlines())


def sound(state: State) -> State:
    """``state``, if it is one that could be dreamed: a line per thing. Raises ``DataError`` naming the lines about one thing."""
    try:
        apply_change((), Change((), state))
    except InconsistentChange as e:
        about = [(entity(text), text) for text in state if LINE.fullmatch(text)]
        names = [name for name, _ in about]
        thing = next(name for name in names if names.count(name) > 1)
        lines = " and ".join(repr(text) for name, text in about if name == thing)
        raise DataError(
            f"an observation has two lines about {thing!r}: {lines}; give each thing a name of its own (red_shirt, door_2), or write"
            " lines that are not of the form [place] thing: description"
        ) from e
    return state


class OwnThread:
    """A thread with an event loop, for one environment. It does not keep the process from ending."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._live, daemon=True).start()

    def _live(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def begin(self, work: Coroutine[object, object, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """After what has been begun."""
        self.begin(self._end())

    async def _end(self) -> None:
        self._loop.stop()


class GymEnv:
    """A Gymnasium text environment (str observations, str actions) as an ``Env``; success = a positive final reward.

    It is made and lives in a thread of its own, so that a slow step holds up no other episode's. ``info["invalid"]`` of a step says
    that the environment itself failed: no reward, and the episode is invalid. So is one whose environment raises, or does not answer
    within ``patience`` seconds (``RuntimeError``; it is closed, and its thread ends, once it does).
    """

    def __init__(
        self,
        make: Callable[[], "gymnasium.Env[str, str]"],
        counter: RealSteps,
        instruction: str,
        cap: int,
        mapper: Mapper = text_lines,
        patience: float = PATIENCE,
    ) -> None:
        self._make, self.patience = make, patience
        self._env: gymnasium.Env[str, str] | None = None
        self._thread: OwnThread | None = None
        self._counter = counter
        self._instruction = instruction
        self._cap = cap
        self._mapper = mapper
        self._steps = 0
        self._done = True

    async def _there(self, work: Callable[["gymnasium.Env[str, str]"], T]) -> T:
        """``work`` on the environment in its thread."""

        async def there() -> T:
            if self._env is None:
                self._env = self._make()
            return work(self._env)

        if self._thread is None:
            self._thread = OwnThread()
        thread, answer = self._thread, asyncio.wrap_future(self._thread.begin(there()))
        await asyncio.wait([answer], timeout=self.patience)
        if not answer.done():
            self._thread, self._done = None, True
            thread.begin(self._left())  # once it has answered
            thread.stop()
            raise RuntimeError(f"no answer within {self.patience:g} s")  # a TimeoutError would be told as the rollout engine's own
        return answer.result()

    async def _left(self) -> None:
        """Close an environment that nobody waits for any more."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
        number = int(task.id.rpartition("/")[2])
        observation, info = await self._there(lambda env: env.reset(seed=number))
        self._steps = 0
        self._done = False
        return text_of_state(sound(self._mapper(observation))), {"instruction": str(info.get("instruction", self._instruction))}

    async def step(self, action: str) -> Step:
        if self._done:
            raise RuntimeError("step() on an episode that has ended or never began; call reset() first")
        self._counter.add()
        observation, reward, terminated, truncated, info = await self._there(lambda env: env.step(action))
        self._steps += 1
        if info.get("invalid"):
            self._done = True
            return Step(text_of_state(self._mapper(observation)), None, False, True, {"stop": _invalid(info["invalid"])})
        truncated = not terminated and (truncated or self._steps >= self._cap)
        won = bool(terminated and float(reward) > 0)
        stop = StopReason.WON if won else StopReason.LOST if terminated else StopReason.MAX_STEPS if truncated else None
        self._done = stop is not None
        return Step(text_of_state(sound(self._mapper(observation))), float(won), terminated, truncated, {"stop": stop} if stop else {})

    async def close(self) -> None:
        if self._thread is None:
            return
        try:
            if self._env is not None:
                await self._there(lambda env: env.close())
        finally:
            if self._thread is not None:
                self._thread.stop()
            self._thread = self._env = None


def _invalid(reason: object) -> StopReason:
    """The named reason where it is one of ours, else that the environment failed."""
    known = {s.value: s for s in StopReason if not s.valid}
    return known.get(str(reason), StopReason.INVALID_ENV)


class GymAdapter:
    """A user's own Gymnasium text environment for the whole pipeline."""

    def __init__(
        self,
        name: str,
        make: Callable[[], "gymnasium.Env[str, str]"],
        panels: Mapping[Panel, Sequence[int]],
        instruction: str,
        cap: int,
        explorers: Mapping[str, Explorer] | None = None,
        demonstrations: int = 20,
        mapper: Mapper = text_lines,
        teacher: Teacher | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """``patience``: seconds until an environment that does not answer makes its episode invalid."""
        seeds: set[int] = set()
        for panel, numbers in panels.items():
            if seeds & set(numbers):
                raise ValueError(f"panel {panel} shares seeds with another panel; every seed may be in one panel only")
            seeds |= set(numbers)
        self.name, self.cap = name, cap
        self.teacher: Teacher = teacher or GenericTeacher()
        self._make, self._panels, self._instruction, self._mapper = make, panels, instruction, mapper
        self._explorers = dict(explorers or {})
        self._demonstrations, self._patience = demonstrations, patience

    def wrong_name(self, task: str) -> str:
        """Why a logged task's name is none of this environment's; nothing where it is. Names that lead to one seed would hide what is
        evaluated on."""
        name, _, seed = task.rpartition("/")
        fine = name == self.name and seed.isdecimal() and str(int(seed)) == seed
        return "" if fine else f"{task!r} is not of the form {self.name}/<seed>, a whole number"

    def env(self, counter: RealSteps) -> Env:
        return GymEnv(self._make, counter, self._instruction, self.cap, self._mapper, self._patience)

    def tasks(self, panel: Panel, limit: int) -> list[Task]:
        return [
            Task(id=f"{self.name}/{seed}", instruction=self._instruction, first_state=(), panel=panel)
            for seed in list(self._panels.get(panel, ()))[:limit]
        ]

    def explorers(self) -> dict[str, Explorer]:
        return dict(self._explorers)

    def collect(self, counter: RealSteps, limit: int, seed: int) -> Iterator[Episode]:
        """Every explorer on every training task; the one called ``expert`` on the first ``demonstrations`` only."""
        for i, task in enumerate(self.tasks("train", limit)):
            for name, explorer in self._explorers.items():
                if name != "expert" or i < self._demonstrations:
                    yield asyncio.run(record(self.env(counter), task, name, explorer, self.name, seed))


async def record(env: Env, task: Task, behaviour: str, explorer: Explorer, env_name: str, seed: int) -> Episode:
    """One real episode of a scripted explorer; invalid, and told, where environment or explorer fail."""
    steps: list[Transition] = []
    stop: StopReason | None = None
    try:
        observation, info = await env.reset(task, seed)
        state = text_lines(observation)
        task = task.model_copy(update={"instruction": str(info.get("instruction", task.instruction)), "first_state": state})
        while stop is None:
            action = explorer(task.instruction, state, keyed_rng(seed, task.id, behaviour, len(steps)))
            answer = await env.step(action)
            after = text_lines(answer.observation)
            steps.append(transition_of(state, action, answer, after))
            stop = stop_of(answer)
            state = after
    except DreamgymError:
        raise
    except Exception as e:  # the user's code: one broken world is not the end of the others
        stop = StopReason.INVALID_ENV
        log.warning("%s, %s: failed after %d steps, the episode is left out: %s: %s", task.id, behaviour, len(steps), type(e).__name__, e)
    finally:
        with suppress(Exception):  # what was played is known by now
            await env.close()
    return Episode(
        id=f"{task.id}#{behaviour}{seed}",
        env=env_name,
        task=task,
        source="real",
        behaviour=behaviour,
        seed=seed,
        transitions=tuple(steps),
        stop=stop,
    )


class TextGym(gymnasium.Env[str, str]):
    """Any ``Env`` (a dream, say) as a synchronous Gymnasium environment with text spaces.

    An invalid step is ``truncated`` with ``info["invalid"]`` naming the reason; its reward of 0.0 must not be used.
    ``reset(seed=i)`` plays task ``i`` modulo their number. The environment lives in an event loop of its own thread, so
    this also works where a loop is running (a notebook, another ``Env``).
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own class attribute)

    def __init__(self, env: Env, tasks: Sequence[Task]) -> None:
        self._env = env
        self._tasks = list(tasks)
        self._thread: OwnThread | None = OwnThread()
        self._next = 0
        self.observation_space = spaces.Text(MAX_TEXT, min_length=0, charset=CHARSET)
        self.action_space = spaces.Text(MAX_TEXT, min_length=0, charset=CHARSET)

    def _wait(self, work: Coroutine[object, object, T]) -> T:
        if self._thread is None:
            work.close()
            raise RuntimeError("this environment has been closed; make another")
        return self._thread.begin(work).result()

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[str, dict[str, object]]:
        super().reset(seed=seed)
        number = self._next if seed is None else seed
        self._next = number + 1
        task = self._tasks[number % len(self._tasks)]
        observation, info = self._wait(self._env.reset(task, number))
        return observation, {**info, "task": task.id}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, object]]:
        s = self._wait(self._env.step(action))
        if s.reward is None:
            return s.observation, 0.0, False, True, {**s.info, "invalid": str(s.info.get("stop", "invalid"))}
        return s.observation, s.reward, s.terminated, s.truncated, s.info

    def close(self) -> None:
        if self._thread is not None:
            self._wait(self._env.close())
            self._thread.stop()
            self._thread = None
