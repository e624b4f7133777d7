"""The stage ``train`` on several processes: policy learning in the dream, its groups and gradients shared out (``rl/ranks.py``).

    dreamgym train --run runs/mine --stages start
    torchrun --nproc_per_node 2 -m dreamgym.pipeline.ranks runs/mine

The command line finds the stage done afterwards. Killed, the same command goes on at the last finished iteration.
"""

import argparse
import os
import sys
from pathlib import Path

from dreamgym.core.errors import ConfigError, DreamgymError
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.reinforce import reopen, train_policy
from dreamgym.pipeline.run import Run, console
from dreamgym.rl.ranks import Ranks


def main() -> None:
    """Entry for ``torchrun``."""
    import torch

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    folder = parser.parse_args().run
    run, ranks = Run(folder, load_config(folder / "config.yaml")), Ranks.launched()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, (run.config.threads or os.cpu_count() or 1) // here))
    console.quiet = not ranks.first
    if not run.done("warm-start"):
        raise ConfigError(f"{folder}: stage warm-start has not finished there; run: dreamgym train --run {folder} --stages start")
    if ranks.first:
        reopen(run, "train")
    ranks.wait()
    if run.done("train"):
        return
    if ranks.first:
        run.stage("train", lambda: train_policy(run, ranks))
    else:
        train_policy(run, ranks)


def leave() -> None:
    """Disconnect this process from the others: one that ends with the connection open is aborted by its threads now and then."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except DreamgymError as e:
        sys.exit(f"error: {e}")
    finally:
        leave()
