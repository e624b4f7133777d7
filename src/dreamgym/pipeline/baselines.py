"""Policies that learn from a run's logs without rewards, judged as the run's own are: what a dream has to beat.

    dreamgym baseline dpo --run runs/mine        # or sft_all, iwm, self_reflection

Each is a stage of the run: its policy is in ``baselines/NAME``, its evaluation episodes stand beside those of the other arms.
"""

from collections.abc import Callable

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import ConfigError
from dreamgym.envs.adapter import load_adapter
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.early_experience import implicit_world_modelling, self_reflection, try_alternatives
from dreamgym.pipeline.learn import warm_start
from dreamgym.pipeline.logs import load_logs, successes
from dreamgym.pipeline.preference import prefer, preferences
from dreamgym.pipeline.run import LOGS, Run, drop_torn_checkpoints
from dreamgym.pipeline.stages import Summary, base_path, demonstrations, fit_config, judged
from dreamgym.rl.context import Context
from dreamgym.rl.policy import STATE_CONTEXT, Policy
from dreamgym.rl.reflective import REFLECTION_TOKENS, ReflectiveContext

EARLY: dict[str, Callable[..., LocalLM]] = {"iwm": implicit_world_modelling, "self_reflection": self_reflection}
BASELINES = ("sft_all", "dpo", *EARLY)


def baseline(run: Run, name: str) -> Summary:
    """One of ``BASELINES``, trained and judged. Raises ``ConfigError`` where the run's policy is none that they can train."""
    config, adapter, counter = run.config, load_adapter(run.config.env), RealSteps()
    if (config.policy.preset, config.policy.context, config.policy.lora) != ("tiny", "steps", None):
        raise ConfigError(f"baseline {name}: needs policy.preset: tiny, policy.context: steps and no policy.lora")
    if config.continued:
        raise ConfigError(f"baseline {name}: this run continues {config.continued.run}; make it there, where that one began")
    logs, folder, start = load_logs([run.path(LOGS)]), run.path(f"baselines/{name}"), run.path("sft")
    demos, fit = demonstrations(logs, config.sft.demonstrations), fit_config(config.sft.fit, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    drop_torn_checkpoints(folder)
    counter.ledger = folder / "real_steps.txt"  # what a killed attempt used stays used
    counter.recall()
    context: Context = STATE_CONTEXT
    found: Summary = {}
    if name == "sft_all":
        policy = warm_start(base_path(run), successes(logs), fit, folder)
    elif name == "dpo":
        pairs = preferences(demos, logs)
        policy, found["pairs"] = prefer(start, pairs, folder, config.seed, **config.baselines.dpo.model_dump()), len(pairs)
    else:
        asked = Policy(LocalLM.load(start), 1.0)
        tried = try_alternatives(asked, demos, adapter, counter, config.baselines.alternatives, config.seed, logs)
        policy = EARLY[name](base_path(run), tried, fit, folder)
        found |= {"states": len(tried), "alternatives": sum(len(t.others) for t in tried)}
        context = ReflectiveContext() if name == "self_reflection" else context
    counter.settle()
    tokens = REFLECTION_TOKENS if isinstance(context, ReflectiveContext) else config.policy.tokens
    actor = Policy(policy, config.evaluation.temperature, tokens, context)
    return {**found, "learning_real_steps": counter.counts.get("rl", 0), **judged(run, name, actor)}


def stage_of(name: str) -> str:
    return f"baseline-{name}"
