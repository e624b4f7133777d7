"""The grid: one cell = (level, method, seed, hash of its config and of the code that decides it), one JSON file each.

    python -m benchmarks.grid easy grpo_dream 0 1 2          # cells of one method, for these seeds; finished ones are skipped
    python -m benchmarks.grid list                           # every cell of the tables: done, stale or missing

A cell runs on one thread; run two processes side by side. Under ``benchmarks/work`` there is one warm start per (level, seed)
and **one experience model per (level, variant), which all seeds share**: the spread over seeds holds none of its own. Killed
cells go on where they were. Methods: ``base``, ``sft``, ``sft_all``, ``grpo_dream``, ``grpo_real``, and
``grpo_dream+no_reasoning``, ``+no_retrieval``, ``+no_sheet``; about the experience model also those of ``EXPERIENCE_ROWS``:
``grpo_dream+k3``, ``+best_first``, ``+history``, ``+no_history``, ``+generic_teacher``, ``+no_reasoning_cautious``, ``+real_frozen``,
``+filtered``, ``+2k_steps`` to ``+40k_steps``; without rewards ``dpo``, ``iwm``, ``self_reflection``.
"""

import ast
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import DreamgymError
from dreamgym.core.files import read_json, write_json
from dreamgym.core.types import Episode, result_row
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.experience.annotate import GenericTeacher, annotate
from dreamgym.experience.cautious import Cautious
from dreamgym.experience.fidelity import local_draws
from dreamgym.experience.model import ExperienceModel, LocalExperienceModel
from dreamgym.experience.prompt import ExperienceConfig
from dreamgym.lm.fit import FitConfig
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.audit import audit_run
from dreamgym.pipeline.config import Evaluation, Experience, Prompt, RunConfig, config_hash
from dreamgym.pipeline.early_experience import implicit_world_modelling, self_reflection, try_alternatives
from dreamgym.pipeline.learn import train_experience, warm_start
from dreamgym.pipeline.logs import counts, successes, tasks_of
from dreamgym.pipeline.play import play_real, seats_for
from dreamgym.pipeline.preference import prefer, preferences
from dreamgym.pipeline.results import AUDIT_KEYS, peak_rss_gib, versions
from dreamgym.pipeline.rl_run import RLRun
from dreamgym.pipeline.run import drop_torn_checkpoints
from dreamgym.pipeline.stages import shipped, shipped_logs, shipped_steps
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.contract import Replay
from dreamgym.replay.enrichment import Enriched, Sure
from dreamgym.rl.config import RLConfig
from dreamgym.rl.policy import ACTION_TOKENS, STATE_CONTEXT, Policy
from dreamgym.rl.reflective import REFLECTION_TOKENS, ReflectiveContext

HERE = Path(__file__).parent
WORK, CELLS, SAME = HERE / "work", HERE / "results" / "cells", HERE / "results" / "same_code.json"
SOURCE = HERE.parent / "src" / "dreamgym"
LEARNED = (
    "core/state.py",
    "core/grammar.py",
    "core/seeding.py",
    "core/types.py",
    "core/files.py",
    "lm/*.py",
    "pipeline/learn.py",
    "pipeline/logs.py",
    "envs/textworld/view.py",
    "rl/context.py",
)
PLAYED = (
    *LEARNED,
    "core/env.py",
    "core/record.py",
    "core/lockstep.py",
    "envs/textworld/env.py",
    "envs/textworld/games.py",
    "envs/textworld/mapper.py",
    "rl/policy.py",
    "rl/rollout.py",
    "pipeline/play.py",
)
REINFORCED = (
    *PLAYED,
    "dream.py",
    "rl/advantages.py",
    "rl/config.py",
    "rl/credit.py",
    "rl/critic.py",
    "rl/losses.py",
    "rl/monitors.py",
    "rl/trainer.py",
    "curriculum/*.py",
    "pipeline/rl_run.py",
)
TAUGHT = (
    "replay/__init__.py",
    "replay/contract.py",
    "replay/buffer.py",
    "replay/columns.py",
    "replay/encoder.py",
    "replay/search.py",
    "replay/store.py",
    "experience/annotate.py",
    "experience/kinds.py",
    "experience/prompt.py",
    "experience/sft.py",
    "envs/textworld/teacher.py",
)
DREAMED = (
    "experience/model.py",
    "experience/cautious.py",
    "experience/audit.py",
    "replay/enrichment.py",
    "envs/textworld/adapter.py",
    "envs/textworld/behaviours.py",
    "pipeline/audit.py",
)
DECIDES = {
    "warm": LEARNED,
    "experience": (*LEARNED, *TAUGHT),
    "sft": PLAYED,
    "dpo": (*PLAYED, "pipeline/preference.py"),
    "iwm": (*PLAYED, "pipeline/early_experience.py"),
    "self_reflection": (*PLAYED, "pipeline/early_experience.py", "rl/reflective.py"),
    "grpo_real": REINFORCED,
    "grpo_dream": (*REINFORCED, *TAUGHT, *DREAMED),
}
"""Modules whose code decides a model or a cell, by its kind; docstrings and comments do not count."""

