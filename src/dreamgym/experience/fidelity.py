"""How far single predictions can be trusted: errors of reward, end and next state, calibration, uncertainty, Theorem 1.

    rows = judged(pairs, model, draw, samples=8)          # pairs of (request, what really happened)
    reward_error(rows), done_accuracy(rows), total_variation(rows), calibration(rows), auroc(...)

The greedy prediction is what a dream uses; ``samples`` further draws at temperature 1 say how sure the model is. The real
environment is asked again through ``Row.real`` where it may answer differently; where it is deterministic one answer is all.
Notation of arXiv 2511.03773, Appendix B: epsilon_R, epsilon_P, Theorem 1 (Eq. 9).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import apply_change, entity
from dreamgym.core.types import Episode, StopReason, Transition
from dreamgym.experience.model import ExperienceModel, Prediction, check, held
from dreamgym.experience.precedent import Precedents
from dreamgym.experience.prompt import ExperienceConfig, PromptBuilder, Request
from dreamgym.lm.local import LocalLM
from dreamgym.replay.contract import Retrieval

Draw = Callable[[Sequence[Request], int], list[list[Prediction]]]
"""Requests and a number m -> m independent predictions of each, at temperature 1."""


@dataclass(frozen=True)
class Row:
    """One step: what really happened (once or several times), what the model says, and m draws of what it might say."""

    request: Request
    real: tuple[Transition, ...]
    said: Prediction
    drawn: tuple[Prediction, ...]

    @property
    def right(self) -> bool:
        """Exact match of change and outcome with what happened first."""
        reply = self.said.reply
        return reply is not None and (reply.change, reply.outcome) == (self.real[0].change, self.real[0].outcome)

    @property
    def disagreement(self) -> float:
        """The step's uncertainty, 0..1."""
        return disagreement(self.said, self.drawn)


def disagreement(said: Prediction, drawn: Sequence[Prediction]) -> float:
    """Share of draws that say another change or outcome than the prediction."""
    return sum(_said(p) != _said(said) for p in drawn) / max(len(drawn), 1)


def local_draws(lm: LocalLM, config: ExperienceConfig, retrieval: Retrieval, wins: Precedents | None = None) -> Draw:
    """Draws of a model in this process; with ``wins`` a success needs a precedent."""
    prompts = PromptBuilder(config, retrieval)

    def draw(requests: Sequence[Request], m: int) -> list[list[Prediction]]:
        queries = prompts.queries(requests, [not config.same_task] * len(requests))
        ids = lm.encode_batch([f" {prompts.world(r)} {q}" for r, q in zip(requests, queries, strict=True)])
        rows = [i for i in range(len(requests)) for _ in range(m)]
        draws = [keyed_rng("fidelity", n % m, *requests[i].key, requests[i].action) for n, i in enumerate(rows)]
        replies = lm.generate([ids[i] for i in rows], config.budget, 1.0, draws)
        found: list[list[Prediction]] = [[] for _ in requests]
        for i, g in zip(rows, replies, strict=True):
            text = lm.decode(g.ids)
            said = check(text.strip(" "), requests[i].state) if g.finished else Prediction(None, StopReason.INVALID_REPLY, text)
            found[i].append(held(said, requests[i], config, wins))
        return found

    return draw


def judged(
    pairs: Sequence[tuple[Request, tuple[Transition, ...]]], model: ExperienceModel, draw: Draw, samples: int, batch: int = 64
) -> list[Row]:
    """Predictions and draws for every pair, in order."""
    rows = []
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        requests = [r for r, _ in part]
        for (request, real), said, drawn in zip(part, model.predict(requests), draw(requests, samples), strict=True):
            rows.append(Row(request, real, said, tuple(drawn)))
    return rows


def done_accuracy(rows: Sequence[Row]) -> float:
    """Share of steps whose end (or going on) is predicted; an invalid prediction is wrong."""
    return sum(r.said.outcome is not None and (r.said.outcome == "go") == (r.real[0].outcome == "go") for r in rows) / max(len(rows), 1)


def reward_error(rows: Sequence[Row]) -> dict[str, float]:
    """epsilon_R as mean and maximum of |R - R^| over the rows (the paper's is a supremum); an invalid prediction counts as the worst."""
    errors = [1.0 if r.said.reward is None else abs(_mean_reward(r.real) - r.said.reward) for r in rows]
    return {"mean": sum(errors) / max(len(errors), 1), "max": max(errors, default=0.0)}


