"""Searching vectors: exactly, as brute force does, and approximately, with a recall that is measured; what is hidden stays hidden."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_replay import episode, queries

from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.contract import Query
from dreamgym.replay.search import Hidden, exact
from dreamgym.replay.upkeep import compact


@given(
    st.integers(1, 40).flatmap(lambda n: hnp.arrays(np.float32, (n, 3), elements=st.integers(-2, 2).map(float))),
    hnp.arrays(np.float32, (4, 3), elements=st.integers(-2, 2).map(float)),
    st.integers(1, 6), st.randoms(use_true_random=False), st.sampled_from([1, 4, 7, 100]), st.integers(1, 5),
)  # fmt: skip
def test_the_search_equals_brute_force_with_ties_to_the_older(matrix, queries, k, rng, block, together):
    n = len(matrix)
    visible = np.array([rng.random() < 0.8 for _ in range(n)])
    tasks = np.array([rng.randrange(3) for _ in range(n)], np.int32)
    a, b = sorted((rng.randrange(n + 1), rng.randrange(n + 1)))
    hidden = [Hidden(slice(a, b), 1), Hidden(None, 2), Hidden(slice(a, b), None), Hidden()]
    import dreamgym.replay.search as search

    before = search.BLOCK, search.TOGETHER
    search.BLOCK, search.TOGETHER = block, together
    try:
        ids, scores = exact(matrix, queries, k, visible, hidden, tasks)
    finally:
        search.BLOCK, search.TOGETHER = before
    for q, (span, task), row, values in zip(queries, hidden, ids.tolist(), scores.tolist(), strict=True):
        allowed = [i for i in range(n) if visible[i] and not (span and span.start <= i < span.stop) and tasks[i] != task]
        wanted = sorted(allowed, key=lambda i: (-float(matrix[i] @ q), i))[:k]
        assert row == wanted + [-1] * (k - len(wanted))
        assert values[: len(wanted)] == [float(matrix[i] @ q) for i in wanted]


def clustered(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n // 50, 24))[rng.integers(n // 50, size=n)] + 0.4 * rng.standard_normal((n, 24))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_approximate_index_keeps_its_recall_and_every_exclusion():
    pytest.importorskip("faiss", reason="needs the extra [faiss]")
    from dreamgym.replay.approximate import ApproximateIndex

    matrix = clustered(6000)
    asked = matrix[::150] + 0.05 * np.random.default_rng(1).standard_normal((40, 24)).astype(np.float32)
    index = ApproximateIndex.build(matrix[:5000], recall=0.95)
    assert index.recall >= 0.93
    tasks = np.arange(6000, dtype=np.int32) % 9
    rng = np.random.default_rng(2)
    visible = rng.random(6000) < 0.5
    hidden = [Hidden(slice(10 * i, 10 * i + 2000 * (i % 3)), i % 9 if i % 2 else None) for i in range(40)]
    for mask, hide in ((None, ()), (visible, hidden)):
        ids, scores = index.search(matrix, asked, 5, mask, hide, tasks)
        wanted = exact(matrix, asked, 5, mask, hide, tasks)
        assert np.mean(scores >= wanted[1] - 1e-5) > 0.9
        assert np.allclose(scores, (matrix[ids] * asked[:, None]).sum(2), atol=1e-5)
        assert (np.diff(scores, axis=1) <= 0).all()
        for row, h in zip(ids.tolist(), hide, strict=False):
            assert all(visible[i] and tasks[i] != h.task and not h.span.start <= i < h.span.stop for i in row)
    few = index.search(matrix, asked, 5, np.arange(6000) < 3)
    assert (few[0] >= 0).sum(1).tolist() == [3] * 40, "too few are answered exactly"


def test_a_buffer_may_search_approximately(tmp_path):
    pytest.importorskip("faiss", reason="needs the extra [faiss]")
    buffer = ReplayBuffer(tmp_path)
    buffer.add([episode(i) for i in range(300)])
    asked = queries(4, filters=False)
    wanted = buffer.snapshot().topk(asked, 2)
    assert buffer.approximate(0.99) > 0.95
    buffer.add([episode(i) for i in range(300, 310)])
    found = buffer.snapshot().topk(asked, 2)
    close = [f[0].score >= w[0].score - 1e-5 for f, w in zip(found, wanted, strict=True)]
    assert np.mean(close) > 0.9
    buffer.store.evict([0], generation=1)
    compact(buffer.store)
    assert buffer.index() is None, "its numbers are not those of the compacted buffer"
    late = episode(305).transitions[0]
    assert buffer.snapshot().topk([Query(late.state, late.action)], 1)[0][0].score == pytest.approx(1.0, abs=1e-5)
