"""Everything that decides how a policy learns from its rollouts; no torch, so that a configuration can be read without it.

The defaults are GRPO as the shipped experiments use it. Others, by their keys (each shapes credit as the default does, unless
``no_effect_penalty: null, negative: 1``):

- GRPO as published (arXiv 2402.03300): ``std: sample, loss: sequence, no_effect_penalty: null, negative: 1``
- Dr. GRPO (arXiv 2503.20783): ``std: none, loss: fixed``
- DAPO's clipping and averaging (arXiv 2503.14476): ``clip_high: 0.28, loss: token``
- RLOO (arXiv 2402.14740): ``advantage: leave_one_out``
- PPO (arXiv 1707.06347; DreamGym Eq. 2): ``advantage: gae``
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dreamgym.rl.monitors import Limits

Std = Literal["population", "sample", "none"]
"""What a group's advantages are divided by: the deviation over n, over n - 1 (as verl and TRL do), or nothing (Dr. GRPO)."""


class RLConfig(BaseModel):
    """One run of policy learning."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    iterations: int = Field(30, ge=0)
    tasks: int = Field(96, ge=1)
    """Tasks of one iteration."""
    group: int = Field(4, ge=1)
    """Members per task."""
    learning_rate: float = Field(6e-4, gt=0)
    """Its peak: it rises over ``warmup`` iterations, because Adam's first steps are as long as any and a warm start is easily
    knocked into loops, and falls linearly to 0 over all (over the real budget, where that ends sooner), because a constant one lets
    entropy grow without end (docs/development.md)."""
    warmup: int = Field(2, ge=0)
    temperature: float = Field(1.0, gt=0)
    horizon: tuple[int, ...] = ()
    """Longest episodes, in steps, one after the other (ScalingInter-RL, arXiv 2509.08755): short ones first keep a dream's errors from
    adding up; empty = as long as the environment lets them be."""
    horizon_every: int = Field(10, ge=1)
    """Iterations of each horizon but the last, which stays."""

    advantage: Literal["group", "leave_one_out", "gae"] = "group"
    """Against what a return is held: its group (GRPO), the others of its group (RLOO), or a critic (PPO)."""
    std: Std = "population"
    credit: Literal["episode", "anchors", "shared", "turns"] = "episode"
    """How an episode's advantage reaches its steps: whole; with that of each step among equal states (GiGPO); averaged where members
    took the same step (after SALT); in proportion to each turn's discounted reward to go (UserRL)."""
    normalise: Literal["batch", "kind"] = "batch"
    """``kind``: the advantages of all tokens of one kind of task (``Task.difficulty``) get mean 0 and deviation 1 (AgentRL), where kinds
    differ in how often they are won; ``batch``: as the other keys leave them."""
    anchor_weight: float = Field(1.0, gt=0)
    """Of the advantage among equal states, beside the episode's (GiGPO's w)."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of later rewards, for ``gae``, ``anchors`` and ``turns`` (GiGPO 0.95, UserRL 0.8)."""
    gae_lambda: float = Field(1.0, ge=0, le=1)
    no_effect_penalty: float | None = Field(0.3, ge=0)
    """Of a step that changes nothing and does not end the episode (``advantages.shaped``); null = none."""
    negative: float = Field(0.1, ge=0)
    """Weight of negative advantages. Pushing an action down leaves open what rises instead: with weight 1, steps of this length
    undo a warm start within a few iterations (docs/development.md). 1 = as published."""
    invalid_action_penalty: float = Field(0.0, ge=0)
    """Off the return of a step whose reply was malformed, not weighed by ``negative``; the paper's setting is 0.1."""

    clip: float = Field(0.2, gt=0)
    clip_high: float | None = Field(None, gt=0)
    """Upper clip where it differs (DAPO 0.28)."""
    dual_clip: float | None = Field(None, gt=1)
    """Ratio beyond which a negative advantage pushes no further (verl: 3)."""
    loss: Literal["token", "sequence", "fixed"] = "token"
    """Average over all tokens of an update; over sequences, each over its tokens (GRPO as published); or over sequences of a fixed
    length, ``action_tokens`` (Dr. GRPO). A sequence is the reply of one turn, in transcripts too."""
    kl: float = Field(0.0, ge=0)
    """Weight of the divergence from the warm start."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Schulman's: half the square of log r, or r - 1 - log r (verl's ``low_var_kl``)."""
    entropy: float = Field(0.0, ge=0)
    """Weight of an entropy bonus."""
    old: Literal["recomputed", "sampled"] = "recomputed"
    """Old log-probabilities: by the trainer before its first step, or as the sampler had them, which saves a pass over the tokens."""
    importance_cap: float | None = Field(None, gt=0)
    """Weigh tokens by the trainer's probability over the sampler's, at most this (truncated importance sampling); null = do not."""

    passes: int = Field(2, ge=1)
    """Passes over an iteration's samples; each pass is at most ``updates`` optimiser steps (fewer where few rows have an advantage)."""
    updates: int = Field(8, ge=1)
    max_grad_norm: float = Field(1.0, gt=0)
    row_length: int = Field(512, ge=64)
    """Tokens of one packed row; a prompt and its action must fit."""
    rows: int = Field(8, ge=1)
    """Rows of one forward pass."""

    critic_learning_rate: float = Field(1e-3, gt=0)
    """Of the value head and its backbone, for ``gae``."""
    critic_passes: int = Field(2, ge=1)
    value_clip: float = Field(0.5, gt=0)
    """How far a value may move in one iteration (PPO's value clipping)."""

    watch: Limits = Limits()
    """Signs of trouble that are told, or end the run."""

    def longest(self, iteration: int, cap: int) -> int:
        """Steps that an episode of this iteration may have in an environment that allows ``cap``."""
        if not self.horizon:
            return cap
        return min(cap, self.horizon[min(iteration // self.horizon_every, len(self.horizon) - 1)])

    @model_validator(mode="after")
    def _no_idle_key(self) -> Self:
        acts = {
            "gamma": self.advantage == "gae" or self.credit in ("anchors", "turns"),
            "gae_lambda": self.advantage == "gae",
            "critic_learning_rate": self.advantage == "gae",
            "critic_passes": self.advantage == "gae",
            "value_clip": self.advantage == "gae",
            "std": self.advantage == "group" or self.credit == "anchors",
            "anchor_weight": self.credit == "anchors",
            "kl_estimator": self.kl > 0,
            "horizon_every": len(self.horizon) > 1,
        }
        idle = [name for name, active in acts.items() if not active and getattr(self, name) != type(self).model_fields[name].default]
        if idle:
            raise ValueError(f"{', '.join(idle)}: has no effect with the other settings; leave it out")
        if self.importance_cap is not None and self.old == "sampled":
            raise ValueError("importance_cap weighs recomputed probabilities against sampled ones; with old: sampled they are the same")
        if self.advantage == "gae" and self.credit != "episode":
            raise ValueError(f"credit: {self.credit} shares out an episode's advantage; with advantage: gae each step has its own")
        if self.advantage == "gae" and self.horizon:
            raise ValueError("horizon cuts episodes that could go on, which advantage: gae would take for failures; leave one of them out")
        if any(h < 1 for h in self.horizon) or list(self.horizon) != sorted(self.horizon):
            raise ValueError(f"horizon: {list(self.horizon)} must grow and begin at 1 or more")
        if self.advantage != "gae" and self.group < 2:
            raise ValueError(f"group: {self.group} leaves nothing to compare a return with; use 2 or more, or advantage: gae")
        return self
