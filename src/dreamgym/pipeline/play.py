"""Playing episodes: a policy in the real environment (counted) or in the dream, on tasks of the caller's choice."""

import math
from collections.abc import Awaitable, Sequence

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import ConfigError
from dreamgym.core.lockstep import Lockstep
from dreamgym.core.types import Panel, Task
from dreamgym.dream import ENV as DREAM
from dreamgym.dream import DreamEnv
from dreamgym.envs.adapter import Adapter
from dreamgym.experience.model import Elsewhere, ExperienceModel, Prediction
from dreamgym.experience.prompt import Request
from dreamgym.rl.policy import Actor
from dreamgym.rl.rollout import Rollout, Seat, rollouts

LIVE = 64
"""Real episodes played at once: each holds a live environment."""


def play_real(
    actor: Actor, adapter: Adapter, seats: Sequence[Seat], counter: RealSteps, purpose: str, behaviour: str, longest: int | None = None
) -> list[Rollout]:
    """Episodes in the real environment; every step goes to ``counter`` under ``purpose``."""
    counter.purpose = purpose
    return rollouts(actor, lambda seat, _: adapter.env(counter), seats, "real", adapter.name, behaviour, longest=longest, live=LIVE)


def play_dream(actor: Actor, model: ExperienceModel, cap: int, seats: Sequence[Seat], behaviour: str = "policy") -> list[Rollout]:
    """Episodes in the dream; tasks need instruction, first state and (better) a sheet."""

    ask = model.begin if isinstance(model, Elsewhere) else model.predict

    def make(seat: Seat, lockstep: Lockstep) -> DreamEnv:
        async def predict(request: Request) -> Prediction:
            known = model.recall(request)
            if known is not None:
                return known
            answer = await lockstep.call("experience", request.key, request)
            if isinstance(answer, Awaitable):
                answer = await lockstep.apart(answer)
            assert isinstance(answer, Prediction)
            return answer

        return DreamEnv(predict, cap, seat.member, seat.iteration)

    return rollouts(actor, make, seats, "dream", DREAM, behaviour, {"experience": ask})


def seats_for(tasks: Sequence[Task], seed: int, members: int = 1) -> list[Seat]:
    return [Seat(t, m, seed) for t in tasks for m in range(members)]


def panel_tasks(adapter: Adapter, panel: Panel, limit: int) -> list[Task]:
    """Tasks of an evaluation panel. Raises ``ConfigError`` where the environment has none there."""
    tasks = adapter.tasks(panel, limit)
    if not tasks:
        raise ConfigError(f"{adapter.name} has no tasks in the panel {panel}; give it some")
    return tasks


def success_rate(played: Sequence[Rollout]) -> float:
    """Share of real successes among valid real episodes. Raises ``TypeError`` on dreamed ones."""
    valid = [r.episode.real_success() for r in played if r.episode.valid]
    return sum(valid) / len(valid) if valid else math.nan


def real_rate(played: Sequence[Rollout]) -> float | None:
    """``success_rate``; None where no real episode is valid."""
    rate = success_rate(played)
    return None if math.isnan(rate) else rate


def dream_rate(played: Sequence[Rollout]) -> float | None:
    """Share of dreamed successes among valid dreamed episodes: never a result, only a figure to hold against one.

    None where no dreamed episode is valid.
    """
    valid = [r.episode.dream_reward() for r in played if r.episode.valid]
    return sum(bool(v) for v in valid) / len(valid) if valid else None
