"""What runs have in common is made once: a new run takes an earlier one's logs, annotations, models, as far as both agree on them.

    taken = share(run, Path("runs/mine"))      # ["collect", "annotate", "base", "train-experience", "warm-start"], or fewer

Arms that are compared should differ in one thing. Two trainings of the experience model with equal settings on two machines are two
models, so an ablation of policy learning, the control and further seeds best take the first run's. A seed decides the warm start
and all that follows; what comes before it is taken whatever seed it had: seeds over one experience model hold nothing of its spread.
"""

import shutil
from pathlib import Path

from dreamgym.core.errors import ConfigError
from dreamgym.core.files import read_json, write_json
from dreamgym.experience.teach import ANNOTATIONS
from dreamgym.pipeline.config import RunConfig
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.logs import load_logs
from dreamgym.pipeline.run import LOGS, Run, console, decisive, differing, stage_file
from dreamgym.pipeline.stages import ANNOTATED, refuse_evaluated

FILES = {
    "collect": (LOGS,),
    "annotate": (ANNOTATED, ANNOTATIONS),
    "base": ("base",),
    "train-experience": ("experience",),
    "warm-start": ("sft",),
}
"""What each stage leaves in the folder, in the order of the stages."""


def share(run: Run, earlier: Path) -> list[str]:
    """Copy finished stages of the run in ``earlier`` up to the first one that was configured otherwise; returns their names.

    Stages that ``run`` has finished itself are left. ``stages/<name>.json`` says ``taken_from``, and keeps counting what the stage
    cost in real steps and seconds. Raises ``ConfigError`` where nothing can be taken, naming what differs, and ``PanelLeakError``
    where the logs hold a task that ``run`` evaluates on. A LoRA warm start goes on naming its base model where that was trained: in
    ``earlier``, which must stay.
    """
    saved = earlier / "config.yaml"
    if not saved.exists():
        raise ConfigError(f"--from {earlier}: there is no run")
    writes = run.config.curriculum.synthetic > 0
    mine, other = _by_stage(run.config, writes), _by_stage(load_config(saved), writes)
    taken: list[str] = []
    why = ""
    for name, files in FILES.items():
        if run.done(name):
            if run.summary(name).get("taken_from") != str(earlier):
                why = f"{name} was made here"
                break
            continue
        marker = stage_file(earlier, name)
        changed = differing(other[name], mine[name])
        if changed or not marker.exists():
            why = f"{name} is made here: " + (f"{', '.join(changed)} differ" if changed else f"{earlier} has not finished it")
            break
        if name == "collect":
            refuse_evaluated(load_logs([earlier / LOGS]), run.config)
        for file in files:
            _copy(earlier / file, run.path(file))
        write_json(stage_file(run.folder, name), read_json(marker) | {"taken_from": str(earlier)})
        taken.append(name)
    if not taken and not run.done("collect"):
        raise ConfigError(f"--from {earlier}: nothing can be taken from it; {why}")
    console.print(f"taken from {earlier}: {', '.join(taken) or 'nothing more'}" + (f" ({why})" if why else ""))
    return taken


def _by_stage(config: RunConfig, writes: bool) -> dict[str, dict[str, object]]:
    """The keys that decide what each stage makes, beside those of the stages before it.

    ``writes``: whether the experience model must have learned to write tasks; one that has, plays a dream without them as well.
    """
    data = decisive(config)
    recorded = ("collect_tasks",) if config.logs == "collect" else ()
    experience = {k: v for k, v in data["experience"].items() if k not in ("uncertainty", "second_opinion", "precedent")}
    annotations = {k: experience.pop(k) for k in ("teacher", "annotator")}
    retrieval = {k: data["replay"][k] for k in ("encoder", "embeddings", "order")}
    writing = {"writing": config.curriculum.writing if config.curriculum.synthetic else 0} if writes else {}
    return {
        "collect": {k: data[k] for k in ("env", "logs", "continued", *recorded)},
        "annotate": {"experience": annotations},
        "base": {"base": data["base"], **({"pretrain": data["pretrain"]} if config.base == "tiny" else {})},
        "train-experience": {"experience": experience, "replay": retrieval, "curriculum": writing},
        "warm-start": {k: data[k] for k in ("policy", "sft", "seed")},
    }


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all, and without the checkpoints of a training that is over."""
    if not source.exists():
        return
    part = target.with_name(f"{target.name}.part")
    for old in (part, target):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, part, ignore=shutil.ignore_patterns("checkpoints"))
    else:
        shutil.copy(source, part)
    part.rename(target)
