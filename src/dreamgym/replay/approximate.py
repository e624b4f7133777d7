"""An approximate index for buffers of a million steps: faiss's inverted file over the older part, exact search over the rest.

    index = ApproximateIndex.build(matrix, recall=0.98)        # measures its own recall against exact search and keeps it
    ids, scores = index.search(matrix, queries, 5, visible, hidden, tasks)

It pays from some hundred thousand steps on. It is derived from the vectors, never stored: build it anew after opening. What a query
may not find is dropped from a longer list; where too few are left, that query is answered exactly.
"""

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym.core.errors import MissingExtraError
from dreamgym.core.seeding import keyed_rng
from dreamgym.replay.search import Floats, Hidden, exact

DEEP = 4
"""Recall is measured at this times k: a query may be denied its nearest ones, which are its own episode's."""
SPARE = 64
"""Candidates beyond k: an excluded episode's steps are mostly each other's neighbours."""


class ApproximateIndex:
    """Built by ``build``. ``size`` rows are indexed, later ones are searched exactly."""

    def __init__(self, index: Any, size: int, probes: int, recall: float) -> None:
        self._index, self.size, self.probes, self.recall = index, size, probes, recall

    @classmethod
    def build(cls, matrix: Floats, recall: float = 0.98, k: int = 5, sample: int = 256, seed: int = 0) -> "ApproximateIndex":
        """Index all rows of ``matrix``, and probe as many lists as ``recall`` at ``DEEP * k`` takes on a sample of perturbed rows.

        ``recall`` of the result is what was measured on other rows than the probes were chosen on.
        """
        faiss = _faiss()
        n, dimension = matrix.shape
        faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
        lists = max(1, min(int(np.sqrt(n)), n // 39 or 1))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed + 1
        rng = keyed_rng(seed, "approximate")
        index.train(np.ascontiguousarray(matrix[np.sort(rng.choice(n, min(n, 64 * lists), replace=False))]))
        for start in range(0, n, 65536):
            index.add(np.ascontiguousarray(matrix[start : start + 65536]))
        rows = np.sort(rng.choice(n, min(n, 2 * sample), replace=False))
        noise = rng.standard_normal((len(rows), dimension)).astype(np.float32) * 0.3 / np.sqrt(dimension)
        asked = matrix[rows] + noise
        asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-12)
        chosen, judged = asked[::2], asked[1::2]
        k = min(DEEP * k, n)
        made, wanted = cls(index, n, 1, 0.0), exact(matrix, chosen, k)[1]
        while made._recall(wanted, chosen, k) < recall + (1 - recall) / 4 and made.probes < lists:
            made.probes = min(2 * made.probes, lists)
        made.recall = made._recall(exact(matrix, judged, k)[1], judged, k)
        return made

    def _recall(self, wanted: Floats, queries: Floats, k: int) -> float:
        """Share of hits that score as well as the exact ones do: among ties any will do."""
        scores, _ = self._candidates(queries, k)
        return float(np.mean(scores >= wanted - 1e-5))

    def _candidates(self, queries: Floats, k: int, visible: NDArray[np.bool_] | None = None) -> tuple[Floats, NDArray[np.int64]]:
        faiss = _faiss()
        selector = None if visible is None else faiss.IDSelectorBitmap(np.packbits(visible[: self.size], bitorder="little"))
        parameters = faiss.SearchParametersIVF(nprobe=self.probes, sel=selector)
        scores, ids = self._index.search(np.ascontiguousarray(queries), min(k, self.size), params=parameters)
        return scores, ids

    def search(
        self,
        matrix: Floats,
        queries: Floats,
        k: int,
        visible: NDArray[np.bool_] | None = None,
        hidden: Sequence[Hidden] = (),
        tasks: NDArray[np.int32] | None = None,
    ) -> tuple[NDArray[np.int64], Floats]:
        """Like ``exact``, but for the neighbours that the probed lists do not hold."""
        scores, ids = self._candidates(queries, k + SPARE, visible)
        for row, (span, task) in enumerate(hidden):
            out = np.zeros(ids.shape[1], np.bool_)
            if span is not None:
                out |= (ids[row] >= span.start) & (ids[row] < span.stop)
            if task is not None and tasks is not None:
                out |= tasks[ids[row]] == task
            ids[row][out], scores[row][out] = -1, -np.inf
        short = np.flatnonzero((ids >= 0).sum(1) < k)
        if len(matrix) > self.size:
            rest, names = None if visible is None else visible[self.size :], None if tasks is None else tasks[self.size :]
            later = exact(matrix[self.size :], queries, k, rest, [self._later(h) for h in hidden], names)
            ids = np.concatenate([ids, np.where(later[0] >= 0, later[0] + self.size, -1)], axis=1)
            scores = np.concatenate([scores, later[1]], axis=1)
        order = np.lexsort((ids, -scores))[:, :k]
        ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
        if len(short):
            mine = [hidden[int(i)] for i in short] if hidden else ()
            ids[short], scores[short] = exact(matrix, queries[short], k, visible, mine, tasks)
        return ids, scores

    def _later(self, h: Hidden) -> Hidden:
        """What is hidden, as numbers among the rows that are not indexed."""
        span = None if h.span is None else slice(max(h.span.start - self.size, 0), max(h.span.stop - self.size, 0))
        return Hidden(span, h.task)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as e:
        raise MissingExtraError("faiss-cpu", "faiss") from e
