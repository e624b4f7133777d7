"""A policy that may say why before it acts (self-reflection, arXiv 2510.08558): ``@why reason @do action``, or the action alone."""

from dreamgym.core.grammar import escape
from dreamgym.rl.context import StateContext

_WHY, _DO = "@why", "@do"
REFLECTION_TOKENS = 96
"""Tokens of one reply of the tiny policy, with its end: a reason and a command."""


class ReflectiveContext(StateContext):
    """Instruction and state in the grammar; a reason, if any, and the action out.

    The prompt is that of a policy that does not reflect: what a base has been asked in it, a reflecting policy still knows.
    """

    def reflected(self, reason: str, action: str) -> str:
        """The reply that teaches a reason with its action."""
        return f" {_WHY} {escape(reason)} {_DO} {action}"

    def read(self, text: str) -> tuple[str, bool]:
        """What stands behind the first ``@do`` where a reason is given (without one the whole reply, which is malformed), else all."""
        if not text.lstrip().startswith(_WHY):
            return super().read(text)
        _, mark, action = text.partition(_DO)
        return " ".join((action if mark else text).split()), bool(mark)
