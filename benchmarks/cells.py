"""Which cells there are: levels, methods, settings, the code that decides each, and the file of each.

    path = cell_path("easy", "grpo_dream", 0)       # its name holds the hash of all that it depends on

``benchmarks.grid`` makes them; every table reads them.
"""

import ast
import functools
import hashlib
import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dreamgym.core.files import read_json
from dreamgym.pipeline.config import config_hash
from dreamgym.pipeline.stages import shipped, shipped_base

HERE = Path(__file__).parent
WORK, CELLS, SAME = HERE / "work", HERE / "results" / "cells", HERE / "results" / "same_code.json"
MODELS = HERE / "models"
"""Models that all cells of a level share on whatever machine: experience models that took long to train (``benchmarks.ship model``), and
warm starts where they were kept (``ship starts``); the others are in ``WORK``."""
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
    "envs/textworld/engine.py",
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
    "rl/ranks.py",
    "rl/trainer.py",
    "curriculum/*.py",
    "pipeline/rl_run.py",
    "pipeline/new_tasks.py",
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
    "experience/precedent.py",
    "experience/cautious.py",
    "experience/fidelity.py",
    "experience/audit.py",
    "replay/enrichment.py",
    "envs/textworld/adapter.py",
    "envs/textworld/behaviours.py",
    "pipeline/acting.py",
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
    "grpo_dream_early": (*REINFORCED, *TAUGHT, *DREAMED, "pipeline/early_experience.py", "rl/reflective.py"),
}
"""Modules whose code decides a model or a cell, by its kind; docstrings and comments do not count."""
SEVERAL_ROOMS = (
    "envs/textworld/rooms.py",
    "envs/textworld/navigation.py",
    "envs/textworld/panels.py",
    "envs/textworld/hindsight.py",
    "curriculum/worlds.py",
    "curriculum/writing.py",
    "pipeline/player.py",
)
"""And on the levels beside ``LEVELS``."""

MEASURES = {
    "fidelity": ("experience/fidelity.py", "pipeline/fidelity.py"),
    "adversarial": ("experience/attacks.py", "experience/chat.py", "pipeline/attack.py"),
    "generator": ("envs/textworld/realise.py", "pipeline/fidelity.py", "pipeline/noise.py"),
    "faults": ("endpoint/*.py", "experience/chat.py", "experience/endpoint.py", "core/lockstep.py", "rl/rollout.py"),
}
"""Code of the result files beside the grid: what measures an experience model of it, and the client that meets faults."""

