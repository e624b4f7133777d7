"""Changing the encoder while the buffer serves (arXiv 2301.03767): re-embed in the background, answer from both parts meanwhile.

    number = store.add_encoder(identity_of(new))
    backfill(store, new, number)                       # in a thread, if you like; killed, it goes on where it was
    hits = BackfillSnapshot(buffer, new, number, RankMerge(old)).topk(queries, k)
    store.serve(number)                                # when every step has its new vector

Steps that have their new vector are searched by the new query, the others by an old one; the two lists are merged by score.
How the old query is made and how the scores are made comparable is the *merge*. The paper's numbered equations were not
available to us: this, and ``transform.py``, is a reconstruction from its description.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dreamgym.core.errors import MissingExtraError
from dreamgym.replay.buffer import ReplayBuffer, Snapshot
from dreamgym.replay.contract import Hit, Query
from dreamgym.replay.encoders import Encoder, Pair
from dreamgym.replay.search import Floats
from dreamgym.replay.store import EpisodeStore


def backfill(
    store: EpisodeStore,
    encoder: Encoder,
    number: int,
    batch: int = 512,
    pause_s: float = 0.0,
    report: Callable[[int, int], None] = lambda done, total: None,
    at_most: int | None = None,
) -> int:
    """Give every step (or ``at_most`` further ones) its vector of ``encoder``, oldest first, ``batch`` per commit; returns how many.

    ``pause_s`` between commits leaves the disk to who appends. What was committed before a kill is not done again.
    """
    made = 0
    while at_most is None or made < at_most:
        with store.guard:
            filled, numbering = store.filled(number), store.numbering
            if filled.all():
                break
            first = int(np.argmin(filled))
            end = min(first + batch, len(filled), first + (batch if at_most is None else at_most - made))
            taken = np.flatnonzero(filled[first:end])
            end = first + int(taken[0]) if len(taken) else end
            steps = [store.transition(i) for i in range(first, end)]
        vectors = encoder.encode([(t.state, t.action) for t in steps])
        with store.guard:
            if store.numbering != numbering:  # compacted meanwhile: these numbers are of other steps now
                continue
            store.write_vectors(number, first, vectors)
        made += end - first
        report(int(filled.sum()) + end - first, len(filled))
        time.sleep(pause_s)
    return made


class Merge(Protocol):
    """How to search the part that has old vectors only, and to hold its scores against the new ones."""

    def old_queries(self, pairs: Sequence[Pair], new: Floats) -> Floats:
        """Queries [pairs, old dimension] for the old part; ``new``: those of the new encoder."""
        ...

    def comparable(self, old: Floats, new: Floats) -> tuple[Floats, Floats]:
        """Scores of hits in the old and the new part, on one scale."""
        ...


class RankMerge:
    """Distance rank merge: each part by its own encoder, raw cosines side by side. Every query is encoded twice."""

    def __init__(self, old: Encoder) -> None:
        self.old = old

    def old_queries(self, pairs: Sequence[Pair], new: Floats) -> Floats:
        return self.old.encode(pairs)

    def comparable(self, old: Floats, new: Floats) -> tuple[Floats, Floats]:
        return old, new


class Calibrated(RankMerge):
    """Rank merge on calibrated scores: each encoder's cosine as the share of held-out pairs of that cosine that belong together."""

    def __init__(self, old: Encoder, curve_old: tuple[Floats, Floats], curve_new: tuple[Floats, Floats]) -> None:
        super().__init__(old)
        self.curve_old, self.curve_new = curve_old, curve_new

    @classmethod
    def fit(cls, old: Encoder, old_vectors: Floats, new_vectors: Floats, labels: Sequence[int]) -> "Calibrated":
        """Isotonic curves from vectors of the same held-out texts; those with one label belong together (the extra [sentence])."""
        return cls(old, _curve(old_vectors, labels), _curve(new_vectors, labels))

    def comparable(self, old: Floats, new: Floats) -> tuple[Floats, Floats]:
        """The cosine itself breaks ties on a flat part of the curve."""
        return _along(old, self.curve_old), _along(new, self.curve_new)


def _curve(vectors: Floats, labels: Sequence[int]) -> tuple[Floats, Floats]:
    """Cosine -> share of pairs with equal labels, never falling."""
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError as e:
        raise MissingExtraError("scikit-learn", "sentence") from e
    first, second = np.triu_indices(len(vectors), 1)
    names = np.asarray(labels)
    curve = IsotonicRegression(out_of_bounds="clip").fit((vectors @ vectors.T)[first, second], names[first] == names[second])
    return np.asarray(curve.X_thresholds_, np.float32), np.asarray(curve.y_thresholds_, np.float32)


def _along(scores: Floats, curve: tuple[Floats, Floats]) -> Floats:
    values = np.interp(scores, *curve) + 1e-4 * np.where(np.isfinite(scores), scores, 0.0)
    return np.where(np.isfinite(scores), values, scores).astype(np.float32)


@dataclass(frozen=True)
class BackfillSnapshot:
    """A buffer that is being re-embedded. Satisfies ``Retrieval``."""

    buffer: ReplayBuffer
    encoder: Encoder
    number: int
    merge: Merge

    def __len__(self) -> int:
        return len(self.buffer)

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """Like ``Snapshot.topk``, over both parts."""
        now = Snapshot(self.buffer, len(self.buffer))
        pairs = [(q.state, q.action) for q in queries]
        new_queries = self.encoder.encode(pairs)
        filled = self.buffer.store.filled(self.number)
        old = now.search(self.buffer.number, self.merge.old_queries(pairs, new_queries), queries, k, ~filled)
        new = now.search(self.number, new_queries, queries, k, filled)
        scores = np.concatenate(self.merge.comparable(old[1], new[1]), axis=1)
        ids = np.concatenate([old[0], new[0]], axis=1)
        found: list[list[Hit]] = []
        for steps, values in zip(ids, scores, strict=True):
            order = [i for i in np.lexsort((steps, -values)) if steps[i] >= 0][:k]
            found.append([now.hit(int(steps[i]), float(values[i])) for i in order])
        return found
