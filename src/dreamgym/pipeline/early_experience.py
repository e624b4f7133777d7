"""Early Experience (arXiv 2510.08558), a baseline without rewards: what the policy would have done instead, really tried.

For each demonstrated state the policy proposes other actions, each is executed in the real environment from that state (all steps
are counted), beside those that the logs saw there, and the policy learns from what became of them: *implicit world modelling*
predicts the change before it imitates (Eq. 3), *self-reflection* says why the demonstrated action is better before it acts (Eq. 4).

The change takes the place of the next state (one follows from the other), and reasons are made by a program from what really
happened, where the paper asks an LLM.
"""

import asyncio
import logging
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dreamgym.core.env import Env, RealSteps
from dreamgym.core.errors import DreamgymError
from dreamgym.core.grammar import render_outcome, render_state
from dreamgym.core.record import transition_of
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import State, state_of_text
from dreamgym.core.types import Episode, Transition
from dreamgym.envs.adapter import Adapter
from dreamgym.lm.fit import FitConfig, fit
from dreamgym.lm.local import LocalLM
from dreamgym.lm.packing import Segment, Tree, pack
from dreamgym.pipeline.learn import demonstration_trees
from dreamgym.rl.context import Turn
from dreamgym.rl.policy import STATE_CONTEXT, Policy
from dreamgym.rl.reflective import ReflectiveContext

log = logging.getLogger(__name__)

TOGETHER = 256
"""Demonstrated states for which actions are proposed at once: their prompts are in memory together."""
LIVE = 64
"""Real environments open at once."""
SHOWN = 3
"""Lines of a change that a reason names."""
WORLD_RATE = 5e-5
"""World modelling learns at most at this rate (the paper's are 5e-6 and 1e-5): at that of a tiny policy's imitation it unlearns how a
task's words decide the action, and imitation of what is demonstrated does not find that again (docs/development.md)."""


@dataclass(frozen=True)
class Tried:
    """A demonstrated step and what other actions did in its state."""

    episode: Episode
    at: int
    others: tuple[Transition, ...]

    @property
    def demonstrated(self) -> Transition:
        return self.episode.transitions[self.at]

    @property
    def turn(self) -> Turn:
        return Turn(self.episode.task.instruction, self.demonstrated.state, (), self.episode.transitions[: self.at])


def try_alternatives(
    policy: Policy,
    demonstrations: Sequence[Episode],
    adapter: Adapter,
    counter: RealSteps,
    k: int,
    seed: int,
    logs: Iterable[Episode] = (),
) -> list[Tried]:
    """For each demonstrated step up to ``k`` other actions: those of ``k`` draws of ``policy``, then, since a policy that imitates hardly
    says others, such as ``logs`` saw in an equal state of that task, drawn.

    What the logs have not seen is executed for real after re-playing what came before. Real steps (re-played ones too) go to ``counter``
    under ``rl``. An action whose execution fails is left out.
    """
    counter.purpose = "rl"
    places = [(e, at) for e in demonstrations for at in range(len(e.transitions))]
    known: dict[tuple[str, State], dict[str, Transition]] = {(e.task.id, e.transitions[at].state): {} for e, at in places}
    for e in logs:
        for t in e.steps:
            if (e.task.id, t.state) in known:
                known[e.task.id, t.state].setdefault(t.action, t)
    proposed: list[dict[str, None]] = []
    for first in range(0, len(places), TOGETHER):
        part = places[first : first + TOGETHER]
        turns = [
            Turn(e.task.instruction, e.transitions[at].state, ("early", seed, e.id, at, n), e.transitions[:at])
            for e, at in part
            for n in range(k)
        ]
        said = iter(policy.act(turns))
        proposed += [dict.fromkeys(next(said).action for _ in range(k)) for _ in part]
    others: list[dict[str, Transition]] = []
    wanted = []
    for i, ((e, at), said_here) in enumerate(zip(places, proposed, strict=True)):
        step, seen = e.transitions[at], known[e.task.id, e.transitions[at].state]
        own = [a for a in said_here if a != step.action]
        rest = sorted(seen.keys() - {step.action, *own})
        more = keyed_rng("early", seed, e.id, at).permutation(len(rest))[: k - len(own)]
        others.append({a: seen[a] for a in (*own, *(rest[int(n)] for n in more)) if a in seen})
        wanted += [(i, (e, at, a)) for a in own if a not in seen]

    async def execute() -> list[Transition | None]:
        found: list[Transition | None] = []
        for i in range(0, len(wanted), LIVE):
            found += await asyncio.gather(*(_execute(adapter, counter, *w) for _, w in wanted[i : i + LIVE]))
        return found

    for (i, (_, _, action)), done in zip(wanted, asyncio.run(execute()), strict=True):
        if done is not None:
            others[i][action] = done
    return [Tried(e, at, tuple(found.values())) for (e, at), found in zip(places, others, strict=True)]


