"""The policy of a run as its configuration describes it: what it reads, how it is sampled."""

from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.config import RunConfig
from dreamgym.rl.context import ChatContext, Context
from dreamgym.rl.policy import STATE_CONTEXT, Policy


def context_of(config: RunConfig) -> Context:
    """The one context of a run, in the dream, for real and in every evaluation."""
    return ChatContext(config.policy.history) if config.policy.preset == "paper" else STATE_CONTEXT


def actor(lm: LocalLM, config: RunConfig) -> Policy:
    """``lm`` as it is evaluated."""
    return Policy(lm, config.evaluation.temperature, config.policy.tokens, context_of(config))
