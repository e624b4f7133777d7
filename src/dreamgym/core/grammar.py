"""The grammar: the one place that renders prompts and parses replies, for the experience model and for the policy.

A prompt is one line of words. Words that begin with ``@`` are markers, ``;`` separates lines; everything else is data::

    @task cook carrot fried sliced @sheet lime fridge fresh uncut @state carrot held fresh uncut ; knife held sharp
    @like dice tomato with knife @del tomato held fresh uncut @add tomato held fresh diced @lost
    @do slice carrot with knife @then

and the reply, reasoning first (arXiv 2511.03773 Eq. 4; the serialisation of change, reward and end is our choice)::

    @why carrot held fresh uncut , knife held sharp , wants sliced get sliced same , works
    @del carrot held fresh uncut @add carrot held fresh sliced @go

Data is escaped, so nothing in an action, a retrieved text or a state can open or close a section: an agent that writes
``@won`` produces the word ``\\@won``. An action ends at ``@then``, so a long one is never read on as the reply. Rendering and
parsing are exact inverses (property-tested).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from dreamgym.core.state import LINE, Change, State, line, make_state
from dreamgym.core.types import Outcome, Transition

SEPARATOR = ";"
OUTCOMES: tuple[str, ...] = tuple(f"@{o}" for o in get_args(Outcome))
_RAW = "@line"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]|[^\S ]")
_ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{6}|0|[@;])")


class GrammarError(ValueError):
    """A reply that does not follow the grammar; the text says where."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the experience model said: reasoning, change, outcome."""

    reasoning: str
    change: Change
    outcome: Outcome


def escape(text: str) -> str:
    """``text`` as data words: no word of the result is a marker or a separator, and no line ends in it."""
    words = []
    for word in text.split(" "):
        word = _CONTROL.sub(lambda m: f"\\u{ord(m[0]):06x}", word.replace("\\", "\\\\"))
        words.append("\\0" if not word else "\\" + word if word[0] in "@;" else word)
    return " ".join(words)


def unescape(text: str) -> str:
    """The inverse of ``escape``."""

    def one(m: re.Match[str]) -> str:
        body = m[1]
        return "" if body == "0" else chr(int(body[1:], 16)) if body[0] == "u" else body

    return _ESCAPED.sub(one, text)


def render_line(state_line: str) -> str:
    """A state line as words: ``[counter] carrot: fresh`` becomes ``carrot counter fresh``; other lines stay whole."""
    m = LINE.fullmatch(state_line)
    if not m or "\\" in m["kind"] or line(m["place"], m["kind"], m["text"] or "") != state_line:
        return f"{_RAW} {escape(state_line)}"
    return escape(" ".join(filter(None, (m["kind"], m["place"], m["text"]))))


def parse_line(words: str) -> str:
    """The inverse of ``render_line``. Raises ``GrammarError``."""
    if words.startswith(_RAW + " "):
        return unescape(words[len(_RAW) + 1 :])
    kind, _, rest = words.partition(" ")
    place, _, text = rest.partition(" ")
    if not kind or not place:
        raise GrammarError(f"a state line needs a thing and a place: {words!r}")
    return line(unescape(place), unescape(kind), unescape(text) if text else "")


def render_state(state: Iterable[str]) -> str:
    return f" {SEPARATOR} ".join(render_line(s) for s in state)


def render_world(instruction: str, sheet: State, past: Sequence[tuple[str, Change]], state: State) -> str:
    """The part of the experience model's prompt that does not depend on the action: the stable part comes first.

    ``past``: earlier steps of the episode, what was done and what it changed, oldest first.
    """
    parts = [f"@task {escape(instruction)}"]
    if sheet:
        parts.append(f"@sheet {render_state(sheet)}")
    parts += [" ".join([f"@past {escape(action)}", *_changes(change)]) for action, change in past]
    return " ".join([*parts, f"@state {render_state(state)}"])


def render_query(similar: Sequence[Transition], action: str) -> str:
    """The rest of the prompt: similar past experiences (after the history), then the action and its end."""
    shown = [f"@like {escape(t.action)} {render_outcome(t.change, t.outcome)}" for t in similar]
    return " ".join([*shown, render_action(action), "@then"])


def render_action(action: str) -> str:
    """An action as data behind its marker."""
    return f"@do {escape(action)}"


def render_policy(instruction: str, state: State) -> str:
    """The policy's prompt. It holds no sheet and no retrieved experience."""
    return f"@task {escape(instruction)} @state {render_state(state)} @do"


