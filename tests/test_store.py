"""The durable store of episodes: whole or not at all, whatever is killed, full, torn or wrong; one writer, many readers."""

import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_core import an_episode

from dreamgym.core.errors import DataError
from dreamgym.core.types import Episode
from dreamgym.replay.columns import NEVER
from dreamgym.replay.store import EncoderIdentity, EpisodeStore
from dreamgym.replay.upkeep import compact, verify

E8 = EncoderIdentity("test", "1", 8, True)
ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}", "OMP_NUM_THREADS": "1"}


def episode(number: int, source: str = "real") -> Episode:
    e = an_episode(name=f"e{number}", source=source)
    return e.model_copy(update={"task": e.task.model_copy(update={"id": f"t/{number % 5}"}), "policy_version": number})


def batch(first: int, n: int = 4) -> list[Episode]:
    return [episode(i, "dream" if i % 2 else "real") for i in range(first, first + n)]


def vectors(first: int, n: int = 4) -> np.ndarray:
    """Rows that say which step they belong to (an episode has three)."""
    return np.arange(3 * first, 3 * (first + n), dtype=np.float32)[:, None] * np.ones(8, np.float32)


def filled_store(root: Path | None, batches: int = 3) -> tuple[EpisodeStore, int]:
    store = EpisodeStore(root)
    encoder = store.add_encoder(E8, serving=True)
    for b in range(batches):
        store.append(batch(4 * b), {encoder: vectors(4 * b)}, f"batch {b}", generation=b)
    return store, encoder


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_appended_is_read_back_also_after_reopening(tmp_path, durable):
    store, encoder = filled_store(tmp_path / "buffer" if durable else None)
    if durable:
        store.close()
        store = EpisodeStore(tmp_path / "buffer", "ro")
    assert list(store.episodes()) == [e for b in range(3) for e in batch(4 * b)]
    assert (len(store), store.places(), store.serving()) == (36, 12, encoder)
    steps = [t for e in store.episodes() for t in e.steps]
    assert [store.transition(i) for i in range(36)] == steps
    assert np.array_equal(store.matrix(encoder), np.concatenate([vectors(4 * b) for b in range(3)]))
    assert store.filled(encoder).all()
    names = store.names
    assert [names[c] for c in store.columns["task"]] == [f"t:{e.task.id}" for e in store.episodes() for _ in e.steps]
    assert [names[c] for c in store.columns["episode"]] == [f"e:{e.id}" for e in store.episodes() for _ in e.steps]
    assert store.columns["real"].tolist() == [int(e.source == "real") for e in store.episodes() for _ in e.steps]
    assert store.columns["generation"].tolist() == [g for g in range(3) for _ in range(12)]
    assert store.columns["outcome"].tolist() == [("go", "won", "lost").index(t.outcome) for t in steps]
    assert store.number_of("t:t/3") is not None
    assert store.number_of("t:other") is None
    assert verify(store) == []


def test_a_temporary_store_leaves_nothing_behind():
    store, _ = filled_store(None)
    root = store.root
    assert root.exists()
    del store
    import gc

    gc.collect()
    assert not root.exists()


def test_a_batch_is_taken_once_and_an_episode_too(tmp_path):
    store, encoder = filled_store(tmp_path, 2)
    assert store.append(batch(4), {encoder: vectors(4)}, "batch 1") == range(12, 24)
    assert len(store) == 24
    with pytest.raises(DataError, match="is in already; nothing of the batch was added"):
        store.append([episode(99), episode(3)], {encoder: vectors(99, 2)}, "another")
    assert (len(store), len(list(store.episodes())), verify(store)) == (24, 8, [])
    assert store.append(batch(99, 1), {encoder: vectors(99, 1)}, "another") == range(24, 27)


@pytest.mark.parametrize(("wrong", "message"), [
    (np.zeros((12, 7), np.float32), r"shape \(12, 7\), needed is \(12, 8\)"),
    (np.zeros((11, 8), np.float32), r"shape \(11, 8\)"),
    (np.full((12, 8), np.nan, np.float32), "not finite"),
])  # fmt: skip
def test_wrong_vectors_are_refused_and_change_nothing(tmp_path, wrong, message):
    store, encoder = filled_store(tmp_path, 1)
    with pytest.raises(DataError, match=message):
        store.append(batch(4), {encoder: wrong}, "next")
    assert (len(store), store.vector_path(encoder).stat().st_size, verify(store)) == (12, 12 * 32, [])
    with pytest.raises(DataError, match="have theirs already"):
        store.write_vectors(encoder, 3, np.zeros((2, 8), np.float32))
    with pytest.raises(DataError, match="there are 12 steps"):
        store.write_vectors(encoder, 11, np.zeros((2, 8), np.float32))
    empty = episode(50).model_copy(update={"transitions": (), "branches": ()})
    with pytest.raises(DataError, match="e50: has no step"):
        store.append([empty], {encoder: np.zeros((0, 8), np.float32)}, "empty")


