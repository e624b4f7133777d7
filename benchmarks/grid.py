"""The grid: one cell = (level, method, seed, hash of its config and of the code that decides it), one JSON file each.

    python -m benchmarks.grid easy grpo_dream 0 1 2          # cells of one method, for these seeds; finished ones are skipped
    python -m benchmarks.grid list                           # every cell of the tables: done, stale or missing

A whole table's cells are made by the table's own command with ``--make``. A cell runs on one thread; run two processes side by side, of
the same command too: what one of them makes, the other leaves or waits for. Under ``benchmarks/work`` there is one warm start per (level,
seed) and **one experience model per (level, variant), which all seeds share**: the spread over seeds holds none of its own. Killed cells
go on where they were. Methods: ``base``, ``sft``, ``sft_all``, ``grpo_dream``, ``grpo_real``, and ``grpo_dream+no_reasoning``,
``+no_retrieval``, ``+no_sheet``; about the experience model also those of ``EXPERIENCE_ROWS``: ``grpo_dream+k3``, ``+best_first``,
``+history``, ``+no_history``, ``+generic_teacher``, ``+prompted``, ``+no_reasoning_cautious``, ``+real_frozen``, ``+filtered``,
``+2k_steps`` to ``+40k_steps``, ``+reasoning_em1``, ``+no_reasoning_em1`` ... On *hard* also ``ppo_dream`` and ``ppo_real``, and for both
algorithms ``_s2r`` (the real environment after the dream, few steps) and ``_real_at_s2r_budget`` (no dream); without rewards ``dpo``,
``iwm``, ``self_reflection``, and ``ppo_dream+iwm_start``, which goes on from ``iwm``; on *mixed* the curricula of
``CURRICULUM_ROWS``; both only where their logs have been recorded (``benchmarks.ship``).
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console

from benchmarks.cells import (
    BASELINES,
    DECIDES,
    EXPERIENCE,
    EXPERIENCE_ROWS,
    GOES_ON_FROM,
    LEVELS,
    MODELS,
    POOL,
    PROBE,
    SFT,
    TEST_GAMES,
    VARIANTS,
    WORK,
    WRITING,
    all_levels,
    audited,
    cell_config,
    cell_path,
    code_hash,
    commit,
    learning,
    logs_of,
    matrix_products,
    methods,
    prompt_of,
    reinforcement,
    row_of,
    seeds_of,
    stale_cells,
    variant_of,
)
from benchmarks.once import alone, timed, wall_s
from dreamgym.core.env import RealSteps
from dreamgym.core.errors import DataError, DreamgymError
from dreamgym.core.files import read_json, write_json
from dreamgym.core.types import Episode, result_row
from dreamgym.curriculum.clusters import clusters_of
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
from dreamgym.pipeline.config import Curriculum, Evaluation, Experience, Prompt, RunConfig, config_hash
from dreamgym.pipeline.early_experience import implicit_world_modelling, self_reflection, try_alternatives
from dreamgym.pipeline.learn import train_experience, warm_start
from dreamgym.pipeline.logs import counts, successes, tasks_of
from dreamgym.pipeline.play import play_real, seats_for
from dreamgym.pipeline.player import task_generator
from dreamgym.pipeline.preference import prefer, preferences
from dreamgym.pipeline.results import AUDIT_KEYS, peak_rss_gib, versions
from dreamgym.pipeline.rl_run import RLRun, fingerprint
from dreamgym.pipeline.run import drop_torn_checkpoints
from dreamgym.pipeline.stages import shipped_base, shipped_logs, shipped_steps
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.contract import Replay
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.enrichment import Enriched, Sure
from dreamgym.rl.config import RLConfig
from dreamgym.rl.context import Context
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
        self.row = row_of(method)
        self.view = self.row.get("view", "carried")
        self.adapter = TextWorldAdapter(level, self.view)
        self.logs = shipped_logs(logs_of(level), self.adapter)
        self.known = first_steps(self.logs, self.row["logged_steps"]) if "logged_steps" in self.row else self.logs
        """What of the logs the experience model, the buffer and the dream's tasks come from."""
        self.tasks, self.wins = tasks_of(self.known), precedents(self.known)
        self.counter = RealSteps()
        self.commit = commit()
        self.wall: dict[str, float] = {}
        """Seconds of training the models that cells share, by model, as noted beside each."""
        self.began: str | None = None
        """Which warm start it was; equal settings give another one on a machine that multiplies in other bits."""
        self.told: dict[str, object] = {}
        """What a baseline has to say of its data."""
        self.weights: str | None = None
        """Which experience model it was: two trainings with equal settings on two machines are two models."""

    def run(self) -> None:
        path = cell_path(self.level, self.method, self.seed)
        if path.exists():
            console.print(f"{path.name}: done before")
            return
        console.print(f"[bold]{self.level} {self.method} seed {self.seed}[/bold]")
        updates, train_s, model, curve, dreamed = 0, 0.0, None, list[dict[str, float]](), 0
        context, tokens = self.acts()
        if self.method == "base":
            policy = LocalLM.load(shipped_base(self.level))
        elif self.method in ("sft", "sft_all"):
            policy, train_s = LocalLM.load(self.warm()), self.wall[self.method]
        elif self.method in BASELINES:
            policy, train_s = self.baseline()
        else:
            policy, updates, train_s, curve, dreamed, model = self.reinforced()
        actor = Policy(policy, 0.4, tokens, context)
        episodes: list[Episode] = []
        for panel in ("test", "unseen") if self.level == POOL else ("test",):
            seats = seats_for(self.adapter.tasks(panel, TEST_GAMES), self.seed)
            episodes += [r.episode for r in play_real(actor, self.adapter, seats, self.counter, panel, self.method)]
        audit: dict[str, object] = {}
        if model is not None and audited(self.method, self.seed):
            found = audit_run(self.audit_config(), self.adapter, model, self.logs, {"sft": LocalLM.load(self.warm()), "policy": policy})
            audit = found.result
            episodes += found.dreamed
            write_json(WORK / f"{path.stem}-audit.json", audit)
        learned = {"updates": updates, "wall_s": round(train_s, 1), "dreamed_transitions": dreamed, "curve": curve}
        self.write(path, episodes, audit, self.told | learned)
        shutil.rmtree(self.folder() / "buffer", ignore_errors=True)  # only now: a cell killed while it is judged opens it again

    def audit_config(self) -> RunConfig:
        return RunConfig(
            env=f"textworld/{self.level}" + ("" if self.view == "carried" else f"/{self.view}"),
            seed=self.seed,
            experience=Experience(prompt=Prompt(**prompt_of(self.level, self.method))),
            evaluation=Evaluation(audit_games=TEST_GAMES),
        )

    def write(self, path: Path, episodes: list[Episode], audit: dict[str, object], learned: dict[str, object]) -> None:
        """``learned``: of this arm's own training, its probes (``curve``) and seconds among them; models that arms share are apart, in
        ``shared_wall_s``."""
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
                "matrix_products": matrix_products(),
                "real_steps": {"logs": self.logged(), "rl": steps.get("rl", 0), "probe": steps.get("probe", 0)},
                "logs": counts(self.known),
                **learned,
                "shared_wall_s": self.wall,
                "experience_model": self.weights,
                "warm_start": self.began,
                "peak_rss_gib": round(peak_rss_gib(), 2),
                "audit": kept,
                "rows": [r.model_dump(mode="json") for r in rows],
            },
        )
        real = [bool(r.success) for r in rows if r.source == "real" and r.panel == "test"]
        console.print(f"{path.name}: real {sum(real) / len(real):.3f} { ({k: kept[k] for k in AUDIT_KEYS if k in kept}) }")

    def logged(self) -> int:
        """Real steps that recording the logs took, also those that an experience model begun on another level has read; of a part of
        them in proportion to its steps."""
        share = sum(len(e.steps) for e in self.known) / sum(len(e.steps) for e in self.logs)
        before = shipped_steps(GOES_ON_FROM[self.level]) if self.level in GOES_ON_FROM else 0
        return round(share * shipped_steps(self.level)) + before

    def warm(self) -> Path:
        """The warm start of this seed: limited demonstrations, or every success for ``sft_all``."""
        name = "sft_all" if self.method == "sft_all" else "sft" if self.view == "carried" else f"sft_{self.view}"
        folder = shared(f"{self.level}-{name}-s{self.seed}-{config_hash({'sft': SFT[self.level], 'code': code_hash(self.level, 'warm')})}")
        if not (folder / "wall_s.json").exists():
            won = successes(self.logs)
            demos = won if name == "sft_all" else [e for e in won if e.behaviour == "expert"]
            fit = FitConfig(**SFT[self.level], seed=self.seed)
            timed(folder, lambda: warm_start(shipped_base(self.level), demos, fit, folder))
        self.wall[name], self.began = wall_s(folder), fingerprint(folder)
        return folder

    def acts(self) -> tuple[Context, int]:
        """What the policy reads and writes, and how long that may be."""
        return (ReflectiveContext(), REFLECTION_TOKENS) if self.method == "self_reflection" else (STATE_CONTEXT, ACTION_TOKENS)

    def baseline(self) -> tuple[LocalLM, float]:
        """A policy that learned without rewards, and the seconds that it took, alternatives included."""
        demos = [e for e in successes(self.logs) if e.behaviour == "expert"]
        how, folder, warm = BASELINES[self.method], self.folder() / "policy", self.warm()
        drop_torn_checkpoints(folder)
        start = time.perf_counter()
        if self.method == "dpo":
            return prefer(warm, preferences(demos, self.logs), folder, self.seed, **how), time.perf_counter() - start
        policy = Policy(LocalLM.load(warm), 1.0)
        tried = try_alternatives(policy, demos, self.adapter, self.counter, int(how["alternatives"]), self.seed, self.logs)
        self.told["alternatives"] = fmean(len(t.others) for t in tried)
        learn = implicit_world_modelling if self.method == "iwm" else self_reflection
        fit = FitConfig(**SFT[self.level], seed=self.seed)
        return learn(shipped_base(self.level), tried, fit, folder), time.perf_counter() - start

    def prompt(self) -> ExperienceConfig:
        return ExperienceConfig(same_task=True, **prompt_of(self.level, self.method))

    def trained(self) -> LocalLM:
        """The experience model's weights, of this level and variant; the same for all seeds."""
        folder = shipped_base(self.level) if self.row.get("untrained") else self.model_folder()
        before = wall_s(experience_folder(GOES_ON_FROM[self.level], "full", {})) if self.level in GOES_ON_FROM else 0.0
        self.wall["experience"], self.weights = before + wall_s(folder), fingerprint(folder)
        return LocalLM.load(folder)

    def model_folder(self) -> Path:
        """Where the experience model is; it is trained where there is none yet."""
        name = self.row.get("model", variant_of(self.method))
        row = EXPERIENCE_ROWS.get(name, self.row)  # of the row whose model it is
        folder, first = experience_folder(self.level, name, row), GOES_ON_FROM.get(self.level)
        if not (folder / "wall_s.json").exists():
            teacher = GenericTeacher() if row.get("teacher") == "generic" else self.adapter.teacher
            annotated = list(annotate(self.known, teacher))
            seen = ReplayBuffer()
            seen.add(annotated)
            fit = FitConfig(**EXPERIENCE[self.level] | row.get("fit", {}))
            share = sum(len(e.steps) for e in self.known) / sum(len(e.steps) for e in self.logs)
            fit = fit.model_copy(update={"epochs": max(fit.epochs, min(fit.epochs / share, row.get("epochs_at_most", fit.epochs)))})
            timed(
                folder,
                lambda: train_experience(
                    Cell(first, "grpo_dream", 0).model_folder() if first else shipped_base(self.level),
                    annotated,
                    self.tasks,
                    self.prompt(),
                    fit,
                    folder,
                    seen.snapshot(),
                    lambda done, total, loss: console.print(f"experience {done}/{total} loss {loss:.4f}"),
                    writing=WRITING.get(self.level, 0),
                ),
            )
        return folder

    def experience(self) -> tuple[ExperienceModel, ReplayBuffer]:
        """The experience model over this cell's own buffer, which holds the logs and grows."""
        lm, prompt, buffer = self.trained(), self.prompt(), ReplayBuffer(self.folder() / "buffer")
        if prompt.k:
            buffer.add(self.known)
        return self.player(lm, prompt, buffer), buffer

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

    def after(self, method: str) -> tuple[Path, dict[str, Any]]:
        """The policy of another cell of this seed, from which this one goes on, and what that cell says; it is made where it is not."""
        other, path = Cell(self.level, method, self.seed), cell_path(self.level, method, self.seed)
        with alone(WORK / path.stem, wait=True):  # another process may be at it
            other.run()
        policy = other.folder() / "policy"
        if not (policy / "config.json").exists():
            raise DataError(f"{policy}: the policy of {method} is not there (any more); move {path} away, so that it is trained anew")
        return policy, read_json(path)

    def curriculum(self) -> Curriculum:
        """How tasks are chosen."""
        old = {"turns": "valid"} if self.level in LEVELS else {}  # so the first cells were made
        return Curriculum(**old | self.row.get("curriculum", {}))

    def reinforced(self) -> "Reinforced":
        """GRPO or PPO in the dream, for real, or both."""
        algorithm, how = learning(self.method)
        settings = dict(reinforcement(self.level, self.method))
        budget = settings.pop("real_budget", None)
        counter = RealSteps(budget=budget)
        model, buffer = self.experience() if how == "dream" else (None, None)
        start, before = self.warm(), dict[str, Any]()
        if first := f"{algorithm}_dream" if how == "s2r" else self.row.get("start"):
            start, before = self.after(first)
        curriculum = self.curriculum()
        clusters = clusters_of(self.tasks, curriculum.clusters, HashingEncoder(), self.seed) if curriculum.clusters else None
        context, tokens = self.acts()
        generator, achieved = None, None
        if model is not None and curriculum.synthetic:
            generator, achieved = task_generator(model, self.adapter, list(self.tasks.values()), curriculum, self.seed)
        run = RLRun(
            start,
            RLConfig(**settings),
            self.tasks,
            self.adapter,
            self.folder(),
            model,
            None if buffer is None else self.replay(buffer),
            counter,
            self.seed,
            choose=curriculum,
            generator=generator,
            achieved=achieved,
            clusters=clusters,
            context=context,
            action_tokens=tokens,
        )
        policy = run.run(
            lambda m: console.print({k: round(v, 3) for k, v in m.items()}),
            self.adapter.tasks("probe", PROBE["games"]),
            PROBE["every"],
            first=how == "s2r",
        )
        metrics = run.trainer.progress.metrics
        updates, train_s = round(sum(m["updates"] for m in metrics)), sum(took(m) for m in metrics)
        dreamed = 0 if model is None else round(sum(m["transitions"] + m.get("transitions_checking", 0.0) for m in metrics))
        for name in ("rl", "probe"):
            self.counter.counts[name] = counter.counts.get(name, 0) + (before["real_steps"][name] if before else 0)
        if before:
            updates, train_s = updates + before["updates"], train_s + before["wall_s"]
            self.wall, dreamed = self.wall | before["shared_wall_s"], dreamed + before["dreamed_transitions"]
        found = Reinforced(policy, updates, train_s, curve_of(run), dreamed)
        if model is None or buffer is None:
            return found
        buffer.close()
        frozen = ReplayBuffer()
        player = model.model if isinstance(model, Cautious) else model
        assert isinstance(player, LocalExperienceModel)
        if player.config.k:
            frozen.add(self.known)
        judge = self.player(player.lm, player.config.model_copy(update={"same_task": False}), frozen)
        return found._replace(model=judge)


