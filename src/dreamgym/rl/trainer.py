"""Policy learning on step-wise samples, GRPO or PPO, in any environment: dream, real or code.

One iteration: every task is played by a group of members; invalid episodes leave; each step gets an advantage (``credit``), by
comparison in its group or by a critic; the policy descends the clipped surrogate on its own tokens (``losses``), the critic its
square error. Everything that decides is in the checkpoint, written after each iteration: kill it, run it again.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import pstdev

import torch

from dreamgym.core.errors import ConfigError, TrainingError
from dreamgym.core.types import Task, Transition
from dreamgym.lm.local import LocalLM
from dreamgym.lm.packing import IGNORED, Segment, Tree, collate, pack
from dreamgym.lm.precision import short
from dreamgym.rl.advantages import ZERO_VARIANCE, divisor
from dreamgym.rl.config import RLConfig
from dreamgym.rl.credit import critic_credit, episode_return, has_effect, step_credit
from dreamgym.rl.critic import START_ANEW, Critic, recompute
from dreamgym.rl.losses import average, clipped_surrogate, divergence, entropy, importance
from dreamgym.rl.policy import ACTION_TOKENS, Sample
from dreamgym.rl.ranks import ALONE, Ranks
from dreamgym.rl.rollout import Rollout, Seat


@dataclass
class Progress:
    """Where a run stands; saved with it."""

    iteration: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)


CRITIC = "critic"
"""Folder of a policy's critic, in the policy's own."""
Play = Callable[[Sequence[Seat]], list[Rollout]]
Batch = dict[str, torch.Tensor]


class Trainer:
    """Trains ``lm`` in place. ``play`` rolls the current policy out; ``start``: the warm start, from which a critic begins and the
    divergence is measured, or, where it has one, from whose critic PPO goes on; ``ranks``: the processes that train it together."""

    def __init__(
        self,
        lm: LocalLM,
        config: RLConfig,
        play: Play,
        start: str | Path,
        seed: int = 0,
        action_tokens: int = ACTION_TOKENS,
        ranks: Ranks = ALONE,
    ) -> None:
        check_head(lm)
        self.lm = lm
        self.config = config
        self.play = play
        self.seed = seed
        self.action_tokens = action_tokens
        self.ranks = ranks
        self.optimizer = torch.optim.AdamW(lm.trained, lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
        known = Path(start) / CRITIC
        self.critic = Critic(known if known.exists() else start, config, lm.pad) if config.advantage == "gae" else None
        self.reference = LocalLM.load(start) if config.kl else None
        self.progress = Progress()
        self.spent = 0.0
        """Share of a budget that is gone: where it will end the run before its last iteration, the learning rate falls with it."""
        self.played: Sequence[Rollout] = ()
        """Of the last iteration, or of the one that failed."""

    def iterate(self, tasks: Sequence[Task]) -> tuple[list[Rollout], dict[str, list[float | None]], dict[str, float]]:
        """One iteration on ``tasks``: the rollouts, the rewards of each group, and the metrics. Raises ``TrainingError``."""
        c, n = self.config, self.progress.iteration
        start = time.perf_counter()
        seats = [Seat(task, member, self.seed, n) for task in tasks for member in range(c.group)]
        rollouts = self.played = self.play(seats)
        rolled = time.perf_counter()
        groups: dict[str, list[float | None]] = {t.id: [] for t in tasks}
        for r in rollouts:
            groups[r.episode.task.id].append(episode_return(r))
        credit, learned = (step_credit(rollouts, c), {}) if self.critic is None else self._criticised(self.critic, rollouts)
        informative = c.loss == "token" and not (c.kl or c.entropy)
        update = self._update(policy_trees(list(zip(rollouts, credit, strict=True)), informative)) | learned
        done = time.perf_counter()
        metrics = {
            "iteration": float(n),
            **observed(rollouts, groups, self.critic is None),
            "rollout_s": rolled - start,
            "update_s": done - rolled,
            **update,
        }
        self.progress.iteration += 1
        self.progress.metrics.append(metrics)
        return rollouts, groups, metrics

    def _criticised(self, critic: Critic, rollouts: Sequence[Rollout]) -> tuple[list[list[float]], dict[str, float]]:
        """Advantages by the critic, which then learns from the same episodes."""
        values = critic.values([s.prompt for r in rollouts for s in r.samples])
        left = iter(values)
        by_rollout = [[next(left) for _ in r.samples] for r in rollouts]
        credit, targets = critic_credit(rollouts, by_rollout, self.config)
        learned = [
            (s.prompt, v, t)
            for r, row, aims in zip(rollouts, by_rollout, targets, strict=True)
            for s, v, t in zip(r.samples if aims else (), row if aims else (), aims, strict=True)
        ]
        prompts, old, aims = [p for p, _, _ in learned], [v for _, v, _ in learned], [t for _, _, t in learned]
        key = (self.seed, self.progress.iteration)
        return credit, critic.fit(prompts, old, aims, self.config.updates, key, self._left())

    def _update(self, trees: list[Tree]) -> dict[str, float]:
        c = self.config
        rows = pack(trees, c.row_length)
        if not rows:
            return {"clipped": 0.0, "grad_norm": 0.0, "updates": 0.0}
        place, parts = self.lm.model.device, [rows[i : i + c.rows] for i in range(0, len(rows), c.rows)]

        def made(i: int) -> Batch:
            return {name: t.to(place) for name, t in collate(parts[i], self.lm.pad, policy=True).items()}

        batch = cache(made) if place.type == "cpu" else made  # masks of an iteration of a large policy do not fit on an accelerator
        mine = self.ranks.share(range(len(parts)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.lm.model.eval()
        sampled = {i: _of_policy(batch(i), "sampled") for i in mine}
        with torch.no_grad():
            old = {i: self._logp(self.lm, batch(i)) for i in mine} if c.old == "recomputed" else sampled
            reference = {i: self._logp(self.reference, batch(i)) for i in mine} if self.reference else {}
        trained = [[s.trained for row in part for tree in row.trees for s in tree.segments if s.trained] for part in parts]
        total = sum(map(sum, trained))
        share = max(1, -(-len(parts) // c.updates))
        if self.lm.adapted:
            recompute(self.lm.causal)
        clipped, norms, diverged, spread = 0.0, list[float](), 0.0, 0.0
        for _ in range(c.passes):
            for first in range(0, len(parts), share):
                together = range(first, min(first + share, len(parts)))
                tokens, sequences = sum(sum(trained[i]) for i in together), sum(len(trained[i]) for i in together)
                for i in (i for i in together if i in old):
                    here = batch(i)
                    logits, logp = self._told(self.lm, here)
                    advantages = _of_policy(here, "advantages")
                    per_token, cut = clipped_surrogate(logp, old[i], advantages, c.clip, c.clip_high, c.dual_clip)
                    if c.importance_cap is not None:
                        per_token = per_token * importance(old[i], sampled[i], c.importance_cap)
                    if self.reference:
                        apart = divergence(logp, reference[i], c.kl_estimator)
                        per_token = per_token + c.kl * apart
                        diverged += float(apart.detach().sum())
                    if c.entropy:
                        open_ = entropy(logits)
                        per_token = per_token - c.entropy * open_
                        spread += float(open_.detach().sum())
                    lengths = _of_policy(here, "lengths")
                    whole = tokens if c.loss == "token" else sequences
                    average(per_token, lengths, whole, c.loss, self.action_tokens).backward()
                    clipped += int(cut.sum())
                self.ranks.add_up(self.lm.trained)
                norms.append(float(torch.nn.utils.clip_grad_norm_(self.lm.trained, c.max_grad_norm)))
                if not math.isfinite(norms[-1]):
                    what = START_ANEW.format("learning_rate (or kl)")
                    raise TrainingError(f"iteration {self.progress.iteration}: the gradient is {norms[-1]}; {what}")
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.lm.model.eval()
        apart_sampled = torch.cat([old[i] - sampled[i] for i in mine]).abs() if mine else torch.zeros(1)
        gap = {"sampler_gap": self.ranks.mean(float(apart_sampled.mean()), sum(sum(trained[i]) for i in mine))}
        clipped, diverged, spread = self.ranks.total([clipped, diverged, spread])
        return {
            "clipped": clipped / (total * c.passes),
            "grad_norm": sum(norms) / len(norms),
            "updates": float(len(norms)),
            "policy_tokens": float(total),
            **(gap if c.old == "recomputed" else {}),
            **({"kl": diverged / (total * c.passes)} if self.reference else {}),
            **({"entropy": spread / (total * c.passes)} if c.entropy else {}),
        }

    def learning_rate(self) -> float:
        """Of the current iteration."""
        c, n = self.config, self.progress.iteration
        return c.learning_rate * min(1.0, (n + 1) / max(c.warmup, 1)) * self._left()

    def _left(self) -> float:
        """Share of the run that is still to come, by iterations or by its budget."""
        return 1 - max(self.progress.iteration / self.config.iterations, self.spent)

    def _logp(self, lm: LocalLM, batch: Batch) -> torch.Tensor:
        """Log-probabilities of the policy tokens of a batch at the sampling temperature, [N]."""
        return self._told(lm, batch)[1]

    def _told(self, lm: LocalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits by temperature [N, V] and log-probabilities [N] of the policy tokens of a batch."""
        labels = batch["labels"][:, 1:]
        where = labels != IGNORED
        with short(lm.model.device):
            hidden = lm.causal.model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
            logits = lm.causal.lm_head(hidden[:, :-1][where])
        logits = logits.float() / self.config.temperature
        return logits, torch.log_softmax(logits, -1).gather(1, labels[where][:, None])[:, 0]

    def save(self, folder: Path) -> None:
        """Policy, critic, optimisers and counters; the caller renames the folder into place."""
        self.lm.save(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        if self.critic is not None:
            self.critic.save(folder / CRITIC)
        (folder / "progress.json").write_text(json.dumps({"iteration": self.progress.iteration, "metrics": self.progress.metrics}))

    def resume(self, folder: Path) -> None:
        """Optimiser and counters of a checkpoint (the caller has loaded the policy from the same folder)."""
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        if self.critic is not None:
            self.critic = Critic(folder / CRITIC, self.config, self.lm.pad)
        data = json.loads((folder / "progress.json").read_text())
        self.progress = Progress(data["iteration"], data["metrics"])


def check_head(lm: LocalLM) -> None:
    """The trainer reads the head for policy tokens alone. Raises ``ConfigError`` where a model does more to its logits than that."""
    ids = torch.arange(4, device=lm.model.device)[None]
    kind = type(lm.causal).__name__
    with torch.inference_mode():
        sampled = lm.causal(input_ids=ids, use_cache=False).logits
        try:
            read = lm.causal.lm_head(lm.causal.model(input_ids=ids, use_cache=False).last_hidden_state)
        except AttributeError as e:
            raise ConfigError(f"base: policy learning needs a causal LM that is model and lm_head, as Llama, Qwen2; {kind}: {e}") from e
    apart = float((sampled - read).abs().max() / sampled.abs().max().clamp(min=1e-6))
    if apart > 0.01:
        what = f"{kind} scales or caps its logits (they differ by {apart:.0%}), so that it would learn another distribution than it samples"
        raise ConfigError(f"base: {what}; take a model whose logits are its lm_head's, as Llama's and Qwen2's")


def _of_policy(batch: Batch, name: str) -> torch.Tensor:
    """What a batch says of each policy token, [N]."""
    return batch[name][:, 1:][batch["labels"][:, 1:] != IGNORED]


def observed(rollouts: Sequence[Rollout], groups: Mapping[str, Sequence[float | None]], compared: bool) -> dict[str, float]:
    """What an iteration's episodes look like; what they do not tell (no valid episode, groups that are not ``compared``) is left out."""
    valid = [r for r in rollouts if r.episode.valid]
    tokens = [lp for r in rollouts for s in r.samples for lp in s.logprobs]
    taken = [t for r in valid for t in r.episode.transitions]
    found = {
        "episodes": float(len(rollouts)),
        "invalid": 1 - len(valid) / len(rollouts),
        "steps": sum(len(r.samples) for r in rollouts) / len(rollouts),
        "transitions": float(sum(len(r.samples) for r in rollouts)),
    }
    if valid:
        returns = [episode_return(r) or 0.0 for r in valid]
        found |= {"reward": sum(returns) / len(valid), "reward_sd": pstdev(returns)}
    if taken:
        said = [[(t.state, t.action) for t in r.episode.transitions] for r in valid]
        found |= {
            "malformed": sum(not s.well_formed for r in valid for s in r.samples) / len(taken),
            "no_effect": sum(not has_effect(t) for t in taken) / len(taken),
            "repeated": sum(len(pairs) - len(set(pairs)) for pairs in said) / len(taken),
        }
    if tokens:
        found["surprisal"] = -sum(tokens) / len(tokens)
    if compared:
        found |= {
            "zero_variance_groups": sum(divisor([r for r in g if r is not None]) == 0 for g in groups.values()) / len(groups),
            "identical_groups": identical_groups(rollouts),
        }
    return found


def identical_groups(rollouts: Sequence[Rollout]) -> float:
    """Share of groups whose members all acted alike and were answered alike: there is nothing to compare in them."""
    groups: dict[str, set[tuple[Transition, ...]]] = {}
    for r in rollouts:
        groups.setdefault(r.episode.task.id, set()).add(r.episode.transitions)
    return sum(len(ways) == 1 for ways in groups.values()) / max(len(groups), 1)


def policy_trees(rollouts: Sequence[tuple[Rollout, Sequence[float]]], informative: bool = True) -> list[Tree]:
    """Samples of valid episodes, those with the same prompt sharing it; only ``informative`` ones: with an advantage that is not 0.

    Advantages: one per step, none where invalid. An episode whose prompts go on from its replies (an append-only transcript) is a chain.
    """
    chains: list[Tree] = []
    by_prompt: dict[tuple[int, ...], list[Segment]] = {}
    for rollout, advantages in rollouts:
        if _appended(rollout.samples):
            if advantages and (any(map(_teaches, advantages)) or not informative):
                chains.append(_chain(rollout.samples, advantages, informative))
            continue
        for s, a in zip(rollout.samples if advantages else (), advantages, strict=True):
            if _teaches(a) or not informative:
                by_prompt.setdefault(s.prompt[:-1], []).append(Segment((s.prompt[-1], *s.ids), len(s.ids), a, s.logprobs))
    return [*chains, *(Tree(prefix, tuple(segments)) for prefix, segments in by_prompt.items())]


def _teaches(advantage: float) -> bool:
    """A mean of advantages that cancel is a rounding error and not 0."""
    return abs(advantage) > ZERO_VARIANCE


def _appended(samples: Sequence[Sample]) -> bool:
    """Whether each prompt begins with the one before and its reply."""
    pairs = list(pairwise(samples))
    return bool(pairs) and all(b.prompt[: len(a.prompt) + len(a.ids)] == a.prompt + a.ids for a, b in pairs)


def _chain(samples: Sequence[Sample], advantages: Sequence[float], informative: bool) -> Tree:
    """An episode as one sequence; of its steps only ``informative`` ones are trained, the others are what came before."""
    done, segments = len(samples[0].prompt) - 1, list[Segment]()
    for s, a in zip(samples, advantages, strict=True):
        learned = _teaches(a) or not informative
        segments.append(Segment((*s.prompt[done:], *s.ids), len(s.ids) if learned else 0, a, s.logprobs if learned else ()))
        done = len(s.prompt) + len(s.ids)
    return Tree(samples[0].prompt[:-1], tuple(segments), chain=True)