VARIANTS = {"full": {}, "no_reasoning": {"reasoning": False}, "no_retrieval": {"k": 0}, "no_sheet": {"sheet": False}}
"""What the experience model is shown and says, by ablation."""
EXPERIENCE_ROWS: dict[str, dict[str, Any]] = {
    "k3": {"prompt": {"k": 3}},
    "best_first": {"prompt": {"k": 3, "best_last": False}},
    "history": {"view": "current", "prompt": {"history": 8}},
    "no_history": {"view": "current"},
    "generic_teacher": {"teacher": "generic"},
    "no_reasoning_cautious": {"model": "no_reasoning", "prompt": {"reasoning": False}, "cautious": {"samples": 4, "above": 0.5}},
    "real_frozen": {"model": "full", "enrichment": "real_frozen"},
    "filtered": {"model": "full", "enrichment": "filtered", "surprise": 0.25},
    **{f"{n // 1000}k_steps": {"logged_steps": n, "whole_tasks": True, "epochs_at_most": 20.0} for n in (2_000, 10_000, 20_000, 40_000)},
}
"""Further rows about the experience model. ``view``: states without what closed containers were seen to hold, with and without
the episode's last 8 steps in the prompt; policies are trained in the same view. ``model``: the experience model of that variant, here
silent where its draws disagree. ``enrichment``: what of the dream comes into the buffer (else all that is valid). With fewer logged
steps the epochs grow, so that the updates stay the same, up to ``epochs_at_most``."""
EXPERIENCE = {
    level: {"epochs": epochs, "learning_rate": 2e-3, "row_length": 320, "rows": 16} for level, epochs in (("easy", 2.5), ("standard", 2.0))
}
SFT = {level: {"epochs": 20.0, "rows": 4, "learning_rate": 1e-3} for level in ("easy", "standard")}
"""Epochs chosen on probe (100 games, one seed; docs/results.md)."""
GRPO = {"easy": {"iterations": 30}, "standard": {"iterations": 40}}
PROBE = {"every": 5, "games": 100}
TEST_GAMES = 150
METHODS = ("base", "sft", "sft_all", "grpo_real", "grpo_dream", *(f"grpo_dream+{v}" for v in VARIANTS if v != "full"))
LEVELS = ("easy", "standard")
EXPERIENCE_METHODS = tuple(f"grpo_dream+{v}" for v in EXPERIENCE_ROWS)
BASELINES: dict[str, dict[str, float]] = {
    "dpo": {"epochs": 3.0, "learning_rate": 1e-4, "beta": 0.1},
    "iwm": {"alternatives": 3},
    "self_reflection": {"alternatives": 3},
}
"""Without rewards: DPO on logged failures, and Early Experience, whose alternatives are executed for real and counted as steps of RL."""
SEEDS = (0, 1, 2)
console = Console(highlight=False)


@functools.cache
def code_hash(level: str, kind: str) -> str:
    """What names a cell: the hash of the code, or of the earliest code whose results are the same (``benchmarks.neutral``)."""
    same, code = read_json(SAME) if SAME.exists() else {}, own_hash(level, kind)
    while code in same:
        code = str(same[code])
    return code


@functools.cache
def own_hash(level: str, kind: str) -> str:
    """Of the deciding modules without docstrings, and of the level's data, as they were when the process began."""
    digest = hashlib.blake2b(digest_size=5)
    for pattern in DECIDES[kind]:
        for path in sorted(SOURCE.glob(pattern)):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    node.body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))] or [
                        ast.Pass()
                    ]
            digest.update(ast.dump(tree).encode())
    for data in ("panels.json", f"logs-{level}.jsonl.xz", "base/model.safetensors", "base/tokenizer.json", "base/config.json"):
        digest.update((SOURCE / "data" / data).read_bytes())
    return digest.hexdigest()


