"""Episodes as Parquet, one row per step, for whoever analyses them or shares them as a data set (the extra [parquet]).

    write_parquet(path, episodes)
    datasets.load_dataset("parquet", data_files=str(path))          # Hugging Face
    episodes = read_parquet(path)                                   # whole again, nothing lost

What belongs to an episode stands on each of its rows; ``step`` counts from 0, a counterfactual step has ``at``, the step before which
it was tried.
"""

import importlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dreamgym.core.errors import DataError, MissingExtraError
from dreamgym.core.types import Episode

TEXTS, LISTS, NUMBERS = "string", "list<string>", "int64"
EPISODE = {
    "id": TEXTS, "env": TEXTS, "source": TEXTS, "behaviour": TEXTS, "policy_version": NUMBERS, "seed": NUMBERS, "member": NUMBERS,
    "stop": TEXTS,
}  # fmt: skip
TASK = {
    "id": TEXTS, "instruction": TEXTS, "first_state": LISTS, "sheet": LISTS, "lineage": LISTS, "panel": TEXTS, "difficulty": TEXTS,
}  # fmt: skip
STEP = {
    "state": LISTS, "action": TEXTS, "removed": LISTS, "added": LISTS, "reward": "double", "outcome": TEXTS, "reasoning": TEXTS,
    "surprise": "double",
}  # fmt: skip
BATCH = 64
"""Episodes of one write."""


def write_parquet(path: Path, episodes: Iterable[Episode]) -> int:
    """Write all ``episodes`` that have steps; returns how many. The file is there whole or not at all."""
    pa, parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
    fields = {**{f"episode_{k}" if k == "id" else k: v for k, v in EPISODE.items()}, **{f"task_{k}": v for k, v in TASK.items()}}
    kinds = {"string": pa.string(), "list<string>": pa.list_(pa.string()), "int64": pa.int64(), "double": pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in {**fields, "step": NUMBERS, "at": NUMBERS, **STEP}.items()])
    fresh, count = path.with_name(f".{path.name}.new"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with parquet.ParquetWriter(fresh, schema, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for e in (e for e in episodes if e.steps):
                rows += _rows(e)
                count += 1
                if count % BATCH == 0:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return count


def _rows(e: Episode) -> list[dict[str, Any]]:
    data = e.model_dump(mode="json")
    shared = {f"episode_{k}" if k == "id" else k: data[k] for k in EPISODE} | {f"task_{k}": data["task"][k] for k in TASK}
    steps = [(None, t) for t in data["transitions"]] + [(b["at"], b["transition"]) for b in data["branches"]]
    return [{**shared, "step": n, "at": at, **t} for n, (at, t) in enumerate(steps)]


def read_parquet(path: Path) -> Iterator[Episode]:
    """Episodes of a file that ``write_parquet`` wrote (or one with its columns). ``DataError`` names file, row and field."""
    parquet = _pyarrow("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
        missing = {"episode_id", "task_id", "state", "action", "reward", "outcome", "stop"} - set(file.schema_arrow.names)
        if missing:
            raise DataError(f"{path}: has no column {', '.join(sorted(missing))}; dreamgym buffer export writes all that are needed")
        rows = ((n, row) for n, row in enumerate(r for batch in file.iter_batches(4096) for r in batch.to_pylist()))
        seen: set[str] = set()
        for name, group in groupby(rows, key=lambda pair: pair[1]["episode_id"]):
            steps = list(group)
            if name in seen:
                raise DataError(f"{path}: row {steps[0][0]}: episode {name} goes on after another; sort the rows by episode_id and step")
            seen.add(name)
            for wanted, (n, row) in enumerate(steps):
                if row.get("step", wanted) != wanted:
                    raise DataError(f"{path}: row {n}: field step: {row['step']} of episode {name} where {wanted} should be; sort by it")
            yield _episode(path, steps)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file of episodes") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e})") from e
    except ValueError as e:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path}: not a Parquet file of episodes ({e})") from e


def _episode(path: Path, group: list[tuple[int, dict[str, Any]]]) -> Episode:
    first, row = group[0]
    data: dict[str, Any] = {k: row[f"episode_{k}" if k == "id" else k] for k in EPISODE if f"episode_{k}" in row or k in row}
    data["task"] = {k: row[f"task_{k}"] for k in TASK if f"task_{k}" in row}
    steps = [(r.get("at"), {k: r[k] for k in STEP if k in r}) for _, r in group]
    data["transitions"] = [t for at, t in steps if at is None]
    data["branches"] = [{"at": at, "transition": t} for at, t in steps if at is not None]
    try:
        return Episode.model_validate(data)
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(str(p) for p in error["loc"]) or "episode"
        raise DataError(f"{path}: episode {row['episode_id']} (from row {first}): field {where}: {error['msg']}") from e


def _pyarrow(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise MissingExtraError("pyarrow", "parquet") from e
