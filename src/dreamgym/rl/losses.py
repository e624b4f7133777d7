"""Losses as pure functions on tensors of policy tokens, all [N]: what prompts and environments say never gets here.

Each gives one value per token (its ``average`` makes the number to descend), so that oracles can be held beside it.
"""

import torch


def clipped_surrogate(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantage: torch.Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's pessimistic surrogate (arXiv 1707.06347, Eq. 7), per token and negative, and which tokens were clipped.

    ``clip_high``: the upper bound where it differs (DAPO, arXiv 2503.14476, Eq. 10). ``dual``: a ratio beyond which a negative
    advantage pushes no further (arXiv 1912.09729; verl's ``clip_ratio_c``).
    """
    high = clip if clip_high is None else clip_high
    ratio = torch.exp((logp - old_logp).clamp(-20, 20))
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + high) * advantage)
    clipped = ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))
    if dual is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual * advantage), surrogate)
        clipped |= (ratio > dual) & (advantage < 0)
    return -surrogate, clipped


def importance(old_logp: torch.Tensor, sampled_logp: torch.Tensor, cap: float) -> torch.Tensor:
    """Weights min(p_trainer / p_sampler, cap) of tokens whose sampler computes in another way than the trainer.

    Truncated importance sampling, as verl's ``rollout_is`` at token level with an upper threshold.
    """
    return torch.exp((old_logp - sampled_logp).clamp(-20, 20)).clamp(max=cap)


def divergence(logp: torch.Tensor, reference: torch.Tensor, estimator: str = "k3") -> torch.Tensor:
    """Of the policy from a reference, estimated on tokens of the policy (Schulman, "Approximating KL divergence", 2020).

    ``k2`` is half the square of the log ratio, ``k3`` is r - 1 - log r, cut where verl's ``low_var_kl`` is: log ratios at 20, the
    estimate at 10. The unbiased -log r is not here: as a loss its expected gradient is 0.
    """
    if estimator == "k2":
        return 0.5 * (logp - reference).square()
    log_ratio = (reference - logp).clamp(-20, 20)
    return (torch.exp(log_ratio) - log_ratio - 1).clamp(-10, 10)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Of the distribution of each token; ``logits`` [N, V]."""
    return torch.logsumexp(logits, -1) - (torch.softmax(logits, -1) * logits).sum(-1)


def average(per_token: torch.Tensor, lengths: torch.Tensor, total: float, how: str, fixed: int) -> torch.Tensor:
    """The part of an update's loss that these tokens make; parts of one update add up.

    ``lengths`` [N]: tokens of each token's sequence. ``how``: ``token`` = the mean over tokens (DAPO), ``sequence`` = the mean over
    sequences of their means (GRPO), ``fixed`` = the mean over sequences of their sums by ``fixed`` (Dr. GRPO). ``total``: tokens of the
    whole update, or its sequences.
    """
    if how == "sequence":
        per_token = per_token / lengths
    elif how == "fixed":
        per_token = per_token / fixed
    return per_token.sum() / total


def value_loss(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Half the square error, per step; the worse of the value and the value moved by at most ``clip`` (PPO's value clipping)."""
    moved = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (moved - returns).square())
