"""Early Experience in a run, as its warm start (``sft.method``) or as a baseline: other actions are really tried, then learned from.

policy, found = early_start(run, "iwm", base, proposer, demonstrations, fit, folder, alternatives=3)
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from dreamgym.core.env import RealSteps
from dreamgym.core.types import Episode
from dreamgym.envs.adapter import load_adapter
from dreamgym.lm.fit import FitConfig
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.early_experience import implicit_world_modelling, self_reflection, try_alternatives
from dreamgym.pipeline.logs import load_logs
from dreamgym.pipeline.run import LOGS, Run, drop_torn_checkpoints
from dreamgym.rl.policy import Policy

EARLY: dict[str, Callable[..., LocalLM]] = {"iwm": implicit_world_modelling, "self_reflection": self_reflection}


def early_start(
    run: Run, name: str, base: str, proposer: LocalLM, demonstrations: Sequence[Episode], fit: FitConfig, folder: Path, alternatives: int
) -> tuple[LocalLM, dict[str, object]]:
    """A policy by ``EARLY[name]`` from ``base``, saved in ``folder``, and what it took; ``proposer`` says what else it would have done.

    Its real steps are counted in ``folder``: what a killed attempt used stays used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drop_torn_checkpoints(folder)
    counter = RealSteps()
    counter.ledger = folder / "real_steps.txt"
    counter.recall()
    adapter, logs = load_adapter(run.config.env), load_logs([run.path(LOGS)])
    tried = try_alternatives(Policy(proposer, 1.0), demonstrations, adapter, counter, alternatives, run.config.seed, logs)
    policy = EARLY[name](base, tried, fit, folder)
    counter.settle()
    others = sum(len(t.others) for t in tried)
    return policy, {"states": len(tried), "alternatives": others, "learning_real_steps": counter.counts.get("rl", 0)}
