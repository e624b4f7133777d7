"""From an iteration's rollouts to one advantage per step: invalid episodes leave first, then groups, credit and shaping, in that order."""

from collections.abc import Sequence

from dreamgym.core.types import Transition
from dreamgym.rl.advantages import (
    anchor_advantages,
    divisor,
    gae,
    group_advantages,
    leave_one_out_advantages,
    normalised,
    rewards_to_go,
    shaped,
    shared_advantages,
    turn_advantages,
    whitened,
)
from dreamgym.rl.config import RLConfig
from dreamgym.rl.rollout import Rollout


def episode_return(rollout: Rollout) -> float | None:
    """The undiscounted return; None where the episode is invalid."""
    if not rollout.episode.valid:
        return None
    return sum(_rewards(rollout))


def has_effect(step: Transition) -> bool:
    """Whether a step changed what the policy sees, or ended the episode."""
    return bool(step.removed or step.added) or step.outcome != "go"


def step_credit(rollouts: Sequence[Rollout], config: RLConfig) -> list[list[float]]:
    """The advantage of each step of each rollout, by comparison in its group (``advantage``: group or leave_one_out).

    Empty for an invalid episode. A malformed reply costs ``invalid_action_penalty`` in the units of its group's advantages
    (verl-agent's penalty: off the return of that step alone).
    """
    out: list[list[float]] = [[] for _ in rollouts]
    penalties: dict[int, float] = {}
    groups: dict[str, list[int]] = {}
    for i, r in enumerate(rollouts):
        groups.setdefault(r.episode.task.id, []).append(i)
    for members in groups.values():
        returns = [episode_return(rollouts[i]) for i in members]
        compared = leave_one_out_advantages(returns) if config.advantage == "leave_one_out" else group_advantages(returns, config.std)
        valid = [(i, a) for i, a in zip(members, compared, strict=True) if a is not None]
        by = divisor([r for r in returns if r is not None], config.std) if config.advantage == "group" else 1.0
        penalty = config.invalid_action_penalty / (by or 1.0)
        penalties |= {i: penalty for i, _ in valid}
        for (i, _), steps in zip(valid, _shared_out([rollouts[i] for i, _ in valid], [a for _, a in valid], config), strict=True):
            out[i] = steps
    out = _by_kind(rollouts, out) if config.normalise == "kind" else out
    return [_shaped(r, out[i], config, penalties[i]) if i in penalties else [] for i, r in enumerate(rollouts)]


def critic_credit(
    rollouts: Sequence[Rollout], values: Sequence[Sequence[float]], config: RLConfig
) -> tuple[list[list[float]], list[list[float]]]:
    """Whitened generalised advantages and the critic's targets, one per step; empty for an invalid episode (``advantage``: gae).

    ``values``: the critic's of the state before each step. The penalty of a malformed reply is part of its step's reward.
    """
    advantages: list[list[float]] = []
    targets: list[list[float]] = []
    for r, v in zip(rollouts, values, strict=True):
        a, t = list[float](), list[float]()
        if r.episode.valid:
            paid = [x - config.invalid_action_penalty * (not s.well_formed) for x, s in zip(_rewards(r), r.samples, strict=True)]
            a, t = gae(paid, v, config.gamma, config.gae_lambda)
        advantages.append(a)
        targets.append(t)
    if config.normalise == "kind":
        credit = _by_kind(rollouts, advantages)
    else:
        flat = iter(whitened([a for steps in advantages for a in steps]))
        credit = [[next(flat) for _ in steps] for steps in advantages]
    return [_shaped(r, steps, config, 0.0) if r.episode.valid else [] for r, steps in zip(rollouts, credit, strict=True)], targets


def _shared_out(members: list[Rollout], advantages: list[float], config: RLConfig) -> list[list[float]]:
    """How the advantages of a group's episodes reach their steps."""
    taken = [r.episode.transitions for r in members]
    whole = [[a] * len(steps) for a, steps in zip(advantages, taken, strict=True)]
    if config.credit == "anchors":
        to_go = [rewards_to_go(_rewards(r), config.gamma) for r in members]
        among = anchor_advantages([[t.state for t in steps] for steps in taken], to_go, config.std)
        return [[a + config.anchor_weight * b for a, b in zip(*pair, strict=True)] for pair in zip(whole, among, strict=True)]
    if config.credit == "shared":
        return shared_advantages([[(t.state, t.action) for t in steps] for steps in taken], advantages)
    if config.credit == "turns":
        return [turn_advantages(_rewards(r), a, config.gamma) for r, a in zip(members, advantages, strict=True)]
    return whole


def _by_kind(rollouts: Sequence[Rollout], advantages: Sequence[Sequence[float]]) -> list[list[float]]:
    """Normalised over the tokens of tasks of one kind; the steps of an invalid episode are none."""
    kept = [(r, row) for r, row in zip(rollouts, advantages, strict=True) if row]
    kinds = [r.episode.task.difficulty for r, row in kept for _ in row]
    tokens = [len(s.ids) for r, _ in kept for s in r.samples]
    flat = iter(normalised([a for _, row in kept for a in row], kinds, tokens))
    return [[next(flat) for _ in row] for row in advantages]


def _shaped(rollout: Rollout, advantages: list[float], config: RLConfig, penalty: float) -> list[float]:
    effective = [has_effect(t) for t in rollout.episode.transitions]
    credit = shaped(advantages, effective, config.no_effect_penalty, config.negative)
    return [a if s.well_formed else a - penalty for s, a in zip(rollout.samples, credit, strict=True)]


def _rewards(rollout: Rollout) -> list[float]:
    return [t.reward or 0.0 for t in rollout.episode.transitions]
