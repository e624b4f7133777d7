"""What retrieval is: queries in, hits out, over a fixed set of transitions; and what a buffer is: episodes in, snapshots out.

    snapshot = buffer.snapshot()                       # what is there at this moment; later adds stay invisible to it
    hits = snapshot.topk([Query(state, action, exclude_episode=e, exclude_task=t)], k=2)

Rollouts of one iteration read one snapshot, so retrieval does not depend on which episode finishes first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dreamgym.core.errors import PanelLeakError
from dreamgym.core.state import State
from dreamgym.core.types import EVALUATION, Episode, Outcome, Source, Transition


@dataclass(frozen=True, slots=True)
class Query:
    """One (state, action), what must not be found for it, and what alone may be (None = all)."""

    state: State
    action: str
    exclude_episode: str | None = None
    exclude_task: str | None = None
    source: Source | None = None
    env: str | None = None
    """The environment's name as episodes carry it; dreamed ones are of ``dream``."""
    outcome: Outcome | None = None
    min_policy_version: int | None = None
    """Episodes of this policy and later ones only; recorded logs are of version 0."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved transition with its provenance and cosine."""

    transition: Transition
    episode: str
    task: str
    source: Source
    score: float


class Retrieval(Protocol):
    """Batch top-k over a fixed set of transitions: the part of a replay buffer that predictions need."""

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """For each query the k most similar, best first, ties by age; fewer where fewer may be shown."""
        ...

    def __len__(self) -> int: ...


class Replay(Protocol):
    """A store of episodes that can be searched at a fixed moment."""

    def prepare(self, episodes: Sequence[Episode]) -> None:
        """Begin with what ``add`` of these will need (encoding), in the background where that can be."""
        ...

    def add(self, episodes: Iterable[Episode], generation: int | None = None) -> int:
        """Take in valid episodes, to be found from ``generation`` on; returns how many steps came in."""
        ...

    def snapshot(self) -> Retrieval: ...

    def rewind(self, generation: int) -> None:
        """Forget what came in for later generations: an iteration that a kill cut off is played again."""
        ...

    def held(self) -> int:
        """Steps that can be found now."""
        ...

    def metrics(self) -> dict[str, float]:
        """What to log of an iteration, by name."""
        ...

    def __len__(self) -> int: ...


def may_enter(episode: Episode) -> bool:
    """Whether an episode may be kept: valid, with steps, each of them paid. Raises ``PanelLeakError`` for one of an evaluation panel."""
    if episode.task.panel in EVALUATION:
        raise PanelLeakError(f"episode {episode.id} belongs to the panel {episode.task.panel}: it may be evaluated on, never retrieved")
    return episode.valid and bool(episode.steps) and all(t.reward is not None for t in episode.steps)


def found_from(episode: Episode, generation: int | None) -> int:
    """The generation from which an episode is found: the one named, else the one after its own dream, 0 for a real one."""
    return generation if generation is not None else episode.policy_version + 1 if episode.source == "dream" else 0
