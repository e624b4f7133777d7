"""What comes into the buffer, what goes when it is full, and what is shown of it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay import episode, queries

from dreamgym.core.errors import DataError
from dreamgym.core.types import StopReason
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.contract import Query
from dreamgym.replay.enrichment import Enriched, Novel, Sure
from dreamgym.replay.upkeep import verify


def dreamed(number: int, iteration: int = 0, surprise: float | None = 0.0):
    e = episode(number, "dream", iteration)
    steps = tuple(t.model_copy(update={"surprise": surprise if i == 0 else 0.0}) for i, t in enumerate(e.transitions))
    return e.model_copy(update={"transitions": steps})


def held(replay: Enriched) -> set[str]:
    """Ids of the episodes that can be found."""
    return {e.id for e in replay.buffer.store.episodes()}


def test_without_rules_all_valid_episodes_come_in():
    replay = Enriched(ReplayBuffer())
    invalid = dreamed(1).model_copy(update={"stop": StopReason.INVALID_REPLY})
    replay.add([dreamed(0), invalid, dreamed(2)], 1)
    assert held(replay) == {"e0", "e2"}
    found = replay.metrics()
    assert (found["buffer_admitted"], found["buffer_refused_invalid"], found["buffer_real"]) == (2, 1, 0)


def test_an_episode_with_an_unsure_step_stays_out_and_real_ones_are_never_asked():
    replay = Enriched(ReplayBuffer(), [Sure(2.0)])
    replay.add([dreamed(0, surprise=1.9), dreamed(1, surprise=2.1), episode(2)], 1)
    assert held(replay) == {"e0", "e2"}
    assert replay.metrics()["buffer_refused_unsure"] == 1
    with pytest.raises(DataError, match="episode e3: its steps carry no surprise"):
        replay.add([dreamed(3, surprise=None)], 1)


def test_what_is_known_stays_out():
    replay = Enriched(ReplayBuffer(), [Novel(0.999)])
    twin = dreamed(0).model_copy(update={"id": "twin"})
    replay.add([dreamed(0), twin], 1)
    assert held(replay) == {"e0"}, "of equal episodes the first"
    later = dreamed(0).model_copy(update={"id": "later"})
    replay.add([later, dreamed(4)], 2)
    assert held(replay) == {"e0", "e4"}
    assert replay.metrics()["buffer_refused_known"] == 1
    everything = Enriched(ReplayBuffer(), [Novel(1.01)])
    everything.add([dreamed(0)], 1)
    everything.add([later], 2)
    assert held(everything) == {"e0", "later"}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 60),
    st.lists(st.lists(st.tuples(st.integers(10, 400), st.booleans()), max_size=6), max_size=6),
    st.sampled_from([None, "add", "evict", "all"]),
)
def test_room_is_made_with_dreamed_episodes_first_the_oldest_first_and_logs_stay(capacity, rounds, kill):
    replay, came = Enriched(ReplayBuffer(), capacity=capacity), []
    replay.add([episode(i) for i in range(4)], 0)
    there = held(replay)
    logs = sum(len(episode(i).steps) for i in range(4))
    for iteration, arrivals in enumerate(rounds):
        new = {n: episode(n, "real" if real else "dream", iteration) for n, real in arrivals if f"e{n}" not in {e.id for e in came}}
        view, asked = replay.snapshot().topk(queries(0, 5), 3), queries(0, 5)
        if kill == "add":  # killed before room was made
            replay.buffer.add(new.values(), iteration + 1)
        elif kill:
            replay.add(new.values(), iteration + 1)
        if kill == "evict" and replay.buffer.store.places():
            replay.buffer.evict([next(replay.buffer.episodes()).id], iteration + 1)
        if kill:  # the iteration is played again: it finds what it found
            replay.rewind(iteration)
            assert not verify(replay.buffer.store)
            assert replay.snapshot().topk(asked, 3) == view
        replay.add(new.values(), iteration + 1)
        came += new.values()
        there |= {e.id for e in new.values()}
        steps = sum(len(e.steps) for e in replay.buffer.episodes()) - logs
        assert steps <= capacity
        assert replay.held() == replay.metrics()["buffer_steps"] == steps + logs
        kept = held(replay)
        assert {f"e{i}" for i in range(4)} <= kept, "the logs never go"
        assert int(replay.buffer.snapshot(0).visible.sum()) == logs, "audits find them all"
        there, before = set(kept), there
        for source in ("dream", "real"):
            mine = [e.id in kept for e in came if e.source == source and e.steps]
            assert mine == sorted(mine), "of one source, the oldest go first"
        if any(e.source == "real" and e.id not in kept for e in came if e.id in before):
            assert all(e.source == "real" for e in came if e.id in kept), "no real episode goes before a dreamed one"
    assert not verify(replay.buffer.store)


def test_room_on_disk_is_given_back(tmp_path):
    replay = Enriched(ReplayBuffer(tmp_path), capacity=40)
    replay.add([episode(i) for i in range(5)], 0)
    for iteration in range(12):
        replay.add([dreamed(100 + 10 * iteration + i, iteration) for i in range(10)], iteration + 1)
        evicted = replay.buffer.store.columns["evicted"]
        assert (evicted < iteration + 1).mean() <= 0.5
    assert len(replay) < 200 < 12 * 10 * 3
    assert {f"e{i}" for i in range(5)} <= held(replay)
    assert replay.metrics()["buffer_evicted"] > 0


def test_the_share_of_real_experiences_shown_is_counted():
    replay = Enriched(ReplayBuffer())
    replay.add([episode(i, random.Random(i).choice(("real", "dream"))) for i in range(30)], 0)
    hits = [h for row in replay.snapshot().topk(queries(1, 20, filters=False), 3) for h in row]
    assert replay.metrics()["retrieved_real"] == pytest.approx(sum(h.source == "real" for h in hits) / len(hits))
    t = episode(0).transitions[0]
    replay.snapshot().topk([Query(t.state, t.action, source="dream")], 1)
    assert replay.metrics()["retrieved_real"] == 0, "counted anew"
