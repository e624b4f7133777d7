"""Signs that training goes wrong, read from the metrics of an iteration: each a limit, and what passing it means.

    alarms(metrics, Limits())       # -> ["invalid 0.31 > 0.2 for 3 iterations: ...", ...]

Policies that train on what they made themselves fall into loops (RAGEN's "echo trap", arXiv 2504.20073), and in a dream they learn what
it gets wrong: dream success rises, real success does not.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

MEANING = {
    "reward_sd": "all episodes are paid alike, so nothing is compared",
    "surprisal": "the policy is nearly sure of every token and explores no more",
    "zero_variance_groups": "tasks are too easy or too hard for their groups to differ",
    "identical_groups": "all members of a group acted alike and were answered alike (a task too easy or too hard, or a policy too sure)",
    "repeated": "episodes repeat themselves",
    "invalid": "episodes are lost to replies that cannot be used or to a failing environment",
    "grad_norm": "updates are torn by few samples",
    "dream_gap": "the dream pays what the real environment does not: look at its wins (dreamgym audit)",
}
BELOW = ("reward_sd", "surprisal")
"""Limits that are passed downwards."""


class Limits(BaseModel):
    """Where a metric of an iteration is a sign of trouble; null = not watched."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    reward_sd: float | None = None
    surprisal: float | None = Field(0.001, ge=0)
    """Nats per token."""
    zero_variance_groups: float | None = Field(0.98, ge=0)
    identical_groups: float | None = Field(0.9, ge=0)
    """Share of groups whose episodes are equal to the letter."""
    repeated: float | None = Field(0.8, ge=0)
    """Share of steps that say what their episode has said before in the same state."""
    invalid: float | None = Field(0.2, ge=0)
    grad_norm: float | None = None
    """Before clipping."""
    dream_gap: float | None = Field(0.3, ge=0)
    """Dream success less real success on the probe panel, of the iterations that probe."""
    in_a_row: int = Field(3, ge=1)
    """Iterations (of ``dream_gap``: probes) that have to pass a limit."""
    stop: bool = False
    """End the run at the first alarm; else it is only told."""


def alarms(metrics: Sequence[dict[str, float]], limits: Limits) -> list[str]:
    """One line per limit that the last ``in_a_row`` iterations have all passed, the last of them included."""
    if not metrics:
        return []
    found = []
    for name, meaning in MEANING.items():
        limit = getattr(limits, name)
        seen = [m[name] for m in metrics if name in m][-limits.in_a_row :]
        if limit is None or name not in metrics[-1] or len(seen) < limits.in_a_row:
            continue
        if all(value < limit if name in BELOW else value > limit for value in seen):
            sign = "<" if name in BELOW else ">"
            found.append(f"{name} {seen[-1]:.3g} {sign} {limit:g} {limits.in_a_row} times in a row: {meaning}")
    return found