def test_two_encoders_stand_side_by_side_until_one_is_whole(tmp_path):
    store, old = filled_store(tmp_path, 2)
    new = store.add_encoder(EncoderIdentity("test", "2", 4, True))
    assert store.add_encoder(EncoderIdentity("test", "2", 4, True)) == new
    assert (old, new, store.serving()) == (1, 2, 1)
    assert store.matrix(new).shape == (24, 4)
    assert not store.filled(new).any()
    store.write_vectors(new, 6, np.ones((6, 4), np.float32))
    with pytest.raises(DataError, match="18 steps lack a vector of test; finish its backfill"):
        store.serve(new)
    store.append(batch(8), {old: vectors(8), new: np.ones((12, 4), np.float32)}, "b")
    store.append(batch(12), {old: vectors(12)}, "c")
    assert np.flatnonzero(store.filled(new)).tolist() == [*range(6, 12), *range(24, 36)]
    for first, n in ((0, 6), (12, 12), (36, 12)):
        store.write_vectors(new, first, np.ones((n, 4), np.float32))
    store.serve(new)
    assert (store.serving(), verify(store), bool(store.matrix(new).min())) == (new, [], True)


def test_a_second_writer_is_refused_and_a_reader_sees_what_was_committed(tmp_path):
    store, encoder = filled_store(tmp_path, 1)
    with pytest.raises(DataError, match=rf"process {os.getpid()} is writing to this buffer"):
        EpisodeStore(tmp_path)
    code = (
        "import sys; from pathlib import Path; from dreamgym.replay.store import EpisodeStore\n"
        "s = EpisodeStore(Path(sys.argv[1]), 'ro')\n"
        "for line in sys.stdin: n = s.refresh(); print(n, float(s.matrix(1)[-1, 0]), len(list(s.episodes())), flush=True)"
    )
    words, pipe = [sys.executable, "-c", code, str(tmp_path)], subprocess.PIPE
    reader = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=ENV)
    assert reader.stdin is not None
    assert reader.stdout is not None

    def look() -> list[float]:
        print("look", file=reader.stdin, flush=True)
        return [float(x) for x in reader.stdout.readline().split()]

    assert look() == [12, 11.0, 4]
    store.append(batch(4), {encoder: vectors(4)}, "b", generation=1)
    assert look() == [24, 23.0, 8]
    store.evict([0, 5], generation=2)
    assert look() == [24, 23.0, 6]
    assert compact(store) == 6
    assert look() == [18, 23.0, 6]
    reader.stdin.close()
    reader.wait(60)
    with pytest.raises(DataError, match="opened for reading"):
        EpisodeStore(tmp_path, "ro").append(batch(20), {}, "x")


def test_what_is_evicted_was_there_before_and_compaction_renumbers(tmp_path):
    store, encoder = filled_store(tmp_path)
    store.evict([1, 6], generation=5)
    gone = store.columns["evicted"] < NEVER
    assert np.flatnonzero(gone).tolist() == [3, 4, 5, 18, 19, 20]
    assert set(store.columns["evicted"][gone]) == {5}, "still there for whoever asks about generation 4"
    left = list(store.episodes())
    assert [e.id for e in left] == [f"e{i}" for i in range(12) if i not in (1, 6)]
    building = store.add_encoder(EncoderIdentity("test", "2", 2, False))
    store.write_vectors(building, 2, np.full((8, 2), 7, np.float32))
    assert compact(store) == 6
    assert (len(store), store.places(), verify(store)) == (30, 10, [])
    assert sorted(p.name for p in tmp_path.glob("data-*")) == ["data-1", "data-2"], "the old one stays for its readers, for now"
    assert list(store.episodes()) == left
    assert store.matrix(encoder)[:, 0].tolist() == [i for i in range(36) if not gone[i]]
    assert np.flatnonzero(store.filled(building)).tolist() == [2, *range(3, 7)]
    assert store.append(batch(0), {encoder: vectors(0)}, "batch 0") == range(9), "its name is still known"
    assert store.append(batch(20), {encoder: vectors(20)}, "new") == range(30, 42)
    store.close()
    assert [t.action for t in EpisodeStore(tmp_path, "ro").episode(10).transitions] == [t.action for t in episode(20).transitions]


