"""Task selection by the variance of a group's rewards (arXiv 2511.03773 Eq. 7), with a floor and a memory that fades.

A task's value is V = p(1 - p) of its last valid group: largest where the current policy wins half the time. Half of
each draw goes to tasks in proportion to their value, the other half is uniform over the least visited, so that no task
starves and a value measured long ago does not decide for ever. The floor, the fading and the share are our choice.
"""

from collections.abc import Sequence
from statistics import pvariance
from typing import Protocol

from dreamgym.core.seeding import keyed_rng

FLOOR = 0.02
FADE = 0.98


def group_value(rewards: Sequence[float | None]) -> float | None:
    """V_tau of Eq. 7: the population variance of a group's valid rewards; None with fewer than two."""
    valid = [r for r in rewards if r is not None]
    return pvariance(valid) if len(valid) > 1 else None


class TaskSampler(Protocol):
    """Hands out tasks, learns from the groups played on them, and can be saved with a run."""

    def next(self, n: int) -> list[str]: ...

    def observe(self, task: str, rewards: Sequence[float | None]) -> None: ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...

    def metrics(self) -> dict[str, float]: ...


class VarianceSampler:
    """The default sampler. Groups without two valid members change nothing: all invalid is not all failed."""

    def __init__(self, tasks: Sequence[str], seed: int) -> None:
        self._tasks = list(tasks)
        self._seed = seed
        self._draws = 0
        self._value = dict.fromkeys(self._tasks, 0.25)
        self._visits = dict.fromkeys(self._tasks, 0)

    def next(self, n: int) -> list[str]:
        """``n`` different task ids (fewer where there are fewer tasks)."""
        rng = keyed_rng(self._seed, "tasks", self._draws)
        self._draws += 1
        n = min(n, len(self._tasks))
        visited = [t for t in self._tasks if self._visits[t]]
        by_value = min(n // 2, len(visited))
        weights = [self._value[t] + FLOOR for t in visited]
        total = sum(weights)
        chosen = [visited[i] for i in rng.choice(len(visited), by_value, replace=False, p=[w / total for w in weights])] if by_value else []
        rest = sorted((t for t in self._tasks if t not in set(chosen)), key=lambda t: (self._visits[t], rng.random()))
        return chosen + rest[: n - by_value]

    def observe(self, task: str, rewards: Sequence[float | None]) -> None:
        """Take in the rewards of one group (None = invalid member)."""
        for t in self._tasks:
            if self._visits[t]:
                self._value[t] = 0.25 + FADE ** (1 / len(self._tasks)) * (self._value[t] - 0.25)
        value = group_value(rewards)
        if value is not None:
            self._value[task] = value
            self._visits[task] += 1

    def state_dict(self) -> dict[str, object]:
        return {"draws": self._draws, "value": self._value, "visits": self._visits}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Raises ``ValueError`` where the state belongs to another set of tasks."""
        value, visits, draws = state.get("value"), state.get("visits"), state.get("draws")
        if not isinstance(value, dict) or not isinstance(visits, dict) or not isinstance(draws, int) or set(value) != set(self._tasks):
            raise ValueError("this sampler state belongs to other tasks; start the run anew")
        self._draws, self._value, self._visits = draws, dict(value), dict(visits)

    def metrics(self) -> dict[str, float]:
        seen = [self._value[t] for t in self._tasks if self._visits[t]]
        return {"tasks_seen": float(len(seen)), "mean_value": sum(seen) / len(seen) if seen else 0.0}
