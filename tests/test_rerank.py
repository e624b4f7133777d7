"""Other orders than plain cosine: every exclusion holds in each, and each does what it is for."""

from dataclasses import replace

import numpy as np
import pytest
from test_replay import episode, may_be_found, queries

from dreamgym.core.types import StopReason
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.contract import Query
from dreamgym.replay.rerank import RerankConfig, Reranked, Words
from dreamgym.replay.upkeep import compact


def a_buffer(n: int = 60) -> ReplayBuffer:
    buffer = ReplayBuffer()
    buffer.add([episode(i, "dream" if i % 3 == 0 else "real", i % 4, ("kitchen", "shop")[i % 2]) for i in range(n)])
    return buffer


@pytest.mark.parametrize("config", [{"mmr": 0.5}, {"bm25": True}, {"real_share": 0.5}, {"mmr": 0.7, "bm25": True, "real_share": 0.6}])
def test_every_order_leaks_nothing_and_is_deterministic(config):
    if config.get("bm25"):
        pytest.importorskip("bm25s", reason="needs the extra [lexical]")
    buffer, asked = a_buffer(), queries(2)
    held = {e.id: e for e in buffer.store.episodes()}
    retrieval = Reranked(buffer.snapshot(), RerankConfig(**config))
    plain, found = buffer.snapshot().topk(asked, 3), retrieval.topk(asked, 3)
    for q, hits, near in zip(asked, found, plain, strict=True):
        assert len(hits) >= len(near)
        assert all(may_be_found(q, held[h.episode], h.transition) and h.transition in held[h.episode].steps for h in hits)
        if config.get("real_share") and q.source is None:
            real = buffer.snapshot().topk([replace(q, source="real")], 3)[0]
            wanted = min(int(np.ceil(config["real_share"] * 3)), len(real))
            assert sum(h.source == "real" for h in hits) >= wanted
    assert retrieval.topk(asked[::-1], 3)[::-1] == found, "whatever is asked beside it"


def test_relevance_alone_is_the_plain_order():
    buffer, asked = a_buffer(), queries(3, filters=False)
    assert RerankConfig().plain
    found, plain = Reranked(buffer.snapshot(), RerankConfig()).topk(asked, 3), buffer.snapshot().topk(asked, 3)
    for f, p in zip(found, plain, strict=True):
        assert [h.score for h in f] == pytest.approx([h.score for h in p], abs=1e-5)


def test_a_diverse_order_shows_unlike_experiences():
    buffer, asked = a_buffer(), queries(4, filters=False)

    def alike(mmr):
        rows = Reranked(buffer.snapshot(), RerankConfig(mmr=mmr)).topk(asked, 4)
        vectors = [buffer.encoder.encode([(h.transition.state, h.transition.action) for h in row]) for row in rows]
        return np.mean([(v @ v.T)[np.triu_indices(4, 1)].mean() for v in vectors])

    assert alike(0.3) < alike(0.7) < alike(1.0)


def test_what_a_snapshot_does_not_show_has_no_part_in_its_order():
    pytest.importorskip("bm25s", reason="needs the extra [lexical]")
    buffer = ReplayBuffer()
    buffer.add([episode(i) for i in range(60)])
    asked = queries(5, filters=False)

    def found():
        return Reranked(buffer.snapshot(0), RerankConfig(bm25=True)).topk(asked, 3)

    before = found()
    buffer.add([episode(100 + i, "dream") for i in range(160)], 1)
    assert found() == before, "neither by what counts as a rare word nor by lengths"
    buffer.evict([f"e{100 + i}" for i in range(160)], 2)
    compact(buffer.store)
    assert found() == before


def test_shared_words_find_what_the_cosine_does_not():
    pytest.importorskip("bm25s", reason="needs the extra [lexical]")
    buffer = a_buffer(200)
    rare = episode(500)
    first = rare.transitions[0].model_copy(update={"action": "unscrew flangewidget", "outcome": "go", "reward": 0.0})
    buffer.add([rare.model_copy(update={"transitions": (first,), "stop": StopReason.ABANDONED})])
    words = Words(buffer)
    query = Query(("[a] b: c",), "polish flangewidget")
    assert words.best(buffer.snapshot(), query, 3) == [len(buffer) - 1]
    assert words.best(buffer.snapshot(0), Query((), "flangewidget", exclude_episode="e500"), 3) == []
    assert words.best(buffer.snapshot(), Query((), "nothing_known"), 3) == []
    early = buffer.snapshot()
    buffer.add([episode(600 + i) for i in range(3)])
    assert words.best(early, query, 3) == words.best(buffer.snapshot(), query, 3)
    buffer.store.evict([0], generation=1)
    compact(buffer.store)
    place = words.best(buffer.snapshot(), query, 1)[0]
    assert buffer.store.transition(place).action == "unscrew flangewidget"
    assert Reranked(buffer.snapshot(), RerankConfig(bm25=True), words).topk([query], 1)[0][0].transition.action == "unscrew flangewidget"