def cell_config(level: str, method: str) -> dict[str, object]:
    """All that a cell depends on beside its seed."""
    code = code_hash(level, kind_of(method))
    config: dict[str, object] = {"level": level, "method": method, "sft": SFT[level], "test_games": TEST_GAMES, "code": code}
    if method in BASELINES:
        config |= {"baseline": BASELINES[method]}
    if method.startswith("grpo"):
        config |= {"grpo": GRPO[level], "probe": PROBE}
    if method.startswith("grpo_dream"):
        config |= {"experience": EXPERIENCE[level], "variant": variant(method)}
    return config


def kind_of(method: str) -> str:
    """The key of ``DECIDES``."""
    kind = method.partition("+")[0]
    return kind if kind in DECIDES else "sft"


def variant_of(method: str) -> str:
    return method.partition("+")[2] or "full"


def variant(method: str) -> dict[str, object]:
    """What sets this arm's experience model apart: keys of its prompt for an ablation, a row's description for the others."""
    name = variant_of(method)
    return VARIANTS[name] if name in VARIANTS else EXPERIENCE_ROWS[name]


def prompt_of(method: str) -> dict[str, object]:
    name = variant_of(method)
    return VARIANTS[name] if name in VARIANTS else EXPERIENCE_ROWS[name].get("prompt", {})


def first_steps(logs: list[Episode], steps: int) -> list[Episode]:
    """Logs of about ``steps`` logged steps, as if fewer tasks had been recorded: whole tasks in their order, so that sheets stay whole."""
    by_task: dict[str, list[Episode]] = {}
    for e in logs:
        by_task.setdefault(e.task.id, []).append(e)
    kept: list[Episode] = []
    for episodes in by_task.values():
        if sum(len(e.steps) for e in kept) >= steps:
            break
        kept += episodes
    return kept


def cell_path(level: str, method: str, seed: int) -> Path:
    return CELLS / f"{level}-{method}-s{seed}-{config_hash(cell_config(level, method))}.json"


def stale_cells(level: str, method: str, seed: int) -> list[Path]:
    """Files of this cell with another hash."""
    return [p for p in CELLS.glob(f"{level}-{method}-s{seed}-*.json") if p != cell_path(level, method, seed)]


