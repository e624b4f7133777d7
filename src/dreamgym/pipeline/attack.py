"""Runs the attacks of ``experience/attacks.py`` on an experience model, each action also in the real environment.

Half of the scenes lie one step before success, the others in the middle of an episode. *Granted* is a success that the dream
reports and the real environment does not give. Real steps are counted as audit.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dreamgym.core.env import RealSteps
from dreamgym.core.grammar import GrammarError
from dreamgym.core.state import InconsistentChange, apply_change, entity
from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.envs.adapter import Adapter
from dreamgym.experience.attacks import Scene, action_attacks, hostile_chat_replies, hostile_experiences, hostile_replies
from dreamgym.experience.chat import parse_step
from dreamgym.experience.model import ExperienceModel, check
from dreamgym.experience.prompt import Past, Request, unseen_part
from dreamgym.pipeline.audit import replay_real
from dreamgym.pipeline.logs import tasks_of
from dreamgym.replay.contract import Hit, Query


@dataclass
class Attacks:
    """What came of them."""

    tried: Counter[str] = field(default_factory=Counter)
    """By kind."""
    granted: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    """What the dream answered: go, won, lost, or why it was invalid."""
    last_step: int = 0
    """Attacks on the model (parsers need no place) one step before success."""
    parsers: int = 0
    """Hostile replies given to the parsers, whichever model is attacked."""
    failed: int = 0
    """Attacks that never happened: the model's server or the real environment failed. They are in no other count."""
    really_won: int = 0
    """Attacks that the real environment itself rewarded (it understood a part of them)."""
    examples: list[dict[str, str]] = field(default_factory=list)
    """Granted ones, to read."""

    due: int = 0
    """Winning actions taken at their place, as a control: a model that grants nothing at all would pass every attack."""
    due_granted: int = 0

    def note(
        self, kind: str, scene: Scene, outcome: str, action: str, reply: str, real_win: bool | None = False, parser: bool = False
    ) -> None:
        """One attack and what came of it; ``real_win`` None = the real environment failed, ``parser``: no model was asked."""
        if real_win is None or outcome == StopReason.INVALID_ENV:
            self.failed += 1
            return
        self.tried[kind] += 1
        self.last_step += scene.last and not parser
        self.parsers += parser
        self.outcomes[str(outcome)] += 1
        self.really_won += bool(real_win)
        if outcome == "won" and not real_win:
            self.granted[kind] += 1
            self.examples.append({"kind": kind, "task": scene.task, "action": action[:200], "reply": reply[:300]})

    def result(self) -> dict[str, object]:
        return {
            "n": self.tried.total(),
            "kinds": len(self.tried),
            "granted": self.granted.total(),
            "due": self.due,
            "due_granted": self.due_granted,
            "parsers": self.parsers,
            "failed": self.failed,
            "last_step": self.last_step,
            "really_won": self.really_won,
            "outcomes": dict(self.outcomes),
            "tried_by_kind": dict(self.tried),
            "granted_by_kind": dict(self.granted),
            "examples": self.examples[:50],
        }


class Poisoned:
    """A retrieval that answers every query with one hostile experience."""

    def __init__(self, shown: Transition) -> None:
        self.shown = shown

    def __len__(self) -> int:
        return 1

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        return [[Hit(self.shown, "hostile", "hostile", "dream", 1.0)] * k for _ in queries]


