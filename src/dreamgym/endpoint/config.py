"""Which server and model to call, and how: one section, used by the experience model, the teacher and the judge alike."""

import hashlib
import json
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
Message = tuple[str, str]
"""Role (``system``, ``user``, ``assistant``) and text."""


class EndpointConfig(BaseModel):
    """An OpenAI-compatible chat server. The key is read from an environment variable and is never written anywhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base_url: str
    """Up to and with ``/v1``."""
    model: str
    """The model's name at that server."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key. Servers that want none get a placeholder when it is not set."""
    concurrency: int = Field(32, ge=1)
    """Calls at the server at once."""
    timeout_s: float = Field(120.0, gt=0)
    """Of one attempt, from its start to the whole reply."""
    attempts: int = Field(6, ge=1)
    """Tries of one call before it has failed; only those that may pass by waiting are repeated."""
    backoff_s: float = Field(0.5, gt=0)
    """The second try waits a random time up to this, every further one up to twice as long; ``Retry-After`` is obeyed."""
    structured: bool = True
    """Ask the server to force the reply's JSON schema (``response_format``); off for servers that do not know it."""
    price_in: float | None = Field(None, ge=0)
    """US dollars per million prompt tokens, for the meter."""
    price_out: float | None = Field(None, ge=0)
    """US dollars per million reply tokens, for the meter."""
    cache: str | None = None
    """A SQLite file that keeps finished replies by request and seed; asked again, they cost nothing."""

    def usd(self, tokens_in: float, tokens_out: float) -> float | None:
        """What so many tokens cost, in US dollars; None where the prices are not given."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


class Ask(BaseModel):
    """One call: what is said, how long the reply may be, and what draws it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    messages: tuple[Message, ...]
    budget: int
    """Tokens of the reply, its reasoning included."""
    temperature: float = 0.0
    seed: int = 0
    reply: dict[str, object] | None = None
    """JSON schema of the reply; None = free text."""


class Answer(BaseModel):
    """What came back. ``error`` says why there is nothing usable; an infrastructure failure is marked as one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    text: str = ""
    thought: str = ""
    """What a reasoning model thought, where the server hands it over apart from the text."""
    error: str = ""
    """Empty, or the reason: ``truncated thought``, ``truncated``, ``refused`` ... or, with ``failed``, what broke."""
    failed: bool = False
    """No reply was had at all: the server or the way to it failed, after all attempts."""
    tokens_in: int = 0
    tokens_out: int = 0
    """What this call was charged; 0 where the reply came from the cache."""


class Chat(Protocol):
    """Something that answers asks: a server (``endpoint.client.Endpoint``) or a model in this process."""

    counts: Counter[str]
    """Calls, tokens and faults so far."""

    async def reply(self, ask: Ask) -> Answer: ...

    def together(self, work: Sequence[Coroutine[object, object, T]]) -> list[T]:
        """Run coroutines that await ``reply`` side by side; results in their order."""
        ...


@runtime_checkable
class Server(Chat, Protocol):
    """A chat elsewhere: work begun there goes on by itself."""

    def begin(self, work: Coroutine[object, object, T]) -> Future[T]:
        """Run a coroutine that awaits ``reply`` beside those begun before."""
        ...


def cache_key(config: EndpointConfig, ask: Ask) -> str:
    """Names a request: everything that the reply depends on."""
    data = [config.base_url, config.model, config.structured, ask.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
