"""GRPO on step-wise samples (arXiv 2402.03300), in any environment: dream, real or code.

One iteration: the sampler picks tasks; every task is played by a group of members; invalid episodes leave before the
group statistics; each step of a valid episode carries its episode's advantage, unless it changed nothing
(``step_advantages``); the clipped objective is averaged over policy tokens. Everything that decides is in the checkpoint,
written after each iteration: kill it, run it again.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from dreamgym.core.types import Task, Transition
from dreamgym.lm.local import LocalLM
from dreamgym.lm.packing import IGNORED, Segment, Tree, collate, pack
from dreamgym.rl.objectives import clipped_loss, group_advantages, malformed_advantage, step_advantages
from dreamgym.rl.policy import ACTION_TOKENS
from dreamgym.rl.rollout import Rollout, Seat


class GRPOConfig(BaseModel):
    """One run of GRPO."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    iterations: int = 30
    tasks: int = 96
    """Tasks of one iteration."""
    group: int = 4
    """Members per task."""
    learning_rate: float = 6e-4
    """Its peak: it rises over ``warmup`` iterations, because Adam's first steps are as long as any and a warm start is easily
    knocked into loops, and falls linearly to 0 over all, because a constant one lets entropy grow without end (docs/results.md)."""
    warmup: int = 2
    clip: float = 0.2
    no_effect_penalty: float | None = 0.3
    """Of a step that changes nothing and does not end the episode (``step_advantages``); None = plain GRPO."""
    negative: float = 0.1
    """Weight of negative advantages. Pushing an action down leaves open what rises instead: with weight 1, steps of this length
    undo a warm start within a few iterations (docs/results.md). 1 = plain GRPO."""
    invalid_action_penalty: float = 0.0
    """Off the return of a step whose reply was malformed (``malformed_advantage``)."""
    passes: int = 2
    """Passes over an iteration's samples; each pass is at most ``updates`` optimiser steps (fewer where few rows have an advantage)."""
    updates: int = 8
    temperature: float = 1.0
    action_tokens: int = ACTION_TOKENS
    """At most; a longer action is cut."""
    max_grad_norm: float = 1.0
    row_length: int = 512
    rows: int = 8
    """Rows of one forward pass."""
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands; saved with it."""

    iteration: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)


Play = Callable[[Sequence[Seat]], list[Rollout]]


class GRPOTrainer:
    """Trains ``lm`` in place. ``play`` rolls the current policy out."""

    def __init__(self, lm: LocalLM, config: GRPOConfig, play: Play) -> None:
        self.lm = lm
        self.config = config
        self.play = play
        self.optimizer = torch.optim.AdamW(lm.model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
        self.progress = Progress()

    def iterate(self, tasks: Sequence[Task]) -> tuple[list[Rollout], dict[str, list[float | None]], dict[str, float]]:
        """One iteration on ``tasks``: the rollouts, the rewards of each group, and the metrics."""
        c, n = self.config, self.progress.iteration
        start = time.perf_counter()
        seats = [Seat(task, member, c.seed, n) for task in tasks for member in range(c.group)]
        rollouts = self.play(seats)
        rolled = time.perf_counter()
        groups: dict[str, list[float | None]] = {t.id: [] for t in tasks}
        for r in rollouts:
            groups[r.episode.task.id].append(episode_return(r))
        advantages = {name: group_advantages(rewards) for name, rewards in groups.items()}
        malformed = {name: malformed_advantage(rewards, c.invalid_action_penalty) for name, rewards in groups.items()}
        credited = [
            (r, step_credit(r, advantages[r.episode.task.id][r.episode.member], c, malformed[r.episode.task.id])) for r in rollouts
        ]
        trees = policy_trees(credited)
        update = self._update(trees)
        done = time.perf_counter()
        valid = [r for r in rollouts if r.episode.valid]
        tokens = [lp for r in rollouts for s in r.samples for lp in s.logprobs]
        taken = [t for r in valid for t in r.episode.transitions]
        metrics = {
            "iteration": float(n),
            "episodes": float(len(rollouts)),
            "reward": sum(episode_return(r) or 0.0 for r in valid) / max(len(valid), 1),
            "invalid": 1 - len(valid) / len(rollouts),
            "zero_variance_groups": sum(not any(a for a in group if a) for group in advantages.values()) / len(advantages),
            "steps": sum(len(r.samples) for r in rollouts) / len(rollouts),
            "identical_groups": identical_groups(rollouts),
            "malformed": sum(not s.well_formed for r in valid for s in r.samples) / max(len(taken), 1),
            "no_effect": sum(not has_effect(t) for t in taken) / max(len(taken), 1),
            "transitions": float(sum(len(r.samples) for r in rollouts)),
            "surprisal": -sum(tokens) / max(len(tokens), 1),
            "rollout_s": rolled - start,
            "update_s": done - rolled,
            **update,
        }
        self.progress.iteration += 1
        self.progress.metrics.append(metrics)
        return rollouts, groups, metrics

    def _update(self, trees: list[Tree]) -> dict[str, float]:
        c = self.config
        rows = pack(trees, c.row_length)
        if not rows:
            return {"clipped": 0.0, "grad_norm": 0.0, "updates": 0.0}
        batches = [collate(rows[i : i + c.rows], self.lm.pad, policy=True) for i in range(0, len(rows), c.rows)]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.lm.model.eval()
        with torch.no_grad():
            old = [self._logp(b)[0] for b in batches]
        total = sum(len(o) for o in old)
        share = max(1, -(-len(batches) // c.updates))
        clipped, norms = 0, []
        for _ in range(c.passes):
            for first in range(0, len(batches), share):
                part = range(first, min(first + share, len(batches)))
                tokens = sum(len(old[i]) for i in part)
                for i in part:
                    logp, advantage = self._logp(batches[i])
                    loss, n = clipped_loss(logp, old[i], advantage, c.clip)
                    (loss / tokens).backward()
                    clipped += int(n)
                norms.append(float(torch.nn.utils.clip_grad_norm_(self.lm.model.parameters(), c.max_grad_norm)))
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        return {
            "clipped": clipped / (total * c.passes),
            "grad_norm": sum(norms) / len(norms),
            "updates": float(len(norms)),
            "policy_tokens": float(total),
        }

    def learning_rate(self) -> float:
        """Of the current iteration."""
        c, n = self.config, self.progress.iteration
        return c.learning_rate * min(1.0, (n + 1) / max(c.warmup, 1)) * (1 - n / c.iterations)

    def _logp(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (at the sampling temperature) and advantages of the policy tokens of a batch, both [N]."""
        labels = batch["labels"][:, 1:]
        where = labels != IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.lm.model.model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
            logits = self.lm.model.lm_head(hidden[:, :-1][where])
        logp = torch.log_softmax(logits.float() / self.config.temperature, -1)
        return logp.gather(1, labels[where][:, None])[:, 0], batch["advantages"][:, 1:][where]

    def save(self, folder: Path) -> None:
        """Policy, optimiser and counters; the caller renames the folder into place."""
        self.lm.save(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "progress.json").write_text(json.dumps({"iteration": self.progress.iteration, "metrics": self.progress.metrics}))

    def resume(self, folder: Path) -> None:
        """Optimiser and counters of a checkpoint (the caller has loaded the policy from the same folder)."""
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        data = json.loads((folder / "progress.json").read_text())
        self.progress = Progress(data["iteration"], data["metrics"])


