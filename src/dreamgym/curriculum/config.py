"""What the curriculum is: how tasks are chosen, and how new ones are written. No torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SamplerConfig(BaseModel):
    """How tasks are chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: Literal["variance", "balance", "progress", "uniform"] = "variance"
    """What makes a task worth playing (``curriculum/values.py``); ``uniform``: nothing, the least visited come first."""
    turns: Literal["played", "valid"] = "played"
    """What counts as a visit among the least visited: every group, or (cells made before) those with two valid members."""
    by_value: float = Field(0.5, ge=0, le=1)
    """The share of a draw that is chosen by value; the others are those played least often."""
    clusters: int = Field(0, ge=0)
    """This many clusters of instructions (``curriculum/clusters.py``, the extra [cluster]). For PPO the tasks of one are one group of
    Eq. 7; else a task that nobody has played is worth what those of its cluster are, on average. 0 = each task stands for itself."""
    fade: float = Field(0.98, gt=0, le=1)
    """Of what sets a value apart from that of a task that nobody has played, the part that is left after as many groups as there are
    tasks. Runs that see each task a few times only want it lower, else what was always lost at first stays worthless."""
    synthetic: float = Field(0.0, ge=0, le=1)
    """Lambda: the largest share of generated tasks in a draw."""


class GeneratorConfig(BaseModel):
    """How many tasks are written, and from what."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    every: int = Field(1, ge=1)
    """Iterations between two rounds of writing."""
    parents: int = Field(8, ge=1)
    """Tasks varied per round, the most valuable first."""
    drafts: int = Field(4, ge=1)
    """Drafts per parent; at most one is kept."""
    rollouts: int = Field(2, ge=2)
    """Episodes of the current policy on each new task before it is taken in; a task that nobody can play is dropped."""
    alike: float = Field(0.97, gt=0, le=1)
    """Cosine of two instructions in one world from which on they count as the same task."""
