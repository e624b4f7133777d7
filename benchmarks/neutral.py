"""Does an edit change results? Cells stay valid through an edit that provably does not.

    python -m benchmarks.neutral REV              # the code of a git revision against the working tree; up to 20 minutes a level
    python -m benchmarks.neutral REV hard         # on these levels only; else on all that have cells or a kept model

A cell's name holds a hash of the modules that decide it, so that an edit of them makes the grid start anew. This command plays a
small form of the arms of ``PLAYED`` that the edit concerns on each level (models trained for some steps, where their training was
edited; then, with models of ``benchmarks/work`` or ``models`` that were trained to the end, GRPO, evaluation and audit, each ablation of
the experience model too), once with the code of REV and once with the working tree, and compares all that comes out: weights byte by
byte, records key by key; times and the last digits of figures are left out (an edit may add keys).
Where all is equal, the new hashes go into ``results/same_code.json``, through which the grid finds the cells made before the edit;
otherwise it names the files and ends with 1.
"""

import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

HERE = Path(__file__).parent
Code = dict[str, Any]
"""Of one tree: the kinds that were played, each kind's hash, and its modules' hashes."""
SECONDS = ("wall_s", "shared_wall_s", "rollout_s", "update_s", "write_s")
TIMES = (*SECONDS, "peak_rss_gib", "commit", "versions", "config", "config_hash", "code")
"""Keys whose values may differ: how long it took, and which code it was."""
ROUNDING = 1e-6
"""Of figures in metrics: the last bits of a sum depend on where in memory its terms lie. Weights, actions and counts must be equal."""
LOGGED = 12_000
"""Steps of the logs in the small form."""
MODELS = {"experience": "full", "sft": "s0"}
"""What is played with: of this level and kind where ``benchmarks/work`` or ``models`` has one, else of another variant, else of another
level."""
METHODS = ("sft", "grpo_real", "grpo_dream", "grpo_dream+no_reasoning", "grpo_dream+no_retrieval", "grpo_dream+no_sheet")
PLAYED = {
    "easy": METHODS,
    "standard": METHODS,
    "hard": ("sft", "iwm", "self_reflection", "grpo_real", "grpo_dream", "ppo_dream"),
    "mixed": ("sft", "grpo_dream+uniform", "grpo_dream+lambda_25"),
}
"""The arms of the small form: of those that have cells or a kept model. Cells of a kind that is not among them start anew where a module
was edited that none of these has; what these do not play (filtered enrichment, caution, hindsight) they do not compare."""


def small_form(level: str, out: Path, edited: Sequence[str]) -> None:
    """Runs inside a tree of its own: that tree's grid, with smaller numbers, into ``out``; arms of the kinds that were ``edited``."""
    import torch

    import benchmarks.grid as grid

    named = importlib.import_module("benchmarks.cells") if importlib.util.find_spec("benchmarks.cells") else grid

    def put(**values: object) -> None:
        for name, value in values.items():
            for module in {grid, named}:
                setattr(module, name, value)

    torch.set_num_threads(1)
    models = {f"{kind}-{name}": newest(f"{level}-{kind}-{name}*", f"{level}-{kind}-*", f"*-{kind}-*") for kind, name in MODELS.items()}
    put(WORK=out / "trained", CELLS=out / "cells", TEST_GAMES=6, PROBE={"every": 2, "games": 4})
    few = {"iterations": 2, "tasks": 12, "group": 3}
    put(ALGORITHMS={name: how | (few if how else {}) for name, how in named.ALGORITHMS.items()})
    put(GRPO={level: few}, SFT={level: {**grid.SFT[level], "epochs": 0.5}})
    put(EXPERIENCE={level: {**grid.EXPERIENCE[level], "epochs": 0.1}}, GOES_ON_FROM={})

    def small_cell(method: str) -> grid.Cell:
        cell = grid.Cell(level, method, 0)
        cell.logs = cell.known = grid.first_steps(cell.logs, LOGGED)
        cell.tasks = grid.tasks_of(cell.known)
        return cell

    methods = [m for m in PLAYED[level] if named.kind_of(m) in edited]
    trained = sorted({"warm", "experience"} & set(edited))
    for method in methods if trained else ():
        cell = small_cell(method)
        if named.learning(method)[1] == "dream":
            cell.experience()
        cell.warm()
    put(WORK=out / "played")
    for training, model in (("warm_start", "sft-s0"), ("train_experience", "experience-full")):
        setattr(grid, training, copy_of(models[model], out))
    for method in methods:
        small_cell(method).run()
    (out / "code.json").write_text(json.dumps(code_of(level, named) | {"played": sorted({*trained, *map(named.kind_of, methods)})}))


def code_of(level: str, named: ModuleType) -> Code:
    """Of this tree: each kind's hash and its modules."""
    return {"code": {kind: named.own_hash(level, kind) for kind in named.DECIDES}, "modules": modules(named)}


def modules(named: ModuleType) -> dict[str, dict[str, str]]:
    """Of each kind the modules that decide it, each with the hash of its code."""
    found: dict[str, dict[str, str]] = {}
    for kind, patterns in named.DECIDES.items():
        paths = [str(p.relative_to(named.SOURCE)) for pattern in patterns for p in sorted(named.SOURCE.glob(pattern))]
        found[kind] = {path: hashlib.blake2b(next(named._code([path])), digest_size=5).hexdigest() for path in paths}
    return found


