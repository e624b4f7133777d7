"""Metrics reach the trackers that are named, a reward under the name of who paid it, and go on after a kill."""

import json
import os

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from dreamgym.core.errors import MissingExtraError  # noqa: E402
from dreamgym.pipeline.config import RunConfig  # noqa: E402
from dreamgym.pipeline.trackers import tracked  # noqa: E402


def told(names, folder, source="dream", first=0, until=3):
    with tracked(names, folder, source, RunConfig(), first) as track:
        for n in range(first, until):
            track({"iteration": float(n), "reward": n / 10, "invalid": 0.0})


def test_tensorboard_has_the_curves_of_a_run_that_goes_on(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told(["tensorboard"], tmp_path)
    told(["tensorboard"], tmp_path, first=2, until=5)  # killed in iteration 2, after it was told
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert "reward" not in found.Tags()["scalars"]
    assert [(e.step, round(e.value, 3)) for e in found.Scalars("dream_reward")] == [(n, n / 10) for n in range(5)]


def test_wandb_writes_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs the extra [wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    told(["wandb"], tmp_path, "real")
    wandb.teardown()  # its service closes the file a moment after the run has ended
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    assert b"real_reward" in files[0].read_bytes()


def test_trackio_keeps_them_in_its_folder(tmp_path):
    pytest.importorskip("trackio", reason="needs the extra [trackio]")
    import subprocess
    import sys

    code = (
        "import sys, json; from pathlib import Path; from dreamgym.pipeline.config import RunConfig\n"
        "from dreamgym.pipeline.trackers import tracked\n"
        "with tracked(['trackio'], Path(sys.argv[1]) / 'run' / 'policy_run', 'dream', RunConfig(), 0) as track:\n"
        "    for n in range(3): track({'iteration': float(n), 'reward': n / 10})\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "print('found', json.dumps([[m['step'], m['dream_reward']] for m in SQLiteStorage.get_logs('dreamgym', 'run-policy_run')]))\n"
    )
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "kept")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [line] = [x for x in done.stdout.splitlines() if x.startswith("found ")]
    assert json.loads(line.removeprefix("found ")) == [[0, 0.0], [1, 0.1], [2, 0.2]]


def test_a_missing_tracker_is_named_with_its_extra(tmp_path, monkeypatch):
    import accelerate.utils

    monkeypatch.setattr(accelerate.utils, "is_wandb_available", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'dreamgym\[wandb\]'"):
        told(["wandb"], tmp_path)
