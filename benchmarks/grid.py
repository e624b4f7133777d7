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

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console

from benchmarks.cells import (
    BASELINES,
    DECIDES,
    EXPERIENCE,
    EXPERIENCE_METHODS,
    EXPERIENCE_ROWS,
    GRPO,
    LEVELS,
    METHODS,
    PROBE,
    SEEDS,
    SFT,
    TEST_GAMES,
    VARIANTS,
    WORK,
    cell_config,
    cell_path,
    code_hash,
    commit,
    prompt_of,
    stale_cells,
    variant_of,
)
from dreamgym.core.env import RealSteps
from dreamgym.core.errors import DreamgymError
from dreamgym.core.files import read_json, write_json
from dreamgym.core.types import Episode, result_row
from dreamgym.curriculum.config import SamplerConfig
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.experience.annotate import GenericTeacher, annotate
from dreamgym.experience.cautious import Cautious
from dreamgym.experience.fidelity import local_draws
from dreamgym.experience.model import ExperienceModel, LocalExperienceModel
from dreamgym.experience.precedent import precedents
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

console = Console(highlight=False)


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
        self.tasks, self.wins = tasks_of(self.known), precedents(self.known)
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
            fit = FitConfig(**EXPERIENCE[self.level] | self.row.get("fit", {}))
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
        model = LocalExperienceModel(lm, prompt, buffer.snapshot(), self.wins)
        if "cautious" not in self.row:
            return model
        return Cautious(model, lambda retrieval: local_draws(lm, prompt, retrieval, self.wins), buffer.snapshot(), **self.row["cautious"])

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
            choose=SamplerConfig(turns="valid"),  # as the first cells were made
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
