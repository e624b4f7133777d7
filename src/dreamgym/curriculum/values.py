"""What a task is worth to the policy: how much a group of its rollouts can teach (arXiv 2511.03773 Eq. 7, and two others).

    v = VALUES["progress"]([1.0, 0.0, None], [1.0, 0.6, None])

All are 0 for a task that is always won, and None where fewer than two members are valid: a task whose rollouts all failed to be
played says nothing of the policy.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pvariance

from dreamgym.core.types import Episode, StopReason

Rewards = Sequence[float | None]
"""One per member of a group; None = invalid."""
NEUTRAL = 0.25
"""The value of a task that nobody has played: the largest variance of a success."""
SHARPNESS = 10.0
UNFINISHED = 0.99
"""The most that an episode without success may have come."""
PSEUDO = 1.0
"""Rollouts that a group's progress counts as."""
_DONE = re.compile(r"\bdone (\d+) of (\d+)\b")


def variance(rewards: Rewards, progress: Rewards = ()) -> float | None:
    """V of Eq. 7: the population variance of a group's valid rewards; for successes p(1 - p), largest where half are won."""
    valid = [r for r in rewards if r is not None]
    return pvariance(valid) if len(valid) > 1 else None


def balance(rewards: Rewards, progress: Rewards = ()) -> float | None:
    """How near the mean reward is to one half: exp(-10 (p - 1/2)^2) / 4, so that what always fails still counts a little; 0 at p = 1.

    The curriculum reward of arXiv 2512.19682 (alpha = 1/2); the 0 is our choice, since a task that is always won is done with.
    """
    valid = [r for r in rewards if r is not None]
    if len(valid) < 2:
        return None
    p = fmean(valid)
    return 0.0 if p >= 1 else NEUTRAL * math.exp(-SHARPNESS * (p - 0.5) ** 2)


def progress_variance(rewards: Rewards, progress: Rewards = ()) -> float | None:
    """p(1 - p) as in Eq. 7, with one more rollout in p: won with the probability of how far those came that failed, on average.

    Eq. 7 is blind to tasks that always fail at the end. Here they are worth the more, the further they come, but never as much as one
    that is won half the time. Where nobody says how far a failure came it is Eq. 7 for successes (our choice; the paper has no such value).
    """
    known = list(progress) or [None] * len(rewards)
    valid = [(r > 0, p) for r, p in zip(rewards, known, strict=True) if r is not None]
    if len(valid) < 2:
        return None
    won, came = sum(w for w, _ in valid), [p for w, p in valid if not w and p is not None]
    p = (won + PSEUDO * fmean(came)) / (len(valid) + PSEUDO) if came else won / len(valid)
    return p * (1 - p)


VALUES: Mapping[str, Callable[[Rewards, Rewards], float | None]] = {
    "variance": variance,
    "balance": balance,
    "progress": progress_variance,
}


def progress_of(episode: Episode) -> float | None:
    """The furthest that the experience model's reasoning says an episode came, 0..1; None where it is invalid or nothing is said.

    Read from ``done 3 of 7`` in a step's reasoning: a teacher of your own that writes it makes progress visible.
    """
    if not episode.valid:
        return None
    if episode.stop is StopReason.WON:
        return 1.0
    said = [m for t in episode.transitions for m in _DONE.finditer(t.reasoning)]
    return max((min(int(m[1]) / int(m[2]), UNFINISHED) for m in said if int(m[2])), default=None)
