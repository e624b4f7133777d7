"""Types that cannot be confused, files that name file and line, keyed draws, import rules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import dreamgym
from dreamgym.core.env import RealSteps
from dreamgym.core.errors import BudgetError, DataError, PanelLeakError
from dreamgym.core.files import read_episodes, read_json, write_atomic, write_episodes
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Branch, Episode, ResultRow, StopReason, Task, Transition, result_row, sheet_in_hindsight
from dreamgym.pipeline.logs import load_logs

CLOSED, OPEN, LIME = "[kitchen] fridge: closed", "[kitchen] fridge: open", "[fridge] lime: fresh"
TASK = Task(id="t/1", instruction="cook", first_state=(CLOSED,), panel="train")


def an_episode(source="real", stop=StopReason.WON, task=TASK, name="e"):
    steps = (
        Transition(state=(CLOSED,), action="open fridge", removed=(CLOSED,), added=(LIME, OPEN), reward=0.0, outcome="go"),
        Transition(state=(LIME, OPEN), action="eat lime", removed=(LIME,), reward=1.0, outcome="won"),
    )
    branch = Branch(at=1, transition=Transition(state=(LIME, OPEN), action="look", reward=0.0, outcome="go"))
    return Episode(id=name, env="kitchen", task=task, source=source, behaviour="expert", transitions=steps, branches=(branch,), stop=stop)


def test_a_dream_reward_is_no_real_success():
    with pytest.raises(TypeError, match="dreamed"):
        an_episode("dream").real_success()
    with pytest.raises(TypeError, match="real"):
        an_episode("real").dream_reward()
    with pytest.raises(TypeError, match="invalid"):
        an_episode("real", StopReason.INVALID_ENV).real_success()
    assert an_episode("dream", StopReason.INVALID_REPLY).dream_reward() is None
    assert result_row(an_episode("dream")).success is None
    with pytest.raises(ValidationError):
        ResultRow(panel="test", task="t", success=True, steps=1, stop=StopReason.WON, source="dream")


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.xz"])
def test_episodes_round_trip(tmp_path, name):
    episodes = [an_episode(), an_episode("dream", StopReason.INVALID_CHANGE, name="f")]
    write_episodes(tmp_path / name, episodes)
    assert list(read_episodes(tmp_path / name)) == episodes


def test_bad_lines_are_named_by_file_line_and_field(tmp_path):
    path = tmp_path / "e.jsonl"
    write_episodes(path, [an_episode()])
    good = path.read_text()
    path.write_text(good + '{"id": 3')
    with pytest.raises(DataError, match=r"e\.jsonl:2: not JSON"):
        list(read_episodes(path))
    path.write_text(good + good.replace('"expert"', "7"))
    with pytest.raises(DataError, match=r"e\.jsonl:2: field behaviour"):
        list(read_episodes(path))
    path.write_text(good.replace('"at":1', '"at":9'))
    with pytest.raises(DataError, match=r"e\.jsonl:1"):
        list(read_episodes(path))


def test_truncated_archive_and_missing_file(tmp_path):
    path = tmp_path / "e.jsonl.xz"
    write_episodes(path, [an_episode(name=str(i)) for i in range(50)])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"e\.jsonl\.xz"):
        list(read_episodes(path))
    with pytest.raises(DataError, match="no such file"):
        list(read_episodes(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="run the stage"):
        read_json(tmp_path / "none.json")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "data.json"
    write_atomic(path, "old")
    code = (
        "import resource, sys; from pathlib import Path; from dreamgym.core.files import write_atomic\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomic(Path(sys.argv[1]), 'x' * 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "cannot be written" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sheet_in_hindsight_is_the_first_sighting():
    assert sheet_in_hindsight((CLOSED,), [an_episode()]) == (LIME,)


def test_evaluation_tasks_never_enter_the_logs(tmp_path):
    write_episodes(tmp_path / "e.jsonl", [an_episode(task=TASK.model_copy(update={"panel": "test"}))])
    with pytest.raises(PanelLeakError, match="test"):
        load_logs([tmp_path / "e.jsonl"])
    write_episodes(tmp_path / "d.jsonl", [an_episode("dream")])
    with pytest.raises(DataError, match="dreamed"):
        load_logs([tmp_path / "d.jsonl"])


def test_draws_belong_to_their_key():
    assert keyed_rng(1, "a", 2).random() == keyed_rng(1, "a", 2).random()
    assert keyed_rng(1, "a", 2).random() != keyed_rng(1, "a2").random()


def test_the_budget_of_real_steps_is_a_hard_stop():
    counter = RealSteps(budget=2)
    counter.add(2)
    with pytest.raises(BudgetError, match="2"):
        counter.add()
    assert counter.counts == {"logs": 2}


ROOMS = {
    "core": set(),
    "lm": {"core"},
    "replay": {"core"},
    "endpoint": {"core"},
    "prompts": set(),
    "experience": {"core", "lm", "replay", "endpoint", "prompts"},
    "dream": {"core", "experience", "replay"},
    "curriculum": {"core", "lm", "replay", "experience", "endpoint", "prompts"},
    "rl": {"core", "lm", "prompts"},
    "envs": {"core", "experience.annotate"},
    "report": {"core", "pipeline"},
}


def test_who_may_import_whom():
    root = Path(dreamgym.__file__).parent
    for path in root.rglob("*.py"):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        if room not in ROOMS:
            continue
        allowed = ROOMS[room] | {room}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dreamgym."):
                target = (node.module or "").removeprefix("dreamgym.")
                assert any(target == a or target.startswith(a + ".") for a in allowed), f"{path.relative_to(root)} imports {node.module}"


def test_core_imports_no_torch():
    code = (
        "import sys, dreamgym.core.types, dreamgym.core.files, dreamgym.replay.buffer, dreamgym.pipeline.config, dreamgym.cli\n"
        "assert 'torch' not in sys.modules and 'textworld' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
