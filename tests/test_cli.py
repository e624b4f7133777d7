"""The command line as a user meets it: one clear line per mistake, a whole small run, kill and resume."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
SMALL = [
    "env=examples.own_environment:adapter",
    "logs=collect",
    "base=tiny",
    "collect_tasks=40",
    "threads=1",
    "pretrain.epochs=3",
    "experience.teacher=generic",
    "experience.fit.epochs=3",
    "sft.fit.epochs=6",
    "rl.iterations=3",
    "rl.tasks=4",
    "rl.group=4",
    "evaluation.games=8",
    "evaluation.audit_games=6",
    "evaluation.probe_games=4",
    "rl.probe_every=2",
]


def level_keys() -> set[str]:
    """The keys that ``benchmarks/tables.py`` writes for each level."""
    tree = ast.parse((Path(__file__).parents[1] / "benchmarks" / "tables.py").read_text())
    function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "level_result")
    written = next(n.value for n in function.body if isinstance(n, ast.Return))
    assert isinstance(written, ast.Dict)
    return {k.value for k in written.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}


def dreamgym(*words, cwd=ROOT, timeout=300):
    return subprocess.run([sys.executable, "-m", "dreamgym.cli", *words], capture_output=True, text=True, cwd=cwd, env=ENV, timeout=timeout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["config", "rl.iteratons=3"], "unknown key rl.iteratons; did you mean iterations?"),
        (["config", "rl.iterations=many"], "rl.iterations"),
        (["config", "rl"], "has no '='"),
        (["config", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["collect", "env=textworld/hard"], "no level 'hard'"),
        (["collect", "env=nosuch:thing"], "cannot be imported"),
        (["collect", "logs=missing.jsonl"], "missing.jsonl: no such file"),
        (["collect", "env=examples.own_environment:adapter"], "none are shipped"),
        (["eval"], "stage train has not finished"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, words, message):
    run = [] if words[0] == "config" else ["--run", str(tmp_path / "run")]
    done = dreamgym(*words, *run)
    assert done.returncode == 1
    assert message in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stdout.strip().splitlines()) <= 3


def test_a_malformed_episode_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a"}\n')
    done = dreamgym("collect", "--run", str(tmp_path / "run"), f"logs={path}")
    assert done.returncode == 1
    assert f"{path}:1: field env" in done.stdout.replace("\n", "")
    assert not (tmp_path / "run" / "logs.jsonl.xz").exists()


def test_another_configuration_does_not_overwrite_a_run(tmp_path):
    assert dreamgym("collect", "--run", str(tmp_path / "run"), "seed=1", "logs=none.jsonl").returncode == 1
    done = dreamgym("collect", "--run", str(tmp_path / "run"), "seed=2")
    assert done.returncode == 1
    assert "another configuration" in done.stdout


def test_a_missing_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from dreamgym.cli import main\n"
        "sys.argv = ['dreamgym', 'collect', '--run', sys.argv[1]]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == 1
    assert "pip install 'dreamgym[train]'" in done.stdout


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    run = tmp_path / "run"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1600, 1600)); from dreamgym.cli import main\n"
        "sys.argv = ['dreamgym', 'collect', *sys.argv[1:]]; main()"
    )
    words = ["--run", str(run), *SMALL]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stdout
    assert "Traceback" not in done.stderr
    assert not (run / "stages" / "collect.json").exists()
    assert dreamgym("collect", *words).returncode == 0


def test_the_whole_way_on_a_users_own_environment_killed_and_resumed(tmp_path):
    run = tmp_path / "run"
    words = [sys.executable, "-m", "dreamgym.cli", "quickstart", "--run", str(run), *SMALL]
    for stage, sent in (("warm-start", signal.SIGINT), ("policy_run/metrics.jsonl", signal.SIGKILL)):
        mark = run / (f"stages/{stage}.json" if "/" not in stage else stage)
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests run in the background inherit "ignored"
        )
        for _ in range(2400):
            if mark.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(sent)
        output, _ = process.communicate(timeout=60)
        assert mark.exists(), output
        if sent == signal.SIGINT and process.returncode != 0:
            assert process.returncode == 130, output
            assert "run the same command again" in output
    before = (run / "stages" / "warm-start.json").read_text()
    done = dreamgym("quickstart", "--run", str(run), *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warm-start: done before" in done.stdout
    assert (run / "stages" / "warm-start.json").read_text() == before
    metrics = [json.loads(line)["iteration"] for line in (run / "policy_run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics == [0, 1, 2]
    results = json.loads((run / "results.json").read_text())
    assert level_keys() <= results.keys(), "a run's results have the keys of a level in slice.json"
    assert results["real_steps"].keys() >= {"logs", "rl", "probe", "rl_control"}
    assert results["real_steps"]["rl"] == 0
    assert results["real_steps"]["probe"] > 0
    assert results["n_test"] == 8
    assert len(results["rows"]) == 8
    assert 0 <= results["audit"]["next_state_macro"] <= 1
    assert (run / "report.html").exists()
    assert "before" in done.stdout
    assert "after" in done.stdout
