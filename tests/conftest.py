"""The order of tests: those that take minutes begin, so that no process is left alone with them at the end. And one start for many runs."""

from pathlib import Path

import pytest
from command import SMALL, dreamgym
from filelock import FileLock

LONG = ("test_whole_runs", "test_ranks", "test_chat_sft", "test_transcript", "test_lora")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def small_start(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A run of ``SMALL`` up to its warm start, for runs that take theirs from it: made once for all of pytest's processes."""
    mine = tmp_path_factory.getbasetemp()
    run = (mine if worker_id == "master" else mine.parent) / "small-start"
    with FileLock(f"{run}.lock"):
        done = dreamgym("train", "--stages", "start", "--run", str(run), *SMALL)
    assert done.returncode == 0, done.stdout
    return run