def _mean_reward(real: Sequence[Transition]) -> float:
    return sum(t.reward or 0.0 for t in real) / len(real)


def total_variation(rows: Sequence[Row]) -> dict[str, float]:
    """epsilon_P: total variation between real and predicted next-state distributions, mean and maximum over the rows.

    Of the greedy model, which is the dream's: a point against the distribution of the real answers; ``sampled`` is the mean
    over the rows of the distribution of the draws instead. An invalid prediction is a state of its own.
    """
    greedy = [_variation(_shares([_after(t) for t in r.real]), {_next(r.said, r.request): 1.0}) for r in rows]
    sampled = [_variation(_shares([_after(t) for t in r.real]), _shares([_next(p, r.request) for p in r.drawn])) for r in rows if r.drawn]
    return {
        "mean": sum(greedy) / max(len(greedy), 1),
        "max": max(greedy, default=0.0),
        "sampled": sum(sampled) / max(len(sampled), 1),
    }


def _after(t: Transition) -> object:
    return (t.next_state, t.outcome)


def _next(p: Prediction, request: Request) -> object:
    return "invalid" if p.reply is None else (apply_change(request.state, p.reply.change), p.reply.outcome)


def _shares(items: Sequence[object]) -> dict[object, float]:
    return {k: n / len(items) for k, n in Counter(items).items()}


def _variation(p: dict[object, float], q: dict[object, float]) -> float:
    return sum(abs(p.get(k, 0.0) - q.get(k, 0.0)) for k in {*p, *q}) / 2


def calibration(rows: Sequence[Row], bins: int = 10) -> dict[str, object]:
    """Expected calibration error of the share of draws that say *won*, over equal-width bins, and the bins for a plot.

    Give it only steps that could end the episode (``could_end``): on the others everybody is sure and right.
    """
    points = [(sum(p.outcome == "won" for p in r.drawn) / len(r.drawn), float(r.real[0].outcome == "won")) for r in rows if r.drawn]
    table = []
    for b in range(bins):
        here = [(p, y) for p, y in points if b == min(int(p * bins), bins - 1)]
        if here:
            table.append({"confidence": sum(p for p, _ in here) / len(here), "won": sum(y for _, y in here) / len(here), "n": len(here)})
    error = sum(row["n"] * abs(row["confidence"] - row["won"]) for row in table) / max(len(points), 1)
    return {"ece": error if points else None, "n": len(points), "bins": table}


def could_end(rows: Sequence[Row], logs: Sequence[Episode]) -> list[Row]:
    """Steps whose command's first word ended an episode in the logs, or that really ended, or that a draw says would."""
    verbs = {t.action.partition(" ")[0] for e in logs for t in e.steps if t.outcome != "go"}
    return [
        r
        for r in rows
        if r.request.action.partition(" ")[0] in verbs
        or r.real[0].outcome != "go"
        or any(p.outcome in ("won", "lost") for p in (r.said, *r.drawn))
    ]


def invalid_actions(rows: Sequence[Row]) -> dict[str, float | int | None]:
    """Whether the model sees that a command does nothing (the real step changed nothing and did not end): precision and recall of
    saying so. An unusable prediction says nothing of the kind."""
    said = [r.said.reply is not None and not r.said.reply.change and r.said.reply.outcome == "go" for r in rows]
    really = [not r.real[0].change and r.real[0].outcome == "go" for r in rows]
    both = sum(a and b for a, b in zip(said, really, strict=True))
    return {
        "precision": both / sum(said) if any(said) else None,
        "recall": both / sum(really) if any(really) else None,
        "n": sum(really),
    }


def spurious(rows: Sequence[Row]) -> dict[str, float]:
    """Per 1000 steps: things whose line the model changes and reality does not, the reverse, and changes that contradict the state."""
    extra = missed = contradicting = 0
    for r in rows:
        if r.said.reply is None:
            contradicting += r.said.invalid is StopReason.INVALID_CHANGE
            continue
        said = {entity(s) for s in (*r.said.reply.change.removed, *r.said.reply.change.added)}
        real = {entity(s) for s in (*r.real[0].removed, *r.real[0].added)}
        extra += len(said - real)
        missed += len(real - said)
    n = max(len(rows), 1) / 1000
    return {"changed_without_cause": extra / n, "left_unchanged": missed / n, "contradictions": contradicting / n}