def episode_return(rollout: Rollout) -> float | None:
    """The undiscounted return; None where the episode is invalid."""
    if not rollout.episode.valid:
        return None
    return sum(t.reward or 0.0 for t in rollout.episode.transitions)


def has_effect(step: Transition) -> bool:
    """Whether a step changed what the policy sees, or ended the episode."""
    return bool(step.removed or step.added) or step.outcome != "go"


def identical_groups(rollouts: Sequence[Rollout]) -> float:
    """Share of groups whose members all acted alike and were answered alike: there is nothing to compare in them."""
    groups: dict[str, set[tuple[Transition, ...]]] = {}
    for r in rollouts:
        groups.setdefault(r.episode.task.id, set()).add(r.episode.transitions)
    return sum(len(ways) == 1 for ways in groups.values()) / max(len(groups), 1)


def step_credit(rollout: Rollout, advantage: float | None, config: GRPOConfig, malformed: float) -> list[float]:
    """The advantage of each step of an episode; empty for an invalid one. ``malformed``: what a malformed reply costs."""
    if advantage is None:
        return []
    credit = step_advantages(advantage, [has_effect(t) for t in rollout.episode.transitions], config.no_effect_penalty, config.negative)
    return [a if s.well_formed else a - malformed for s, a in zip(rollout.samples, credit, strict=True)]


def policy_trees(rollouts: Sequence[tuple[Rollout, Sequence[float]]]) -> list[Tree]:
    """Samples that have a non-zero advantage, those with the same prompt sharing it. Advantages: one per step, none where invalid."""
    by_prompt: dict[tuple[int, ...], list[Segment]] = {}
    for rollout, advantages in rollouts:
        for s, a in zip(rollout.samples if advantages else (), advantages, strict=True):
            if a:
                by_prompt.setdefault(s.prompt[:-1], []).append(Segment((s.prompt[-1], *s.ids), len(s.ids), a))
    return [Tree(prefix, tuple(segments)) for prefix, segments in by_prompt.items()]