WORKER = """
import json, sys
from pathlib import Path
from test_store import E8, batch, vectors
from dreamgym.replay.store import EncoderIdentity, EpisodeStore
from dreamgym.replay.upkeep import compact
store = EpisodeStore(Path(sys.argv[1]))
encoder = store.add_encoder(E8, serving=True)
other = store.add_encoder(EncoderIdentity("test", "2", 4, True))
n = int(sys.argv[2])
print("ready", flush=True)
while True:
    store.append(batch(4 * n), {encoder: vectors(4 * n)}, f"batch {n}", generation=n)
    print(n, flush=True)
    n += 1
    if n % 3 == 0:
        first = int((~store.filled(other)).argmax())
        import numpy as np
        open_end = first + int((~store.filled(other)[first:first + 6]).sum())
        store.write_vectors(other, first, np.ones((open_end - first, 4), np.float32))
    if n % 7 == 0:
        compact(store)
"""


def kill_loop(root: Path, kills: int, seed: int = 0) -> tuple[int, list[str]]:
    """Appends, backfill and compaction, killed at random moments; acknowledged batches, and what was found wrong."""
    rng, acknowledged, wrong = random.Random(seed), 0, []
    for kill in range(kills):
        worker = subprocess.Popen([sys.executable, "-c", WORKER, str(root), str(acknowledged)], stdout=subprocess.PIPE, text=True, env=ENV)
        assert worker.stdout is not None
        assert worker.stdout.readline().strip() == "ready"
        time.sleep(rng.uniform(0.0, 0.25))
        worker.send_signal(signal.SIGKILL)
        said = [int(line) for line in worker.stdout.read().split("\n") if line.strip().isdigit()]
        worker.wait()
        acknowledged = max([acknowledged, *(n + 1 for n in said)])
        store = EpisodeStore(root)
        found = [e.id for e in store.episodes()]
        wrong += verify(store)
        if len(found) < 4 * acknowledged:
            wrong.append(f"kill {kill}: lost, {len(found)} of {4 * acknowledged} episodes")
        if found != [f"e{i}" for i in range(len(found))] or len(found) % 4:
            wrong.append(f"kill {kill}: torn, {found[-5:]}")
        if not np.array_equal(store.matrix(1)[:, 0], np.arange(3 * len(found))):
            wrong.append(f"kill {kill}: vectors of other steps")
        acknowledged = len(found) // 4
        store.close()
    return acknowledged, wrong


def test_killed_at_any_moment_nothing_committed_is_lost(tmp_path):
    batches, wrong = kill_loop(tmp_path, kills=8)
    assert wrong == []
    assert batches > 8, "it got somewhere in between"


def test_damage_is_seen(tmp_path):
    store, encoder = filled_store(tmp_path)
    store.close()
    path = store.vector_path(encoder)
    with open(path, "ab") as f:
        f.write(b"torn")
    store = EpisodeStore(tmp_path)
    assert path.stat().st_size == 36 * 32, "what is behind the committed count is cut"
    assert verify(store) == []
    with open(path, "r+b") as f:
        f.seek(20 * 32)
        f.write(b"\x01")
    assert verify(store) == ["vectors-1.f32: the vectors of steps 12 .. 23 (test) are damaged"]
    store.close()
    os.truncate(path, 30 * 32)
    with pytest.raises(DataError, match=r"vectors-1.f32: is shorter than its 36 steps"):
        EpisodeStore(tmp_path, "ro").matrix(encoder)
    assert any(p.startswith("vectors: cannot be read") or "are damaged" in p for p in verify(EpisodeStore(tmp_path, "ro")))
    path.unlink()
    assert any(p.startswith("vectors: cannot be read") for p in verify(EpisodeStore(tmp_path, "ro")))
    path.write_bytes(bytes(36 * 32))
    db = sqlite3.connect(store.folder / "episodes.sqlite")
    db.execute("UPDATE body SET data=? WHERE id=(SELECT id FROM episode WHERE name='e2')", (b"garbage",))
    db.commit()
    db.close()
    assert any(p.startswith("episode e2: cannot be read") for p in verify(EpisodeStore(tmp_path, "ro")))


def test_a_damaged_page_is_a_problem_and_no_traceback(tmp_path):
    store, _ = filled_store(tmp_path)
    path = store.folder / "episodes.sqlite"
    store.close()
    whole, seen = path.read_bytes(), 0
    for page in range(1, len(whole) // 4096):
        path.write_bytes(whole[: page * 4096] + b"\xff" * 4096 + whole[(page + 1) * 4096 :])
        try:
            damaged = EpisodeStore(tmp_path, "ro")
        except (DataError, sqlite3.DatabaseError):
            continue  # told when it is opened
        seen += bool(verify(damaged))  # a page that nothing stands on is no loss
        damaged.close()
    assert seen > 2


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / "episodes.sqlite").write_bytes(b"not a database" * 99), r"episodes.sqlite: cannot be read .*restore it"),
    (lambda folder: sqlite3.connect(folder / "episodes.sqlite", isolation_level=None).execute("UPDATE meta SET value='7'"), "has schema 7"),
    (lambda folder: (folder.parent / "current").write_text("data-9\n"), "names data-9, which is not there"),
    (lambda folder: (folder.parent / "current").unlink(), "is missing beside data"),
])  # fmt: skip
def test_a_damaged_folder_is_named_and_left_alone(tmp_path, damage, message):
    store, _ = filled_store(tmp_path)
    store.close()
    damage(store.folder)
    before = sorted((p.relative_to(tmp_path), p.stat().st_size) for p in tmp_path.rglob("*.f32"))
    with pytest.raises(DataError, match=message):
        EpisodeStore(tmp_path)
    assert sorted((p.relative_to(tmp_path), p.stat().st_size) for p in tmp_path.rglob("*.f32")) == before
    with pytest.raises(DataError, match="holds no buffer"):
        EpisodeStore(tmp_path / "nowhere", "ro")


