"""A run directory: plain files, one marker per finished stage, safe to kill at any moment.

run = Run(Path("runs/mine"), config)
run.stage("annotate", lambda: ...)     # skipped when it finished before in this folder, which holds one configuration
"""

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dreamgym.core.errors import ConfigError, DataError
from dreamgym.core.files import read_json, write_atomic, write_json
from dreamgym.pipeline.config import RunConfig
from dreamgym.pipeline.config_file import dump_config, load_config

console = Console(highlight=False)
LOGS = "logs.jsonl.xz"
"""A run's logs of the real environment."""
BUFFER = "buffer"
"""Folder of its replay buffer."""
SPOKEN = 30.0
"""Seconds between two lines of progress where no bar can be seen."""
Summary = dict[str, object]
"""What a finished stage reports."""
_DISK = ("(os error 27)", "(os error 28)", "No space left", "File too large", "PytorchStreamWriter", "inline_container")
"""How safetensors and torch.save say that the disk is full: neither raises OSError."""


def stage_file(folder: Path, name: str) -> Path:
    """What a finished stage of the run in ``folder`` reported; not there where it has not finished."""
    return folder / "stages" / f"{name}.json"


class Run:
    """One folder with everything a run made."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / "config.yaml"
        begun = {name for name, work in BEGUN.items() if (folder / work).exists()}
        begun_at_all = any(path != saved for path in folder.iterdir())
        if saved.exists() and begun_at_all:
            changed = differing(decisive(load_config(saved), begun), decisive(config, begun))
            if changed:
                raise ConfigError(f"{saved}: this folder holds a run with another configuration ({', '.join(changed)}); choose another"
                                  " --run (with --from it takes what both have in common) or delete it")  # fmt: skip
        write_atomic(saved, dump_config(config))

    def path(self, name: str) -> Path:
        return self.folder / name

    def done(self, name: str) -> bool:
        return stage_file(self.folder, name).exists()

    def stage(self, name: str, work: Callable[[], Summary]) -> Summary:
        """Do ``work`` once; its summary and wall time go to ``stages/<name>.json``."""
        marker = stage_file(self.folder, name)
        if marker.exists():
            console.print(f"[dim]{name}: done before[/dim]")
            return read_json(marker)
        console.print(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        try:
            summary = work()
        except Exception as e:
            if isinstance(e, ValueError) and "raise row_length" in str(e):
                raise ConfigError(f"{name}: {e} (experience.fit, sft.fit, pretrain, rl or s2r, whichever this stage reads)") from e
            if isinstance(e, OSError) or not any(sign in str(e) for sign in _DISK):
                raise
            raise DataError(f"{self.folder}: a model cannot be written ({e}); is the disk full? Finished stages are kept") from e
        summary["wall_s"] = round(time.perf_counter() - start, 1)
        write_json(marker, summary)
        shown = ", ".join(f"{k} {_short(v)}" for k, v in summary.items() if isinstance(v, int | float | str))
        console.print(f"  {shown}")
        return summary

    def forget(self, name: str) -> None:
        """Let a finished stage run again."""
        stage_file(self.folder, name).unlink(missing_ok=True)

    def summary(self, name: str) -> dict[str, object]:
        """What a finished stage reported."""
        return read_json(stage_file(self.folder, name))


BEGUN = {"s2r": "s2r_run", "baselines": "baselines"}
"""Sections that are free until what they configure has begun, and the folder by which that is known."""


def decisive(config: RunConfig, begun: Collection[str] = tuple(BEGUN)) -> dict[str, Any]:
    """What may not change in a run. The rest is how a stopped one goes on: a raised budget, a lowered floor, longer rows for what did not
    fit, another server, threads, the sections ``BEGUN`` but those of ``begun``."""
    data = config.model_dump(mode="json")
    data["rl"]["audit_floor"] = None
    for phase in ("rl", "s2r"):
        for key in ("real_budget", "watch", "patience", "row_length", "rows"):
            data[phase][key] = None
    for section in BEGUN.keys() - set(begun):
        data[section] = None
    data["evaluation"]["judge"] = data["trackers"] = data["threads"] = None
    if config.replay.embeddings:
        data["replay"]["embeddings"]["base_url"] = None
    if config.replay.admit and config.replay.admit.judge:
        data["replay"]["admit"]["judge"] = config.replay.admit.judge.model
    if config.experience.endpoint:
        data["experience"]["endpoint"]["server"] = config.experience.endpoint.server.model
    if config.experience.annotator:
        data["experience"]["annotator"] = [config.experience.annotator.server.model, config.experience.annotator.kind]
    if (opinion := config.experience.second_opinion) and opinion.judge:
        data["experience"]["second_opinion"]["judge"] = opinion.judge.model
    return data


def differing(one: Mapping[str, Any], other: Mapping[str, Any], under: str = "") -> list[str]:
    """Keys whose values are not the same, as overrides name them: ``rl.clip``; a value beside a section is one difference."""
    found: list[str] = []
    for key in dict.fromkeys((*one, *other)):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing(a, b, f"{under}{key}.")
        elif a != b:
            found.append(under + key)
    return found


def drop_torn_checkpoints(folder: Path) -> None:
    """Delete checkpoints of supervised training that a kill left unfinished, those of its parts too: their state file is written last."""
    for checkpoint in list(folder.rglob("checkpoint-*")):
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)


def _short(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}" if isinstance(value, float) else str(value)


class _Lines(Progress):
    """Where no bar can be seen to move (a log file, CI): now and then a line says how far it is."""

    said = 0.0

    def start(self) -> None:
        self.said = time.monotonic()
        super().start()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        if time.monotonic() - self.said >= SPOKEN:
            self.said, task = time.monotonic(), next(t for t in self.tasks if t.id == task_id)
            of = "" if task.total is None else f"/{task.total:.0f}"
            left = "" if task.time_remaining is None else f", about {task.time_remaining:.0f} s left"
            self.console.print(f"  {task.description}: {task.completed:.0f}{of} after {task.elapsed or 0.0:.0f} s{left}")


def bar() -> Progress:
    """A progress bar with counts, time used and time left; lines where the output is no terminal."""
    kind = Progress if console.is_terminal else _Lines
    return kind(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def fit_report(progress: Progress, name: str) -> Callable[[int, int, float], None]:
    """A report for ``dreamgym.lm.fit.fit`` that moves a bar."""
    task = progress.add_task(name, total=None)

    def report(done: int, total: int, loss: float) -> None:
        progress.update(task, completed=done, total=total, description=f"{name} loss {loss:.3f}")

    return report
