"""Two processes train one policy: the same rollouts, the same gradient, one set of files."""

import json
import runpy
import subprocess
import sys
import time
from unittest.mock import patch

import psutil
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")

from command import ENV, ROOT, SMALL, dreamgym  # noqa: E402
from test_rl_run import logged  # noqa: E402, F401
from test_trainer import start  # noqa: E402, F401
from two_ranks import RUNS, runs, trained  # noqa: E402

from dreamgym.core.files import episode_line, read_episodes  # noqa: E402
from dreamgym.replay.buffer import ReplayBuffer  # noqa: E402
from dreamgym.replay.upkeep import verify  # noqa: E402
from dreamgym.rl.ranks import ALONE  # noqa: E402


def torchrun(*words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]


@pytest.fixture(scope="module")
def both(start, logged, tmp_path_factory):  # noqa: F811
    """A folder with what two processes did, and one."""
    out, vault = tmp_path_factory.mktemp("both"), logged[1].parent
    (vault / "logs.jsonl").write_text("".join(episode_line(e) + "\n" for e in logged[0]))
    words = torchrun("tests/two_ranks.py", str(start), str(vault), str(out))
    done = subprocess.run(words, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    torch.set_num_threads(1)
    trained(str(start), out, ALONE)
    runs(vault, out, ALONE)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_two_processes_plays_what_one_plays(both, name):
    alone, first, second = (torch.load(both / f"{who}-{name}.pt") for who in ("1-0", "2-0", "2-1"))
    episodes = [[e.model_dump_json() for e in read_episodes(both / f"{n}-{name}" / "episodes.jsonl")] for n in (1, 2)]
    iteration = 3 * 4
    assert len(episodes[0]) >= iteration
    assert episodes[0][:iteration] == episodes[1][:iteration]
    assert (first["ended"], first["iteration"]) == (second["ended"], second["iteration"])
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)
    if name in ("real", "probed"):
        assert alone["ended"] == first["ended"] == "budget"
        assert second["real"] == 0, "the real environment is the first one's"
        assert 60 < first["real"] <= RUNS[name][1]
    else:
        assert first["ended"] == "iterations"


def test_two_processes_compute_the_gradient_of_one(both):
    tensors = {name: torch.load(both / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}
    told = {name: json.loads((both / f"{name}.json").read_text()) for name in tensors}
    assert told["2-0"]["episodes"] == told["2-1"]["episodes"], "both see all"
    assert told["2-0"]["episodes"][0] == told["1-0"]["episodes"][0], "and what one process would have seen"
    for a, b in zip(tensors["2-0"]["weights"], tensors["2-1"]["weights"], strict=True):
        assert torch.equal(a, b), "both hold the same policy"
    whole, shared = tensors["1-0"]["gradients"][0], tensors["2-0"]["gradients"][0]
    assert sum(float(g.abs().sum()) for g in whole) > 0
    for a, b in zip(whole, shared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    timeless = [{k: v for k, v in told[n]["metrics"][0].items() if not k.endswith("_s")} for n in ("1-0", "2-0")]
    assert timeless[0] == pytest.approx(timeless[1], rel=1e-3, abs=1e-6)


def test_a_run_in_the_dream_on_two_processes_is_killed_and_goes_on(tmp_path, small_start):
    run, small = tmp_path / "run", [*SMALL, "rl.iterations=3"]
    words = torchrun("-m", "dreamgym.pipeline.ranks", str(run))
    assert dreamgym("collect", "--run", str(run), *small).returncode == 0
    with (
        patch.object(sys, "argv", words[-2:]),
        pytest.raises(SystemExit, match="stage warm-start has not finished there; run: dreamgym train"),
    ):
        runpy.run_module(words[-2], run_name="__main__")
    assert dreamgym("train", "--run", str(run), "--stages", "start", "--from", str(small_start)).returncode == 0
    process = subprocess.Popen(words, cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = run / "policy_run" / "metrics.jsonl"
    for _ in range(2400):
        if process.poll() is not None or (metrics.exists() and len(metrics.read_text().splitlines()) >= 1):
            break
        time.sleep(0.05)
    all_of_it = [*psutil.Process(process.pid).children(recursive=True), process]  # torchrun's workers are sessions of their own
    for one in all_of_it:
        one.kill()
    psutil.wait_procs(all_of_it[:-1])
    process.wait()
    done = subprocess.run(words, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [m["iteration"] for m in told] == [0, 1, 2]
    assert all(m["episodes"] == 16 for m in told)
    dreamed = list(read_episodes(run / "policy_run" / "episodes.jsonl"))
    assert len(dreamed) == 48
    assert len({e.id for e in dreamed}) == 48
    buffer = ReplayBuffer(run / "buffer", mode="ro")
    assert not verify(buffer.store)
    assert told[-1]["buffer_steps"] == len(buffer)
    summary = json.loads((run / "stages" / "train.json").read_text())
    assert (summary["iterations"], summary["rl_real_steps"]) == (3, 0)
    after = dreamgym("eval", "--run", str(run))
    assert after.returncode == 0, after.stdout
    assert "train: done before" not in after.stdout
    assert json.loads((run / "stages" / "eval-policy.json").read_text())["games"] == 8
