"""``dreamgym``: words to stages. Every error that a user can mend is one line, exit code 1; Ctrl-C is exit code 130."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dreamgym import buffer_cli
from dreamgym.core.errors import ConfigError, DreamgymError
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.extras import need_extras
from dreamgym.pipeline.run import Run, console, stage_file

app = typer.Typer(
    help="Train LLM agents with RL inside a learned, reasoning experience model (DreamGym, arXiv 2511.03773).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(buffer_cli.app, name="buffer")
RunFolder = Annotated[Path, typer.Option("--run", help="Run directory; finished stages are not redone, its configuration is kept.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; see `dreamgym config` for all keys and defaults.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides, e.g. rl.iterations=20 experience.prompt.reasoning=false")]
FROM_HELP = "An earlier run: its configuration is the default here; its logs, annotations and models are taken where both agree."
From = Annotated[Path | None, typer.Option("--from", help=FROM_HELP)]
DEFAULT = Path("runs/default")


def _open(folder: Path, config: Path | None, overrides: list[str] | None, earlier: Path | None = None) -> Run:
    """The run, with what it needs to compute; ``earlier``: a run whose configuration is the default and whose stages are taken."""
    saved = folder / "config.yaml"
    if config is None:
        config = saved if saved.exists() else earlier / "config.yaml" if earlier else None
    wanted = load_config(config, overrides or [])
    need_extras(wanted)
    opened = Run(folder, wanted)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(opened.config.threads or os.cpu_count() or 1)
    if earlier:
        from dreamgym.pipeline.shared import share

        share(opened, earlier)
    return opened


def _existing(folder: Path, config: Path | None, overrides: list[str] | None, stage: str) -> Run:
    """A run in which ``stage`` has finished."""
    if not stage_file(folder, stage).exists():
        how = "train --stages start" if stage == "warm-start" else stage
        raise DreamgymError(f"{folder}: stage {stage} has not finished there; run: dreamgym {how} --run {folder}")
    return _open(folder, config, overrides)


def _stages(run: Run, *names: str) -> None:
    from dreamgym.pipeline.judging import audit_is_old
    from dreamgym.pipeline.reinforce import check_learning, reopen
    from dreamgym.pipeline.stages import AFTER, STAGES

    if {"train-experience", "train"} & set(names):
        check_learning(run.config, "rl", *(("s2r",) if "sim-to-real" in names else ()))
    for name in names:
        if name == "audit" and audit_is_old(run):
            run.forget(name)
        reopen(run, name)
        run.stage(name, lambda name=name: {**STAGES, **AFTER}[name](run))  # type: ignore[misc]


@app.command()
def collect(overrides: Overrides = None, run: RunFolder = DEFAULT, config: ConfigFile = None) -> None:
    """Logs of past episodes into the run: shipped, your file, or newly recorded in the real environment."""
    _stages(_open(run, config, overrides), "collect")


@app.command()
def annotate(overrides: Overrides = None, run: RunFolder = DEFAULT, config: ConfigFile = None) -> None:
    """Reasoning for every logged step, from the environment's teacher or the generic one."""
    _stages(_open(run, config, overrides), "collect", "annotate")


@app.command("train-experience")
def train_experience(overrides: Overrides = None, run: RunFolder = DEFAULT, config: ConfigFile = None, earlier: From = None) -> None:
    """Fine-tune the experience model on the annotated logs (after making or finding the base model)."""
    _stages(_open(run, config, overrides, earlier), "collect", "annotate", "base", "train-experience")


PHASES = {"start": (), "dream": ("train",), "dream,real": ("train", "sim-to-real")}
PHASES_HELP = "start: only what training starts from; dream; or dream,real: then learn on in the real environment within s2r.real_budget"
Phases = Annotated[str, typer.Option("--stages", help=PHASES_HELP)]


@app.command()
def train(
    overrides: Overrides = None, run: RunFolder = DEFAULT, config: ConfigFile = None, phases: Phases = "dream", earlier: From = None
) -> None:
    """Warm-start the policy on demonstrations, then GRPO or PPO in the dream (or, rl.environment=real, the control)."""
    if phases not in PHASES:
        raise ConfigError(f"--stages {phases}: use start, dream or dream,real")
    opened = _open(run, config, overrides, earlier)
    _stages(opened, "collect", "annotate", "base", "train-experience", "warm-start", *PHASES[phases])


@app.command("eval")
def evaluate(overrides: Overrides = None, run: RunFolder = DEFAULT, config: ConfigFile = None) -> None:
    """Real success of the policy before, after the dream and (where it learned on there) after the real environment."""
    opened = _existing(run, config, overrides, "train")
    _stages(opened, "eval-sft", "eval-policy", *(("eval-s2r",) if opened.done("sim-to-real") else ()))


BASELINE_HELP = "sft_all: imitation of every logged success; dpo; iwm or self_reflection: Early Experience (real steps are counted)"


