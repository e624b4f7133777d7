"""The long audit: fidelity step by step, by depth, in closed loop over many policies, and what Theorem 1 makes of it.

    found = fidelity_run(config, adapter, model, draw, logs, policies, trained)

``audit_run`` measures what every run should know; this adds what a paper needs (docs/measures.md, *The long audit*): calibration,
total variation by asking the real environment again, agreement by depth, rank correlation of dream and reality over policies
(checkpoints of dream training among them), uncertainty. Every real step in here is counted as audit.
"""

import asyncio
from collections.abc import Mapping, Sequence

from dreamgym.core.env import RealSteps
from dreamgym.core.types import Episode, Panel, StopReason, Task, Transition
from dreamgym.endpoint.config import Chat
from dreamgym.envs.adapter import Adapter
from dreamgym.experience.audit import determined
from dreamgym.experience.fidelity import (
    Draw,
    auroc,
    by_depth,
    calibration,
    could_end,
    done_accuracy,
    facts_over_episodes,
    invalid_actions,
    judged,
    reward_error,
    spearman,
    spurious,
    theorem_1,
    total_variation,
)
from dreamgym.experience.judge import judge_steps
from dreamgym.experience.model import ExperienceModel
from dreamgym.experience.prompt import Request
from dreamgym.experience.sft import requests_of
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.acting import actor
from dreamgym.pipeline.audit import replay_real
from dreamgym.pipeline.config import RunConfig
from dreamgym.pipeline.logs import tasks_of
from dreamgym.pipeline.play import dream_rate, play_dream, play_real, real_rate, seats_for
from dreamgym.pipeline.stats import paired_interval
from dreamgym.rl.context import Turn
from dreamgym.rl.policy import Actor, Sample, Scripted
from dreamgym.rl.rollout import Rollout, Seat

SAMPLES = 8
"""Draws per step."""
STEPS = 1500
"""Steps judged at most, evenly spread over episodes."""
ASKED_AGAIN = 100
"""Of these, how many the real environment is asked again, by replaying the episode up to them."""
JUDGED = 100
"""Dreamed steps that a judge scores."""
GAMMAS = (0.9, 0.95, 0.99, 1.0)


class Replayed:
    """Takes the actions of given episodes again: that of seat (task, member) is ``episodes[(task, member)]``."""

    def __init__(self, episodes: Mapping[tuple[str, int], Episode]) -> None:
        self._actions = {seat: [t.action for t in e.transitions] for seat, e in episodes.items()}

    def act(self, turns: Sequence[Turn]) -> list[Sample]:
        """An episode that the dream lets go on past its last action says nothing more ("")."""
        found = []
        for t in turns:
            actions, turn = self._actions[(str(t.key[2]), int(t.key[3]))], int(t.key[4])
            found.append(Sample((), (), (), actions[turn] if turn < len(actions) else ""))
        return found


def fidelity_run(
    config: RunConfig,
    adapter: Adapter,
    model: ExperienceModel,
    draw: Draw,
    logs: Sequence[Episode],
    policies: Mapping[str, LocalLM],
    trained: Sequence[str],
    panel: Panel = "test",
    members: int = 2,
    judge: Chat | None = None,
) -> dict[str, object]:
    """All measures of the long audit. ``trained``: those of ``policies`` that were trained in the dream.

    Each policy plays every game ``members`` times, for real and in the dream. Sheets are what all real episodes of a game revealed.
    ``judge``: an LLM that scores ``JUDGED`` dreamed steps, where there is one.
    """
    counter = RealSteps(purpose="audit")
    games = adapter.tasks(panel, config.evaluation.audit_games)
    seed = config.seed + 104729  # other draws than the evaluation's and the audit's
    actors: dict[str, Actor] = {name: Scripted(e) for name, e in adapter.explorers().items()}
    actors |= {name: actor(lm, config) for name, lm in policies.items()}
    real = {n: play_real(a, adapter, seats_for(games, seed, members), counter, "audit", n) for n, a in actors.items()}
    episodes = [r.episode for played in real.values() for r in played if r.episode.valid]
    tasks = tasks_of(episodes)
    if not config.experience.prompt.sheet:
        tasks = {name: task.model_copy(update={"sheet": ()}) for name, task in tasks.items()}
    order = [tasks[t.id] for t in games if t.id in tasks]
    dreamed = {n: play_dream(a, model, adapter.cap, seats_for(order, seed, members), n) for n, a in actors.items()}
    rates = {n: (dream_rate(dreamed[n]), real_rate(real[n])) for n in actors}
    told = {n: (d, r) for n, (d, r) in rates.items() if d is not None and r is not None}
    gaps = {n: abs(d - r) for n, (d, r) in told.items()}
    pairs, asked_again = _steps(episodes, tasks, adapter, counter)
    rows = judged(pairs, model, draw, SAMPLES)
    ending = could_end(rows, logs)
    opinion = judge_steps(judge, [r.episode for played in dreamed.values() for r in played], JUDGED, seed) if judge else None
    epsilon_r, epsilon_p = reward_error(rows), total_variation(rows)
    pairs_played = _played_in_the_dream(episodes, tasks, adapter.cap, model)
    return {
        "panel": panel,
        "games": len(games),
        "members": members,
        "n_policies": len(actors),
        "n_episodes": len(episodes),
        "policies": {n: {"dream": d, "real": r} for n, (d, r) in rates.items()},
        "spearman": spearman([d for d, _ in told.values()], [r for _, r in told.values()]),
        "optimism": sum(gaps.values()) / len(gaps) if gaps else None,
        "optimism_dream_trained": _mean([gaps[n] for n in trained if n in gaps]),
        "optimism_by_policy": {n: _gap_interval(dreamed[n], real[n], n) for n in told},
        "steps": len(rows),
        "next_state_all": sum(r.right for r in rows) / max(len(rows), 1),
        "done_accuracy": done_accuracy(rows),
        "epsilon_r": epsilon_r,
        "epsilon_p": epsilon_p,
        "calibration": calibration(ending),
        "uncertainty_auroc": auroc([r.disagreement for r in rows], [not r.right for r in rows]),
        "steps_wrong": sum(not r.right for r in rows),
        "invalid_actions": invalid_actions(rows),
        "facts_per_1000_steps": spurious(rows),
        "facts_over_episodes": facts_over_episodes(*pairs_played),
        "by_depth": by_depth(*pairs_played),
        "asked_again": asked_again,
        "theorem_1": _bounds(epsilon_r, epsilon_p),
        "judge": vars(opinion) | _charged(judge) if judge and opinion else None,
        "real_steps_audit": counter.total,
    }


