"""The audit: how far the experience model can be trusted, measured on real episodes it was never trained on.

Replayed success: the real episode's *actions* are played through the model on its own states. Next state: one step from
the true state, exact match per class of step, macro-averaged. Dream-win precision and optimism hold dreamed episodes of
a policy against the real environment. All measures are defined in the project's documentation (docs/measures.md).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from dreamgym.core.state import apply_change, diff, entity
from dreamgym.core.types import Episode, Task, Transition
from dreamgym.experience.kinds import StepKinds, change_of
from dreamgym.experience.model import ExperienceModel, Prediction
from dreamgym.experience.prompt import Past, Request, unseen_part
from dreamgym.experience.sft import requests_of


@dataclass
class Confusion:
    """Counts of predicted against real success."""

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0

    def add(self, predicted: bool, real: bool) -> None:
        name = ("true" if predicted == real else "false") + ("_positive" if predicted else "_negative")
        setattr(self, name, getattr(self, name) + 1)

    @property
    def precision(self) -> float:
        return self.true_positive / max(self.true_positive + self.false_positive, 1)

    @property
    def recall(self) -> float:
        return self.true_positive / max(self.true_positive + self.false_negative, 1)


@dataclass
class Replayed:
    """Result of replaying real episodes in the dream."""

    confusion: Confusion = field(default_factory=Confusion)
    invalid: int = 0
    episodes: int = 0
    divergences: Counter[str] = field(default_factory=Counter)
    """First differing steps by verb, for reading episodes side by side."""


def replay_success(model: ExperienceModel, episodes: Sequence[Episode], tasks: dict[str, Task]) -> Replayed:
    """Play the actions of real ``episodes`` through ``model`` on its own states, all episodes in step.

    What nothing shown so far determines (with a sheet in hindsight: nothing; without a sheet, what a closed fridge holds)
    is taken from the real episode, where it fits the model's state. An invalid end counts as a wrong prediction of success
    (and is counted apart).
    """
    result = Replayed(episodes=len(episodes))
    states = [e.task.first_state for e in episodes]
    seen = [{entity(s) for s in state} for state in states]
    past: list[list[Past]] = [[] for _ in episodes]
    ended: dict[int, bool | None] = {}
    diverged: set[int] = set()
    for turn in range(max((len(e.transitions) for e in episodes), default=0)):
        live = [i for i, e in enumerate(episodes) if i not in ended and turn < len(e.transitions)]
        requests = []
        for i in live:
            e, task = episodes[i], tasks[episodes[i].task.id]
            requests.append(
                Request(
                    task.instruction,
                    unseen_part(task.sheet, seen[i]),
                    tuple(past[i]),
                    states[i],
                    e.transitions[turn].action,
                    e.id,
                    task.id,
                    (e.seed, e.id, turn),
                )
            )
        for i, request, prediction in zip(live, requests, model.predict(requests), strict=True):
            real = episodes[i].transitions[turn]
            if not determined(request, real) and set(real.removed) <= set(states[i]) and real.outcome == "go":
                before, states[i] = states[i], tuple(sorted({*states[i], *real.added} - set(real.removed)))
                past[i].append(Past(real.action, diff(before, states[i])))
                seen[i].update(entity(s) for s in states[i])
                continue
            if i not in diverged and not same_step(prediction, real):
                diverged.add(i)
                result.divergences[f"{(real.action.split() or [''])[0]}: {describe(prediction)} for {change_of(real)}"] += 1
            if prediction.reply is None:
                ended[i] = None
                continue
            past[i].append(Past(real.action, prediction.reply.change))
            states[i] = apply_change(states[i], prediction.reply.change)
            seen[i].update(entity(s) for s in states[i])
            if prediction.reply.outcome != "go":
                ended[i] = prediction.reply.outcome == "won"
    for i, e in enumerate(episodes):
        predicted = ended.get(i, False)
        result.invalid += predicted is None
        real_success = e.real_success()
        result.confusion.add(not real_success if predicted is None else predicted, real_success)
    return result


def same_step(prediction: Prediction, real: Transition) -> bool:
    """Exact match of change and outcome."""
    r = prediction.reply
    return r is not None and r.change == real.change and r.outcome == real.outcome


def describe(prediction: Prediction) -> str:
    if prediction.reply is None:
        return "invalid"
    change = prediction.reply.change
    t = Transition(state=(), action="", removed=change.removed, added=change.added, reward=None, outcome=prediction.reply.outcome)
    return change_of(t)


@dataclass
class NextState:
    """Exact matches of predicted next states per class of step."""

    right: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    claimed: Counter[str] = field(default_factory=Counter)
    """How often won and lost were predicted."""
    confirmed: Counter[str] = field(default_factory=Counter)
    undetermined: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)

    def rate(self, name: str) -> float:
        return self.right[name] / max(self.total[name], 1)

    @property
    def macro(self) -> float:
        """Mean of the class rates over the classes that occur."""
        return sum(self.rate(c) for c in self.total) / max(len(self.total), 1)

    @property
    def changing(self) -> float:
        """Share of exact matches over all steps that change something."""
        names = ("one", "several", "lost", "won")
        return sum(self.right[n] for n in names) / max(sum(self.total[n] for n in names), 1)

    def precision(self, outcome: str) -> float:
        return self.confirmed[outcome] / max(self.claimed[outcome], 1)


def next_states(
    model: ExperienceModel,
    episodes: Sequence[Episode],
    tasks: dict[str, Task],
    kinds: StepKinds,
    batch: int = 256,
    keep: int = 200,
) -> NextState:
    """One-step predictions from true states, where the outcome is determined by what the model is shown."""
    result = NextState()
    pairs = []
    for e in episodes:
        for request, t in requests_of(e, tasks[e.task.id]):
            if determined(request, t):
                pairs.append((request, t))
            else:
                result.undetermined += 1
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        for (request, t), prediction in zip(part, model.predict([r for r, _ in part]), strict=True):
            name = kinds.kind(t)
            right = same_step(prediction, t)
            result.total[name] += 1
            result.right[name] += right
            if prediction.outcome in ("won", "lost"):
                result.claimed[str(prediction.outcome)] += 1
                result.confirmed[str(prediction.outcome)] += t.outcome == prediction.outcome
            if not right and len(result.errors) < keep:
                result.errors.append(
                    {
                        "class": name,
                        "task": request.task,
                        "instruction": request.instruction,
                        "state": " | ".join(t.state),
                        "action": t.action,
                        "real": f"-{list(t.removed)} +{list(t.added)} {t.outcome}",
                        "dreamed": prediction.text,
                    }
                )
    return result


def determined(request: Request, t: Transition) -> bool:
    """Whether everything the true next state shows occurred in instruction, sheet or states so far."""
    known = {entity(s) for s in (*request.state, *request.sheet)}
    known |= {entity(s) for p in request.past for s in (*p.change.removed, *p.change.added)}
    new = {entity(s) for s in t.added} - known
    produced = {entity(s) for s in t.removed} - {entity(s) for s in t.added}
    return not new or bool(produced)


def first_divergences(dreamed: Sequence[Episode], real: Sequence[Episode]) -> dict[str, int]:
    """Where dreamed wins and their real twins part first, counted by verb and kinds of step."""
    found: dict[str, int] = defaultdict(int)
    for d, r in zip(dreamed, real, strict=True):
        for a, b in zip(d.transitions, r.transitions, strict=False):
            if a.change != b.change or a.outcome != b.outcome:
                found[f"{(a.action.split() or [''])[0]}: dreamed {change_of(a)}, real {change_of(b)}"] += 1
                break
    return dict(sorted(found.items(), key=lambda kv: -kv[1]))
