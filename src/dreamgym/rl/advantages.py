"""Advantages as pure functions on rewards: numbers in, numbers out, each beside its source. None = invalid: no part in anything.

    group_advantages([1.0, 0.0, 0.0, None])                     # GRPO
    gae([0, 0, 1], values=[.5, .6, .7], gamma=1.0, lam=0.95)    # PPO, over the turns of an episode
    anchor_advantages([["s0", "s1"], ["s0", "s2"]], [[1, 1], [0, 0]])   # GiGPO: s0 was met twice, so its two actions compare

A step is one turn: a prompt and the policy's reply. All tokens of a reply share its step's advantage.
"""

from collections.abc import Hashable, Sequence
from statistics import fmean, pstdev, stdev

from dreamgym.rl.config import Std

ZERO_VARIANCE = 1e-6


def divisor(rewards: Sequence[float], std: Std = "population") -> float:
    """What advantages are divided by; 0 where rewards do not vary."""
    if len(rewards) < 2 or (sd := pstdev(rewards)) < ZERO_VARIANCE:
        return 0.0
    return {"population": sd, "sample": stdev(rewards), "none": 1.0}[std]


def group_advantages(rewards: Sequence[float | None], std: Std = "population") -> list[float | None]:
    """(r - mean) / std over the valid members of one group (GRPO, arXiv 2402.03300; DreamGym Eq. 3); None where invalid.

    ``std = none``: r - mean (Dr. GRPO, arXiv 2503.20783). A group without variance, or with fewer than two valid members, gives zeros.
    """
    valid = [r for r in rewards if r is not None]
    mean = fmean(valid) if valid else 0.0
    by = divisor(valid, std)
    return [None if r is None else (r - mean) / by if by else 0.0 for r in rewards]


def leave_one_out_advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """r - mean of the other valid members (RLOO, arXiv 2402.14740); 0 for one alone, None where invalid."""
    valid = [r for r in rewards if r is not None]
    n, total = len(valid), sum(valid)
    return [None if r is None else r - (total - r) / (n - 1) if n > 1 else 0.0 for r in rewards]


def rewards_to_go(rewards: Sequence[float], gamma: float = 1.0) -> list[float]:
    """sum_k gamma^(k-t) r_k for each step t."""
    following, out = 0.0, []
    for r in reversed(rewards):
        following = r + gamma * following
        out.append(following)
    return out[::-1]


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> tuple[list[float], list[float]]:
    """Generalised advantages and returns (advantage + value) of one episode (arXiv 1506.02438; DreamGym Eq. 2), both one per step.

    ``values[t]`` is the critic's of the state before step t; that of the end is 0 (an episode cut at its limit of steps has failed).
    """
    after, advantage, out = 0.0, 0.0, []
    for r, v in zip(reversed(rewards), reversed(values), strict=True):
        advantage = r + gamma * after - v + gamma * lam * advantage
        after = v
        out.append(advantage)
    advantages = out[::-1]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def whitened(advantages: Sequence[float]) -> list[float]:
    """Mean 0 and deviation 1 over a batch, as PPO's are; zeros where they do not vary."""
    return [float(a or 0.0) for a in group_advantages(advantages, "sample")]


def normalised(advantages: Sequence[float], kinds: Sequence[Hashable], tokens: Sequence[int]) -> list[float]:
    """(a - mean) / deviation over all tokens of a batch whose tasks are of one kind (AgentRL's task advantage normalisation, arXiv
    2510.04206): no kind of task outshouts the others. ``tokens``: how many share each advantage. A kind without variance gives zeros.
    """
    out = [0.0] * len(advantages)
    for kind in dict.fromkeys(kinds):
        here = [i for i, k in enumerate(kinds) if k == kind]
        total = sum(tokens[i] for i in here)
        mean = sum(advantages[i] * tokens[i] for i in here) / max(total, 1)
        sd = (sum((advantages[i] - mean) ** 2 * tokens[i] for i in here) / max(total, 1)) ** 0.5
        for i in here:
            out[i] = (advantages[i] - mean) / sd if sd > ZERO_VARIANCE else 0.0
    return out


def anchor_advantages(states: Sequence[Sequence[Hashable]], to_go: Sequence[Sequence[float]], std: Std = "population") -> list[list[float]]:
    """Of each step among all steps of its group that were taken in an equal state (GiGPO, arXiv 2505.10978, A^S); 0 for one alone.

    ``states[i][t]``: state of member i before step t; ``to_go``: discounted rewards to go, alike.
    """
    met: dict[Hashable, list[tuple[int, int]]] = {}
    for i, member in enumerate(states):
        for t, state in enumerate(member):
            met.setdefault(state, []).append((i, t))
    out = [[0.0] * len(member) for member in states]
    for places in met.values():
        for (i, t), a in zip(places, group_advantages([to_go[i][t] for i, t in places], std), strict=True):
            out[i][t] = a or 0.0
    return out


def shared_advantages(edges: Sequence[Sequence[Hashable]], advantages: Sequence[float]) -> list[list[float]]:
    """The episode's advantage for a step that it alone took, the mean of all who took it for a shared one.

    After SALT (arXiv 2510.20022), whose exact weights are not published: members of a group are merged where they agree, so a step
    that wins and failures share decided nothing. ``edges[i][t]``: (state, action) of member i at step t.
    """
    who: dict[Hashable, set[int]] = {}
    for i, member in enumerate(edges):
        for edge in member:
            who.setdefault(edge, set()).add(i)
    return [[fmean(advantages[j] for j in sorted(who[edge])) for edge in member] for member in edges]


def turn_advantages(rewards: Sequence[float], advantage: float, gamma: float) -> list[float]:
    """The episode's advantage in proportion to each turn's discounted reward to go, its mean unchanged (UserRL, arXiv 2509.19736).

    Where no turn is credited (nothing was rewarded) each has the episode's.
    """
    credit = rewards_to_go(rewards, gamma)
    mean = fmean(credit) if credit else 0.0
    return [advantage * c / mean if mean > ZERO_VARIANCE else advantage for c in credit]


def shaped(advantages: Sequence[float], effective: Sequence[bool], penalty: float | None, negative: float) -> list[float]:
    """Advantages of an episode's steps, but for those without effect min(advantage, 0) - ``penalty``.

    An episode won after twenty commands that did nothing would else teach to repeat them: none of them had a part in the
    win. ``penalty`` is in the units of the advantages; None = no difference. What is below 0 is multiplied by ``negative``.
    As published: None and 1.
    """
    credit = [a if e or penalty is None else min(a, 0.0) - penalty for a, e in zip(advantages, effective, strict=True)]
    return [a if a > 0 else a * negative for a in credit]
