"""What the policy reads and how its reply is taken as an action; one context per run, the same in dream and reality.

``StateContext`` (preset *tiny*): instruction and carried state in the grammar, the reply is the action itself. ``ChatContext``
(preset *paper*): a conversation of one user message, in the shape of verl-agent's prompts, which DreamGym follows (arXiv 2511.03773
§5; wording and details that the paper leaves open are our choice): task, number of steps taken, the last pairs of observation and
action, current observation, admissible actions where the observation lists them; the reply reasons in ``<think>`` and acts in
``<action>``. Both are step-wise: every step is a sample of its own. ``Transcript`` and ``ChatTranscript`` are their append-only forms:
an episode is one growing sequence of token ids, in which nothing is rendered again and keys and values can be kept.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dreamgym.core.errors import DataError
from dreamgym.core.grammar import render_next, render_policy
from dreamgym.core.state import ADMISSIBLE, State
from dreamgym.core.types import Transition
from dreamgym.lm.local import LocalLM
from dreamgym.prompts import prompt

LAST_CHARACTERS = 30
"""What is taken as the action of a reply without ``<action>`` tags."""
_ACTION = re.compile(r"<action>(?P<action>.*?)</action>", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_HERE = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy sees at one step; ``key`` names the draw: (seed, iteration, task, member, turn)."""

    instruction: str
    state: State
    key: tuple[str | int, ...]
    past: tuple[Transition, ...] = ()
    """Earlier steps of the episode, oldest first."""
    said: tuple[int, ...] = ()
    """The last sample's ids, prompt and reply: what an append-only context goes on from."""


class Context(Protocol):
    """One way to show a turn, and its inverse for replies."""

    appends: bool
    """Whether a prompt begins with the last one and its reply."""

    def prompts(self, lm: LocalLM, turns: Sequence[Turn]) -> list[list[int]]:
        """Token ids of each turn's prompt, up to where the reply begins."""
        ...

    def reply(self, action: str) -> str:
        """The reply that a demonstration of ``action`` teaches, without the end token."""
        ...

    def read(self, text: str) -> tuple[str, bool]:
        """The action in a reply, and whether the reply was well formed."""
        ...


class StateContext:
    """Instruction and state in the grammar; the reply is the action."""

    appends = False

    def prompts(self, lm: LocalLM, turns: Sequence[Turn]) -> list[list[int]]:
        return lm.encode_batch([" " + render_policy(t.instruction, t.state) for t in turns])

    def reply(self, action: str) -> str:
        return f" {action}"

    def read(self, text: str) -> tuple[str, bool]:
        return " ".join(text.split()), True


class Transcript(StateContext):
    """The first state, then in turn each reply as it was sampled and what it changed."""

    appends = True

    def prompts(self, lm: LocalLM, turns: Sequence[Turn]) -> list[list[int]]:
        texts = [render_next(t.past[-1].change) if t.past else render_policy(t.instruction, t.state) for t in turns]
        return [_append(lm, t, ids) for t, ids in zip(turns, lm.encode_batch([f" {x}" for x in texts]), strict=True)]


class ChatContext:
    """A chat prompt with the last ``history`` steps; the reply is ``<think>...</think><action>...</action>``."""

    appends = False

    def __init__(self, history: int = 2) -> None:
        self.history = history

    def prompts(self, lm: LocalLM, turns: Sequence[Turn]) -> list[list[int]]:
        """What comes from the environment is encoded as data: no chat marker in it becomes a special token."""
        head, tail = _frame(lm)
        return [[*head, *body, *tail] for body in lm.encode_batch([self.text(t) for t in turns])]

    def text(self, turn: Turn) -> str:
        """The user message."""
        taken, shown = len(turn.past), turn.past[-self.history :] if self.history else ()
        lines = [f"Step {taken - len(shown) + i}: you saw\n{_seen(t.state)}\nand did: {t.action}" for i, t in enumerate(shown, start=1)]
        history = [f"You have taken {taken} steps so far. The last of them:", *lines, ""] if taken else []
        listed = [s.removeprefix(ADMISSIBLE) for s in turn.state if s.startswith(ADMISSIBLE)]
        admissible = ["Actions that are possible now:", *(f"- {a}" for a in listed), ""] if listed else []
        now = [f"You are at step {taken + 1} and see:", _seen(turn.state), ""]
        return prompt("agent.v1", task=turn.instruction, situation="\n".join([*history, *now, *admissible]).strip())

    def reply(self, action: str) -> str:
        return f"<think></think><action>{action}</action>"

    def read(self, text: str) -> tuple[str, bool]:
        """The first ``<action>``; without one the reply's last characters. Well formed = with ``<action>`` and a ``<think>`` that ends."""
        found = _ACTION.search(text)
        action = found["action"] if found else text[-LAST_CHARACTERS:]
        return " ".join(action.split()), bool(found and _THOUGHT.search(text))


class ChatTranscript(ChatContext):
    """A conversation: task and first observation, then in turn each reply as it was sampled and the observation after it."""

    appends = True

    def __init__(self) -> None:
        super().__init__(0)

    def prompts(self, lm: LocalLM, turns: Sequence[Turn]) -> list[list[int]]:
        head, tail = _frame(lm)
        between = _between(lm)
        bodies = lm.encode_batch([self.next_text(t) if t.past else self.text(t) for t in turns])
        return [_append(lm, t, [*(between if t.past else head), *body, *tail]) for t, body in zip(turns, bodies, strict=True)]

    def next_text(self, turn: Turn) -> str:
        """A later user message."""
        listed = [s.removeprefix(ADMISSIBLE) for s in turn.state if s.startswith(ADMISSIBLE)]
        admissible = ["", "Actions that are possible now:", *(f"- {a}" for a in listed)] if listed else []
        return "\n".join([f"You are at step {len(turn.past) + 1} and see:", _seen(turn.state), *admissible])


def _append(lm: LocalLM, turn: Turn, ids: Sequence[int]) -> list[int]:
    """``ids`` behind what was said; a reply that was cut at its budget is ended first."""
    cut = bool(turn.said) and turn.said[-1] != lm.eos
    return [*turn.said, *([lm.eos] if cut else ()), *ids]


def _between(lm: LocalLM) -> list[int]:
    """Ids of the chat template between a reply's end token and the next user message."""
    words = [{"role": role, "content": _HERE} for role in ("user", "assistant", "user")]
    text = str(lm.tokenizer.apply_chat_template(words, tokenize=False, add_generation_prompt=True)).split(_HERE)[2]
    ids = list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids[1:] if ids and ids[0] == lm.eos else ids


def _seen(state: State) -> str:
    return "\n".join(s for s in state if not s.startswith(ADMISSIBLE)) or "(nothing)"


def _frame(lm: LocalLM) -> tuple[list[int], list[int]]:
    """Ids of the chat template before and after the user's message."""
    if not lm.tokenizer.chat_template:
        raise DataError("policy.preset: paper needs a base model with a chat template; choose an instruction-tuned one (base: ...)")
    text = lm.tokenizer.apply_chat_template([{"role": "user", "content": _HERE}], tokenize=False, add_generation_prompt=True)
    head, _, tail = str(text).partition(_HERE)
    return [list(lm.tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (head, tail)]  # type: ignore[return-value]
