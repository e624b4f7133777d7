"""New tasks in a run of policy learning: written between iterations, played once by the current policy, taken in or dropped.

Every draft is written down (``tasks.jsonl``) with its seeds and what came of it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from dreamgym.core.types import Episode, written_in
from dreamgym.curriculum.generator import Achieved, Draft, TaskGenerator
from dreamgym.curriculum.sampler import TaskSampler
from dreamgym.curriculum.values import Rewards
from dreamgym.dream import SheetBook
from dreamgym.rl.ranks import Ranks
from dreamgym.rl.rollout import Rollout, Seat

Play = Callable[[Sequence[Seat]], list[Rollout]]


class NewTasks:
    """The run's generator, and the sampler and the book of tasks that take in what it writes."""

    def __init__(
        self,
        generator: TaskGenerator,
        achieved: Achieved | None,
        sampler: TaskSampler,
        sheets: SheetBook,
        play: Play,
        ranks: Ranks,
        path: Path,
        seed: int,
    ) -> None:
        """``achieved``: for hindsight tasks, None without; ``play``: rollouts of the current policy; ``path``: ``tasks.jsonl``."""
        self.generator, self._achieved = generator, achieved
        self._sampler, self._sheets, self._play = sampler, sheets, play
        self._ranks, self._path, self._seed = ranks, path, seed

    def write(self, episodes: Sequence[Episode], iteration: int) -> tuple[dict[str, float], list[Episode]]:
        """New tasks for the sampler, each played first; those that nobody could play go. ``episodes``: what was played last.

        What came of it, and the episodes that checked them.
        """
        gone = self._sampler.unplayable()
        self._sampler.drop(gone)
        for name in gone:
            del self._sheets.tasks[name]
        values = self._sampler.values()
        drafts: list[Draft] = []
        if self._ranks.first:
            drafts = self.generator.vary(self._sheets.tasks, values, iteration)
            known = self._sheets.tasks | {d.task.id: d.task for d in drafts if d.task}
            drafts += self.generator.hindsight(episodes, self._achieved, known, iteration) if self._achieved else []
        drafts = self._ranks.said(drafts)
        new = {d.task.id: d.task for d in drafts if d.task is not None}
        seats = [Seat(t, m, self._seed, iteration) for t in new.values() for m in range(self.generator.config.rollouts)]
        played = self._play(seats) if seats else []
        feasible = {r.episode.task.id for r in played if r.episode.valid}
        self._sheets.tasks |= {name: t for name, t in new.items() if name in feasible}
        self._sampler.add([t for name, t in new.items() if name in feasible])
        if self._ranks.first:
            lines = [_written(d, feasible, values) | {"iteration": iteration} for d in drafts]
            lines += [{"iteration": iteration, "task": name, "verdict": "dropped: its last group had no valid rollout"} for name in gone]
            with open(self._path, "a", encoding="utf-8") as f:
                f.write("".join(json.dumps(x) + "\n" for x in lines))
        found = {
            "tasks_written": float(len(feasible)),
            "drafts_refused": float(len(drafts) - len(feasible)),
            "tasks_dropped": float(len(gone)),
            "transitions_checking": float(sum(len(r.episode.transitions) for r in played)),
        }
        return found, [r.episode for r in played]

    def population(self, groups: Mapping[str, Rewards], iteration: int) -> dict[str, float]:
        """Of logged and of written tasks: the share of valid members of ``groups`` that won, the mean value of those played; the share of
        written ones in the draw, and their age in iterations."""
        values, tasks = self._sampler.values(), self._sheets.tasks
        found = {"synthetic": sum(bool(tasks[name].lineage) for name in groups) / max(len(groups), 1)}
        for origin, written in (("logged", False), ("written", True)):
            won = [r > 0 for name, rs in groups.items() if bool(tasks[name].lineage) is written for r in rs if r is not None]
            worth = [v["value"] for name, v in values.items() if bool(tasks[name].lineage) is written and v["visits"]]
            found |= {f"won_{origin}": fmean(won)} if won else {}
            found |= {f"value_{origin}": fmean(worth)} if worth else {}
        ages = [iteration - written_in(name) for name, t in tasks.items() if t.lineage]
        return found | ({"age_written": fmean(ages)} if ages else {})


def _written(draft: Draft, feasible: set[str], values: dict[str, dict[str, float]]) -> dict[str, object]:
    """A draft as a line of ``tasks.jsonl``."""
    task, verdict = draft.task.id if draft.task else None, draft.verdict
    if task is not None and task not in feasible:
        verdict = "no rollout was valid"
    worth = values[draft.parent]["value"] if draft.parent in values else None
    return {**draft._asdict(), "task": task, "verdict": verdict, "parent_value": worth}
