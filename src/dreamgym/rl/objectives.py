"""GRPO as pure functions (arXiv 2402.03300; DreamGym Eq. 3): group advantages, credit of steps, the clipped objective.

advantages = group_advantages([1.0, 0.0, 0.0, None])       # None = invalid: no advantage, not part of the statistics
credit = step_advantages(advantages[0], [True, False], 0.3, 1.0)  # the second step changed nothing: no part in the win
loss, clipped = clipped_loss(logp, old_logp, advantage)
"""

from collections.abc import Sequence
from statistics import fmean, pstdev

import torch

ZERO_VARIANCE = 1e-6


def group_advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """(r - mean) / std over the valid members of one group (population std); None where invalid.

    A group without variance, or with fewer than two valid members, gives zeros.
    """
    valid = [r for r in rewards if r is not None]
    mean = fmean(valid) if valid else 0.0
    sd = pstdev(valid) if len(valid) > 1 else 0.0
    return [None if r is None else 0.0 if sd < ZERO_VARIANCE else (r - mean) / sd for r in rewards]


def malformed_advantage(rewards: Sequence[float | None], penalty: float) -> float:
    """``penalty``, taken off the return of a malformed step, in the units of its group's advantages (reward units without variance).

    verl-agent's invalid-action penalty (DreamGym follows its settings, 0.1); ``rewards`` are those of the step's group.
    """
    sd = pstdev([r for r in rewards if r is not None] or [0.0])
    return penalty / (sd if sd >= ZERO_VARIANCE else 1.0)


def step_advantages(advantage: float, effective: Sequence[bool], penalty: float | None, negative: float) -> list[float]:
    """The advantage of each step of an episode: the episode's, but for steps without effect min(advantage, 0) - ``penalty``.

    An episode won after twenty commands that did nothing would else teach to repeat them: none of them had a part in the
    win. ``penalty`` is in standard deviations of the group; None = each step has the episode's advantage. What is below 0
    is multiplied by ``negative``. Plain GRPO: None and 1.
    """
    credit = [advantage if e or penalty is None else min(advantage, 0.0) - penalty for e in effective]
    return [a if a > 0 else a * negative for a in credit]


def clipped_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, advantage: torch.Tensor, clip: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed clipped surrogate over policy tokens [N] (to be divided by the caller), and how many tokens were clipped.

    All three tensors hold policy tokens only; tokens of prompts and environments never get here.
    """
    ratio = torch.exp(logp - old_logp)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    clipped = ((ratio > 1 + clip) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))
    return -surrogate.sum(), clipped.sum()
