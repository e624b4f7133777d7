"""An experience model behind an OpenAI-compatible server: fine-tuned, or training-free with retrieved real episodes.

    model = EndpointExperienceModel(Endpoint(server), ExperienceConfig(k=4, history=8), EndpointReply(), buffer.snapshot())

Without fine-tuning the retrieved experiences carry what is known of the environment (arXiv 2511.01824 does without them); an
empty buffer is a cold start and works. At temperature 0 equal questions get one answer; above, every member of a group
draws its own. Reasoning and outcome have separate budgets: a reply that ends inside its thought is an invalid step with that
reason, never an empty observation.
"""

import asyncio
import functools
from collections.abc import Sequence

from dreamgym.core.grammar import GrammarError
from dreamgym.core.seeding import key_of
from dreamgym.core.state import InconsistentChange, apply_change
from dreamgym.core.types import StopReason, Transition
from dreamgym.endpoint.config import Answer, Ask, Chat, Message, Server
from dreamgym.experience.chat import EndpointReply, parse_step, reply_schema, step_messages
from dreamgym.experience.model import Prediction, held
from dreamgym.experience.precedent import Precedents
from dreamgym.experience.prompt import ExperienceConfig, PromptBuilder, Request
from dreamgym.replay.contract import Retrieval


class EndpointExperienceModel:
    """Plays the environment through a chat server, or a chat model in this process. Satisfies ``ExperienceModel``."""

    def __init__(
        self, endpoint: Chat, config: ExperienceConfig, reply: EndpointReply, retrieval: Retrieval, wins: Precedents | None = None
    ) -> None:
        self.endpoint, self.config, self.reply, self.wins = endpoint, config, reply, wins
        self.calls = 0
        self.remembered = 0
        self.reasons: dict[str, int] = {}
        """Why replies were not usable, counted (each was drawn again where ``samples`` allows)."""
        self.use(retrieval)

    def use(self, retrieval: Retrieval) -> None:
        """A new snapshot; what was remembered under the old one is forgotten."""
        self._prompts = PromptBuilder(self.config, retrieval)
        self._memory: dict[tuple[object, ...], Prediction] = {}
        self._open: dict[tuple[object, ...], asyncio.Future[Prediction]] = {}

    def costs(self) -> dict[str, int]:
        c = self.endpoint.counts
        return {
            "experience_calls": self.calls,
            "experience_calls_remembered": self.remembered,
            "experience_calls_cached": c["cached"],
            "experience_calls_repeated": c["attempts"] + c["cached"] - c["calls"],
            "experience_calls_failed": c["failed"],
            "experience_calls_unusable": sum(self.reasons.values()),
            "experience_tokens_in": c["tokens_in"],
            "experience_tokens_in_cached": c["tokens_in_cached"],
            "experience_tokens_out": c["tokens_out"],
        }

    def recall(self, request: Request) -> Prediction | None:
        known = self._memory.get(self._question(request))
        if known is not None:
            self.calls += 1
            self.remembered += 1
        return known

    def _question(self, r: Request) -> tuple[object, ...]:
        """What an answer belongs to: the question, and above temperature 0 also who asks."""
        past = r.past[-self.config.history :] if self.config.history else ()
        question = (r.task, r.instruction, r.sheet, past, r.state, r.action)
        return question if not self.reply.temperature else (*question, r.key)

    def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """Predictions in the order of ``requests``; an unusable or failed one says why."""
        keys = [self._question(r) for r in requests]
        new = {k: r for k, r in zip(keys, requests, strict=True) if k not in self._memory}
        self.calls += len(requests)
        self.remembered += len(requests) - len(new)
        found = self._predict(list(new.items()))
        # a call that failed is nobody's answer: who asks the same later, asks the server again
        self._memory.update({k: p for k, p in zip(new, found, strict=True) if p.invalid is not StopReason.INVALID_ENV})
        here = dict(zip(new, found, strict=True))
        return [here[k] if k in here else self._memory[k] for k in keys]

    def begin(self, requests: Sequence[Request]) -> "Sequence[Prediction | asyncio.Future[Prediction]]":
        """``predict`` at a server: who asks goes on when its own reply is there. Equal questions share a call."""
        server = self.endpoint
        if not isinstance(server, Server):
            return self.predict(requests)
        keys = [self._question(r) for r in requests]
        new = {k: r for k, r in zip(keys, requests, strict=True) if k not in self._memory and k not in self._open}
        self.calls += len(requests)
        self.remembered += len(requests) - len(new)
        for (key, request), shown in zip(new.items(), self._similar(list(new.values())), strict=True):
            self._open[key] = asyncio.wrap_future(server.begin(self._step(key, request, shown)))
            self._open[key].add_done_callback(functools.partial(self._end, key))
        return [self._memory.get(k) or self._open[k] for k in keys]

    def _end(self, key: tuple[object, ...], done: "asyncio.Future[Prediction]") -> None:
        self._open.pop(key, None)
        if not done.cancelled() and not done.exception() and done.result().invalid is not StopReason.INVALID_ENV:
            self._memory[key] = done.result()

    def _similar(self, requests: Sequence[Request]) -> list[list[Transition]]:
        return self._prompts.similar(requests, [not self.config.same_task] * len(requests), self.config.k)

    def _predict(self, asked: list[tuple[tuple[object, ...], Request]]) -> list[Prediction]:
        requests = [r for _, r in asked]
        similar = self._similar(requests)
        return self.endpoint.together([self._step(key, r, s) for (key, r), s in zip(asked, similar, strict=True)])

    async def _step(self, key: tuple[object, ...], request: Request, similar: Sequence[Transition]) -> Prediction:
        """One step: replies are drawn until one is usable, or ``samples`` are spent, or the server has failed."""
        messages = step_messages(request, similar, self.config, self.reply.form)
        prediction = Prediction(None, StopReason.INVALID_REPLY, "")
        for n in range(self.reply.samples):
            temperature = self.reply.temperature if n == 0 else max(self.reply.temperature, self.reply.retry_temperature)
            ask = self._ask(messages, temperature, key_of("experience", n, repr(key)))
            prediction = self._check(await self.endpoint.reply(ask), request)
            if prediction.reply is not None or prediction.invalid is StopReason.INVALID_ENV:
                break
        return prediction

    def draw(self, requests: Sequence[Request], m: int) -> list[list[Prediction]]:
        """``m`` independent predictions of each request at temperature 1 (``dreamgym.experience.fidelity.Draw``); none is remembered."""
        similar = self._similar(requests)

        async def one(n: int, request: Request, shown: Sequence[Transition]) -> Prediction:
            messages = step_messages(request, shown, self.config, self.reply.form)
            seed = key_of("draw", n, *request.key, request.action)
            return self._check(await self.endpoint.reply(self._ask(messages, 1.0, seed)), request)

        found = self.endpoint.together([one(n, r, s) for r, s in zip(requests, similar, strict=True) for n in range(m)])
        return [found[i * m : (i + 1) * m] for i in range(len(requests))]

    def _ask(self, messages: tuple[Message, ...], temperature: float, seed: int) -> Ask:
        return Ask(
            messages=messages,
            budget=(self.reply.reasoning_tokens if self.config.reasoning else 0) + self.reply.outcome_tokens,
            temperature=temperature,
            seed=seed,
            reply=reply_schema(self.reply.form, self.config.reasoning),
        )

    def _check(self, answer: Answer, request: Request) -> Prediction:
        """An answer as a prediction: parsed strictly, then held against the state and what has won before."""
        if answer.failed:
            return self._invalid(StopReason.INVALID_ENV, answer.error, answer.error)
        if answer.error:
            return self._invalid(StopReason.INVALID_REPLY, answer.error, answer.thought + answer.text)
        try:
            reply = parse_step(answer.text, request.state, self.reply.form, answer.thought, self.config.reasoning)
        except GrammarError as e:
            return self._invalid(StopReason.INVALID_REPLY, str(e).partition(":")[0], answer.text)
        try:
            apply_change(request.state, reply.change)
        except InconsistentChange as e:
            return self._invalid(StopReason.INVALID_CHANGE, str(e).partition(":")[0], answer.text)
        said = held(Prediction(reply, None, answer.text), request, self.config, self.wins)
        if said.invalid is StopReason.INVALID_CHANGE:
            return self._invalid(said.invalid, "the world sheet says otherwise", answer.text)
        return said if said.reply else self._invalid(StopReason.INVALID_SUCCESS, "no action of this form has won", answer.text)

    def _invalid(self, stop: StopReason, reason: str, text: str) -> Prediction:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        return Prediction(None, stop, f"({reason}) {text}")
