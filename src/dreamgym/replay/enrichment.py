"""What of the dream comes into the buffer, and what goes when it is full (arXiv 2511.03773 §4.1 feeds all of it back).

    replay = Enriched(buffer, [Sure(4.0), Novel(0.999)], capacity=200_000)       # Satisfies Replay
    replay.add(episodes, generation)
    replay.metrics()             # steps held, episodes admitted and refused by reason, evicted steps, share of real ones shown

A rule looks at valid episodes and says which may come in; no rule: all (the paper's reading). To retrieve real experiences only, do
not add at all: a run without ``Replay`` keeps its first snapshot. Real episodes are never refused, and go last when room is short; the
logs (generation 0) never go, since audits read them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from dreamgym.core.errors import DataError
from dreamgym.core.types import Episode
from dreamgym.replay.buffer import ReplayBuffer, Snapshot
from dreamgym.replay.columns import NEVER
from dreamgym.replay.contract import Hit, Query, Retrieval
from dreamgym.replay.upkeep import compact

Search = Callable[[Snapshot], Retrieval]
"""How a snapshot is searched: as it is, or reranked."""


class Rule(Protocol):
    """Says of each dreamed episode whether it may come into ``buffer``."""

    @property
    def name(self) -> str: ...

    def admits(self, episodes: Sequence[Episode], buffer: ReplayBuffer) -> list[bool]: ...


class Sure:
    """The experience model was sure of every step: no reply less probable than exp(-``surprise``)."""

    name = "unsure"

    def __init__(self, surprise: float) -> None:
        self.surprise = surprise

    def admits(self, episodes: Sequence[Episode], buffer: ReplayBuffer) -> list[bool]:
        """Raises ``DataError`` where a step does not say how sure the model was."""
        for e in episodes:
            if any(t.surprise is None for t in e.steps):
                raise DataError(f"episode {e.id}: its steps carry no surprise; admitting by it needs a local experience model")
        return [all((t.surprise or 0.0) <= self.surprise for t in e.steps) for e in episodes]


class Novel:
    """Some step is unlike all that is held: its nearest has a cosine below ``cosine``. Of equal episodes the first may come in."""

    name = "known"

    def __init__(self, cosine: float) -> None:
        self.cosine = cosine

    def admits(self, episodes: Sequence[Episode], buffer: ReplayBuffer) -> list[bool]:
        asked = {(t.state, t.action): Query(t.state, t.action) for e in episodes for t in e.steps}
        hits = buffer.snapshot().topk(list(asked.values()), 1)
        near = {pair: row[0].score if row else -1.0 for pair, row in zip(asked, hits, strict=True)}
        seen: set[tuple[object, ...]] = set()
        verdicts = []
        for e in episodes:
            content = (e.task.id, *((t.state, t.action, t.change, t.outcome) for t in e.steps))
            verdicts.append(content not in seen and any(near[t.state, t.action] < self.cosine for t in e.steps))
            seen.add(content)
        return verdicts


class Enriched:
    """``buffer`` behind ``rules``, with room for ``capacity`` steps beside the logs (None = any number)."""

    def __init__(
        self,
        buffer: ReplayBuffer,
        rules: Sequence[Rule] = (),
        capacity: int | None = None,
        search: Search = lambda snapshot: snapshot,
    ) -> None:
        self.buffer, self.rules, self.capacity, self.search = buffer, rules, capacity, search
        self.counts: Counter[str] = Counter()
        """Of the last ``add``."""
        self.shown: Counter[str] = Counter()
        """Hits by source since the last ``metrics``."""

    def __len__(self) -> int:
        return len(self.buffer)

    def prepare(self, episodes: Sequence[Episode]) -> None:
        self.buffer.prepare(episodes)

    def add(self, episodes: Iterable[Episode], generation: int | None = None) -> int:
        """Take in the valid episodes that every rule admits, then make room."""
        given = list(episodes)
        left = [e for e in given if e.valid]
        self.counts = Counter(refused_invalid=len(given) - len(left))
        for rule in self.rules:
            dreamed = [e for e in left if e.source == "dream"]
            refused = {e.id for e, fine in zip(dreamed, rule.admits(dreamed, self.buffer), strict=True) if not fine}
            self.counts[f"refused_{rule.name}"] = len(refused)
            left = [e for e in left if e.id not in refused]
        self.counts["admitted"] = sum(bool(e.steps) for e in left)
        came = self.buffer.add(left, generation)
        self._make_room(generation)
        return came

    def _make_room(self, generation: int | None) -> None:
        """Evict whole episodes: dreamed ones first, the oldest first."""
        store = self.buffer.store
        live = (store.columns["evicted"] == NEVER) & (store.columns["generation"] > 0)
        over = int(live.sum()) - (self.capacity if self.capacity is not None else len(live))
        self.counts["evicted"] = 0
        if over <= 0:
            return
        since = generation if generation is not None else int(store.columns["generation"].max())
        starts = np.array([store.span(p).start for p in range(store.places())])
        order = np.flatnonzero(live[starts])
        gone = []
        for place in sorted(order.tolist(), key=lambda p: (int(store.columns["real"][starts[p]]), p)):
            if over <= 0:
                break
            gone.append(place)
            span = store.span(place)
            over -= span.stop - span.start
            self.counts["evicted"] += span.stop - span.start
        store.evict(gone, since)
        if (store.columns["evicted"] < since).mean() > 0.5:  # nothing can ask for these any more, not even an iteration played again
            compact(store, since - 1)

    def snapshot(self) -> Retrieval:
        return _Counted(self.search(self.buffer.snapshot()), self.shown)

    def rewind(self, generation: int) -> None:
        self.buffer.rewind(generation)

    def held(self) -> int:
        return self.buffer.held()

    def metrics(self) -> dict[str, float]:
        """Of the last ``add``, and of what was shown since the last call."""
        shown = dict(self.shown)
        self.shown.clear()
        return {
            **self.buffer.metrics(),
            **{f"buffer_{name}": float(n) for name, n in self.counts.items()},
            **({"retrieved_real": shown.get("real", 0) / sum(shown.values())} if shown else {}),
        }


class _Counted:
    """A retrieval that counts what it shows."""

    def __init__(self, retrieval: Retrieval, shown: Counter[str]) -> None:
        self._retrieval, self._shown = retrieval, shown

    def __len__(self) -> int:
        return len(self._retrieval)

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        found = self._retrieval.topk(queries, k)
        self._shown.update(h.source for row in found for h in row)
        return found
