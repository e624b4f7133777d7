"""The policy of a run as its configuration describes it: what it reads, how it is sampled."""

from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.config import RunConfig
from dreamgym.rl.context import ChatContext, ChatTranscript, Context, Transcript
from dreamgym.rl.policy import STATE_CONTEXT, Policy


def context_of(config: RunConfig) -> Context:
    """The one context of a run, in the dream, for real and in every evaluation."""
    transcript = config.policy.context == "transcript"
    if config.policy.preset == "paper":
        return ChatTranscript() if transcript else ChatContext(config.policy.history)
    return Transcript() if transcript else STATE_CONTEXT


def actor(lm: LocalLM, config: RunConfig) -> Policy:
    """``lm`` as it is evaluated."""
    return Policy(lm, config.evaluation.temperature, config.policy.tokens, context_of(config))
