"""Batches of chat calls to an OpenAI-compatible server: bounded concurrency, retries, a meter, a cache.

    endpoint = Endpoint(EndpointConfig(base_url="http://localhost:8000/v1", model="Qwen/Qwen2.5-7B-Instruct"))
    answers = endpoint.ask([Ask(messages=(("user", "..."),), budget=512)])

What may pass by waiting (429, 5xx, 408, 409, a lost connection, a timeout, half a reply, a reply of another shape) is tried
again with random, growing pauses, during which the call holds no slot. What cannot (a wrong key, an unknown model, a request
that the server does not understand) stops the run with its cause. A call that failed for good is an ``Answer`` that says so,
never an empty text; too many in a row, and the server is down: the run stops rather than dream of nothing.
"""

import asyncio
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar, cast

from dreamgym.core.errors import EndpointError, MissingExtraError
from dreamgym.endpoint.cache import ReplyCache
from dreamgym.endpoint.config import Answer, Ask, EndpointConfig, cache_key

try:
    import httpx2
    import openai
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
    from openai.types.shared_params import ResponseFormatJSONSchema
except ImportError as e:
    raise MissingExtraError("openai", "endpoint") from e

T = TypeVar("T")
DOWN = 16
"""Calls that fail for good in a row before the server counts as down."""
_THIS_CALL = (400, 413, 422)
"""Refusals that may concern one prompt only."""
_TOO_LONG = re.compile(r"context|too (?:long|large)|maximum.{0,20}(?:length|tokens)|reduce the length", re.IGNORECASE)
"""And what they say where they surely do."""
LONGEST_PAUSE_S = 30.0
LONGEST_DEMAND_S = 120.0
"""A server that demands a longer pause than this has failed the call."""


class _Passing(Exception):
    """An attempt that failed in a way that may pass; with the pause that the server demands, where it does."""

    def __init__(self, kind: str, text: str, demand_s: float | None = None) -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind, self.demand_s = kind, demand_s


