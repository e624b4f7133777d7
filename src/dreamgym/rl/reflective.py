"""A policy that says why before it acts (self-reflection, arXiv 2510.08558): ``reason @do action``, or ``@do action`` alone."""

from collections.abc import Sequence

from dreamgym.core.grammar import escape, render_policy
from dreamgym.lm.local import LocalLM
from dreamgym.rl.context import Turn

_DO = "@do"
REFLECTION_TOKENS = 96
"""Tokens of one reply of the tiny policy, with its end: a reason and a command."""


class ReflectiveContext:
    """Instruction and state in the grammar; a reason, if any, and the action out."""

    appends = False

    def prompts(self, lm: LocalLM, turns: Sequence[Turn]) -> list[list[int]]:
        return lm.encode_batch([" " + render_policy(t.instruction, t.state).removesuffix(_DO) + "@why" for t in turns])

    def reply(self, action: str) -> str:
        return f" {_DO} {action}"

    def reflected(self, reason: str, action: str) -> str:
        """The reply that teaches a reason with its action."""
        return f" {escape(reason)} {_DO} {action}"

    def read(self, text: str) -> tuple[str, bool]:
        """What stands behind the first ``@do``; without one the whole reply, which is malformed."""
        _, mark, action = text.partition(_DO)
        return " ".join((action if mark else text).split()), bool(mark)