VARIANTS = {"full": {}, "no_reasoning": {"reasoning": False}, "no_retrieval": {"k": 0}, "no_sheet": {"sheet": False}}
"""What the experience model is shown and says, by ablation."""
LONG = {"row_length": 512, "rows": 10}
"""Of longer prompts, as many tokens in an update."""
CAUTION = {"samples": 4, "above": 0.5}
"""Further draws of a step, and the share of them that says otherwise beyond which it is invalid."""
EXPERIENCE_ROWS: dict[str, dict[str, Any]] = {
    "k3": {"prompt": {"k": 3}, "fit": LONG},
    "best_first": {"prompt": {"k": 3, "best_last": False}, "fit": LONG},
    "history": {"view": "current", "prompt": {"history": 8}, "fit": LONG},
    "no_history": {"view": "current"},
    "generic_teacher": {"teacher": "generic"},
    "prompted": {"untrained": True},
    "no_reasoning_cautious": {"model": "no_reasoning", "prompt": {"reasoning": False}, "cautious": CAUTION},
    "real_frozen": {"model": "full", "enrichment": "real_frozen"},
    "filtered": {"model": "full", "enrichment": "filtered", "surprise": 0.25},
    "reasoning_em1": {"fit": {"seed": 1}, "seeds": (1,)},
    **{f"no_reasoning_em{n}": {"prompt": {"reasoning": False}, "fit": {"seed": n}, "seeds": (n,)} for n in (1, 2)},
    "no_reasoning_em1_cautious": {"model": "no_reasoning_em1", "prompt": {"reasoning": False}, "cautious": CAUTION, "seeds": (1,)},
    **{f"{n // 1000}k_steps": {"logged_steps": n, "whole_tasks": True, "epochs_at_most": 20.0} for n in (2_000, 10_000, 20_000, 40_000)},
}
"""Further rows about the experience model. ``view``: states without what closed containers were seen to hold, with and without the
episode's last 8 steps in the prompt; policies are trained in the same view. ``model``: the experience model of that variant, here silent
where its draws disagree. ``untrained``: the base language model is asked as it is. ``enrichment``: what of the dream comes into the
buffer (else all that is valid). ``_em1``, ``_em2``: an experience model trained with another seed, for one policy seed each: how much of
a row is the luck of that training. With fewer logged steps the epochs grow, so that the updates stay the same, up to ``epochs_at_most``."""
CHOSEN: dict[str, Any] = {"fade": 0.5, "by_value": 0.75, "clusters": 12}
"""A run sees a task of the mixed pool once or twice: values fade faster than elsewhere, and what nobody has played has its cluster's."""
CURRICULUM_ROWS: dict[str, dict[str, Any]] = {
    name: {"model": "full", "curriculum": how}
    for name, how in {
        "uniform": {"value": "uniform"},
        "variance": CHOSEN,
        "progress": CHOSEN | {"value": "progress"},
        "lambda_25": CHOSEN | {"synthetic": 0.25, "generator": {"parents": 12}},
        "lambda_50": CHOSEN | {"synthetic": 0.5, "generator": {"parents": 24}},
        "hindsight": CHOSEN | {"synthetic": 0.25, "generator": {"parents": 12}, "hindsight": True},
    }.items()
}
"""On the mixed pool: how tasks are chosen, and how many written ones come in (as many a round as a draw has of them); keys of
``Curriculum``. All with the same experience model, which has also learned to write (``WRITING``)."""
AUDITED_ROWS = ("uniform", "lambda_25")
"""Of them, those whose first seed's cell holds the dream against reality too (``audited``): one experience model serves all."""
WRITING = {"mixed": 20}
"""How often an experience model is shown each logged task as an example of writing, per epoch."""
EXPERIENCE = {
    level: {"epochs": epochs, "learning_rate": 2e-3, "row_length": 320, "rows": 16} for level, epochs in (("easy", 2.5), ("standard", 2.0))
} | {"hard": {"epochs": 1.5, "learning_rate": 2e-3, "row_length": 640, "rows": 8}}
EXPERIENCE["mixed"] = EXPERIENCE["hard"] | {"epochs": 0.35, "learning_rate": 1e-3}
"""Of *mixed* nothing has been tried: as much as two hours of one core allow, at half the learning rate."""
GOES_ON_FROM = {"mixed": "hard"}
"""Levels whose experience model begins as another's and not as the base: what it has learned of rooms and recipes holds there too."""
LONGER: dict[str, dict[str, object]] = {level: {"budget": 224} for level in ("hard", "mixed")}
"""Of the experience model's prompt, where a reply tells of six rooms."""
SFT: dict[str, dict[str, Any]] = {level: {"epochs": 20.0, "rows": 4, "learning_rate": 1e-3} for level in ("easy", "standard")}
"""Epochs chosen on probe (100 games, one seed; docs/development.md)."""
SFT |= {level: SFT["standard"] | {"epochs": 10.0, "row_length": 320} for level in ("hard", "mixed")}
GRPO: dict[str, dict[str, Any]] = {"easy": {"iterations": 30}, "standard": {"iterations": 40}}
GRPO |= {"hard": {"iterations": 40, "tasks": 96, "learning_rate": 3e-4}}
GRPO |= {"mixed": {"iterations": 20, "tasks": 48, "group": 8, "learning_rate": 3e-4, "horizon": (30,)}}
"""On *hard* larger steps, or fewer tasks, undo the warm start. On *mixed* the members of three groups in four do not differ where there are
four of them: larger groups share most of their states (docs/development.md)."""
ALGORITHMS: dict[str, dict[str, Any]] = {"grpo": {}, "ppo": {"advantage": "gae", "iterations": 20, "tasks": 48, "learning_rate": 2e-4}}
"""What sets an algorithm apart from ``GRPO``: PPO gets a quarter of its episodes, because an iteration with a critic takes longer.
Fewer members instead would save little: equal states of a group are read once."""
BUDGETED = "real_at_s2r_budget"
S2R: dict[str, dict[str, Any]] = {"hard": {"learning_rate": 2e-4}}
"""Learning in the real environment after the dream (``_s2r``): what differs from ``GRPO``."""
REAL_BUDGET = {"hard": {"grpo": 27_000, "ppo": 9_500}}
"""Real steps, probes included (some 3,600), of ``_s2r`` and of the arm that has no dream (``BUDGETED``): those of RL shall be at most a
tenth of what the algorithm takes without a budget. PPO's is reckoned from the lengths of GRPO's episodes. Learning rates fall to 0 over
them."""
EARLY_ROWS: dict[str, dict[str, Any]] = {"iwm_start": {"model": "full", "start": "iwm"}}
"""On ``RL_LEVEL``: PPO in the dream that begins with Early Experience instead of the warm start."""
PROBE = {"every": 5, "games": 100}
TEST_GAMES = 150
METHODS = ("base", "sft", "sft_all", "grpo_real", "grpo_dream", *(f"grpo_dream+{v}" for v in VARIANTS if v != "full"))
LEVELS = ("easy", "standard")
"""Of the first tables."""
EXPERIENCE_METHODS = tuple(f"grpo_dream+{v}" for v in EXPERIENCE_ROWS)
BASELINES: dict[str, dict[str, float]] = {
    "dpo": {"epochs": 0.5, "learning_rate": 1e-5, "beta": 0.1},
    "iwm": {"alternatives": 3},
    "self_reflection": {"alternatives": 3},
}
"""Without rewards: DPO on logged failures, and Early Experience, whose alternatives are executed for real and counted as steps of RL."""
SEEDS = (0, 1, 2)
RL_LEVEL = "hard"
"""Where algorithms, baselines and sim-to-real are compared: GRPO in the real environment exceeds 90 % on *standard*."""
LATER_SEEDS = (3, 4, 5)
"""There, of PPO and of what learns without rewards: the warm starts of ``SEEDS`` are not kept, and another kind of CPU makes others of the
same settings. ``sft`` and ``sft_all`` have both."""
POOL = "mixed"
"""Where curricula are compared."""
SIX_SEEDS = ("sft", "grpo_dream+uniform", "grpo_dream+lambda_25")
"""There, what has ``LATER_SEEDS`` too: three seeds of the difference that is the target had an interval of 13 points."""
RL_METHODS = (
    *("base", "sft", "sft_all", *BASELINES),
    *(f"{a}_{how}" for a in ALGORITHMS for how in ("real", "dream", "s2r", BUDGETED)),
    *(f"ppo_dream+{row}" for row in EARLY_ROWS),
)