def experience_folder(level: str, name: str, row: Mapping[str, Any]) -> Path:
    """Where the experience model of a level and variant (``row``: its description, where it has one) is or will be."""
    writing, first = WRITING.get(level, 0), GOES_ON_FROM.get(level)
    fitted = {"fit": EXPERIENCE[level], "prompt": VARIANTS.get(name, row), "code": code_hash(level, "experience")}
    decided = config_hash(fitted | ({"writing": writing} if writing else {}) | ({"from": first} if first else {}))
    return shared(f"{level}-experience-{name}-{decided}")


def shared(name: str) -> Path:
    """Where a model that cells share is or will be."""
    return MODELS / name if (MODELS / name).exists() else WORK / name


class Reinforced(NamedTuple):
    """What policy learning leaves."""

    policy: LocalLM
    updates: int
    train_s: float
    curve: list[dict[str, float]]
    dreamed: int
    """Dreamed transitions, those that check written tasks included."""
    model: ExperienceModel | None = None
    """Over a frozen buffer of the logs, own task excluded; None where nothing was dreamed."""


def curve_of(run: RLRun) -> list[dict[str, float]]:
    """Real success on the probe panel as a run went on: iteration, real steps and seconds of learning so far, real steps of probes."""
    seconds = [took(m) for m in run.trainer.progress.metrics]
    return [{**p, "wall_s": round(sum(seconds[: round(p["iteration"])]), 1)} for p in run.probe]


