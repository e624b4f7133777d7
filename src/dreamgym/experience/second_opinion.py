"""A second opinion on every success: the dream's word counts only where a judge or a program agrees.

    model = SecondOpinion(model, JudgeOfSuccess(Endpoint(server)))       # another LLM, its own prompt
    model = SecondOpinion(model, programmatic(check))                    # check(instruction, state, actions) -> bool
    model = SecondOpinion(model, programmatic(check), decides=True)      # what is done is what the program says

The experience model is both dynamics and reward, so what it grants wrongly is what a policy learns to ask for. A win that the
second opinion denies ends the episode without success; where no verdict could be had the step is invalid, never a number. A checker
that decides is asked after every step, and what it grants is a success though the experience model did not see it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from dreamgym.core.state import State, apply_change
from dreamgym.core.types import StopReason
from dreamgym.endpoint.config import Chat, Message, Server
from dreamgym.experience.chat import answered, quoted, sectioned
from dreamgym.experience.fidelity import Draw
from dreamgym.experience.model import Elsewhere, ExperienceModel, Prediction
from dreamgym.experience.prompt import Request
from dreamgym.prompts import prompt
from dreamgym.replay.contract import Retrieval


@dataclass(frozen=True, slots=True)
class Claim:
    """A success that the experience model reports: the question, and the state after the last action."""

    request: Request
    after: State

    @property
    def actions(self) -> tuple[str, ...]:
        """All actions of the episode, the last included."""
        return (*(p.action for p in self.request.past), self.request.action)


class Verifier(Protocol):
    """Says of each claim whether the task is done; None where it cannot say."""

    def __call__(self, claims: Sequence[Claim]) -> list[bool | None]: ...


def programmatic(check: Callable[[str, State, tuple[str, ...]], bool | None]) -> Verifier:
    """A verifier from a program that knows the goal: ``check(instruction, state, actions)``, None where it cannot say."""

    def verify(claims: Sequence[Claim]) -> list[bool | None]:
        verdicts = [check(c.request.instruction, c.after, c.actions) for c in claims]
        return [None if v is None else bool(v) for v in verdicts]

    return verify


class SecondOpinion:
    """An experience model whose successes are verified, or (``decides``) given by the verifier alone. Satisfies ``ExperienceModel``."""

    def __init__(self, model: ExperienceModel, verify: Verifier, decides: bool = False) -> None:
        self.model, self.verify, self.decides = model, verify, decides
        self.claims = self.refused = self.unanswered = self.granted = 0
        self._verdicts: dict[tuple[object, ...], Prediction] = {}
        self._open: dict[tuple[object, ...], asyncio.Task[Prediction]] = {}

    def use(self, retrieval: Retrieval) -> None:
        self.model.use(retrieval)
        self._verdicts = {}
        self._open = {}

    def costs(self) -> dict[str, int]:
        own = {"experience_claims": self.claims, "experience_claims_refused": self.refused, "experience_claims_unanswered": self.unanswered}
        if self.decides:
            own["experience_claims_granted"] = self.granted
        if isinstance(self.verify, JudgeOfSuccess):
            c = self.verify.chat.counts
            own |= {"judge_calls": c["calls"], "judge_tokens_in": c["tokens_in"], "judge_tokens_out": c["tokens_out"]}
        return {**self.model.costs(), **own}

    def recall(self, request: Request) -> Prediction | None:
        known = self.model.recall(request)
        if known is None or not self._asked(known):
            return known
        return self._verdicts.get(_key(request, known))

    def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        return self._verified(requests, self.model.predict(requests))

    def begin(self, requests: Sequence[Request]) -> Sequence[Prediction | Awaitable[Prediction]]:
        """``predict``; where answers come from elsewhere, so do the verdicts on them, and who asks waits for its own alone."""
        if not isinstance(self.model, Elsewhere):
            return self.predict(requests)
        return [self._when(r, said) for r, said in zip(requests, self.model.begin(requests), strict=True)]

    async def _when(self, request: Request, answer: Prediction | Awaitable[Prediction]) -> Prediction:
        said = answer if isinstance(answer, Prediction) else await answer
        if not self._asked(said):
            return said
        key = _key(request, said)
        if key not in self._verdicts and key not in self._open:
            self._open[key] = asyncio.ensure_future(self._judge(key, request, said))
        return self._verdicts[key] if key in self._verdicts else await asyncio.shield(self._open[key])

    async def _judge(self, key: tuple[object, ...], request: Request, said: Prediction) -> Prediction:
        try:
            assert said.reply is not None
            claim = Claim(request, apply_change(request.state, said.reply.change))
            judge = self.verify
            verdict = await judge.begin(claim) if isinstance(judge, JudgeOfSuccess) else judge([claim])[0]
            judged = self._judged(said, verdict)
            if judged.reply:
                self._verdicts[key] = judged
            return judged
        finally:
            self._open.pop(key, None)

    def draws(self, draw: Draw) -> Draw:
        """``draw`` of the model inside, its successes verified too."""

        def verified(requests: Sequence[Request], m: int) -> list[list[Prediction]]:
            rows = draw(requests, m)
            flat = self._verified([r for r in requests for _ in range(m)], [p for row in rows for p in row])
            return [flat[i * m : (i + 1) * m] for i in range(len(requests))]

        return verified

    def _verified(self, requests: Sequence[Request], said: Sequence[Prediction]) -> list[Prediction]:
        keys = [_key(r, p) for r, p in zip(requests, said, strict=True)]
        new = {k: (r, p) for k, r, p in zip(keys, requests, said, strict=True) if self._asked(p) and k not in self._verdicts}
        claims = [Claim(r, apply_change(r.state, p.reply.change)) for r, p in new.values() if p.reply]
        verdicts = self.verify(claims) if claims else []
        here = {k: self._judged(p, v) for (k, (_, p)), v in zip(new.items(), verdicts, strict=True)}
        self._verdicts |= {k: p for k, p in here.items() if p.reply}  # no verdict is nobody's: it is asked for again
        return [here.get(k) or self._verdicts[k] if self._asked(p) else p for k, p in zip(keys, said, strict=True)]

    def _asked(self, said: Prediction) -> bool:
        return said.reply is not None and (self.decides or said.outcome == "won")

    def _judged(self, said: Prediction, verdict: bool | None) -> Prediction:
        assert said.reply is not None
        if said.outcome != "won":
            self.granted += bool(verdict)
            text = f"{said.text} (the verifier: the task is done)"
            return replace(said, reply=replace(said.reply, outcome="won"), text=text) if verdict else said
        self.claims += 1
        if verdict is None:
            self.unanswered += 1
            return Prediction(None, StopReason.INVALID_ENV, f"(no second opinion) {said.text}")
        if verdict:
            return said
        self.refused += 1
        text = f"{said.text} (second opinion: the task is not done)"
        return replace(said, reply=replace(said.reply, outcome="lost"), text=text)


def _key(r: Request, p: Prediction) -> tuple[object, ...]:
    return (r.task, r.instruction, r.past, r.state, r.action, p.text)


class SuccessVerdict(BaseModel):
    """A judge's reply."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reasoning: str = Field(min_length=1)
    success: bool


