"""One answer of an environment as a transition: the only place where observations become changes and ends become outcomes."""

from dreamgym.core.env import Step
from dreamgym.core.state import State, diff
from dreamgym.core.types import Outcome, StopReason, Transition


def stop_of(step: Step) -> StopReason | None:
    """Why the episode ended with this step, from ``info["stop"]`` or from the flags; None while it goes on."""
    reason = step.info.get("stop")
    if isinstance(reason, StopReason):
        return reason
    if step.reward is None:
        return StopReason.INVALID_ENV
    if step.terminated:
        return StopReason.WON if step.reward > 0 else StopReason.LOST
    return StopReason.MAX_STEPS if step.truncated else None


def transition_of(state: State, action: str, step: Step, after: State) -> Transition:
    """What ``action`` did in ``state``; ``after`` is the parsed observation of ``step``."""
    change, stop, surprise = diff(state, after), stop_of(step), step.info.get("surprise")
    outcome: Outcome = "won" if stop == StopReason.WON else "lost" if stop == StopReason.LOST else "go"
    return Transition(
        state=state,
        action=action,
        removed=change.removed,
        added=change.added,
        reward=step.reward,
        outcome=outcome,
        reasoning=str(step.info.get("reasoning", "")),
        surprise=float(surprise) if isinstance(surprise, float) else None,
    )