def methods(level: str) -> tuple[str, ...]:
    """All arms of a level."""
    if level == POOL:
        return ("base", "sft", *(f"grpo_dream+{row}" for row in CURRICULUM_ROWS))
    if level == RL_LEVEL:
        return RL_METHODS
    return (*METHODS, *EXPERIENCE_METHODS)


def logs_of(level: str) -> Path:
    """The shipped logs."""
    return shipped(f"logs-{level}.jsonl.xz")


def all_levels() -> tuple[str, ...]:
    """Those that cells can be made on: *hard* and *mixed* only where their logs have been recorded, and a base has read them."""
    return tuple(level for level in (*LEVELS, RL_LEVEL, POOL) if logs_of(level).exists() and shipped_base(level).exists())


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
    for text in _code(DECIDES[kind] + (() if level in LEVELS else SEVERAL_ROOMS)):
        digest.update(text)
    digest.update(json.dumps(read_json(SOURCE / "data" / "panels.json")[level]).encode())
    digest.update(logs_of(level).read_bytes())
    for part in ("model.safetensors", "tokenizer.json", "config.json"):
        digest.update((shipped_base(level) / part).read_bytes())
    return digest.hexdigest()


def _code(patterns: Iterable[str]) -> Iterator[bytes]:
    """Modules without docstrings and comments."""
    for path in (path for pattern in patterns for path in sorted(SOURCE.glob(pattern))):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))] or [ast.Pass()]
        yield ast.dump(tree).encode()


def measure_code(name: str, level: str | None = None) -> str:
    """What a file of ``MEASURES`` depends on: the code that measures and, with ``level``, that of the models measured."""
    digest = hashlib.blake2b(code_hash(level, "grpo_dream").encode() if level else b"", digest_size=5)
    for text in _code(MEASURES[name]):
        digest.update(text)
    return digest.hexdigest()


