"""The policy: a causal LM that reads a turn, as its context shows it, and writes one free-form action.

A prompt is rendered once, the sampled ids are what is trained on. Replies are read up to the end token; one without it is cut at
the budget and taken as it is. With a context that appends, keys and values are kept from turn to turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import State
from dreamgym.lm.cache import Memory
from dreamgym.lm.local import LocalLM
from dreamgym.rl.context import Context, StateContext, Turn

STATE_CONTEXT = StateContext()
ACTION_TOKENS = 12
"""Tokens of one reply with its end; enough for a command of the cooking games in the shipped tokenizer."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One policy step in tokens: prompt, sampled ids, their log-probabilities at sampling time, and the text."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    action: str
    well_formed: bool = True
    """Whether the reply had the form that the context asks for."""


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

    def __init__(self, lm: LocalLM, temperature: float, action_tokens: int = ACTION_TOKENS, context: Context = STATE_CONTEXT) -> None:
        self.lm = lm
        self.temperature = temperature
        self.action_tokens = action_tokens
        self.context = context
        self.memory = Memory() if context.appends else None

    def act(self, turns: Sequence[Turn]) -> list[Sample]:
        prompts = self.context.prompts(self.lm, turns)
        draws = [keyed_rng("policy", *t.key) for t in turns]
        known = [len(t.said) for t in turns]
        replies = self.lm.generate(prompts, self.action_tokens, self.temperature, draws, self.memory, known)
        read = [self.context.read(self.lm.decode(g.ids)) for g in replies]
        return [Sample(tuple(p), g.ids, g.logprobs, *r) for p, g, r in zip(prompts, replies, read, strict=True)]