def _bounds(epsilon_r: Mapping[str, float], epsilon_p: Mapping[str, float]) -> dict[str, dict[str, dict[str, object]]]:
    """Theorem 1 for several gammas, by the epsilons' means and by their maxima."""
    return {which: {str(g): vars(theorem_1(epsilon_r[which], epsilon_p[which], g, 0.0)) for g in GAMMAS} for which in ("mean", "max")}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _gap_interval(dreamed: Sequence[Rollout], real: Sequence[Rollout], name: str) -> dict[str, object] | None:
    """Dream success less real success of one policy, paired by game, with its bootstrap over games; None without a game in both."""
    dream, truth = (_by_game(played) for played in (dreamed, real))
    both = dream.keys() & truth.keys()
    if not both:
        return None
    return paired_interval([{g: dream[g] for g in both}], [{g: truth[g] for g in both}], (f"{name}, dreamed", f"{name}, real"))


def _by_game(played: Sequence[Rollout]) -> dict[str, float]:
    """Mean success of each game's valid episodes."""
    found: dict[str, list[float]] = {}
    for e in (r.episode for r in played if r.episode.valid):
        found.setdefault(e.task.id, []).append(float(e.stop is StopReason.WON))
    return {game: sum(wins) / len(wins) for game, wins in found.items()}


def _charged(judge: Chat) -> dict[str, int]:
    return {name: judge.counts[name] for name in ("calls", "failed", "tokens_in", "tokens_out")}


Pair = tuple[Request, tuple[Transition, ...]]


def _steps(
    episodes: Sequence[Episode], tasks: dict[str, Task], adapter: Adapter, counter: RealSteps
) -> tuple[list[Pair], dict[str, int]]:
    """Determined steps, evenly spread, for some of them with the real environment's second answer; and what became of asking again.

    An answer counts only where the environment did not fail and the episode played again had led to the same state.
    """
    steps = [(e, i, r, t) for e in episodes for i, (r, t) in enumerate(requests_of(e, tasks[e.task.id])) if determined(r, t)]
    steps = steps[:: max(1, -(-len(steps) // STEPS))]
    again = set(range(0, len(steps), max(1, len(steps) // ASKED_AGAIN)))
    pairs: list[Pair] = []
    asked = {"same": 0, "other": 0, "unusable": 0}
    for n, (e, i, request, t) in enumerate(steps):
        second = asyncio.run(_again(e, i, adapter, counter)) if n in again else None
        if n in again:
            same = second is not None and (second.change, second.outcome) == (t.change, t.outcome)
            asked["unusable" if second is None else "same" if same else "other"] += 1
        pairs.append((request, (t, second) if second else (t,)))
    return pairs, asked


async def _again(e: Episode, at: int, adapter: Adapter, counter: RealSteps) -> Transition | None:
    """What the real environment answers to step ``at`` when the episode is played again up to it, under another seed: an environment
    with dice may answer otherwise. None where that cannot be said."""
    played = e.model_copy(update={"transitions": e.transitions[: at + 1], "seed": e.seed + 1})
    twin = (await replay_real(adapter, [played], counter))[0]
    if len(twin.transitions) <= at or twin.transitions[at].reward is None or twin.transitions[at].state != e.transitions[at].state:
        return None
    return twin.transitions[at]


def _played_in_the_dream(
    episodes: Sequence[Episode], tasks: dict[str, Task], cap: int, model: ExperienceModel
) -> tuple[list[Episode], list[Episode]]:
    """Real episodes, and what the dream makes of the same actions."""
    number: dict[str, int] = {}
    seated: dict[tuple[str, int], Episode] = {}
    for e in episodes:
        if not e.transitions:
            continue
        member = number.get(e.task.id, 0)
        number[e.task.id] = member + 1
        seated[(e.task.id, member)] = e
    seats = [Seat(tasks[task], member, 0) for task, member in seated]
    return list(seated.values()), [r.episode for r in play_dream(Replayed(seated), model, cap, seats)]