@app.command()
def baseline(
    name: Annotated[str, typer.Argument(help=BASELINE_HELP)],
    overrides: Overrides = None,
    run: RunFolder = DEFAULT,
    config: ConfigFile = None,
) -> None:
    """A policy from the same logs and base model without rewards, and its real success: what the dream has to beat."""
    opened = _existing(run, config, overrides, "warm-start")
    from dreamgym.pipeline.baselines import BASELINES, stage_of
    from dreamgym.pipeline.baselines import baseline as work

    if name not in BASELINES:
        raise ConfigError(f"baseline {name}: use {', '.join(BASELINES)}")
    opened.stage(stage_of(name), lambda: work(opened, name))


Long = Annotated[bool, typer.Option("--long", help="also calibration, depth, total variation, rank correlation (fidelity.json)")]


@app.command()
def audit(overrides: Overrides = None, run: RunFolder = DEFAULT, config: ConfigFile = None, long: Long = False) -> None:
    """Hold the experience model (and the policy trained in it) against the real environment on held-out games."""
    opened = _existing(run, config, overrides, "train-experience")
    _stages(opened, "audit")
    if long:
        from dreamgym.pipeline.judging import audit_is_old, long_audit

        if audit_is_old(opened, "long-audit", "fidelity.json"):
            opened.forget("long-audit")
        opened.stage("long-audit", lambda: long_audit(opened))


@app.command()
def attack(overrides: Overrides = None, run: RunFolder = DEFAULT, config: ConfigFile = None) -> None:
    """Try to talk a success into existence, in hundreds of ways: attacks.json says what the experience model grants wrongly."""
    from dreamgym.pipeline.judging import attack as work

    opened = _existing(run, config, overrides, "train-experience")
    opened.stage("attack", lambda: work(opened))


@app.command()
def report(run: RunFolder = DEFAULT) -> None:
    """One self-contained HTML page of a run: curves, budget, audit, episodes with their reasoning; results.json of a whole run."""
    from dreamgym.pipeline.judging import audit_is_old
    from dreamgym.pipeline.results import write_results
    from dreamgym.pipeline.stages import STAGES
    from dreamgym.report.page import write_report

    if (run / "config.yaml").exists():
        opened = Run(run, load_config(run / "config.yaml"))
        lacking = [name for name in STAGES if not opened.done(name) or (name == "audit" and audit_is_old(opened))]
        if lacking:
            console.print(f"results.json is not written: it also needs the stages {', '.join(lacking)}")
        else:
            write_results(opened)
            console.print(f"results: {opened.path('results.json')}")
    console.print(f"report: {write_report(run)}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories that have been evaluated, e.g. runs/dream-* runs/real-*")],
    panel: Annotated[str | None, typer.Option(help="probe, test or unseen; else that of the runs' configuration")] = None,
    out: Annotated[Path | None, typer.Option(help="also write the figures to this JSON file")] = None,
) -> None:
    """Several runs as one result: real success as mean and deviation over seeds, arms held against each other, real steps."""
    from dreamgym.core.files import write_json
    from dreamgym.pipeline.compare import compare as work

    found = work(runs, panel)
    for shown in found.tables():
        console.print(shown)
    if out:
        write_json(out, asdict(found))
        console.print(f"figures: {out}")


@app.command()
def quickstart(overrides: Overrides = None, run: RunFolder = Path("runs/quickstart"), config: ConfigFile = None) -> None:
    """The whole way on the embedded default: shipped logs -> experience model -> RL in the dream -> real evaluation."""
    from dreamgym.pipeline.results import headline, write_results
    from dreamgym.pipeline.stages import STAGES
    from dreamgym.report.page import write_report

    opened = _open(run, config, overrides)
    _stages(opened, *STAGES)
    results = write_results(opened)
    page = write_report(opened.folder)
    console.print(f"\n[bold]{headline(results)}[/bold]")
    console.print(f"results: {opened.path('results.json')}\nreport:  {page}")


@app.command("config")
def show_config(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Print the full configuration, defaults filled in."""
    from dreamgym.pipeline.config_file import dump_config

    console.print(dump_config(load_config(config, overrides or [])), end="", markup=False, soft_wrap=True)


def _complain(text: str) -> None:
    console.print("[red]error:[/red] ", end="")
    console.print(text, markup=False, soft_wrap=True)


def main() -> None:
    """Entry point: errors become one clear line and an exit code."""
    try:
        app(standalone_mode=False)
    except DreamgymError as e:
        _complain(str(e))
        sys.exit(1)
    except OSError as e:
        _complain(f"{e.filename or 'input/output'}: {e.strerror or e}; finished stages are kept, run again to go on")
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        console.print("\nstopped; finished stages are kept, run the same command again to go on")
        sys.exit(130)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except Exception as e:
        show = getattr(e, "show", None)
        if show is None:
            raise
        show()
        sys.exit(2)


if __name__ == "__main__":
    main()
