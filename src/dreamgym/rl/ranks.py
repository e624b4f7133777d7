"""Several processes train one policy (``torchrun``): each plays its share of an iteration's groups and takes its share of each gradient.

    ranks = Ranks.launched()                  # one process alone, unless torchrun started several
    mine = ranks.share(batches)               # every size-th, from its own number on
    rollouts = ranks.together(own_rollouts)   # of all, on all
    ranks.add_up(lm.trained)                  # gradients summed

All hold the whole policy and see all rollouts, so advantages, task sampler and world sheets are the same everywhere; the sum of the
shares is the gradient that one process would compute (to the order of its sums). Only the first process writes.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    @classmethod
    def launched(cls) -> "Ranks":
        """As ``torchrun`` or ``accelerate launch`` started it; connects the processes."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        # the others wait for the first one's probes and real episodes, however long these take
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.rank :: self.size]

    def together(self, own: Sequence[T]) -> list[T]:
        """What all processes have, the first one's first."""
        if self.size == 1:
            return list(own)
        from accelerate.utils import gather_object

        return list(gather_object(list(own)))

    def said(self, item: T) -> T:
        """What the first process has."""
        if self.size == 1:
            return item
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([item])[0]  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def add_up(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Every gradient becomes the sum over the processes; a process whose share was empty adds 0."""
        if self.size == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            torch.distributed.all_reduce(p.grad)

    def mean(self, own: float, weight: int) -> float:
        """Of the processes' means, each by its weight."""
        if self.size == 1:
            return own
        weighted, whole = self.total([own * weight, weight])
        return weighted / whole

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes."""
        if self.size == 1:
            return list(values)
        found = self.together([tuple(values)])
        return [sum(column) for column in zip(*found, strict=True)]


ALONE = Ranks()
