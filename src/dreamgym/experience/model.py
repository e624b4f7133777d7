"""The experience model's contract, and the local one: a causal LM that reasons, then predicts change, reward and end.

    predictions = model.predict([Request(instruction, sheet, past, state, action, episode, task, key)])

A reply is parsed strictly and must fit the state; otherwise it is sampled again a bounded number of times, and what is
still wrong then is an *invalid* prediction with its reason, never an empty observation and never a reward of 0.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from dreamgym.core.grammar import GrammarError, Reply, parse_reply
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import InconsistentChange, State, apply_change, forked
from dreamgym.core.types import Outcome, StopReason
from dreamgym.experience.precedent import Precedents
from dreamgym.experience.prompt import ExperienceConfig, PromptBuilder, Request
from dreamgym.lm.local import LocalLM
from dreamgym.replay.contract import Retrieval


@dataclass(frozen=True, slots=True)
class Prediction:
    """A reply that fits the state, or the reason why there is none."""

    reply: Reply | None
    invalid: StopReason | None
    text: str
    """The last raw reply, for people to read."""
    surprise: float | None = None
    """Minus the log-probability of the reply in nats, to three places (beyond them batches differ); None where it is not known."""

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

    def recall(self, request: Request) -> Prediction | None:
        """The answer to an equal question asked before since the last ``use``; None where it has to be predicted."""
        ...

    def use(self, retrieval: Retrieval) -> None:
        """Read similar experiences from ``retrieval`` until the next call of ``use``."""
        ...

    def costs(self) -> dict[str, int]:
        """Calls and tokens so far, by name."""
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """An experience model whose answers may come from elsewhere, each in its own time."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Prediction | Awaitable[Prediction]]:
        """``predict``, with something to wait for in the place of each answer that is not there yet; called inside an event loop."""
        ...


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


def held(said: Prediction, request: Request, config: ExperienceConfig, wins: Precedents | None) -> Prediction:
    """``said``, invalid where it shows things otherwise than the sheet (if that is shown), or where it reports a success by an
    action without precedent (None = nobody asks for one)."""
    if said.reply and config.sheet and (facts := forked(request.sheet, said.reply.change)):
        return Prediction(None, StopReason.INVALID_CHANGE, f"(the world sheet says otherwise: {facts[0]}) {said.text}", said.surprise)
    if wins is None or said.outcome != "won" or wins.covers(request.action, request.state):
        return said
    return Prediction(None, StopReason.INVALID_SUCCESS, f"(no action of this form has won) {said.text}", said.surprise)


class LocalExperienceModel:
    """A fine-tuned (or any) causal LM in this process. Greedy: the sheet fixes the world, the policy brings diversity.

    An answer belongs to its question and the snapshot, not to who asked: the draws of a second sample are keyed by the
    question, so all members of a group get the same answer in whatever order they ask. With ``wins`` a success needs a precedent.
    """

    def __init__(self, lm: LocalLM, config: ExperienceConfig, retrieval: Retrieval, wins: Precedents | None = None) -> None:
        self.lm, self.config, self.wins = lm, config, wins
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

    def recall(self, request: Request) -> Prediction | None:
        known = self._memory.get(self._question(request))
        if known is not None:
            self.calls += 1
            self.remembered += 1
        return known

    def _question(self, r: Request) -> tuple[object, ...]:
        """All of a request that its answer depends on, beside the snapshot (which holds nothing of a live episode)."""
        past = r.past[-self.config.history :] if self.config.history else ()
        return (r.task, r.instruction, r.sheet, past, r.state, r.action)

    def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """Predictions in the order of ``requests``. Equal questions under one snapshot get one answer."""
        keys = [self._question(r) for r in requests]
        new = {k: r for k, r in zip(keys, requests, strict=True) if k not in self._memory}
        self.calls += len(requests)
        self.remembered += len(requests) - len(new)
        for key, prediction in zip(new, self._predict(list(new.values())), strict=True):
            self._memory[key] = prediction
        return [self._memory[k] for k in keys]

    def _predict(self, requests: list[Request]) -> list[Prediction]:
        queries = self._prompts.queries(requests, [not self.config.same_task] * len(requests))
        prompts = self.lm.encode_batch([f" {self._prompts.world(r)} {q}" for r, q in zip(requests, queries, strict=True)])
        answers = self._sample(requests, prompts)
        drawn = 1
        while drawn < self.config.samples and (todo := [i for i, a in enumerate(answers) if a.reply is None]):
            more = min(drawn, self.config.samples - drawn)  # each round doubles what has been drawn: few calls, small batches
            rows = [(i, n) for i in todo for n in range(drawn, drawn + more)]
            found = self._sample([requests[i] for i, _ in rows], [prompts[i] for i, _ in rows], [n for _, n in rows])
            for (i, _), answer in zip(rows, found, strict=True):
                if answers[i].reply is None:
                    answers[i] = answer
            drawn += more
        return answers

    def _sample(self, requests: list[Request], prompts: list[list[int]], numbers: list[int] | None = None) -> list[Prediction]:
        """One reply per request, checked: greedy, or the sample of that number."""
        if numbers is None:
            replies = self.lm.generate(prompts, self.config.budget)
        else:
            draws = [keyed_rng("experience", n, repr(self._question(r))) for r, n in zip(requests, numbers, strict=True)]
            replies = self.lm.generate(prompts, self.config.budget, self.config.retry_temperature, draws)
        texts = [self.lm.decode(g.ids) for g in replies]
        return [
            held(replace(check(text.strip(" "), r.state), surprise=round(-sum(g.logprobs), 3)), r, self.config, self.wins)
            if g.finished
            else Prediction(None, StopReason.INVALID_REPLY, text)
            for text, r, g in zip(texts, requests, replies, strict=True)
        ]
