"""The environment protocol that real, dreamed and code environments all speak: async, text in and text out.

    observation, info = await env.reset(task, seed=0)
    step = await env.step("open fridge")
    step.observation, step.reward, step.terminated, step.truncated, step.info

``reward is None`` means the step is invalid (an infrastructure or parse failure), never 0.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from dreamgym.core.errors import BudgetError
from dreamgym.core.types import Task

Info = dict[str, object]


@dataclass(frozen=True, slots=True)
class Step:
    """What an environment answers to one action."""

    observation: str
    """The abstract state, one line each."""
    reward: float | None
    """1 on success at the end, else 0; None = invalid."""
    terminated: bool
    truncated: bool
    info: Info = field(default_factory=dict)
    """``stop``: the StopReason of an ended episode; dream environments add ``reasoning`` and ``surprise``."""


@runtime_checkable
class Env(Protocol):
    """One live episode at a time. The same (task, seed) always gives the same first observation."""

    async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
        """Start an episode: the first observation, and info with at least ``instruction``."""
        ...

    async def step(self, action: str) -> Step: ...

    async def close(self) -> None: ...


@dataclass
class RealSteps:
    """The one place where steps of a real environment are counted, by purpose; a budget is a hard stop."""

    budget: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    purpose: str = "logs"

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, n: int = 1) -> None:
        if self.budget is not None and self.total + n > self.budget:
            raise BudgetError(f"the real-step budget of {self.budget} is used up ({self.total} used); raise it to go on")
        self.counts[self.purpose] = self.counts.get(self.purpose, 0) + n