class Cell:
    """One training and its evaluation."""

    def __init__(self, level: str, method: str, seed: int) -> None:
        self.level, self.method, self.seed = level, method, seed
        self.row = EXPERIENCE_ROWS.get(variant_of(method), {})
        self.view = self.row.get("view", "carried")
        self.adapter = TextWorldAdapter(level, self.view)
        self.logs = shipped_logs(shipped(f"logs-{level}.jsonl.xz"), self.adapter)
        self.known = first_steps(self.logs, self.row["logged_steps"]) if "logged_steps" in self.row else self.logs
        """What of the logs the experience model, the buffer and the dream's tasks come from."""
        self.tasks = tasks_of(self.known)
        self.counter = RealSteps()
        self.commit = commit()
        self.wall: dict[str, float] = {}
        """Seconds of training the models that cells share, by model, as noted beside each."""

    def run(self) -> None:
        path = cell_path(self.level, self.method, self.seed)
        if path.exists():
            console.print(f"{path.name}: done before")
            return
        console.print(f"[bold]{self.level} {self.method} seed {self.seed}[/bold]")
        updates, train_s, model = 0, 0.0, None
        context, tokens = (ReflectiveContext(), REFLECTION_TOKENS) if self.method == "self_reflection" else (STATE_CONTEXT, ACTION_TOKENS)
        if self.method == "base":
            policy = LocalLM.load(shipped("base"))
        elif self.method in ("sft", "sft_all"):
            policy, train_s = LocalLM.load(self.warm()), self.wall[self.method]
        elif self.method in BASELINES:
            policy, train_s = self.baseline()
        else:
            policy, updates, train_s, model = self.grpo()
        test = self.adapter.tasks("test", TEST_GAMES)
        seats = seats_for(test, self.seed)
        actor = Policy(policy, 0.4, tokens, context)
        episodes = [r.episode for r in play_real(actor, self.adapter, seats, self.counter, "test", self.method)]
        audit: dict[str, object] = {}
        if model is not None:
            found = audit_run(self.audit_config(), self.adapter, model, self.logs, {"sft": LocalLM.load(self.warm()), "policy": policy})
            audit = found.result
            episodes += found.dreamed
            write_json(WORK / f"{path.stem}-audit.json", audit)
        self.write(path, episodes, updates, train_s, audit)

    def audit_config(self) -> RunConfig:
        return RunConfig(
            env=f"textworld/{self.level}" + ("" if self.view == "carried" else f"/{self.view}"),
            seed=self.seed,
            experience=Experience(prompt=Prompt(**prompt_of(self.method))),
            evaluation=Evaluation(audit_games=TEST_GAMES),
        )

    def write(self, path: Path, episodes: list[Episode], updates: int, train_s: float, audit: dict[str, object]) -> None:
        """``train_s``: of this arm's own training; models that arms share are apart, in ``shared_wall_s``."""
        kept = {k: v for k, v in audit.items() if k != "errors"}
        steps = self.counter.counts
        rows = [result_row(e) for e in episodes]
        write_json(
            path,
            {
                "level": self.level,
                "method": self.method,
                "seed": self.seed,
                "config_hash": path.stem.rsplit("-", 1)[1],
                "config": cell_config(self.level, self.method),
                "commit": self.commit,
                "versions": versions(),
                "real_steps": {"logs": self.logged(), "rl": steps.get("rl", 0), "probe": steps.get("probe", 0)},
                "logs": counts(self.known),
                "updates": updates,
                "wall_s": round(train_s, 1),
                "shared_wall_s": self.wall,
                "peak_rss_gib": round(peak_rss_gib(), 2),
                "audit": kept,
                "rows": [r.model_dump(mode="json") for r in rows],
            },
        )
        real = [bool(r.success) for r in rows if r.source == "real"]
        console.print(f"{path.name}: real {sum(real) / len(real):.3f} { ({k: kept[k] for k in AUDIT_KEYS if k in kept}) }")

    def logged(self) -> int:
        """Real steps that recording the logs took; of a part of them in proportion to its steps."""
        share = sum(len(e.steps) for e in self.known) / sum(len(e.steps) for e in self.logs)
        return round(share * shipped_steps(self.level))

    def warm(self) -> Path:
        """The warm start of this seed: limited demonstrations, or every success for ``sft_all``."""
        name = "sft_all" if self.method == "sft_all" else "sft" if self.view == "carried" else f"sft_{self.view}"
        folder = WORK / f"{self.level}-{name}-s{self.seed}-{config_hash({'sft': SFT[self.level], 'code': code_hash(self.level, 'warm')})}"
        if not (folder / "config.json").exists():
            won = successes(self.logs)
            demos = won if name == "sft_all" else [e for e in won if e.behaviour == "expert"]
            self.timed(folder, lambda: warm_start(shipped("base"), demos, FitConfig(**SFT[self.level], seed=self.seed), folder))
        self.wall[name] = wall_s(folder)
        return folder

    def baseline(self) -> tuple[LocalLM, float]:
        """A policy that learned without rewards, and the seconds that it took, alternatives included."""
        demos = [e for e in successes(self.logs) if e.behaviour == "expert"]
        how, folder, warm = BASELINES[self.method], self.folder() / "policy", self.warm()
        start = time.perf_counter()
        if self.method == "dpo":
            return prefer(warm, preferences(demos, self.logs), folder, self.seed, **how), time.perf_counter() - start
        policy = Policy(LocalLM.load(warm), 1.0)
        tried = try_alternatives(policy, demos, self.adapter, self.counter, int(how["alternatives"]), self.seed)
        learn = implicit_world_modelling if self.method == "iwm" else self_reflection
        return learn(shipped("base"), tried, FitConfig(**SFT[self.level], seed=self.seed), folder), time.perf_counter() - start

    def timed(self, folder: Path, train: Callable[[], object]) -> None:
        """Train into ``folder`` and note the seconds there; those of a killed process before it are lost."""
        start = time.perf_counter()
        drop_torn_checkpoints(folder / "checkpoints")
        train()
        write_json(folder / "wall_s.json", {"wall_s": round(time.perf_counter() - start, 1)})

    def experience(self) -> tuple[ExperienceModel, ReplayBuffer]:
        """The experience model of this level and variant; one for all seeds."""
        prompt = ExperienceConfig(same_task=True, **prompt_of(self.method))
        name = self.row.get("model", variant_of(self.method))
        shown = VARIANTS.get(name, self.row)
        decided = config_hash({"fit": EXPERIENCE[self.level], "prompt": shown, "code": code_hash(self.level, "experience")})
        folder = WORK / f"{self.level}-experience-{name}-{decided}"
        if not (folder / "config.json").exists():
            teacher = GenericTeacher() if self.row.get("teacher") == "generic" else self.adapter.teacher
            annotated = list(annotate(self.known, teacher))
            seen = ReplayBuffer()
            seen.add(annotated)
            fit = FitConfig(**EXPERIENCE[self.level])
            share = sum(len(e.steps) for e in self.known) / sum(len(e.steps) for e in self.logs)
            fit = fit.model_copy(update={"epochs": max(fit.epochs, min(fit.epochs / share, self.row.get("epochs_at_most", fit.epochs)))})
            self.timed(
                folder,
                lambda: train_experience(
                    shipped("base"),
                    annotated,
                    self.tasks,
                    prompt,
                    fit,
                    folder,
                    seen.snapshot(),
                    lambda done, total, loss: console.print(f"experience {done}/{total} loss {loss:.4f}"),
                ),
            )
        self.wall["experience"] = wall_s(folder)
        buffer = ReplayBuffer(self.folder() / "buffer")
        if prompt.k:
            buffer.add(self.known)
        return self.player(LocalLM.load(folder), prompt, buffer), buffer

    def folder(self) -> Path:
        """Where a reinforced cell keeps what it needs to go on."""
        return WORK / cell_path(self.level, self.method, self.seed).stem

    def replay(self, buffer: ReplayBuffer) -> Replay | None:
        """What takes the dreamed episodes in; None where nothing does."""
        kind = self.row.get("enrichment", "store_all")
        if kind == "real_frozen":
            return None
        return Enriched(buffer, [Sure(self.row["surprise"])] if kind == "filtered" else ())

    def player(self, lm: LocalLM, prompt: ExperienceConfig, buffer: ReplayBuffer) -> ExperienceModel:
        """The experience model over a buffer, cautious where the row says so."""
        model = LocalExperienceModel(lm, prompt, buffer.snapshot())
        if "cautious" not in self.row:
            return model
        return Cautious(model, lambda retrieval: local_draws(lm, prompt, retrieval), buffer.snapshot(), **self.row["cautious"])

    def grpo(self) -> tuple[LocalLM, int, float, ExperienceModel | None]:
        """GRPO in the dream or for real: policy, updates, seconds, experience model (frozen buffer of logs, own task excluded)."""
        dreaming = self.method.startswith("grpo_dream")
        model, buffer = self.experience() if dreaming else (None, None)
        config = RLConfig(**GRPO[self.level])
        run = RLRun(
            self.warm(),
            config,
            self.tasks,
            self.adapter,
            self.folder(),
            model,
            None if buffer is None else self.replay(buffer),
            self.counter,
            self.seed,
        )
        policy = run.run(
            lambda m: console.print({k: round(v, 3) for k, v in m.items()}), self.adapter.tasks("probe", PROBE["games"]), PROBE["every"]
        )
        updates = round(sum(m["updates"] for m in run.trainer.progress.metrics))
        train_s = sum(m["rollout_s"] + m["update_s"] for m in run.trainer.progress.metrics)
        if model is None or buffer is None:
            return policy, updates, train_s, None
        buffer.close()
        shutil.rmtree(self.folder() / "buffer")
        frozen = ReplayBuffer()
        player = model.model if isinstance(model, Cautious) else model
        assert isinstance(player, LocalExperienceModel)
        if player.config.k:
            frozen.add(self.known)
        judge = self.player(player.lm, player.config.model_copy(update={"same_task": False}), frozen)
        return policy, updates, train_s, judge


def wall_s(folder: Path) -> float:
    """Seconds that a shared model took; 0 where none were noted."""
    path = folder / "wall_s.json"
    return float(str(read_json(path)["wall_s"])) if path.exists() else 0.0


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def listing() -> None:
    for level in LEVELS:
        for method in (*METHODS, *BASELINES, *EXPERIENCE_METHODS):
            for seed in SEEDS:
                path = cell_path(level, method, seed)
                state = "done" if path.exists() else "stale" if stale_cells(level, method, seed) else "missing"
                console.print(f"{state:8}{level} {method} seed {seed}")


def main(words: list[str]) -> None:
    if words == ["list"]:
        return listing()
    if len(words) < 3 or words[0] not in LEVELS or words[1] not in (*METHODS, *BASELINES, *EXPERIENCE_METHODS):
        sys.exit(__doc__)
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.utils.logging.disable_progress_bar()
    for kind in DECIDES:  # what this process has imported, whatever is edited while it trains
        code_hash(words[0], kind)
    for seed in map(int, words[2:]):
        Cell(words[0], words[1], seed).run()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DreamgymError as e:
        sys.exit(f"error: {e}")
