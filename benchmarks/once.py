"""What is made once and shared: by one process at a time, with the seconds that it took noted beside it."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamgym.core.files import read_json, write_json
from dreamgym.pipeline.run import drop_torn_checkpoints


@contextmanager
def alone(path: Path, wait: bool) -> Iterator[bool]:
    """Holds the lock of what is made at ``path``, which ends with the process; whether it is held, where nobody waits for it."""
    lock = path.with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def timed(folder: Path, train: Callable[[], object]) -> None:
    """Train into ``folder``, where no other process has done so meanwhile, and last note the seconds there; of processes that were
    killed before it, those up to the checkpoint from which the next went on."""
    with alone(folder, wait=True):
        if (folder / "wall_s.json").exists():
            return
        drop_torn_checkpoints(folder)
        started, before, now = folder / "started.json", 0.0, time.time()
        if started.exists():
            killed = read_json(started)
            kept = (path.stat().st_mtime for path in folder.rglob("checkpoint-*/trainer_state.json"))
            before = float(str(killed["before"])) + max(0.0, max(kept, default=0.0) - float(str(killed["at"])))
        write_json(started, {"at": now, "before": before})
        train()
        write_json(folder / "wall_s.json", {"wall_s": round(before + time.time() - now, 1)})
        started.unlink()


def wall_s(folder: Path) -> float:
    """Seconds that a shared model took; 0 where none were noted."""
    path = folder / "wall_s.json"
    return float(str(read_json(path)["wall_s"])) if path.exists() else 0.0
