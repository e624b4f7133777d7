"""Statistics of result tables: means over seeds, pass@k, and a bootstrap over seeds and games for the difference of two arms."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from dreamgym.core.seeding import keyed_rng

DRAWS = 10_000


def pass_at(k: int, successes: Sequence[Sequence[float]]) -> float:
    """pass@k: the chance that one of ``k`` episodes of a game succeeds, mean over games (arXiv 2107.03374, Eq. 1, unbiased).

    ``successes`` holds each game's valid episodes; games with fewer than ``k`` of them are left out. NaN where none is left.
    """
    rates = [1 - math.comb(len(g) - round(sum(g)), k) / math.comb(len(g), k) for g in successes if len(g) >= k]
    return fmean(rates) if rates else math.nan


def paired_interval(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]], arms: tuple[str, str]
) -> dict[str, object]:
    """95 % bootstrap interval of mean(first) - mean(second), resampling seeds *and* games.

    Each argument holds one {game: success in 0..1} per seed. Seeds are paired by position, games by id; only games that
    every seed of both arms has are used. Raises ``ValueError`` where there are none, or where the numbers of seeds differ.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"paired arms need the same seeds: {arms[0]} has {len(first)}, {arms[1]} has {len(second)}")
    games = sorted(set.intersection(*(set(s) for s in (*first, *second))))
    if not games:
        raise ValueError(f"{arms[0]} and {arms[1]} share no game")
    gap = np.array([[a[g] - b[g] for g in games] for a, b in zip(first, second, strict=True)])
    rng = keyed_rng("bootstrap", *arms, *gap.shape)
    seeds, n = gap.shape
    means = np.empty(DRAWS)
    for i in range(DRAWS):
        means[i] = gap[rng.integers(seeds, size=seeds)][:, rng.integers(n, size=n)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return {"arms": list(arms), "mean": float(gap.mean()), "low": float(low), "high": float(high), "n_seeds": seeds, "n_games": n}