class JudgeOfSuccess:
    """An LLM as verifier, with its own prompt; it does not see what the experience model thought."""

    def __init__(self, chat: Chat, budget: int = 512, samples: int = 2) -> None:
        self.chat, self.budget, self.samples = chat, budget, samples

    def __call__(self, claims: Sequence[Claim]) -> list[bool | None]:
        return self.chat.together([self._one(c) for c in claims])

    async def begin(self, claim: Claim) -> bool | None:
        """One verdict; the event loop goes on meanwhile, where the chat is a server."""
        if isinstance(self.chat, Server):
            return await asyncio.wrap_future(self.chat.begin(self._one(claim)))
        return self([claim])[0]

    async def _one(self, claim: Claim) -> bool | None:
        key = ("second opinion", claim.request.task, *claim.actions)
        found = await answered(self.chat, claim_messages(claim), self.budget, SuccessVerdict, self.samples, *key)
        return found.success if found else None


def claim_messages(claim: Claim) -> tuple[Message, ...]:
    """The judge's prompt: task, actions, state before the last one and after it."""
    sections = [
        ("Task", [claim.request.instruction]),
        ("Actions, oldest first", list(claim.actions)),
        ("Known state before the last action", list(claim.request.state)),
        ("Known state after it", list(claim.after)),
    ]
    return ("system", prompt("judge-success.v1")), ("user", sectioned([(name, [quoted(x) for x in lines]) for name, lines in sections]))