def cell_config(level: str, method: str) -> dict[str, object]:
    """All that a cell depends on beside its seed."""
    code = code_hash(level, kind_of(method))
    config: dict[str, object] = {"level": level, "method": method, "sft": SFT[level], "test_games": TEST_GAMES, "code": code}
    if early := method if method in BASELINES else row_of(method).get("start"):
        config |= {"baseline": BASELINES[early]}
    algorithm, how = learning(method)
    if how:
        config |= {"grpo": reinforcement(level, method), "probe": PROBE}
    if how == "s2r":
        config |= {"dream": reinforcement(level, f"{algorithm}_dream")}
    if how in ("dream", "s2r"):
        config |= {"experience": EXPERIENCE[level], "variant": variant(method)}
        config |= {"writing": WRITING[level]} if level in WRITING else {}
        config |= {"experience_from": GOES_ON_FROM[level]} if level in GOES_ON_FROM else {}
        config |= LONGER.get(level, {})
    return config


def learning(method: str) -> tuple[str, str]:
    """A reinforced arm's algorithm and where it learns: ``dream``, ``real``, ``s2r`` or ``BUDGETED``; nothing for the others."""
    algorithm, _, how = method.partition("+")[0].partition("_")
    return (algorithm, how) if algorithm in ALGORITHMS else ("", "")


def reinforcement(level: str, method: str) -> dict[str, Any]:
    """The settings of a reinforced arm: keys of ``RLConfig``, and ``real_budget`` where it has one."""
    algorithm, how = learning(method)
    few = {"real_budget": REAL_BUDGET[level][algorithm]} if how in ("s2r", BUDGETED) else {}
    return GRPO[level] | ALGORITHMS[algorithm] | few | (S2R[level] if how == "s2r" else {})


def kind_of(method: str) -> str:
    """The key of ``DECIDES``."""
    _, how = learning(method)
    if row_of(method).get("start"):
        return "grpo_dream_early"
    if how:
        return "grpo_dream" if how in ("dream", "s2r") else "grpo_real"
    return method if method in DECIDES else "sft"


def seeds_of(level: str, method: str) -> tuple[int, ...]:
    """Which seeds a method's cells have in the tables."""
    if (level == RL_LEVEL and method in ("sft", "sft_all")) or (level == POOL and method in SIX_SEEDS):
        return (*SEEDS, *LATER_SEEDS)
    if level == RL_LEVEL and (method in BASELINES or learning(method)[0] == "ppo"):
        return LATER_SEEDS
    return tuple(row_of(method).get("seeds", SEEDS))


def audited(method: str, seed: int) -> bool:
    """Whether a cell that has dreamed is held against reality; on *mixed* that takes longer than the training, and most are spared it."""
    row = variant_of(method)
    return row not in CURRICULUM_ROWS or (row in AUDITED_ROWS and seed == SEEDS[0])


def variant_of(method: str) -> str:
    return method.partition("+")[2] or "full"


def row_of(method: str) -> dict[str, Any]:
    """The row's description; empty for an arm or an ablation of the first tables."""
    return (EXPERIENCE_ROWS | CURRICULUM_ROWS | EARLY_ROWS).get(variant_of(method), {})


def variant(method: str) -> dict[str, object]:
    """What sets this arm apart: keys of the experience model's prompt for an ablation, a row's description for the others."""
    name = variant_of(method)
    return VARIANTS[name] if name in VARIANTS else row_of(method)


def prompt_of(level: str, method: str) -> dict[str, object]:
    """Keys of the experience model's prompt."""
    name = variant_of(method)
    return LONGER.get(level, {}) | (VARIANTS[name] if name in VARIANTS else row_of(method).get("prompt", {}))


def cell_path(level: str, method: str, seed: int) -> Path:
    return CELLS / f"{level}-{method}-s{seed}-{config_hash(cell_config(level, method))}.json"


def stale_cells(level: str, method: str, seed: int) -> list[Path]:
    """Files of this cell with another hash."""
    return [p for p in CELLS.glob(f"{level}-{method}-s{seed}-*.json") if p != cell_path(level, method, seed)]


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def matrix_products() -> str:
    """In what models compute on this machine, for result files: 16 and 32 bits round otherwise, and take other times."""
    import torch

    from dreamgym.lm.local import device
    from dreamgym.lm.precision import has_bfloat16

    return "bfloat16" if has_bfloat16(torch.device(device())) else "float32"
