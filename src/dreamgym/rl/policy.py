"""The policy: a causal LM that reads instruction and state and writes one free-form action per turn.

Each step is its own sample (*step-wise* context policy): the prompt is rendered once, the sampled ids are what is trained
on. Actions are read up to the end token; a reply without one is cut at the budget and taken as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dreamgym.core.grammar import render_policy
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import State
from dreamgym.lm.local import LocalLM

ACTION_TOKENS = 12
"""Tokens of one action with its end; enough for a command of the cooking games in the shipped tokenizer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy sees at one step; ``key`` names the draw: (seed, iteration, task, member, turn)."""

    instruction: str
    state: State
    key: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One policy step in tokens: prompt, sampled ids, their log-probabilities at sampling time, and the text."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    action: str


class Actor(Protocol):
    """Acts for many episodes at once: the trained policy, or a scripted one."""

    def act(self, turns: Sequence[Turn]) -> list[Sample]: ...


class Scripted:
    """A scripted policy (no tokens), for audits and collection."""

    def __init__(self, explorer: Callable[[str, State, np.random.Generator], str]) -> None:
        self.explorer = explorer

    def act(self, turns: Sequence[Turn]) -> list[Sample]:
        return [Sample((), (), (), self.explorer(t.instruction, t.state, keyed_rng("scripted", *t.key))) for t in turns]


class Policy:
    """The trained policy."""

    def __init__(self, lm: LocalLM, temperature: float, action_tokens: int = ACTION_TOKENS) -> None:
        self.lm = lm
        self.temperature = temperature
        self.action_tokens = action_tokens

    def act(self, turns: Sequence[Turn]) -> list[Sample]:
        prompts = self.lm.encode_batch([" " + render_policy(t.instruction, t.state) for t in turns])
        draws = [keyed_rng("policy", *t.key) for t in turns]
        replies = self.lm.generate(prompts, self.action_tokens, self.temperature, draws)
        return [Sample(tuple(p), g.ids, g.logprobs, " ".join(self.lm.decode(g.ids).split())) for p, g in zip(prompts, replies, strict=True)]