def render_variation(seeds: Sequence[str], sheet: State, state: State) -> str:
    """What the task writer is asked (arXiv 2511.03773 Eq. 6): seed instructions, and the world that the new task is to be done in."""
    parts = [f"@seed {escape(s)}" for s in seeds]
    return " ".join([*parts, f"@sheet {render_state(sheet)}" if sheet else "@sheet", f"@state {render_state(state)} @new"])


def render_lack(shown: Iterable[tuple[str, str, str]], sheet: State, state: State, thing: str) -> str:
    """What is asked where a world lacks a thing: where other worlds have it and what they say of it, the world, and its name."""
    parts = [f"@like {render_placed(*where)}" for where in shown]
    return " ".join([*parts, f"@sheet {render_state(sheet)}" if sheet else "@sheet", f"@state {render_state(state)} @new {escape(thing)}"])


def render_placed(where: str, place: str, text: str) -> str:
    """The answer to that: ``state`` or ``sheet``, the place, and what is said of the thing there."""
    return f"@{where} {escape(f'{place} {text}'.rstrip())}"


def parse_placed(text: str) -> tuple[str, str, str]:
    """The inverse of ``render_placed``. Raises ``GrammarError``."""
    where, _, words = text.partition(" ")
    if where not in ("@state", "@sheet"):
        raise GrammarError(f"a thing belongs into @state or @sheet, not {where!r}")
    place, _, said = parse_instruction(words).partition(" ")
    return where[1:], place, said


def render_instruction(instruction: str) -> str:
    """The task writer's answer, as data."""
    return escape(instruction)


def parse_instruction(text: str) -> str:
    """The inverse of ``render_instruction``. Raises ``GrammarError`` where a marker or a separator is in it."""
    words = text.split(" ")
    if any(w[:1] in ("@", SEPARATOR) for w in words) or not text.strip():
        raise GrammarError(f"an instruction is words without markers, not {text!r}")
    return unescape(text)


def render_next(change: Change) -> str:
    """How the policy's transcript goes on after an action: what it changed, and the next one's marker."""
    return f"{render_outcome(change, 'go')} @do"


def render_outcome(change: Change, outcome: Outcome) -> str:
    return " ".join([*_changes(change), f"@{outcome}"])


def _changes(change: Change) -> list[str]:
    named = (("@del", change.removed), ("@add", change.added))
    return [f"{name} {render_state(lines)}" for name, lines in named if lines]


def render_reply(reply: Reply) -> str:
    """The target of training: reasoning (where there is any), then the outcome."""
    why = [f"@why {escape(reply.reasoning)}"] if reply.reasoning else []
    return " ".join([*why, render_outcome(reply.change, reply.outcome)])


def parse_reply(text: str) -> Reply:
    """The strict inverse of ``render_reply``. Raises ``GrammarError`` on anything else; nothing is repaired."""
    words = text.split(" ")
    if words[-1] not in OUTCOMES:
        raise GrammarError(f"the reply must end with one of {', '.join(OUTCOMES)}, it ends with {words[-1]!r}")
    sections: dict[str, list[str]] = {}
    order = ["@why", "@del", "@add"]
    name = ""
    for word in words[:-1]:
        if word.startswith("@") and word != _RAW:
            if word not in order or (name and order.index(word) <= order.index(name)):
                raise GrammarError(f"unexpected {word!r} after {name or 'the start'}")
            name = word
            sections[name] = []
        elif not name:
            raise GrammarError(f"the reply begins with {word!r}, not with a section")
        else:
            sections[name].append(word)
    if any(not content for content in sections.values()):
        raise GrammarError("an empty section")
    change = Change(_parse_lines(sections.get("@del", [])), _parse_lines(sections.get("@add", [])))
    outcome: Outcome = "won" if words[-1] == "@won" else "lost" if words[-1] == "@lost" else "go"
    return Reply(_parse_reasoning(sections.get("@why", [])), change, outcome)


def _parse_reasoning(words: list[str]) -> str:
    return unescape(" ".join(words))


def _parse_lines(words: list[str]) -> State:
    if not words:
        return ()
    lines = [parse_line(part.strip(" ")) for part in _split(words)]
    state = make_state(lines)
    if len(state) != len(lines):
        raise GrammarError("a line twice in one section")
    return state


def _split(words: list[str]) -> list[str]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == SEPARATOR:
            parts.append([])
        else:
            parts[-1].append(word)
    return [" ".join(p) for p in parts]
