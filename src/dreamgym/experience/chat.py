"""The experience model's prompt and reply for chat LLMs: sections of JSON strings in, one JSON object out.

The order keeps as much of a server's prefix cache warm as there is: what is the same for all steps comes first (rules, task), then
what changes now and then (the sheet, of which only the part not yet seen is shown; the history), then what every step has anew
(retrieved experiences, state, action). All of it but the rules is untrusted; each piece is one
JSON string in which no quote, line end, control character or chat marker of its own survives, so nothing in it can end a
section, a thought or a message. Replies are parsed strictly (arXiv 2511.03773 Eq. 4; this serialisation is our choice).
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar
from unicodedata import category

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreamgym.core.grammar import GrammarError, Reply
from dreamgym.core.seeding import key_of
from dreamgym.core.state import Change, State, diff, make_state
from dreamgym.core.types import Outcome, Transition
from dreamgym.endpoint.config import Ask, Chat, Message
from dreamgym.experience.prompt import ExperienceConfig, Request
from dreamgym.prompts import prompt

Form = Literal["change", "state"]
"""What a reply states: the lines that leave and enter (short, checked against the state), or the whole next state (the paper)."""

_UNSAFE = re.compile(
    r"[<>\ud800-\udfff\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]|\[(?=/?[A-Z_]{2,}\])"
)
_ENDS: dict[str, Outcome] = {"continue": "go", "success": "won", "failure": "lost"}
_SHOWN = {outcome: word for word, outcome in _ENDS.items()}
_FENCE = re.compile(r"```(?:json)?\s*\n(?P<body>.*?)\n?```", re.DOTALL)
_THOUGHT = re.compile(r"<think>(?P<thought>.*?)</think>", re.DOTALL)


class EndpointReply(BaseModel):
    """How a chat LLM is asked for a step."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    form: Form = "change"
    """``change``: lines that leave and enter; ``state``: the whole next state, as in the paper."""
    reasoning_tokens: int = Field(768, ge=0)
    outcome_tokens: int = Field(512, ge=1)
    """Kept free for the outcome beside ``reasoning_tokens``: a thought within its budget never starves it."""
    temperature: float = Field(0.0, ge=0)
    """0 where the sheet fixes the world and the policy brings the diversity; above for open-ended worlds (a simulated user)."""
    samples: int = Field(3, ge=1)
    """Replies drawn at most per step, while none is usable; the further ones at ``retry_temperature``."""
    retry_temperature: float = Field(1.0, ge=0)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ChangeReply(_Strict):
    """A reply that names the lines which leave and enter."""

    reasoning: str = Field(max_length=20_000)
    removed: list[str]
    added: list[str]
    outcome: Literal["continue", "success", "failure"]


class StateReply(_Strict):
    """A reply that gives the whole next state."""

    reasoning: str = Field(max_length=20_000)
    next_state: list[str]
    outcome: Literal["continue", "success", "failure"]


def quoted(text: str) -> str:
    """``text`` as one JSON string without chat markers (``<|im_end|>``, ``[INST]``), invisible or direction-changing characters.

    ``json.loads`` gives ``text`` back.
    """
    return _UNSAFE.sub(_escaped, json.dumps(text, ensure_ascii=False))


def _escaped(m: re.Match[str]) -> str:
    return json.dumps(m[0])[1:-1] if ord(m[0][0]) > 0x7F else f"\\u{ord(m[0]):04x}"


def reply_schema(form: Form, reasoning: bool = True) -> dict[str, object]:
    """JSON schema of a reply: every key required, nothing else allowed, the reasoning first."""
    schema = (ChangeReply if form == "change" else StateReply).model_json_schema()
    keys = [k for k in schema["properties"] if reasoning or k != "reasoning"]
    properties = {k: {n: v for n, v in schema["properties"][k].items() if n not in ("title", "maxLength")} for k in keys}
    return {"type": "object", "properties": properties, "required": keys, "additionalProperties": False}


def step_messages(request: Request, similar: Sequence[Transition], config: ExperienceConfig, form: Form) -> tuple[Message, ...]:
    """The prompt of one step. ``similar``: retrieved experiences, best first; shown last (next to the state) or first as configured."""
    rules = prompt(f"reply-{form}.v1")
    if config.reasoning:
        rules = '- "reasoning": string, your reasoning, a few sentences;\n' + rules
    past = request.past[-config.history :] if config.history else ()
    earlier = [_members({"action": p.action, "removed": p.change.removed, "added": p.change.added}) for p in past]
    shown = [step_text(t, _SHOWN[t.outcome]) for t in similar[: config.k]]
    sections = [
        ("Task", [quoted(request.instruction)]),
        ("World sheet: facts of this world that the agent has not seen yet", _lines(request.sheet) if config.sheet else []),
        ("Earlier steps of this episode, oldest first", earlier),
        (f"Similar experiences, most similar {'last' if config.best_last else 'first'}", shown[::-1] if config.best_last else shown),
        ("Current state", _lines(request.state)),
        ("The agent's action", [quoted(request.action)]),
    ]
    return ("system", prompt("step.v1", reply=rules)), ("user", sectioned(sections))