def test_a_full_disk_costs_the_batch_and_nothing_else(tmp_path):
    code = (
        "import json, sys; from pathlib import Path; from test_store import *\n"
        "store, encoder = filled_store(Path(sys.argv[1]), 2)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "done = 2\n"
        "try:\n"
        "    while True:\n"
        "        store.append(batch(4 * done), {encoder: vectors(4 * done)}, f'batch {done}'); done += 1\n"
        "except DataError as e:\n"
        "    print(json.dumps([done, str(e), len(store), verify(store)]))\n"
    )
    assert resource is not None
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=ENV, check=True).stdout
    done, message, steps, problems = json.loads(said)
    assert done > 2
    assert "cannot be written" in message
    assert "what was committed is untouched" in message
    assert (steps, problems) == (12 * done, [])
    store = EpisodeStore(tmp_path)
    assert (len(store), verify(store)) == (12 * done, [])
    assert store.append(batch(4 * done), {1: vectors(4 * done)}, "again") == range(12 * done, 12 * done + 12)


OLDER = """
ALTER TABLE episode ADD COLUMN body BLOB NOT NULL DEFAULT x'';
UPDATE episode SET body = (SELECT data FROM body WHERE body.id = episode.id);
DROP TABLE body;
DROP INDEX evicted;
UPDATE meta SET value='1' WHERE key='schema';
"""
"""Makes of a store one as the first schema had it."""


def test_a_store_of_an_older_schema_is_brought_up_to_date_by_a_writer(tmp_path):
    store, encoder = filled_store(tmp_path)
    store.evict([1], generation=3)
    wanted = list(store.episodes()), np.array(store.matrix(encoder)), store.columns["evicted"].tolist()
    store.db.executescript(OLDER)
    store.close()
    with pytest.raises(DataError, match="has schema 1, this version reads 2; open it once for writing"):
        EpisodeStore(tmp_path, "ro")
    store = EpisodeStore(tmp_path)
    assert not verify(store)
    assert list(store.episodes()) == wanted[0]
    assert np.array_equal(store.matrix(encoder), wanted[1])
    assert store.columns["evicted"].tolist() == wanted[2]
    store.append(batch(50), {encoder: vectors(50)}, "later")
    assert len(list(EpisodeStore(tmp_path, "ro").episodes())) == len(wanted[0]) + 4


APPENDS = """
import sys; sys.path.insert(0, "tests")
from test_store import *
store, encoder = filled_store(Path(sys.argv[1]), batches=1)
print("ready", flush=True)
store.append(batch(50), {encoder: vectors(50)}, "traced")
"""


def test_vectors_are_fsynced_before_the_commit_that_counts_them(tmp_path):
    """What survives a power loss is decided by the order of system calls."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    words = [strace, "-f", "-y", "-o", str(trace), "-e", "trace=write,pwrite64,fsync,fdatasync", sys.executable, "-c", APPENDS]
    done = subprocess.run([*words, str(tmp_path / "buffer")], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("this machine does not let processes be traced")
    assert done.returncode == 0, done.stderr
    calls = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines()]
    start = next(i for i, c in enumerate(calls) if c.startswith("write(1<") and "ready" in c)
    found = [re.match(r"(\w+?)(?:64)?\(\d+<[^>]*/(vectors-1\.f32|episodes\.sqlite-wal)>", call) for call in calls[start:]]
    kinds = [match.groups() for match in found if match]
    vectors_done = kinds.index(("fsync", "vectors-1.f32"))
    log = [i for i, (_, kind) in enumerate(kinds) if kind == "episodes.sqlite-wal"]
    assert ("pwrite", "vectors-1.f32") in kinds[:vectors_done]
    assert ("pwrite", "vectors-1.f32") not in kinds[vectors_done:]
    assert log, kinds
    assert min(log) > vectors_done, "no commit is written before its vectors are on disk"
    assert kinds[-1] in (("fdatasync", "episodes.sqlite-wal"), ("fsync", "episodes.sqlite-wal")), "and it is on disk when append returns"
