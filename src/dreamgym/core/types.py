"""Tasks, transitions and episodes: the values that travel between all parts of dreamgym, with their provenance.

A *real* episode can say whether it succeeded; a *dream* episode can only say what reward the experience model gave it.
The two questions are separate methods that refuse the other kind, so a dreamed reward never enters a results table.
"""

from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dreamgym.core.state import Change, State, apply_change, entity, revelations

Source = Literal["real", "dream"]
Panel = Literal["train", "probe", "test", "unseen", "generated", "user"]
EVALUATION: tuple[Panel, ...] = ("probe", "test", "unseen")
"""Panels whose episodes may be evaluated on, never trained on or retrieved."""
Outcome = Literal["go", "won", "lost"]


class StopReason(StrEnum):
    """Why an episode ended. The ``INVALID_*`` reasons never become a number: such an episode leaves before statistics."""

    WON = "won"
    """The environment ended the episode with success."""
    LOST = "lost"
    """The environment ended the episode without success."""
    MAX_STEPS = "max_steps"
    """The step cap was reached (a valid failure)."""
    ABANDONED = "abandoned"
    """Whoever recorded the log stopped early (logs only)."""
    INVALID_REPLY = "invalid_reply"
    """The experience model's reply could not be parsed, after the allowed number of samples."""
    INVALID_CHANGE = "invalid_change"
    """The experience model's change did not fit the state, after the allowed number of samples."""
    INVALID_UNCERTAIN = "invalid_uncertain"
    """The experience model's draws disagreed with its reply more than is allowed."""
    INVALID_SUCCESS = "invalid_success"
    """The experience model reported a success by an action of a form that never won in the logs."""
    INVALID_ENV = "invalid_env"
    """The environment itself failed."""

    @property
    def valid(self) -> bool:
        """Whether an episode with this end counts in statistics."""
        return not self.value.startswith("invalid")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Value):
    """One thing to do in one world. The sheet is shown to the experience model only, never to the policy."""

    id: str
    """Names the world for the real environment, e.g. ``textworld/easy/17``."""
    instruction: str
    first_state: State
    sheet: State = ()
    """Facts of this task's world that the first state does not show."""
    lineage: tuple[str, ...] = ()
    """Ids of the tasks this one was varied from, oldest first; empty for logged tasks."""
    panel: Panel = "user"
    difficulty: str = ""


class Feat(NamedTuple):
    """What an episode did achieve: the instruction that asks for it, and actions that do it from the task's start."""

    instruction: str
    solution: tuple[str, ...]


def written_in(task: str) -> int:
    """The iteration that a written task is of, from its id (``curriculum/generator.py``)."""
    return int(task.rpartition("~")[2].partition(".")[0])


class Transition(_Value):
    """One step: what was done in ``state``, what changed, and what the environment paid."""

    state: State
    action: str
    removed: State = ()
    added: State = ()
    reward: float | None
    """None = invalid (never 0)."""
    outcome: Outcome
    """``go`` = the episode goes on; ``won`` and ``lost`` = the environment ended it."""
    reasoning: str = ""
    """Why the action leads to this change: a teacher's annotation, or the experience model's own trace."""
    surprise: float | None = None
    """Of a dreamed step: minus the log-probability (nats) of the experience model's whole reply; None where it is not known."""

    @property
    def change(self) -> Change:
        return Change(self.removed, self.added)

    @property
    def next_state(self) -> State:
        return apply_change(self.state, self.change)


class Branch(_Value):
    """A counterfactual: one other action, really taken from the state before step ``at`` after re-playing the prefix."""

    at: int = Field(ge=0)
    transition: Transition


class Episode(_Value):
    """A sequence of transitions with full provenance, and the counterfactual steps tried along it."""

    id: str
    env: str
    task: Task
    source: Source
    behaviour: str
    """Who acted: an explorer (``expert``, ``noisy``, ``random`` ...), a logged ``agent``, or the ``policy`` of a run."""
    policy_version: int = 0
    seed: int = 0
    member: int = 0
    transitions: tuple[Transition, ...]
    branches: tuple[Branch, ...] = ()
    stop: StopReason

    @property
    def steps(self) -> tuple[Transition, ...]:
        """Every transition in it, the counterfactual ones too."""
        return self.transitions + tuple(b.transition for b in self.branches)

    @model_validator(mode="after")
    def _ends_match(self) -> "Episode":
        for i, t in enumerate(self.transitions[:-1]):
            if t.outcome != "go":
                raise ValueError(f"transition {i} ends the episode ({t.outcome}) but {len(self.transitions)} are given")
        return self

    @property
    def valid(self) -> bool:
        return self.stop.valid

    def real_success(self) -> bool:
        """Whether the real environment was won. Raises ``TypeError`` for a dream episode and for an invalid one."""
        if self.source != "real":
            raise TypeError(f"episode {self.id} was dreamed: it has a dream reward, not a real success")
        if not self.valid:
            raise TypeError(f"episode {self.id} is invalid ({self.stop}): it has no success, count it apart")
        return self.stop == StopReason.WON

    def dream_reward(self) -> float | None:
        """The return that the experience model gave, None where invalid. Raises ``TypeError`` for a real episode."""
        if self.source != "dream":
            raise TypeError(f"episode {self.id} is real: ask real_success()")
        return sum(t.reward or 0.0 for t in self.transitions) if self.valid else None


class ResultRow(_Value):
    """One evaluation episode in a result file. Real success and dreamed success are separate fields, one of them None."""

    panel: Panel
    task: str
    success: bool | None = None
    dream_success: bool | None = None
    steps: int = Field(ge=0)
    stop: StopReason
    source: Source

    @model_validator(mode="after")
    def _not_mixed(self) -> "ResultRow":
        if self.source == "real" and self.dream_success is not None:
            raise ValueError("a real row carries no dream_success")
        if self.source == "dream" and self.success is not None:
            raise ValueError("a dream row carries no (real) success")
        return self


def result_row(episode: Episode) -> ResultRow:
    """The row that an evaluation episode leaves in a result file."""
    success = episode.real_success() if episode.source == "real" and episode.valid else None
    dreamed = episode.stop == StopReason.WON if episode.source == "dream" and episode.valid else None
    return ResultRow(
        panel=episode.task.panel,
        task=episode.task.id,
        success=success,
        dream_success=dreamed,
        steps=len(episode.transitions),
        stop=episode.stop,
        source=episode.source,
    )


def sheet_in_hindsight(first_state: State, episodes: list[Episode]) -> State:
    """All that the episodes of one task ever revealed beyond ``first_state`` (no privileged access needed).

    Where episodes disagree the earliest line stays: the first sighting, before any action touched the thing.
    """
    known = {entity(s) for s in first_state}
    sheet: dict[str, str] = {}
    for episode in episodes:
        seen = set(known)
        for t in episode.transitions:
            for new in revelations(t.change):
                if entity(new) not in seen:
                    sheet.setdefault(entity(new), new)
            seen.update(entity(new) for new in t.added)
        for branch in episode.branches:
            before = {entity(s) for t in episode.transitions[: branch.at + 1] for s in t.state}
            for new in revelations(branch.transition.change):
                if entity(new) not in before | known:
                    sheet.setdefault(entity(new), new)
    return tuple(sorted(sheet.values()))