def took(metrics: dict[str, float]) -> float:
    """Seconds of one iteration, without its probe."""
    return metrics["rollout_s"] + metrics["update_s"] + metrics.get("write_s", 0.0)


def make(wanted: Iterable[tuple[str, str, int]]) -> None:
    """The cells (level, method, seed) that are missing, one after another; those that another process is at are left to it."""
    begin()
    for level, method, seed in dict.fromkeys(wanted):
        path = cell_path(level, method, seed)
        with alone(WORK / path.stem, wait=False) as mine:
            if mine and not path.exists():
                Cell(level, method, seed).run()


def begin() -> None:
    """One thread, and no bars of other libraries. The code that this process has imported names its cells, whatever is edited meanwhile."""
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.utils.logging.disable_progress_bar()
    for level in all_levels():
        for kind in DECIDES:
            code_hash(level, kind)


def listing() -> None:
    for level in all_levels():
        for method in methods(level):
            for seed in seeds_of(level, method):
                path = cell_path(level, method, seed)
                state = "done" if path.exists() else "stale" if stale_cells(level, method, seed) else "missing"
                console.print(f"{state:8}{level} {method} seed {seed}")


def main(words: list[str]) -> None:
    if words == ["list"]:
        return listing()
    if len(words) < 3 or words[0] not in all_levels() or words[1] not in methods(words[0]):
        sys.exit(__doc__)
    make((words[0], words[1], seed) for seed in map(int, words[2:]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DreamgymError as e:
        sys.exit(f"error: {e}")
