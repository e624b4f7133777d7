"""Which tasks the policy plays next: by value (arXiv 2511.03773 Eq. 7), with a floor and a memory that fades.

A part of each draw (half, unless said otherwise) goes to tasks in proportion to their value, the rest is uniform over the least
visited, so that no task starves and a value measured long ago does not decide for ever. The floor, the fading and the share are our
choice. Synthetic tasks (those with a lineage) are drawn in the same way among themselves, at most a share lambda of each draw; until one
is played its value is its parent's. A logged task that nobody has played is drawn by value only where tasks are in clusters.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Protocol

import numpy as np

from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Task
from dreamgym.curriculum.config import SamplerConfig
from dreamgym.curriculum.values import NEUTRAL, VALUES, Rewards

_Last = tuple[list[float | None], list[float | None]]
FLOOR = 0.02


class TaskSampler(Protocol):
    """Hands out tasks, learns from the groups played on them, takes generated ones in, and can be saved with a run."""

    def next(self, n: int) -> list[str]: ...

    def observe(self, task: str, rewards: Rewards, progress: Rewards = ()) -> None: ...

    def add(self, tasks: Sequence[Task]) -> None: ...

    def unplayable(self) -> list[str]: ...

    def drop(self, tasks: Sequence[str]) -> None: ...

    def values(self) -> dict[str, dict[str, float]]: ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...

    def metrics(self) -> dict[str, float]: ...


class ValueSampler:
    """The default sampler. Groups without two valid members change no value: all invalid is not all failed. They are a turn all the
    same, so that a task that nobody can play does not come again at once and for ever.

    ``clusters`` (logged task -> number): ``pooled``, for PPO, where groups are small, the tasks of a cluster make one group G of Eq. 7,
    of each task's last rewards (§5 of the paper), and all that were played have its value; written tasks are with the one that they
    descend from. Not pooled, a task's own group is its group, and those that nobody has played are worth what the played ones of their
    cluster are on average (our choice: of a large pool most tasks are played once at most). Without clusters, each task is its own.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        seed: int,
        config: SamplerConfig | None = None,
        clusters: Mapping[str, int] | None = None,
        pooled: bool = True,
    ) -> None:
        self._seed, self._config = seed, config or SamplerConfig()
        self._draws = 0
        self._value: dict[str, float] = dict.fromkeys(tasks, NEUTRAL)
        self._visits: dict[str, int] = dict.fromkeys(tasks, 0)
        self._turns: dict[str, int] = dict.fromkeys(tasks, 0)
        self._ended: dict[str, list[int]] = {t: [0, 0, 0] for t in tasks}
        self._parent: dict[str, str] = {}
        self._invalid: set[str] = set()
        self._clusters, self._pooled = dict(clusters or {}), pooled
        self._last: dict[str, _Last] = {}

    def add(self, tasks: Sequence[Task]) -> None:
        """Generated tasks; each begins with the value of the nearest task of its lineage that is known."""
        for task in tasks:
            if not task.lineage:
                raise ValueError(f"task {task.id} has no lineage: only generated tasks are added")
            self._parent[task.id] = task.lineage[-1]
            self._value[task.id] = next((self._value[t] for t in reversed(task.lineage) if t in self._value), NEUTRAL)
            self._visits[task.id], self._turns[task.id], self._ended[task.id] = 0, 0, [0, 0, 0]
            if task.lineage[0] in self._clusters:
                self._clusters[task.id] = self._clusters[task.lineage[0]]

    def drop(self, tasks: Sequence[str]) -> None:
        """Forget generated tasks."""
        for task in tasks:
            del self._parent[task]
            self._invalid.discard(task)
            self._last.pop(task, None)
            self._clusters.pop(task, None)
            for known in (self._value, self._visits, self._turns, self._ended):
                known.pop(task)

    def next(self, n: int) -> list[str]:
        """``n`` different task ids (fewer where there are fewer tasks), the synthetic ones last."""
        rng = keyed_rng(self._seed, "tasks", self._draws)
        self._draws += 1
        logged, written = [t for t in self._value if t not in self._parent], list(self._parent)
        synthetic = min(int(self._config.synthetic * n), len(written))
        if n - synthetic > len(logged) and self._config.synthetic < 1:  # lambda of what is drawn, not of what was asked for
            synthetic = min(synthetic, int(self._config.synthetic * len(logged) / (1 - self._config.synthetic)))
        return [*self._draw(logged, min(n - synthetic, len(logged)), rng), *self._draw(written, synthetic, rng)]

    def _draw(self, tasks: list[str], n: int, rng: np.random.Generator) -> list[str]:
        worth = self._worth(tasks) if self._config.value != "uniform" else {}
        valued, by_value = list(worth), min(int(self._config.by_value * n), len(worth))
        weights = [w + FLOOR for w in worth.values()]
        total = sum(weights)
        chosen = [valued[i] for i in rng.choice(len(valued), by_value, replace=False, p=[w / total for w in weights])] if by_value else []
        taken = set(chosen)
        rest = sorted((t for t in tasks if t not in taken), key=lambda t: (self._turns[t], rng.random()))
        return chosen + rest[: n - by_value]

    def _worth(self, tasks: Sequence[str]) -> dict[str, float]:
        """Of those tasks of which something is known: their own value, or that of the played ones of their cluster."""
        played: dict[int, list[float]] = {}
        for t in self._clusters if not self._pooled else ():
            if self._visits[t] and t not in self._parent:
                played.setdefault(self._clusters[t], []).append(self._value[t])
        alike = {c: fmean(values) for c, values in played.items()}
        known = ((t, self._value[t] if self._valued(t) else alike.get(self._clusters.get(t, -1))) for t in tasks)
        return {t: value for t, value in known if value is not None}

    def _valued(self, task: str) -> bool:
        """Whether something is known of its worth: its own groups, or its parent's."""
        return bool(self._visits[task]) or task in self._parent

    def observe(self, task: str, rewards: Rewards, progress: Rewards = ()) -> None:
        """Take in one group: rewards (None = invalid member), and how far each came where that is known."""
        for t in self._value:
            if self._valued(t):
                self._value[t] = NEUTRAL + self._config.fade ** (1 / len(self._value)) * (self._value[t] - NEUTRAL)
        (self._invalid.discard if any(r is not None for r in rewards) else self._invalid.add)(task)
        for r in rewards:
            self._ended[task][2 if r is None else 0 if r > 0 else 1] += 1
        group = self._group(task, rewards, progress)
        together, known = [r for rs, _ in group.values() for r in rs], [p for _, ps in group.values() for p in ps]
        value = VALUES["variance" if self._config.value == "uniform" else self._config.value](together, known)
        if value is not None:
            self._visits[task] += 1
            for t in group:  # of a cluster also those of which one rollout alone was valid
                self._visits[t], self._value[t] = max(self._visits[t], 1), value
        self._turns[task] += value is not None or self._config.turns == "played"

    def _group(self, task: str, rewards: Rewards, progress: Rewards) -> dict[str, _Last]:
        """The tasks that this one's value is measured with, each with its last rewards and progress."""
        own = (list(rewards), list(progress) or [None] * len(rewards))
        if not self._pooled or task not in self._clusters or all(r is None for r in rewards):
            return {task: own}
        self._last[task] = own
        return {t: last for t, last in self._last.items() if self._clusters[t] == self._clusters[task]}

    def unplayable(self) -> list[str]:
        """Generated tasks whose last group had no valid member."""
        return [t for t in self._parent if t in self._invalid]

    def values(self) -> dict[str, dict[str, float]]:
        """Of every task: value, visits, and how many of its rollouts were won, failed and invalid; for the report."""
        return {
            t: {"value": v, "visits": self._visits[t], **dict(zip(("won", "failed", "invalid"), self._ended[t], strict=True))}
            for t, v in self._value.items()
        }

    def state_dict(self) -> dict[str, object]:
        return {
            "draws": self._draws,
            "value": self._value,
            "visits": self._visits,
            "turns": self._turns,
            "ended": self._ended,
            "parent": self._parent,
            "invalid": sorted(self._invalid),
            "last": self._last,
            "clusters": self._clusters,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Raises ``ValueError`` where the state belongs to another set of tasks."""
        value, visits, draws = state.get("value"), state.get("visits"), state.get("draws")
        parent = state.get("parent", {})
        assert isinstance(parent, dict)
        logged = {t for t in self._value if t not in self._parent}
        if not isinstance(value, dict) or not isinstance(visits, dict) or not isinstance(draws, int) or set(value) - set(parent) != logged:
            raise ValueError("this sampler state belongs to other tasks")
        self._draws, self._value, self._visits, self._parent = draws, dict(value), dict(visits), dict(parent)
        turns, ended, last = state.get("turns"), state.get("ended"), state.get("last", {})
        clusters = state.get("clusters", {})
        assert isinstance(last, dict)
        assert isinstance(clusters, dict)
        self._clusters |= clusters
        invalid = state.get("invalid", [])
        assert isinstance(invalid, list)
        self._invalid = set(invalid)
        self._turns = dict(turns if isinstance(turns, dict) else visits)
        self._ended = {t: list(n) for t, n in ended.items()} if isinstance(ended, dict) else {t: [0, 0, 0] for t in self._value}
        self._last = {t: (list(r), list(p)) for t, (r, p) in last.items()}

    def metrics(self) -> dict[str, float]:
        seen = [self._value[t] for t in self._value if self._visits[t]]
        ends = [self._ended[t] for t in self._value if sum(self._ended[t])]
        written = {"tasks_synthetic": float(len(self._parent))} if self._parent else {}
        return {
            "tasks_seen": float(len(seen)),
            "tasks_played": float(len(ends)),
            "mean_value": sum(seen) / len(seen) if seen else 0.0,
            "tasks_all_won": float(sum(won > 0 and not failed for won, failed, _ in ends)),
            "tasks_all_failed": float(sum(failed > 0 and not won for won, failed, _ in ends)),
            "tasks_all_invalid": float(sum(not won and not failed for won, failed, _ in ends)),
            **written,
        }