def by_depth(real: Sequence[Episode], dreamed: Sequence[Episode]) -> list[dict[str, float]]:
    """How agreement decays with the number of dreamed steps before: at each depth the share of pairs still in the same state.

    ``dreamed``: the same actions, played through the model on its own states (in the order of ``real``). A dreamed episode
    that has ended, or is invalid, while the real one goes on has left it.
    """
    table = []
    for depth in range(1, max((len(e.transitions) for e in real), default=0) + 1):
        pairs = [(r, d) for r, d in zip(real, dreamed, strict=True) if len(r.transitions) >= depth]
        same = sum(len(d.transitions) >= depth and _at(r, depth) == _at(d, depth) for r, d in pairs)
        table.append({"depth": depth, "n": len(pairs), "agree": same / len(pairs)})
    return table


def facts_over_episodes(real: Sequence[Episode], dreamed: Sequence[Episode]) -> dict[str, float | int | None]:
    """Whether facts last over whole dreamed episodes (pairs as in ``by_depth``): a thing's line changes without cause where the same
    step really changed nothing of it and the action does not name it.

    Returns the episodes, the share of them without any such change, and such changes per 1000 dreamed steps; None without episodes.
    """
    steps, changes = 0, []
    for r, d in zip(real, dreamed, strict=True):
        found = 0
        for really, said in zip(r.transitions, d.transitions, strict=False):
            if said.reward is None:
                break
            steps += 1
            changed, due = ({entity(s) for s in (*t.removed, *t.added)} for t in (said, really))
            found += sum(thing not in really.action.split() for thing in changed - due)
        changes.append(found)
    return {
        "episodes": len(changes),
        "without_any": sum(n == 0 for n in changes) / len(changes) if changes else None,
        "changed_without_cause": 1000 * sum(changes) / steps if steps else None,
    }


def _at(e: Episode, depth: int) -> object:
    t = e.transitions[depth - 1]
    return _after(t) if t.reward is not None else e.stop


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, ties get their mean."""
    x = np.asarray(values, dtype=float)
    _, group, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group])


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; None for fewer than three pairs or where one side is constant."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Probability that a positive scores above a negative (ties half); None where one side is empty."""
    n = sum(positive)
    if not n or n == len(positive):
        return None
    above = float(ranks(scores)[np.asarray(positive)].sum()) - n * (n + 1) / 2
    return above / (n * (len(positive) - n))


@dataclass(frozen=True)
class Bound:
    """Theorem 1: how much of an improvement measured in the dream is guaranteed for real."""

    model_gap: float | None
    """Lemma 1: |J_real - J_dream| of a fixed policy; None at gamma = 1."""
    penalty: float | None
    """What Eq. 9 subtracts from the dream's expected advantage: trust region and twice the model gap."""
    says: str
    """What that means, in a sentence."""


def theorem_1(epsilon_r: float, epsilon_p: float, gamma: float, delta: float, r_max: float = 1.0, most: float = 1.0) -> Bound:
    """The bound with given epsilons (suprema in the theorem; a sample's maximum is a lower estimate of one, its mean no bound at all).

    ``delta``: largest KL(pi' || pi) of the update; 0 = the model gap alone. ``most``: the largest return there is; here a success is
    paid once, at the end. Raises ``ValueError`` for gamma outside 0..1.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in 0..1, it is {gamma}")
    if gamma == 1:
        return Bound(None, None, "Vacuous: with gamma = 1, as in training, 1/(1 - gamma) is infinite and Theorem 1 promises nothing.")
    horizon = 1 / (1 - gamma)
    gap = epsilon_r * horizon + 2 * gamma * r_max * epsilon_p * horizon**2
    penalty = 4 * gamma * horizon**2 * (r_max * horizon) * delta + 2 * gap
    verdict = (
        f"Vacuous: it subtracts {penalty:.3g}, more than any return ({most:.3g})."
        if penalty >= most or math.isinf(penalty)
        else f"If the epsilons hold everywhere and the update's KL is at most {delta:g}, an improvement in the dream of more than"
        f" {penalty:.3g} is one for real (returns are at most {most:.3g})."
    )
    return Bound(gap, penalty, verdict)


def _said(p: Prediction) -> object:
    return p.invalid if p.reply is None else (p.reply.change, p.reply.outcome)
