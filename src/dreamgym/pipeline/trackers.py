"""Metrics of policy learning to the trackers that a run names, through accelerate; ``metrics.jsonl`` is written in any case.

    with tracked(config.trackers, folder, "dream", config, first=run.iteration) as track:
        track(metrics)

A reward is named after who paid it, ``dream_reward`` or ``real_reward``. A run that goes on continues its curves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from dreamgym.core.errors import MissingExtraError
from dreamgym.pipeline.config import RunConfig, config_hash

Tracker = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "dreamgym"


@contextmanager
def tracked(
    names: Sequence[Tracker], folder: Path, source: Literal["dream", "real"], config: RunConfig, first: int
) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that logs the metrics of an iteration; ``folder``: of this training; ``first``: its next iteration."""
    if not names:
        yield lambda metrics: None
        return
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker
    from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available

    PartialState()  # what accelerate asks who the main process is
    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available, "trackio": is_trackio_available}
    run = f"{folder.resolve().parent.name}-{folder.name}"
    said = config.model_dump(mode="json")
    with ExitStack() as ends:
        live = []
        for name in names:
            if not there[name]():
                raise MissingExtraError(name, name)
            if name == "tensorboard":
                tracker = TensorBoardTracker("tensorboard", folder, purge_step=first)
            elif name == "wandb":
                own = config_hash({"folder": str(folder.resolve())})
                tracker = WandBTracker(PROJECT, name=run, id=own, resume="allow", dir=str(folder), config=said)
            else:
                tracker = TrackioTracker(PROJECT, name=run, resume="allow", config=said)
            tracker.start()
            ends.callback(tracker.finish)
            live.append(tracker)

        def track(metrics: dict[str, float]) -> None:
            values = {(f"{source}_reward" if k == "reward" else k): v for k, v in metrics.items() if k != "iteration"}
            for tracker in live:
                tracker.log(values, step=int(metrics["iteration"]))

        yield track
