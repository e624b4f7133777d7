"""The experience model's contract, and the local one: a causal LM that reasons, then predicts change, reward and end.

    predictions = model.predict([Request(instruction, sheet, past, state, action, episode, task, key)])

A reply is parsed strictly and must fit the state; otherwise it is sampled again a bounded number of times, and what is
still wrong then is an *invalid* prediction with its reason, never an empty observation and never a reward of 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from dreamgym.core.grammar import GrammarError, Reply, parse_reply, render_query, render_world
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import InconsistentChange, State, apply_change, entity
from dreamgym.core.types import Outcome, StopReason, Transition
from dreamgym.lm.local import LocalLM
from dreamgym.replay.buffer import Query, Retrieval


@dataclass(frozen=True, slots=True)
class Request:
    """One step to predict."""

    instruction: str
    sheet: State
    """What of the world sheet has not been in sight yet in this episode."""
    past: tuple[str, ...]
    """Earlier actions of the episode, oldest first."""
    state: State
    action: str
    episode: str
    task: str
    key: tuple[str | int, ...]
    """Names the random draws: (seed, task, member, turn)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A reply that fits the state, or the reason why there is none."""

    reply: Reply | None
    invalid: StopReason | None
    text: str
    """The last raw reply, for people to read."""

    @property
    def reward(self) -> float | None:
        """1 where the reply ends the episode with success, else 0; None where invalid (outcome reward)."""
        return None if self.reply is None else float(self.reply.outcome == "won")

    @property
    def outcome(self) -> Outcome | None:
        return None if self.reply is None else self.reply.outcome


class ExperienceModel(Protocol):
    """Plays the environment in text."""

    def predict(self, requests: Sequence[Request]) -> list[Prediction]: ...

    def use(self, retrieval: Retrieval) -> None:
        """Read similar experiences from ``retrieval`` until the next call of ``use``."""
        ...

    def costs(self) -> dict[str, int]:
        """Calls and tokens so far, by name."""
        ...


class ExperienceConfig(BaseModel):
    """What the experience model is shown and how it answers. The three flags are the ablations."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    reasoning: bool = True
    """Reason before the outcome (off: the ablation without experience reasoning)."""
    sheet: bool = True
    """Show the world sheet (off: the paper's literal prompt)."""
    k: int = 1
    """Similar past experiences shown; 0 = retrieval off. The paper does not state its k."""
    history: int = 0
    """Earlier actions shown. The carried state already holds what the episode has revealed, so the default is none."""
    budget: int = 160
    """Tokens of one reply."""
    samples: int = 3
    """Replies drawn at most per step: the first greedy, the others at ``retry_temperature``."""
    retry_temperature: float = 0.7
    same_task: bool = False
    """Whether experiences of the task at hand may be retrieved (never in evaluation)."""


def check(text: str, state: State) -> Prediction:
    """Parse a raw reply and hold its change against the state."""
    try:
        reply = parse_reply(text)
    except GrammarError:
        return Prediction(None, StopReason.INVALID_REPLY, text)
    try:
        apply_change(state, reply.change)
    except InconsistentChange:
        return Prediction(None, StopReason.INVALID_CHANGE, text)
    return Prediction(reply, None, text)


class PromptBuilder:
    """Turns requests into (world, query) prompt texts: the same for training and for prediction."""

    def __init__(self, config: ExperienceConfig, retrieval: Retrieval) -> None:
        self.config = config
        self.retrieval = retrieval

    def world(self, request: Request) -> str:
        past = request.past[-self.config.history :] if self.config.history else ()
        return render_world(request.instruction, request.sheet if self.config.sheet else (), past, request.state)

    def queries(self, requests: Sequence[Request], exclude_task: Sequence[bool]) -> list[str]:
        """The action-dependent part, with retrieved experiences of other episodes (and other tasks where asked)."""
        similar: list[list[Transition]] = [[] for _ in requests]
        if self.config.k and len(self.retrieval):
            hits = self.retrieval.topk(
                [Query(r.state, r.action, r.episode, r.task if x else None) for r, x in zip(requests, exclude_task, strict=True)],
                self.config.k,
            )
            similar = [[h.transition for h in reversed(row)] for row in hits]
        return [render_query(s, r.action) for s, r in zip(similar, requests, strict=True)]


class LocalExperienceModel:
    """A fine-tuned (or any) causal LM in this process. Greedy: the sheet fixes the world, the policy brings diversity."""

    def __init__(self, lm: LocalLM, config: ExperienceConfig, retrieval: Retrieval) -> None:
        self.lm = lm
        self.config = config
        self.calls = 0
        self.remembered = 0
        self.use(retrieval)

    def use(self, retrieval: Retrieval) -> None:
        """A new snapshot; what was remembered under the old one is forgotten."""
        self._prompts = PromptBuilder(self.config, retrieval)
        self._memory: dict[tuple[object, ...], Prediction] = {}

    def costs(self) -> dict[str, int]:
        return {
            "experience_calls": self.calls,
            "experience_calls_remembered": self.remembered,
            "experience_tokens_in": self.lm.tokens_in,
            "experience_tokens_out": self.lm.tokens_out,
        }

    def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """Predictions in the order of ``requests``. Equal questions under one snapshot get one answer."""
        keys = [
            (r.task, r.instruction, r.sheet, r.past[-self.config.history :] if self.config.history else (), r.state, r.action)
            for r in requests
        ]
        new = {k: r for k, r in zip(keys, requests, strict=True) if k not in self._memory}
        self.calls += len(requests)
        self.remembered += len(requests) - len(new)
        for key, prediction in zip(new, self._predict(list(new.values())), strict=True):
            self._memory[key] = prediction
        return [self._memory[k] for k in keys]

    def _predict(self, requests: list[Request]) -> list[Prediction]:
        queries = self._prompts.queries(requests, [not self.config.same_task] * len(requests))
        prompts = self.lm.encode_batch([f" {self._prompts.world(r)} {q}" for r, q in zip(requests, queries, strict=True)])
        answers: list[Prediction] = []
        todo = list(range(len(requests)))
        for sample in range(self.config.samples):
            draws = [keyed_rng("experience", sample, *requests[i].key) for i in todo]
            replies = self.lm.generate(
                [prompts[i] for i in todo], self.config.budget, self.config.retry_temperature if sample else 0.0, draws
            )
            checked = [
                check(self.lm.decode(g.ids).strip(" "), requests[i].state)
                if g.finished
                else Prediction(None, StopReason.INVALID_REPLY, self.lm.decode(g.ids))
                for i, g in zip(todo, replies, strict=True)
            ]
            if sample == 0:
                answers = checked
            else:
                for i, prediction in zip(todo, checked, strict=True):
                    answers[i] = prediction
            todo = [i for i in todo if answers[i].reply is None]
            if not todo:
                break
        return answers


def unseen_part(sheet: State, seen: set[str]) -> State:
    """The facts of a sheet about things that have not been in sight; a thing once seen is the state's business."""
    return tuple(s for s in sheet if entity(s) not in seen)