def sectioned(sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Named sections of lines that are quoted already."""
    return "\n\n".join(f"## {name}\n" + "\n".join(lines or ["(none)"]) for name, lines in sections)


def reply_text(t: Transition, form: Form, reasoning: bool) -> str:
    """The reply that a chat model is taught for a logged step (Eq. 5): the inverse of ``parse_step``."""
    lists = {"removed": list(t.removed), "added": list(t.added)} if form == "change" else {"next_state": list(t.next_state)}
    why = {"reasoning": t.reasoning} if reasoning else {}
    return json.dumps({**why, **lists, "outcome": _SHOWN[t.outcome]}, ensure_ascii=False)


def _lines(state: Sequence[str]) -> list[str]:
    return [quoted(s) for s in state]


def step_text(t: Transition, outcome: str, head: Sequence[str] = ()) -> str:
    """A step as one JSON object on one line: ``head`` (JSON members), state, action, change, and what the outcome is called."""
    return _members({"state": t.state, "action": t.action, "removed": t.removed, "added": t.added, "outcome": outcome}, head)


def _members(step: Mapping[str, str | State], head: Sequence[str] = ()) -> str:
    """One JSON object on one line, behind ``head``."""
    parts = [f"{quoted(k)}: " + (quoted(v) if isinstance(v, str) else "[" + ", ".join(map(quoted, v)) + "]") for k, v in step.items()]
    return "{" + ", ".join([*head, *parts]) + "}"


def parse_step(text: str, state: State, form: Form, thought: str = "", reasoning: bool = True) -> Reply:
    """A reply as reasoning, change and outcome. Raises ``GrammarError`` on anything but one JSON object of the agreed keys.

    A thought in ``<think>`` tags before it and a code fence around it are known habits of models and are taken off; a
    thought that does not end is a truncated one. Nothing else is repaired. ``thought``: what the server handed over apart.
    """
    own, body = undress(text)
    thought = thought or own
    data = read_object(body)
    if not reasoning:
        data = {"reasoning": "", **data}
    reply: ChangeReply | StateReply = shaped(data, ChangeReply) if form == "change" else shaped(data, StateReply)
    why = "\n".join(filter(None, (thought, reply.reasoning.strip())))
    if reasoning and not why:
        raise GrammarError("field reasoning: empty")
    outcome = _ENDS[reply.outcome]
    if isinstance(reply, StateReply):
        after = make_state(reply.next_state)
        if not after and state and outcome == "go":
            raise GrammarError("field next_state: empty, and the episode goes on")
        change = diff(state, after)
    else:
        change = Change(make_state(reply.removed), make_state(reply.added))
    if odd := [s for s in change.added if len(s.splitlines()) != 1 or any(category(c) in ("Cc", "Cs") for c in s)]:
        raise GrammarError(f"a line of the state holds a line end or a control character: {odd[0]!r}")
    return Reply(why if reasoning else "", change, outcome)


M = TypeVar("M", bound=BaseModel)


async def answered(
    chat: Chat, messages: tuple[Message, ...], budget: int, kind: type[M], samples: int, *key: str | int, temperature: float = 0.0
) -> M | None:
    """A reply of the shape ``kind``: the first greedy (or at ``temperature``), then at 1 while none is usable; None where none was had.

    ``key`` names the draws.
    """
    for n in range(samples):
        drawn = {"temperature": 1.0 if n else temperature, "seed": key_of(*key, n)}
        ask = Ask(messages=messages, budget=budget, reply=kind.model_json_schema(), **drawn)
        answer = await chat.reply(ask)
        if answer.failed:
            return None
        try:
            if not answer.error:
                return shaped(read_object(undress(answer.text)[1]), kind)
        except GrammarError:
            continue
    return None


def read_object(text: str) -> dict[str, object]:
    """One JSON object, its keys unique, its strings whole Unicode. Raises ``GrammarError`` on anything else."""
    try:
        data = json.loads(text, object_pairs_hook=_no_repeats)
        json.dumps(data, ensure_ascii=False).encode()  # half an emoji is a string that no file can hold
    except RecursionError as e:
        raise GrammarError(f"nested too deeply: {text[:80]!r}") from e
    except ValueError as e:
        raise GrammarError(f"not one JSON object ({e}): {text[:80]!r}") from e
    if not isinstance(data, dict):
        raise GrammarError(f"field (top): not an object: {text[:80]!r}")
    return data


def shaped(data: dict[str, object], kind: type[M]) -> M:
    """``data`` as a ``kind``, strictly. Raises ``GrammarError`` that names the field."""
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        raise GrammarError(f"field {'.'.join(map(str, first['loc'])) or '(top)'}: {first['msg']}") from e


def undress(text: str) -> tuple[str, str]:
    """The thought in ``<think>`` tags before a reply ("" where there is none), and the reply without a code fence around it.

    Raises ``GrammarError`` for a thought that does not end.
    """
    thought, body = "", text.strip()
    if not body.startswith(("<think>", "{", "```")) and "</think>" in body:
        body = f"<think>{body}"  # which the model's template has put at the prompt's end
    if body.startswith("<think>"):
        m = _THOUGHT.match(body)
        if m is None:
            raise GrammarError("a thought that does not end")
        thought, body = m["thought"].strip(), body[m.end() :].strip()
    if m := _FENCE.fullmatch(body):
        body = m["body"]
    return thought, body


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys come once: a second ``outcome`` must not win silently."""
    keys = [k for k, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key twice in one object")
    return dict(pairs)