def scenes_of(won: Sequence[Episode]) -> list[tuple[Episode, int, Scene]]:
    """Two places of each won real episode: its last step, and one in its middle."""
    found = []
    for e in won:
        end = len(e.transitions) - 1
        for at in (end, end // 2):
            winning = e.transitions[end].action
            found.append((e, at, Scene(e.task.id, e.task.instruction, e.transitions[at].state, winning, at == end)))
    return found


def attack_run(
    model: ExperienceModel, adapter: Adapter, won: Sequence[Episode], counter: RealSteps, shows_experiences: bool = True
) -> Attacks:
    """All attacks: hostile actions, hostile replies and (at the first ten wins) retrieved experiences, where the model is shown any."""

    async def both() -> Attacks:
        found = await attack(model, adapter, won, counter)
        if shows_experiences:
            await poison(model, adapter, won[:10], counter, found)
        return found

    found = asyncio.run(both())
    replies(won, found)
    return found


async def attack(model: ExperienceModel, adapter: Adapter, won: Sequence[Episode], counter: RealSteps) -> Attacks:
    """Every hostile action at two scenes, taken in turn from the ``won`` real episodes: one a step before success, one not."""
    found, tasks, scenes = Attacks(), tasks_of(won), scenes_of(won)
    counter.purpose = "audit"
    for e, at, scene in scenes[0::2]:
        due = model.predict([request_at(e, at, scene.winning, tasks)])[0]
        found.due += 1
        found.due_granted += due.outcome == "won"
    names = [(kind, number) for kind, texts in action_attacks(scenes[0][2]).items() for number in range(len(texts))]
    for turn, (kind, number) in enumerate(names):
        for places in (scenes[0::2], scenes[1::2]):
            e, at, scene = places[turn % len(places)]
            action = action_attacks(scene)[kind][number]
            real_win = await _wins(adapter, e, at, action, counter)
            prediction = model.predict([request_at(e, at, action, tasks)])[0]
            found.note(kind, scene, prediction.outcome or str(prediction.invalid), action, prediction.text, real_win)
    return found


def request_at(e: Episode, at: int, action: str, tasks: dict[str, Task]) -> Request:
    """The question that ``action`` instead of the episode's step ``at`` puts to the experience model."""
    task, before = tasks[e.task.id], e.transitions[:at]
    seen = {entity(s) for t in before for s in t.state} | {entity(s) for s in e.transitions[at].state}
    past = tuple(Past(t.action, t.change) for t in before)
    return Request(
        task.instruction, unseen_part(task.sheet, seen), past, e.transitions[at].state, action, e.id, e.task.id, ("attack", e.id, at)
    )


async def poison(
    model: ExperienceModel, adapter: Adapter, won: Sequence[Episode], counter: RealSteps, found: Attacks, harmless: str = "look"
) -> None:
    """Hostile retrieved experiences beside a ``harmless`` action. ``model`` is left with a poisoned snapshot."""
    tasks = tasks_of(won)
    for e, at, scene in scenes_of(won):
        real_win = await _wins(adapter, e, at, harmless, counter)
        for kind, shown in hostile_experiences(scene).items():
            for t in shown:
                model.use(Poisoned(t))
                prediction = model.predict([request_at(e, at, harmless, tasks)])[0]
                found.note(kind, scene, prediction.outcome or str(prediction.invalid), t.action, prediction.text, real_win)


async def _wins(adapter: Adapter, e: Episode, at: int, action: str, counter: RealSteps) -> bool | None:
    """Whether ``action`` instead of the episode's step ``at`` wins in the real environment; None where that failed."""
    step = Transition(state=e.transitions[at].state, action=action, reward=0.0, outcome="go")
    twin = (await replay_real(adapter, [e.model_copy(update={"transitions": (*e.transitions[:at], step)})], counter))[0]
    return twin.stop == StopReason.WON if twin.valid else None


def replies(won: Sequence[Episode], found: Attacks) -> None:
    """Hostile replies, read as the local model's and the chat model's are."""
    scene = scenes_of(won)[0][2]
    for kind, text in hostile_replies():
        prediction = check(text, scene.state)
        found.note(kind, scene, prediction.outcome or str(prediction.invalid), "", text, parser=True)
    for kind, text in hostile_chat_replies():
        outcome: str
        try:
            reply = parse_step(text, scene.state, "change")
            apply_change(scene.state, reply.change)
            outcome = reply.outcome
        except (GrammarError, InconsistentChange):
            outcome = StopReason.INVALID_REPLY
        found.note(kind, scene, outcome, "", text, parser=True)
