"""Exact top-k by inner product: a blockwise matrix product, what may not be found masked out, ties to the older step.

    ids, scores = exact(matrix, queries, k=5, visible=mask, hidden=[Hidden(span, task)], tasks=codes)

Blocks keep memory flat; the result does not depend on their size but for the last bit of a sum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK, TOGETHER = 8192, 1024
"""Rows of one product, and queries whose scores are looked through at once."""
MANY, GROUP = 8, 32
"""Candidates of a block, times k, from which on a bound on its k-th best is cheaper than sorting them; and the rows whose best is looked at
for that bound: the k-th of such bests is no better than the k-th of all."""
Floats = NDArray[np.float32]
LOWEST = np.float32(-np.inf)


class Hidden(NamedTuple):
    """What one query must not find: the steps of an episode (they are neighbours), the steps of a task (by its number)."""

    span: slice | None = None
    task: int | None = None


def exact(
    matrix: Floats,
    queries: Floats,
    k: int,
    visible: NDArray[np.bool_] | None = None,
    hidden: Sequence[Hidden] = (),
    tasks: NDArray[np.int32] | None = None,
) -> tuple[NDArray[np.int64], Floats]:
    """Numbers [queries, k] and scores of the best rows, best first; -1 and -inf where fewer may be found.

    ``visible`` [rows] holds for all queries, ``hidden`` for each its own; ``tasks`` [rows] are the numbers that it names.
    """
    n = len(queries)
    ids, scores = np.full((n, k), -1, np.int64), np.full((n, k), LOWEST, np.float32)
    if not n or not k:
        return ids, scores
    floor = np.full(n, LOWEST, np.float32)
    veil = None if visible is None else np.where(visible, np.float32(0), LOWEST)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]] = []
    for start in range(0, len(matrix), BLOCK):
        end = min(start + BLOCK, len(matrix))
        product = queries @ matrix[start:end].T  # of all queries: the last bit of a sum depends on the product's shape
        for first in range(0, n, TOGETHER):
            part = slice(first, first + TOGETHER)
            rows, columns, values = _close(product[part], start, floor[part], k, veil, hidden[part], tasks)
            found.append((rows + first, columns, values))
    if not found:
        return ids, scores
    rows, columns, values = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    best = place < k
    ids[rows[best], place[best]] = columns[best]
    scores[rows[best], place[best]] = values[best]
    return ids, scores


def _close(
    block: Floats,
    start: int,
    floor: Floats,
    k: int,
    veil: Floats | None,
    hidden: Sequence[Hidden],
    tasks: NDArray[np.int32] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The candidates of a block of scores [queries, rows from ``start`` on]; raises ``floor`` [queries], below which none is left.

    ``veil`` [all rows]: added to the scores.
    """
    end = start + block.shape[1]
    if veil is not None:
        block += veil[start:end]
    for row, (span, task) in enumerate(hidden):
        if span is not None and span.start < end and span.stop > start:
            block[row, max(span.start - start, 0) : span.stop - start] = LOWEST
        if task is not None and tasks is not None:
            block[row, tasks[start:end] == task] = LOWEST
    close = (block >= floor[:, None]) & (block > LOWEST)
    if end - start >= k and np.count_nonzero(close) > MANY * k * len(block):
        groups = (end - start) // GROUP
        best = block[:, : groups * GROUP].reshape(len(block), groups, GROUP).max(2) if groups >= k else block
        edge = best.max(1) if k == 1 else np.partition(best, best.shape[1] - k, axis=1)[:, best.shape[1] - k]
        np.maximum(floor, edge, out=floor)
        close &= block >= floor[:, None]
    rows, columns = np.nonzero(close)
    return rows, columns + start, block[rows, columns]
