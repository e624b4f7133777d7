"""The environment protocol that real, dreamed and code environments all speak: async, text in and text out.

    observation, info = await env.reset(task, seed=0)
    step = await env.step("open fridge")
    step.observation, step.reward, step.terminated, step.truncated, step.info

``reward is None`` means the step is invalid (an infrastructure or parse failure), never 0.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from dreamgym.core.errors import BudgetError
from dreamgym.core.files import write_atomic
from dreamgym.core.types import Task

Info = dict[str, object]
AHEAD = 64
"""Steps that a ledger of real steps runs ahead: as many may be counted too much after a kill, none too few."""


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
    ledger: Path | None = None
    """File that knows of every step before it is taken, a few ahead: what a killed process used stays used."""
    _known: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, n: int = 1) -> None:
        if self.budget is not None and self.total + n > self.budget:
            raise BudgetError(f"the real-step budget of {self.budget} is used up ({self.total} used); raise it to go on")
        self.counts[self.purpose] = self.counts.get(self.purpose, 0) + n
        if self.ledger is not None and self.total > self._known:
            self.settle(AHEAD if self.budget is None else min(AHEAD, self.budget - self.total))

    def settle(self, ahead: int = 0) -> None:
        """Write the counts to the ledger, exactly or with steps still to come."""
        if self.ledger is not None:
            counts = self.counts | ({self.purpose: self.counts.get(self.purpose, 0) + ahead} if ahead else {})
            write_atomic(self.ledger, "".join(f"{name} {n}\n" for name, n in counts.items()))
            self._known = self.total + ahead

    def recall(self) -> None:
        """Take the counts of the ledger, where it exists."""
        if self.ledger is not None and self.ledger.exists():
            lines = [line.split() for line in self.ledger.read_text(encoding="utf-8").splitlines()]
            self.counts.update({name: int(n) for name, n in lines})
