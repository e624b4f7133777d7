"""What the experience model is asked: a step to predict, and its prompt; the same for training and for prediction.

The stable part comes first (task, sheet, history, state), then the retrieved experiences, then the action.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from dreamgym.core.grammar import render_query, render_world
from dreamgym.core.state import Change, State, entity
from dreamgym.core.types import Transition
from dreamgym.replay.contract import Query, Retrieval


class Past(NamedTuple):
    """An earlier step of the episode: what was done, and what it changed."""

    action: str
    change: Change


@dataclass(frozen=True, slots=True)
class Request:
    """One step to predict."""

    instruction: str
    sheet: State
    """What of the world sheet has not been in sight yet in this episode."""
    past: tuple[Past, ...]
    """Earlier steps of the episode, oldest first."""
    state: State
    action: str
    episode: str
    task: str
    key: tuple[str | int, ...]
    """Names the random draws: (seed, task, member, turn)."""


class ExperienceConfig(BaseModel):
    """What the experience model is shown and how it answers. The three flags are the ablations."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    reasoning: bool = True
    """Reason before the outcome (off: the ablation without experience reasoning)."""
    sheet: bool = True
    """Show the world sheet (off: the paper's literal prompt)."""
    k: int = 1
    """Similar past experiences shown; 0 = retrieval off. The paper does not state its k."""
    history: int = 0
    """Earlier steps shown. The carried state already holds what the episode has revealed, so the default is none."""
    best_last: bool = True
    """The most similar experience next to the action; off = first (the ablation of their order)."""
    budget: int = 160
    """Tokens of one reply."""
    samples: int = 32
    """Replies drawn at most per step: the first greedy, then, while none is usable, others at ``retry_temperature``."""
    retry_temperature: float = 1.0
    same_task: bool = False
    """Whether experiences of the task at hand may be retrieved (never in evaluation)."""


class PromptBuilder:
    """Turns requests into (world, query) prompt texts: the same for training and for prediction."""

    def __init__(self, config: ExperienceConfig, retrieval: Retrieval) -> None:
        self.config = config
        self.retrieval = retrieval

    def world(self, request: Request) -> str:
        past = request.past[-self.config.history :] if self.config.history else ()
        return render_world(request.instruction, request.sheet if self.config.sheet else (), past, request.state)

    def similar(self, requests: Sequence[Request], exclude_task: Sequence[bool], k: int) -> list[list[Transition]]:
        """Up to ``k`` most similar experiences of other episodes (and other tasks where asked), best first."""
        if not k or not len(self.retrieval):
            return [[] for _ in requests]
        asked = [Query(r.state, r.action, r.episode, r.task if x else None) for r, x in zip(requests, exclude_task, strict=True)]
        return [[h.transition for h in row] for row in self.retrieval.topk(asked, k)]

    def query(self, request: Request, similar: Sequence[Transition]) -> str:
        """The action-dependent part with the best ``k`` of ``similar``; the most similar comes last, next to the action."""
        return render_query(self.ordered(similar), request.action)

    def ordered(self, similar: Sequence[Transition]) -> Sequence[Transition]:
        """The best ``k`` in the order in which they are shown."""
        best = similar[: self.config.k]
        return best[::-1] if self.config.best_last else best

    def queries(self, requests: Sequence[Request], exclude_task: Sequence[bool]) -> list[str]:
        """The action-dependent part of each prompt, its experiences retrieved."""
        shown = self.similar(requests, exclude_task, self.config.k)
        return [self.query(r, s) for r, s in zip(requests, shown, strict=True)]


def unseen_part(sheet: State, seen: set[str]) -> State:
    """The facts of a sheet about things that have not been in sight; a thing once seen is the state's business."""
    return tuple(s for s in sheet if entity(s) not in seen)
