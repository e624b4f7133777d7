"""Runs the audit: real episodes of several policies on held-out games, then the same games in the dream.

Everything real in here is counted as audit steps. The buffer holds the training logs only and is frozen, so the order
of episodes does not matter.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import DreamgymError
from dreamgym.core.record import stop_of, transition_of
from dreamgym.core.state import state_of_text
from dreamgym.core.types import Episode, Panel, StopReason, Task, Transition
from dreamgym.envs.adapter import Adapter
from dreamgym.experience.audit import first_divergences, next_states, replay_success
from dreamgym.experience.kinds import StepKinds
from dreamgym.experience.model import ExperienceModel
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.acting import actor
from dreamgym.pipeline.config import RunConfig
from dreamgym.pipeline.logs import tasks_of
from dreamgym.pipeline.play import dream_rate, play_dream, play_real, real_rate, seats_for
from dreamgym.rl.policy import Actor, Scripted

log = logging.getLogger(__name__)
STEPS = 4000
"""One-step predictions made at most."""


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    result: dict[str, object]
    """All measures, as they are written to ``audit.json``."""
    twins: list[Episode]
    """Dreamed wins of the trained policy, each followed by its real twin."""
    dreamed: list[Episode]
    """The trained policy's dreamed episodes on the audited games, one each: for the gap between dream and reality."""


def audit_run(
    config: RunConfig,
    adapter: Adapter,
    model: ExperienceModel,
    logs: Sequence[Episode],
    policies: Mapping[str, LocalLM],
    panel: Panel = "test",
) -> Audit:
    """All audit measures on ``panel``; ``policies`` may hold ``sft`` and ``policy`` (the trained one).

    Sheets are what the real episodes of all these policies revealed of a game; a model that is shown none
    (``experience.prompt.sheet: false``) is asked about nothing that only a sheet could tell it.
    """
    counter = RealSteps(purpose="audit")
    games = adapter.tasks(panel, config.evaluation.audit_games)
    actors: dict[str, Actor] = {name: Scripted(e) for name, e in adapter.explorers().items()}
    actors |= {name: actor(lm, config) for name, lm in policies.items()}
    seed = config.seed + 7919  # other draws than the evaluation's
    real = {name: play_real(actor, adapter, seats_for(games, seed), counter, "audit", name) for name, actor in actors.items()}
    episodes = [r.episode for played in real.values() for r in played if r.episode.valid]
    tasks = tasks_of(episodes)
    if not config.experience.prompt.sheet:
        tasks = {name: task.model_copy(update={"sheet": ()}) for name, task in tasks.items()}
    order = [tasks[t.id] for t in games if t.id in tasks]
    replayed = replay_success(model, episodes, tasks)
    steps = next_states(model, _some(episodes, STEPS), tasks, StepKinds.of(logs))
    dreamed = {name: play_dream(actor, model, adapter.cap, seats_for(order, seed), name) for name, actor in actors.items()}
    gaps, gap_of = {}, {}
    for name in actors:
        dream, truth = dream_rate(dreamed[name]), real_rate(real[name])
        invalid = sum(not r.episode.valid for r in dreamed[name]) / max(len(order), 1)
        gaps[name] = {"dream": dream, "real": truth, "dream_invalid": invalid}
        if dream is not None and truth is not None:
            gap_of[name] = abs(dream - truth)
    result: dict[str, object] = {
        "panel": panel,
        "games": len(games),
        "episodes": len(episodes),
        "successes": sum(e.real_success() for e in episodes),
        "near_misses": sum(near_miss(e) for e in episodes),
        "success_precision": replayed.confusion.precision,
        "success_recall": replayed.confusion.recall,
        "invalid": replayed.invalid / max(replayed.episodes, 1),
        "next_state_macro": steps.macro,
        "next_state_changing": steps.changing,
        "next_state": {c: {"right": steps.right[c], "total": steps.total[c]} for c in sorted(steps.total)},
        "undetermined": steps.undetermined,
        "lost_precision": steps.precision("lost"),
        "won_precision": steps.precision("won"),
        "optimism": sum(gap_of.values()) / len(gap_of) if gap_of else None,
        "policies": gaps,
        "replay_divergences": dict(replayed.divergences.most_common(20)),
        "errors": steps.errors,
    }
    pairs: list[Episode] = []
    if "policy" in policies:
        result["optimism_dream_trained"] = gap_of.get("policy")
        winner = actor(policies["policy"], config)
        found, pairs = dream_wins(winner, model, adapter, order, seed, counter)
        result |= found
    result["real_steps_audit"] = counter.total
    return Audit(result, pairs, [r.episode for r in dreamed.get("policy", ())])