def shown_equal(old: Code, new: Code) -> dict[str, str]:
    """New hashes to old ones where all that came out was equal: of the kinds that were played, and of those that have no other edited
    module than they have."""
    modules = old["modules"]
    seen = {path for code in (old, new) for kind in old["played"] for path in code["modules"][kind]}
    edited = {
        kind: {p for p in modules[kind] | now if modules[kind].get(p) != now.get(p)}
        for kind, now in new["modules"].items()
        if kind in modules
    }
    return {
        new["code"][kind]: old["code"][kind] for kind, paths in edited.items() if paths <= seen and new["code"][kind] != old["code"][kind]
    }


def newest(*patterns: str) -> Path:
    """The newest model that the first pattern names, or else the next: both trees play with the same one."""
    for pattern in patterns:
        there = [p for kept in ("work", "models") for p in (HERE / kept).glob(f"{pattern}/config.json")]
        found = sorted((p.parent for p in there), key=lambda p: p.stat().st_mtime)
        if found:
            return found[-1]
    sys.exit(f"error: neither benchmarks/work nor models has {' or '.join(patterns)}; fix: python -m benchmarks.grid LEVEL grpo_dream 0")


def copy_of(model: Path, out: Path) -> Callable[..., None]:
    """In place of a training: the finished model, into the one argument that is a folder under ``out``."""

    def copy(*words: object, **_: object) -> None:
        folder = next(w for w in words if isinstance(w, Path) and w.is_relative_to(out))
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints"))

    return copy


def outcome(out: Path) -> dict[str, object]:
    """Each file that came out, by its name without hashes: records, or the hash of weights; optimiser states show in the weights."""
    found: dict[str, object] = {}
    kinds = (".json", ".jsonl", ".safetensors")
    for path in sorted(p for p in out.rglob("*") if p.suffix in kinds and p.name != "code.json"):
        data = path.read_bytes()
        name = re.sub(r"-[0-9a-f]{10}\b", "", str(path.relative_to(out)))
        if path.suffix == ".safetensors":
            found[name] = hashlib.blake2b(data).hexdigest()
        else:
            found[name] = [json.loads(text) for text in (data.decode().splitlines() if path.suffix == ".jsonl" else [data])]
    return found


def same_as(old: object, new: object) -> bool:
    """Whether ``new`` says what ``old`` says; times and the last digits of figures aside, and further keys allowed."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(k in TIMES or (k in new and same_as(v, new[k])) for k, v in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(same_as, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return old == new


def play(tree: Path, level: str, out: Path, edited: Sequence[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, __file__, "--small", level, str(out), *edited]
    return subprocess.Popen(words, cwd=tree, env=environment(tree), stdout=subprocess.DEVNULL)


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tree / 'src'}:{tree}"}


def kinds_edited(trees: Sequence[Path], level: str) -> list[str]:
    """The kinds of ``DECIDES`` whose code is not the same in both trees."""
    words = [sys.executable, __file__, "--code", level]
    said = [subprocess.run(words, cwd=t, env=environment(t), check=True, capture_output=True, text=True).stdout for t in trees]
    old, new = (json.loads(text)["code"] for text in said)
    return [kind for kind in new if new[kind] != old.get(kind)]


def levels_made() -> list[str]:
    """Levels that something depends on."""
    from benchmarks.cells import CELLS, MODELS, all_levels

    return [level for level in all_levels() if any([*CELLS.glob(f"{level}-*"), *MODELS.glob(f"{level}-*")])]


def main(rev: str, levels: Sequence[str]) -> int:
    console = Console(highlight=False)
    same_file = HERE / "results" / "same_code.json"
    same = json.loads(same_file.read_text()) if same_file.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(before), rev], cwd=HERE, check=True)
        try:
            after = Path(scratch) / "edited"  # a copy, so that the tree may be edited on meanwhile
            for part in ("src", "benchmarks"):
                shutil.copytree(HERE.parent / part, after / part, ignore=shutil.ignore_patterns("work", "results", "__pycache__"))
            shutil.copytree(HERE / "results", after / "benchmarks" / "results", ignore=shutil.ignore_patterns("cells"))
            different = 0
            for level in levels:
                if not (edited := kinds_edited((before, after), level)):
                    console.print(f"{level}: no edit concerns it")
                    continue
                outs = {name: Path(scratch) / level / name for name in ("before", "after")}
                runs = [play(tree, level, outs[name], edited) for name, tree in (("before", before), ("after", after))]
                if any([run.wait() for run in runs]):
                    sys.exit(f"error: the small form of {level} failed; what it said is above")
                old, new = outcome(outs["before"]), outcome(outs["after"])
                changed = sorted(name for name in old.keys() | new.keys() if not same_as(old.get(name), new.get(name)))
                console.print(f"{level}: {len(old)} files, {len(changed)} differ", *changed[:10], sep="\n  ")
                different += len(changed)
                codes = [json.loads((out / "code.json").read_text()) for out in outs.values()]
                if not changed:
                    same |= shown_equal(*codes)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=HERE, check=True)
    same_file.write_text(json.dumps(same, indent=1, sort_keys=True) + "\n")
    return int(different > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--small"]:
        small_form(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    elif sys.argv[1:2] == ["--code"]:
        print(json.dumps(code_of(sys.argv[2], importlib.import_module("benchmarks.cells"))))
    elif len(sys.argv) > 1:
        if not (chosen := sys.argv[2:] or levels_made()):
            sys.exit("error: no level has cells or a kept model, so there is nothing to compare; name levels")
        sys.exit(main(sys.argv[1], chosen))
    else:
        sys.exit(__doc__)
