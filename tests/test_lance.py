"""What LanceDB's buffer has beyond the contract that all stores share (``test_replay.py``): many writers at once."""

import subprocess
import sys
from pathlib import Path

from test_replay import episode, lance, queries

SHARED = """
import sys; sys.path.insert(0, "tests")
from test_replay import episode, lance
who = int(sys.argv[2])
buffer = lance(sys.argv[1], writer=f"trainer-{who}")
for iteration in range(8):
    own = [episode(1000 * (who + 1) + 10 * iteration + j, "dream", iteration) for j in range(3)]
    buffer.add([*own, *(episode(j) for j in range(iteration, iteration + 4))], iteration + 1)
"""


def test_trainers_share_a_lance_buffer_and_nothing_is_lost_or_twice(tmp_path):
    lance(tmp_path)
    words = [sys.executable, "-c", SHARED, str(tmp_path)]
    trainers = [subprocess.Popen([*words, str(who)], cwd=Path(__file__).parents[1]) for who in range(2)]
    reader, seen = lance(tmp_path), [0]
    while any(t.poll() is None for t in trainers):
        seen.append(len(reader))
        hits = reader.snapshot().topk(queries(0, 3, filters=False), 2)
        assert all(h.transition in episode(int(h.episode[1:]), h.source, 0).transitions for row in hits for h in row)
    assert [t.returncode for t in trainers] == [0, 0]
    assert seen == sorted(seen), "who reads beside the writers sees whole commits only"
    wanted = {f"e{n}" for n in range(11)} | {f"e{1000 * (who + 1) + 10 * i + j}" for who in range(2) for i in range(8) for j in range(3)}
    held = list(reader.episodes())
    assert sorted(e.id for e in held) == sorted(wanted)
    assert len(reader) == sum(len(e.steps) for e in held)
    lance(tmp_path, writer="trainer-1").rewind(5)
    left = {e.id for e in reader.episodes()}
    assert left >= {e for e in wanted if e.startswith("e1") and len(e) > 3}, "nothing of the other trainer went"
    assert not {f"e{2060 + j}" for j in range(3)} & left


def test_a_lance_buffer_forgets_what_its_writer_evicted_and_nobody_elses(tmp_path):
    ours, theirs = lance(tmp_path, writer="ours"), lance(tmp_path, writer="theirs")
    ours.add([episode(1)], 0)
    theirs.add([episode(2)], 0)
    ours.evict([], 5)
    ours.evict(["e2"], 5)
    theirs.evict(["e1"], 5)
    assert list(ours.episodes()) == []
    ours.rewind(4)
    assert [e.id for e in ours.episodes()] == ["e2"]
    assert ours.held() == len(episode(2).steps)