def near_miss(episode: Episode) -> bool:
    """A real episode that one action lost after earlier ones had changed something."""
    return episode.stop == StopReason.LOST and any(t.change for t in episode.transitions[:-1])


def dream_wins(
    policy: Actor, model: ExperienceModel, adapter: Adapter, tasks: Sequence[Task], seed: int, counter: RealSteps
) -> tuple[dict[str, object], list[Episode]]:
    """Dream-win precision: the share of dreamed wins whose actions also win in the real twin game.

    None where there is no dreamed win; a twin whose real environment failed proves nothing and is counted apart.
    """
    members = max(1, -(-300 // max(len(tasks), 1)))
    played = play_dream(policy, model, adapter.cap, seats_for(tasks, seed + 1, members))
    wins = [r.episode for r in played if r.episode.valid and r.episode.stop == StopReason.WON]
    twins = asyncio.run(replay_real(adapter, wins, counter))
    played_out = [(d, t) for d, t in zip(wins, twins, strict=True) if t.valid]
    false = [(d, t) for d, t in played_out if t.stop != StopReason.WON]
    pairs = [e for pair in zip(wins, twins, strict=True) for e in pair]
    return {
        "dream_win_precision": 1 - len(false) / len(played_out) if played_out else None,
        "dream_wins": len(wins),
        "dream_win_twins_invalid": len(wins) - len(played_out),
        "dream_episodes": len(played),
        "dream_win_divergences": first_divergences([d for d, _ in false], [t for _, t in false]),
    }, pairs


async def replay_real(adapter: Adapter, dreamed: Sequence[Episode], counter: RealSteps) -> list[Episode]:
    """The actions of dreamed episodes in the real environment, from its reset; one real twin for each."""
    twins = []
    for d in dreamed:
        steps: list[Transition] = []
        stop: StopReason | None = None
        env = None
        try:
            env = adapter.env(counter)
            observation, _ = await env.reset(d.task, d.seed)
            state = state_of_text(observation)
            for t in d.transitions:
                answer = await env.step(t.action)
                after = state_of_text(answer.observation)
                steps.append(transition_of(state, t.action, answer, after))
                stop = stop_of(answer)
                state = after
                if stop is not None:
                    break
        except DreamgymError:
            raise
        except Exception as e:  # whatever the environment raises: its twin proves nothing, the others do
            log.warning("%s failed while %s was played out for real: %s: %s", adapter.name, d.id, type(e).__name__, e)
            stop = StopReason.INVALID_ENV
        finally:
            if env is not None:
                with suppress(Exception):
                    await env.close()
        twins.append(
            d.model_copy(
                update={
                    "source": "real",
                    "env": adapter.name,
                    "id": f"{d.id}~twin",
                    "transitions": tuple(steps),
                    "stop": stop or StopReason.ABANDONED,
                }
            )
        )
    return twins


def _some(episodes: Sequence[Episode], steps: int) -> list[Episode]:
    """Whole episodes, evenly spread, with about ``steps`` steps in all."""
    total = sum(len(e.transitions) for e in episodes)
    every = max(1, -(-total // steps))
    return list(episodes[::every])
