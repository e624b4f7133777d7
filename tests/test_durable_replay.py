"""The durable buffer answers as the one in memory does, exactly, as of any iteration, and only with its own encoder."""

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamgym.core.errors import DataError, PanelLeakError
from dreamgym.core.files import read_episodes, write_episodes
from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.replay.buffer import Query, ReplayBuffer
from dreamgym.replay.durable import DurableReplay
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.search import Hidden, exact
from dreamgym.replay.store import EncoderIdentity, EpisodeStore
from dreamgym.replay.upkeep import compact

FOODS, VERBS = ("carrot", "lime", "meal", "knife", "red_apple", "salt"), ("take", "eat", "open", "cook", "cut")


def episode(number: int, source: str = "real", iteration: int = 0) -> Episode:
    rng = random.Random(number)
    state = tuple(sorted({f"[{rng.choice(('held', 'counter', 'fridge'))}] {f}: fresh" for f in rng.sample(FOODS, 3)}))
    steps = []
    for _ in range(rng.randint(1, 6)):
        removed = (rng.choice(state),) if state and rng.random() < 0.5 else ()
        steps.append(Transition(state=state, action=f"{rng.choice(VERBS)} {rng.choice(FOODS)}", removed=removed, reward=0.0, outcome="go"))
        state = steps[-1].next_state
    task = Task(id=f"t/{number % 7}", instruction="cook", first_state=steps[0].state)
    return Episode(id=f"e{number}", env="kitchen", task=task, source=source, behaviour="x", policy_version=iteration,
                   transitions=tuple(steps), stop=StopReason.ABANDONED)  # fmt: skip


@given(
    st.integers(1, 40).flatmap(lambda n: hnp.arrays(np.float32, (n, 3), elements=st.integers(-2, 2).map(float))),
    hnp.arrays(np.float32, (4, 3), elements=st.integers(-2, 2).map(float)),
    st.integers(1, 6), st.randoms(use_true_random=False), st.sampled_from([1, 4, 7, 100]),
)  # fmt: skip
def test_the_search_equals_brute_force_with_ties_to_the_older(matrix, queries, k, rng, block):
    n = len(matrix)
    visible = np.array([rng.random() < 0.8 for _ in range(n)])
    tasks = np.array([rng.randrange(3) for _ in range(n)], np.int32)
    a, b = sorted((rng.randrange(n + 1), rng.randrange(n + 1)))
    hidden = [Hidden(slice(a, b), 1), Hidden(None, 2), Hidden(slice(a, b), None), Hidden()]
    import dreamgym.replay.search as search

    before, search.BLOCK = search.BLOCK, block
    try:
        ids, scores = exact(matrix, queries, k, visible, hidden, tasks)
    finally:
        search.BLOCK = before
    for q, (span, task), row, values in zip(queries, hidden, ids.tolist(), scores.tolist(), strict=True):
        allowed = [i for i in range(n) if visible[i] and not (span and span.start <= i < span.stop) and tasks[i] != task]
        wanted = sorted(allowed, key=lambda i: (-float(matrix[i] @ q), i))[:k]
        assert row == wanted + [-1] * (k - len(wanted))
        assert values[: len(wanted)] == [float(matrix[i] @ q) for i in wanted]


def queries(seed: int, n: int = 60) -> list[Query]:
    rng = random.Random(seed)
    asked = []
    for _ in range(n):
        t = rng.choice(episode(rng.randrange(90)).transitions)
        exclude = {"exclude_episode": f"e{rng.randrange(90)}", "exclude_task": f"t/{rng.randrange(9)}"}
        chosen = {name: value for name, value in exclude.items() if rng.random() < 0.6}
        asked.append(Query(t.state, t.action, source=rng.choice((None, None, "real", "dream")), **chosen))
    return asked


@pytest.mark.parametrize("k", [1, 3])
def test_it_finds_what_the_buffer_in_memory_finds(tmp_path, k):
    memory, durable = ReplayBuffer(), DurableReplay(EpisodeStore(tmp_path))
    for first in (0, 30):
        part = [episode(i, "dream" if i % 3 == 0 else "real") for i in range(first, first + 30)]
        assert memory.add(part) == durable.add(part)
    assert durable.add(part) == 0, "what is in is not added again"
    assert len(memory) == len(durable)
    early = durable.snapshot()
    asked = queries(k)
    wanted, found = memory.snapshot().topk(asked, k), early.topk(asked, k)
    for w, f in zip(wanted, found, strict=True):
        assert [h.score for h in f] == pytest.approx([h.score for h in w], abs=1e-5)
        for hit, other in zip(f, w, strict=True):
            same = (hit.transition, hit.episode, hit.task, hit.source) == (other.transition, other.episode, other.task, other.source)
            assert same or abs(hit.score - other.score) < 1e-5
    durable.add([episode(80)])
    assert early.topk(asked, k) == found, "a snapshot does not see what comes later"
    durable.store.close()
    again = DurableReplay(EpisodeStore(tmp_path, "ro"))
    assert again.snapshot().topk(asked[:5], k) == durable_without(tmp_path, 80, asked[:5], k, again)


