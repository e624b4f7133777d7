"""Policies that learn from a run's logs without rewards, judged as the run's own are: what a dream has to beat.

    dreamgym baseline dpo --run runs/mine        # or sft_all, iwm, self_reflection

Each is a stage of the run: its policy is in ``baselines/NAME``, its evaluation episodes stand beside those of the other arms.
"""

from dreamgym.core.errors import ConfigError
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.acting import actor
from dreamgym.pipeline.early_start import EARLY, early_start
from dreamgym.pipeline.judging import judged
from dreamgym.pipeline.learn import warm_start
from dreamgym.pipeline.logs import load_logs, successes
from dreamgym.pipeline.preference import prefer, preferences
from dreamgym.pipeline.run import LOGS, Run, Summary, drop_torn_checkpoints
from dreamgym.pipeline.stages import base_path, demonstrations, fit_config

BASELINES = ("sft_all", "dpo", *EARLY)


def baseline(run: Run, name: str) -> Summary:
    """One of ``BASELINES``, trained and judged. Raises ``ConfigError`` where the run's policy is none that they can train."""
    config = run.config
    if not config.policy.plain:
        raise ConfigError(f"baseline {name}: needs policy.preset: tiny, policy.context: steps and no policy.lora")
    if config.sft.method != "imitation":
        raise ConfigError(f"baseline {name}: begins from imitation, which this run does not (sft.method: {config.sft.method})")
    if config.continued:
        raise ConfigError(f"baseline {name}: this run continues {config.continued.run}; make it there, where that one began")
    logs, folder, start = load_logs([run.path(LOGS)]), run.path(f"baselines/{name}"), run.path("sft")
    demos, fit = demonstrations(logs, config.sft.demonstrations), fit_config(config.sft.fit, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    found: Summary = {"learning_real_steps": 0}
    if name in EARLY:
        proposer, alternatives = LocalLM.load(start), config.baselines.alternatives
        policy, found = early_start(run, name, base_path(run), proposer, demos, fit, folder, alternatives)
    else:
        drop_torn_checkpoints(folder)
        if name == "sft_all":
            policy = warm_start(base_path(run), successes(logs), fit, folder)
        else:
            pairs = preferences(demos, logs)
            policy, found["pairs"] = prefer(start, pairs, folder, config.seed, **config.baselines.dpo.model_dump()), len(pairs)
    if name in EARLY:  # who has learned so is asked so
        config = config.model_copy(update={"sft": config.sft.model_copy(update={"method": name})})
    return {**found, **judged(run, name, actor(policy, config))}


def stage_of(name: str) -> str:
    return f"baseline-{name}"
