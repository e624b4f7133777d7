"""Other orders than plain cosine: diverse experiences, also by their words, at least a share of real ones.

    retrieval = Reranked(snapshot, RerankConfig(mmr=0.7, bm25=True, real_share=0.5))      # Satisfies Retrieval

Candidates are the nearest by cosine, with ``bm25`` also the best by BM25 (Robertson and Zaragoza 2009; the library bm25s), their ranks
fused (reciprocal rank fusion, Cormack et al. 2009). From them k are picked one by one by maximal marginal relevance (Carbonell and
Goldstein 1998): ``mmr`` times relevance, minus the rest times the similarity to what is picked already. All ties go to the older.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dreamgym.core.errors import MissingExtraError
from dreamgym.replay.buffer import ReplayBuffer, Snapshot
from dreamgym.replay.contract import Hit, Query
from dreamgym.replay.encoders import Pair, text_of
from dreamgym.replay.search import Floats

POOL = 8
"""Candidates per experience wanted."""
RANK = 60
"""The constant of reciprocal rank fusion, as its authors have it."""


class RerankConfig(BaseModel):
    """In what order experiences are found."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    mmr: float = Field(1.0, gt=0, le=1)
    """Weight of relevance against being unlike the others shown; 1 = relevance alone."""
    bm25: bool = False
    """Fuse the order by cosine with the one by shared words (the extra [lexical])."""
    real_share: float = Field(0.0, ge=0, le=1)
    """At least this share of what is shown is real, where there is as much."""

    @property
    def plain(self) -> bool:
        """Whether the order is that of the cosine alone."""
        return self == RerankConfig()


class Reranked:
    """``snapshot`` in another order. ``words`` is shared by the snapshots of one buffer."""

    def __init__(self, snapshot: Snapshot, config: RerankConfig, words: "Words | None" = None) -> None:
        self.snapshot, self.config = snapshot, config
        self.words = (words or Words(snapshot.buffer)) if config.bm25 else None

    def __len__(self) -> int:
        return len(self.snapshot)

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """For each query k experiences in the order in which they were picked; scores are cosines."""
        vectors = self.snapshot.buffer.encoder.encode([(q.state, q.action) for q in queries])
        pools = [self._near(queries, vectors, POOL * k)]
        if self.config.real_share:
            pools.append(self._near([replace(q, source="real") if q.source is None else q for q in queries], vectors, k))
        found = []
        for i, query in enumerate(queries):
            ids = [n for pool in pools for n in pool[i].tolist() if n >= 0]
            ranked = [list(dict.fromkeys(ids))]
            if self.words:
                ranked.append(self.words.best(self.snapshot, query, POOL * k))
            found.append(self._picked(vectors[i], ranked, k))
        return found

    def _near(self, queries: Sequence[Query], vectors: Floats, k: int) -> NDArray[np.int64]:
        return self.snapshot.search(self.snapshot.buffer.number, vectors, queries, k)[0]

    def _picked(self, query: Floats, ranked: list[list[int]], k: int) -> list[Hit]:
        buffer = self.snapshot.buffer
        ids = np.array(sorted({n for row in ranked for n in row}), np.int64)
        if not len(ids):
            return []
        matrix = np.asarray(buffer.store.matrix(buffer.number)[ids])
        cosine = matrix @ query
        real = buffer.store.columns["real"][ids].astype(bool)
        relevance, alike = cosine if len(ranked) == 1 else _fused(ids, cosine, ranked[1]), matrix @ matrix.T
        wanted = min(int(np.ceil(self.config.real_share * k)), int(real.sum()))
        picked: list[int] = []
        while len(picked) < min(k, len(ids)):
            near = alike[:, picked].max(1) if picked else np.zeros(len(ids), np.float32)
            value = self.config.mmr * relevance - (1 - self.config.mmr) * near
            value[picked] = -np.inf
            missing = wanted - int(real[picked].sum())
            if missing >= min(k, len(ids)) - len(picked):
                value[~real] = -np.inf
            picked.append(int(value.argmax()))
        return [self.snapshot.hit(int(ids[n]), float(cosine[n])) for n in picked]


def _fused(ids: NDArray[np.int64], cosine: Floats, by_words: Sequence[int]) -> Floats:
    """Reciprocal ranks by cosine and by words, added, scaled to 1 at best."""
    near = np.empty(len(ids), np.float32)
    near[np.lexsort((ids, -cosine))] = np.arange(len(ids))
    place = {n: rank for rank, n in enumerate(by_words)}
    shared = np.array([1 / (RANK + 1 + place[n]) if n in place else 0.0 for n in ids.tolist()], np.float32)
    return np.asarray((1 / (RANK + 1 + near) + shared) * (RANK + 1) / 2, dtype=np.float32)


class Words:
    """BM25 over what text encoders read of each step (``text_of``) that a snapshot shows; words are split once per step."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self._forget()

    def _forget(self) -> None:
        self._numbering, self._steps = self.buffer.store.numbering, np.zeros(0, np.int64)
        self._index: Any = None
        self._tokens: list[list[int]] = []
        self._vocabulary: dict[str, int] = {}

    def best(self, snapshot: Snapshot, query: Query, k: int) -> list[int]:
        """Up to ``k`` steps that share words with ``query`` and may be found for it, best first."""
        self._build(snapshot)
        asked = [self._vocabulary[w] for w in self._split((query.state, query.action)) if w in self._vocabulary]
        if not asked or self._index is None:
            return []
        scores = np.asarray(self._index.get_scores(asked))
        scores[~snapshot.admitted(query)[self._steps]] = 0.0
        span, task = snapshot.hidden(query)
        if span is not None:
            scores[(self._steps >= span.start) & (self._steps < span.stop)] = 0.0
        if task is not None:
            scores[self.buffer.store.columns["task"][self._steps] == task] = 0.0
        some = np.flatnonzero(scores > 0)
        if len(some) > k:
            some = some[scores[some] >= np.partition(scores[some], len(some) - k)[len(some) - k]]
        order = some[np.lexsort((some, -scores[some]))][:k]
        return [int(n) for n in self._steps[order]]

    def _build(self, snapshot: Snapshot) -> None:
        store = self.buffer.store
        if self._numbering != store.numbering:
            self._forget()
        steps = np.flatnonzero(snapshot.visible)
        if self._index is not None and np.array_equal(self._steps, steps):
            return
        for step in range(len(self._tokens), snapshot.size):
            t = store.transition(step)
            words = self._split((t.state, t.action))
            self._tokens.append([self._vocabulary.setdefault(w, len(self._vocabulary)) for w in words])
        self._steps, self._index = steps, None
        if len(steps):
            index = _bm25s().BM25()
            index.index(([self._tokens[i] for i in steps], dict(self._vocabulary)), show_progress=False)
            self._index = index

    @staticmethod
    def _split(pair: Pair) -> list[str]:
        return text_of(pair).replace(". ", " ").split()


def _bm25s() -> Any:
    try:
        return importlib.import_module("bm25s")
    except ImportError as e:
        raise MissingExtraError("bm25s", "lexical") from e
