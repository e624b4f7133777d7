"""The policy of a run as its configuration describes it: what it reads, how it is sampled."""

from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.config import RunConfig
from dreamgym.rl.context import ChatContext, ChatTranscript, Context, Transcript
from dreamgym.rl.policy import STATE_CONTEXT, Policy
from dreamgym.rl.reflective import REFLECTION_TOKENS, ReflectiveContext


def context_of(config: RunConfig) -> Context:
    """The one context of a run, in the dream, for real and in every evaluation."""
    if config.sft.method == "self_reflection":
        return ReflectiveContext()
    transcript = config.policy.context == "transcript"
    if config.policy.preset == "paper":
        return ChatTranscript() if transcript else ChatContext(config.policy.history)
    return Transcript() if transcript else STATE_CONTEXT


def tokens_of(config: RunConfig) -> int:
    """What the policy may write per step, its end included."""
    return REFLECTION_TOKENS if config.sft.method == "self_reflection" else config.policy.tokens


def actor(lm: LocalLM, config: RunConfig) -> Policy:
    """``lm`` as it is evaluated."""
    return Policy(lm, config.evaluation.temperature, tokens_of(config), context_of(config))