class Endpoint:
    """A server and a model. Calls of one batch run side by side; the answers come in the order of the asks."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        """Calls, cached, attempts, failed, refused, tokens in, out and cached, milliseconds of pauses that the server demanded
        (``waited_ms``), and ``retried_*`` by kind of fault."""
        self._cache = ReplyCache(Path(config.cache)) if config.cache else None
        self._failed_in_a_row = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="endpoint").start()
        self._slots = asyncio.Semaphore(config.concurrency)
        limits = httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=config.timeout_s,
            max_retries=0,
            http_client=httpx2.AsyncClient(limits=limits, timeout=config.timeout_s),
        )

    def ask(self, asks: Sequence[Ask]) -> list[Answer]:
        """The answers, in order. Raises ``EndpointError`` where the run cannot go on: see the module's text."""
        return self.together([self.reply(a) for a in asks])

    def together(self, work: Sequence[Coroutine[object, object, T]]) -> list[T]:
        """Run coroutines that await ``reply`` side by side, in the client's own thread; results in their order."""
        return self.begin(_all(work)).result()

    def begin(self, work: Coroutine[object, object, T]) -> Future[T]:
        """Run one such coroutine beside those begun before."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._cache:
            self._cache.close()

    async def reply(self, ask: Ask) -> Answer:
        """One call: from the cache, or by as many attempts as it takes and the configuration allows."""
        self.counts["calls"] += 1
        key = cache_key(self.config, ask)
        if self._cache and (known := self._cache.get(key)):
            self.counts["cached"] += 1
            return known.model_copy(update={"tokens_in": 0, "tokens_out": 0})
        answer = await self._persist(ask)
        if self._cache and not answer.error:  # a truncated or refused one may be another when the limits are
            self._cache.put(key, answer)
        return answer

    async def _persist(self, ask: Ask) -> Answer:
        """Attempts until one succeeds, or all have failed."""
        for attempt in range(self.config.attempts):
            try:
                async with self._slots, asyncio.timeout(self.config.timeout_s):
                    self.counts["attempts"] += 1
                    answer = await self._attempt(ask)
                self._failed_in_a_row = 0
                return answer
            except (_Passing, TimeoutError) as e:
                fault = e if isinstance(e, _Passing) else _Passing("timeout", f"no reply in {self.config.timeout_s:g} s")
                if attempt + 1 == self.config.attempts or (fault.demand_s or 0) > LONGEST_DEMAND_S:
                    return self._give_up(fault)
                self.counts[f"retried_{fault.kind}"] += 1
                if fault.demand_s is not None:
                    self.counts["waited_ms"] += round(1000 * fault.demand_s)
                    await asyncio.sleep(fault.demand_s * random.uniform(1, 1.1))  # not all calls at once again
                else:
                    await asyncio.sleep(random.uniform(0, min(self.config.backoff_s * 2**attempt, LONGEST_PAUSE_S)))
        raise AssertionError("unreachable: attempts >= 1")

    def _give_up(self, fault: _Passing) -> Answer:
        self.counts["failed"] += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= DOWN:
            raise EndpointError(
                f"{self.config.base_url}: {DOWN} calls in a row failed after {self.config.attempts} attempts each; the last: {fault}."
                " Start the server, or raise timeout_s or attempts; the run goes on where it stopped"
            )
        return Answer(error=str(fault), failed=True)

    async def _attempt(self, ask: Ask) -> Answer:
        try:
            completion = await self._client.chat.completions.create(
                model=self.config.model,
                messages=cast("list[ChatCompletionMessageParam]", [{"role": role, "content": text} for role, text in ask.messages]),
                max_completion_tokens=ask.budget,
                temperature=ask.temperature,
                seed=ask.seed & 0x7FFFFFFF,
                response_format=self._format(ask),
            )
        except openai.APIStatusError as e:
            if e.status_code in _THIS_CALL and (self.counts["answered"] or _TOO_LONG.search(e.message)):  # others it understands
                self.counts["refused"] += 1
                return Answer(error=f"refused call ({e.status_code}): {_short(e.message)}")
            raise self._status(e) from e
        except openai.APITimeoutError as e:
            raise _Passing("timeout", f"no reply in {self.config.timeout_s:g} s") from e
        except openai.APIConnectionError as e:
            raise _Passing("connection", str(e.__cause__ or e)) from e
        except (openai.APIResponseValidationError, ValueError) as e:
            raise _Passing("malformed", f"not a completion: {e}") from e
        try:
            answer = self._read(completion)
        except (AttributeError, TypeError, IndexError) as e:  # the client library does not hold a reply against its shape
            raise _Passing("malformed", f"a completion of another shape: {e}") from e
        self.counts["answered"] += 1
        return answer

    def _format(self, ask: Ask) -> "ResponseFormatJSONSchema | openai.Omit":
        if ask.reply is None or not self.config.structured:
            return openai.omit
        return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": ask.reply}}

    def _status(self, error: openai.APIStatusError) -> Exception:
        code = error.status_code
        if code in (408, 409, 429) or code >= 500:
            return _Passing(str(code), _short(error.message), _retry_after(error.response.headers.get("retry-after")))
        hints = {
            401: f"put a key into {self.config.api_key_env}",
            403: f"the key in {self.config.api_key_env} may not use it",
            404: "check base_url (it ends in /v1) and model",
        }
        hint = hints.get(code, "where the server knows no response_format, set structured to false")
        return EndpointError(
            f"{self.config.base_url}, model {self.config.model}: the server refuses the call ({code}: {_short(error.message)}); {hint}"
        )

    def _read(self, completion: ChatCompletion) -> Answer:
        """The reply of a completion, held against its shape."""
        choices = getattr(completion, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if choice is None or message is None:
            raise _Passing("malformed", "a completion without choices")
        text, thought = message.content or "", getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
        if not isinstance(text, str) or not isinstance(thought, str):
            raise _Passing("malformed", "a reply that is no text")
        text, thought = (x.encode("utf-8", "replace").decode() for x in (text, thought))  # half an emoji is a string that no file can hold
        answer = Answer(text=text, thought=thought, error=_error(choice.finish_reason, text, getattr(message, "refusal", None)))
        if not completion.usage:
            return answer
        spent_in, spent_out = int(completion.usage.prompt_tokens or 0), int(completion.usage.completion_tokens or 0)
        details = completion.usage.prompt_tokens_details
        self.counts["tokens_in"] += spent_in
        self.counts["tokens_out"] += spent_out
        self.counts["tokens_in_cached"] += (details.cached_tokens or 0) if details else 0
        return answer.model_copy(update={"tokens_in": spent_in, "tokens_out": spent_out})


async def _all(work: Sequence[Coroutine[object, object, T]]) -> list[T]:
    try:
        async with asyncio.TaskGroup() as group:  # the first error that stops the run cancels the other calls
            tasks = [group.create_task(w) for w in work]
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    return [t.result() for t in tasks]


def _error(ended: str | None, text: str, refusal: object) -> str:
    """Why a reply is not usable; "" where it may be."""
    if ended == "length":
        return "truncated" if text else "truncated thought"
    if ended == "content_filter" or refusal:
        return "refused"
    return "" if text.strip() else "empty"


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."


def _retry_after(header: str | None) -> float | None:
    """Seconds that the server demands; None where it does not, or not as a number."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