def durable_without(folder, number, asked, k, again):
    """The same from a fresh in-memory buffer over what is stored."""
    memory = ReplayBuffer()
    memory.add(again.store.episodes())
    return memory.snapshot().topk(asked, k)


def test_a_snapshot_of_an_iteration_holds_what_its_rollouts_could_find(tmp_path):
    buffer = DurableReplay(EpisodeStore(tmp_path))
    buffer.add([episode(0)])
    for iteration in range(3):
        buffer.add([episode(10 + iteration, "dream", iteration)])
    buffer.store.evict([1], generation=3)
    t = episode(0).transitions[0]

    def visible(generation):
        return {h.episode for h in buffer.snapshot(generation).topk([Query(t.state, t.action)], 50)[0]}

    assert visible(0) == {"e0"}
    assert visible(1) == {"e0", "e10"}
    assert visible(2) == {"e0", "e10", "e11"}
    assert visible(3) == {"e0", "e11", "e12"}, "evicted in generation 3"
    assert visible(None) == {"e0", "e11", "e12"}
    compact(buffer.store)
    assert visible(None) == {"e0", "e11", "e12"}


def test_invalid_and_empty_episodes_stay_out(tmp_path):
    buffer = DurableReplay(EpisodeStore(tmp_path))
    invalid = episode(1).model_copy(update={"stop": StopReason.INVALID_REPLY})
    empty = episode(2).model_copy(update={"transitions": ()})
    assert buffer.add([invalid, empty]) == 0
    assert buffer.snapshot().topk([Query(("[a] b: c",), "look")], 3) == [[]]


def test_another_encoder_is_refused(tmp_path):
    buffer = DurableReplay(EpisodeStore(tmp_path), HashingEncoder(64))
    buffer.add([episode(0)])
    buffer.store.close()
    with pytest.raises(DataError, match=r"holds no vectors of the encoder hashing-128 \(but of: hashing-64\)"):
        DurableReplay(EpisodeStore(tmp_path))
    assert EpisodeStore(tmp_path, "ro").encoders() == {1: EncoderIdentity("hashing-64", "1", 64, True)}


def test_an_episode_of_an_evaluation_panel_never_comes_in(tmp_path):
    buffer = DurableReplay(EpisodeStore(tmp_path))
    leaked = episode(1).model_copy(update={"task": episode(1).task.model_copy(update={"panel": "test"})})
    with pytest.raises(PanelLeakError, match="e1 belongs to the panel test"):
        buffer.add([episode(0), leaked])
    assert len(buffer) == 0


def command(*words):
    done = subprocess.run([sys.executable, "-m", "dreamgym.cli", "buffer", *map(str, words)], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_the_commands_move_search_check_and_shrink(tmp_path):
    buffer, file, out = tmp_path / "buffer", tmp_path / "in.jsonl", tmp_path / "out.jsonl.xz"
    episodes = [episode(i, "dream" if i > 6 else "real") for i in range(10)]
    write_episodes(file, episodes)
    assert "10 episodes read, 10 new" in command("import", buffer, file)[1]
    assert "10 episodes read, 0 new" in command("import", buffer, file)[1]
    steps = sum(len(e.steps) for e in episodes)
    assert f"10 episodes, {steps} steps: all whole" in command("verify", buffer)[1]
    t = episodes[3].transitions[0]
    code, shown = command("search", buffer, t.action, *[w for s in t.state for w in ("--state", s)], "--k", "1")
    assert (code, "1.000" in shown, "e3" in shown) == (0, True, True)
    assert not t.removed or "[" in shown, "a state line's place is no markup"
    store = EpisodeStore(buffer)
    store.evict([0, 8], generation=1)
    store.close()
    stats = command("stats", buffer)[1]
    assert "encoder hashing-128 (revision 1, 128 dimensions): 100.0% of the steps, serving" in stats
    gone = len(episodes[0].steps) + len(episodes[8].steps)
    assert f"{gone} steps dropped, {steps - gone} left" in command("compact", buffer)[1]
    assert "8 episodes written" in command("export", buffer, out)[1]
    assert list(read_episodes(out)) == [e for i, e in enumerate(episodes) if i not in (0, 8)]
    with open(next(buffer.glob("data-*/vectors-1.f32")), "r+b") as f:
        f.write(b"damage")
    code, said = command("verify", buffer)
    assert code == 1
    assert "are damaged" in said
    code, said = command("stats", tmp_path / "nowhere")
    assert (code, "holds no buffer" in said) == (1, True)


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
    buffer = DurableReplay(EpisodeStore(tmp_path))
    buffer.add([episode(i) for i in range(300)])
    asked = [q for q in queries(4) if q.source is None]
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
