"""Run by ``torchrun`` in tests/test_ranks.py: two processes train what one does; each writes down what it saw."""

import json
import sys
from pathlib import Path

import torch
from test_trainer import TASKS, TwoLetters
from vault_model import VaultModel

from dreamgym.core.env import RealSteps
from dreamgym.core.files import read_episodes
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.logs import tasks_of
from dreamgym.pipeline.ranks import leave
from dreamgym.pipeline.rl_run import RLRun
from dreamgym.rl.config import RLConfig
from dreamgym.rl.policy import Policy
from dreamgym.rl.ranks import Ranks
from dreamgym.rl.rollout import rollouts
from dreamgym.rl.trainer import Trainer
from examples.own_environment import adapter

KEYS = {"iterations": 3, "group": 16, "learning_rate": 2e-2, "row_length": 128, "rows": 2, "kl": 0.01, "entropy": 0.001}
RUNS = {
    "dream": ({"iterations": 2}, None, 0),
    "ppo": ({"iterations": 2, "advantage": "gae"}, None, 0),
    "real": ({"iterations": 9}, 120, 0),
    "probed": ({"iterations": 9}, 160, 1),
}
"""Whole runs: keys, the budget of those in the real environment, and how often they are probed."""


def trained(start: str, out: Path, ranks: Ranks) -> None:
    """Three iterations; the gradient of each step, the metrics and the last weights go to ``out``."""
    lm = LocalLM.load(start)

    def play(seats):
        groups = ranks.share(sorted({s.task.id for s in seats}))
        own = rollouts(Policy(lm, 1.0), lambda *_: TwoLetters(), [s for s in seats if s.task.id in groups], "real", "letters")
        place = {(s.task.id, s.member): i for i, s in enumerate(seats)}
        return sorted(ranks.together(own), key=lambda r: place[r.episode.task.id, r.episode.member])

    trainer, gradients = Trainer(lm, RLConfig(**KEYS), play, start, ranks=ranks), []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (gradients.append([p.grad.clone() for p in lm.trained]), step())[1]
    played = [trainer.iterate(TASKS)[0] for _ in range(KEYS["iterations"])]
    episodes = [[r.episode.model_dump_json() for r in row] for row in played]
    torch.save({"gradients": gradients, "weights": [p.detach() for p in lm.trained]}, out / f"{ranks.size}-{ranks.rank}.pt")
    (out / f"{ranks.size}-{ranks.rank}.json").write_text(json.dumps({"metrics": trainer.progress.metrics, "episodes": episodes}))


def runs(vault: Path, out: Path, ranks: Ranks) -> None:
    """Each of ``RUNS`` from the vault's warm start, in ``out/<processes>-<name>``; what each process holds at the end beside it."""
    tasks = tasks_of(list(read_episodes(vault / "logs.jsonl")))
    for name, (keys, budget, every) in RUNS.items():
        config = RLConfig(**{"tasks": 3, "group": 4, "learning_rate": 1e-4} | keys)
        model = None if budget else VaultModel()
        counter = RealSteps(budget)
        run = RLRun(vault / "sft", config, tasks, adapter, out / f"{ranks.size}-{name}", model, None, counter, ranks=ranks)
        run.run(lambda m: None, adapter.tasks("probe", 2) if every else (), every)
        said = {"ended": run.ended, "iteration": run.iteration, "real": counter.total}
        torch.save({"weights": [p.detach() for p in run.lm.trained], **said}, out / f"{ranks.size}-{ranks.rank}-{name}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    launched = Ranks.launched()
    trained(sys.argv[1], Path(sys.argv[3]), launched)
    runs(Path(sys.argv[2]), Path(sys.argv[3]), launched)
    leave()