async def _execute(adapter: Adapter, counter: RealSteps, episode: Episode, at: int, action: str) -> Transition | None:
    """``action`` in the state before step ``at``; None where the environment fails or does not come back to that state."""
    env: Env | None = None
    try:
        env = adapter.env(counter)
        observation, _ = await env.reset(episode.task, episode.seed)
        state = state_of_text(observation)
        for t in episode.transitions[:at]:
            state = state_of_text((await env.step(t.action)).observation)
        if state != episode.transitions[at].state:
            return None
        answer = await env.step(action)
        return None if answer.reward is None else transition_of(state, action, answer, state_of_text(answer.observation))
    except DreamgymError:
        raise
    except Exception as e:  # the user's code: one broken world is not the end of the others
        log.warning("%s failed where %r was to be tried, which is left out: %s: %s", adapter.name, action, type(e).__name__, e)
        return None
    finally:
        with suppress(Exception):  # what was tried is known by now
            if env is not None:
                await env.close()


def world_trees(lm: LocalLM, tried: Sequence[Tried]) -> list[Tree]:
    """Implicit world modelling: after the policy's prompt and an action (demonstrated or other), loss on what it changed and ended."""
    trees = []
    for t, prompt in zip(tried, STATE_CONTEXT.prompts(lm, [t.turn for t in tried]), strict=True):
        segments = []
        for step in (t.demonstrated, *t.others):
            given = lm.encode(f"{STATE_CONTEXT.reply(step.action)} @then")
            told = [*lm.encode(f" {render_outcome(step.change, step.outcome)}"), lm.eos]
            segments.append(Segment((prompt[-1], *given, *told), len(told)))
        trees.append(Tree(tuple(prompt[:-1]), tuple(segments)))
    return trees


def reason(other: Transition, demonstrated: Transition) -> str:
    """Why the demonstrated action is better, from what both really did."""
    return f"{other.action} {_effect(other)} , {demonstrated.action} {_effect(demonstrated)}"


def _effect(t: Transition) -> str:
    if t.outcome != "go":
        return "wins" if t.outcome == "won" else "loses"
    if not (t.added or t.removed):
        return "changes nothing"
    return f"brings {render_state(t.added[:SHOWN])}" if t.added else f"ends {render_state(t.removed[:SHOWN])}"


def reflection_trees(lm: LocalLM, tried: Sequence[Tried], context: ReflectiveContext) -> list[Tree]:
    """Self-reflection: a reason against another action (the policy's own, where it has one), then the demonstrated one; mixed with the
    plain demonstrations. One reason a state, as most data sets of the paper have: with more of them hardly a token is of an action."""
    trees = []
    for t, prompt in zip(tried, context.prompts(lm, [t.turn for t in tried]), strict=True):
        best = t.demonstrated
        replies = [context.reply(best.action), *(context.reflected(reason(other, best), best.action) for other in t.others[:1])]
        ids = [[*lm.encode(text), lm.eos] for text in replies]
        trees.append(Tree(tuple(prompt[:-1]), tuple(Segment((prompt[-1], *i), len(i)) for i in ids)))
    return trees


def implicit_world_modelling(base: str | Path, tried: Sequence[Tried], config: FitConfig, folder: Path) -> LocalLM:
    """One epoch of what actions do, at most at ``WORLD_RATE``, then imitation for the rest of ``config``'s updates; saved in ``folder``."""
    lm = LocalLM.load(base)
    demonstrations = {t.episode.id: t.episode for t in tried}
    world, imitation = world_trees(lm, tried), demonstration_trees(lm, list(demonstrations.values()))
    once = config.model_copy(update={"epochs": 1.0, "learning_rate": min(config.learning_rate, WORLD_RATE)})
    fit(lm.model, world, once, folder / "checkpoints" / "world")
    rows = len(pack(imitation, config.row_length))
    left = max(config.epochs - len(pack(world, config.row_length)) / rows, 1.0)
    fit(lm.model, imitation, config.model_copy(update={"epochs": left}), folder / "checkpoints" / "imitation")
    lm.save(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return LocalLM.load(folder)


def self_reflection(base: str | Path, tried: Sequence[Tried], config: FitConfig, folder: Path) -> LocalLM:
    """Reasons and actions, for ``config``'s epochs; the policy is used with ``ReflectiveContext``. Saved in ``folder``."""
    lm = LocalLM.load(base)
    fit(lm.model, reflection_trees(lm, tried, ReflectiveContext()), config, folder / "checkpoints")
    lm.save(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return LocalLM.load(folder)
