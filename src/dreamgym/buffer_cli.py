"""``dreamgym buffer``: look into a durable replay buffer, search it, check it, make it smaller, move episodes in and out."""

import sqlite3
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dreamgym.core.errors import DataError
from dreamgym.core.files import read_episodes, write_episodes
from dreamgym.core.state import make_state
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.run import BUFFER, bar, console, stage_file
from dreamgym.replay.backfill import backfill as filled_in
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.columns import NEVER, OUTCOMES
from dreamgym.replay.contract import Query
from dreamgym.replay.database import DATABASE
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.encoders import Encoder, SentenceEncoder, identity_of
from dreamgym.replay.parquet import read_parquet, write_parquet
from dreamgym.replay.store import EpisodeStore
from dreamgym.replay.upkeep import compact as compacted
from dreamgym.replay.upkeep import verify as problems_of

app = typer.Typer(help="A durable replay buffer: a folder that one process writes and many read.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Folder of the buffer.")]
Model = Annotated[str | None, typer.Option(help="Encoder: a sentence-transformers model (name or folder); default: hashing, no download.")]
BATCH = 256
"""Episodes per commit of an import."""


def _encoder(model: str | None) -> Encoder:
    return SentenceEncoder(model) if model else HashingEncoder()


def _not_in_training(folder: Path) -> None:
    """A run that is to go on must find its buffer as it left it."""
    run = folder.resolve().parent
    if (run / "policy_run" / "checkpoint").exists() and not stage_file(run, "train").exists():
        raise DataError(f"{folder}: belongs to a run whose training has not finished; finish it first (dreamgym train --run {run})")


def _existing(folder: Path) -> EpisodeStore:
    """The buffer for writing; one that is not there is refused by the reader, and not made by the writer."""
    EpisodeStore(folder, "ro").close()
    return EpisodeStore(folder)


def _serves_its_run(folder: Path, model: str | None) -> None:
    """A run reads its buffer by the encoder of its configuration, and by no other."""
    saved = folder.resolve().parent / "config.yaml"
    if folder.resolve().name != BUFFER or not saved.exists():
        return
    replay = load_config(saved).replay
    wanted = replay.embeddings.model if replay.embeddings else replay.encoder
    if replay.embeddings or wanted != (model or "hashing"):
        raise DataError(f"{folder}: its run has the encoder {wanted} and would find nothing by another; change a copy of it")


@app.command()
def stats(folder: Folder) -> None:
    """What is in it: episodes and steps by source and outcome, generations, encoders, bytes."""
    store = EpisodeStore(folder, "ro")
    c, live = store.columns, store.columns["evicted"] == NEVER
    real = c["real"].astype(bool)
    table = Table("", "episodes", "steps", *OUTCOMES)
    for name, mask in (("real", live & real), ("dreamed", live & ~real), ("evicted", ~live)):
        ends = [f"{int((c['outcome'][mask] == i).sum()):,}" for i in range(len(OUTCOMES))]
        table.add_row(name, f"{len(set(c['episode'][mask].tolist())):,}", f"{int(mask.sum()):,}", *ends)
    console.print(table)
    console.print(f"tasks: {len(set(c['task'].tolist())):,}; last generation: {int(c['generation'].max()) if len(store) else 0}")
    for number, e in store.encoders().items():
        share, role = float(store.filled(number).mean()) if len(store) else 1.0, "serving" if number == store.serving() else "not serving"
        console.print(f"encoder {e.name} (revision {e.revision}, {e.dimension} dimensions): {share:.1%} of the steps, {role}")
    sizes = {p.name: p.stat().st_blocks * 512 for p in store.folder.iterdir() if p.name == DATABASE or p.suffix == ".f32"}
    console.print("; ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sorted(sizes.items())))


@app.command()
def verify(folder: Folder) -> None:
    """Read everything and hold it against its checksums; exit code 1 where something is wrong."""
    try:
        store = EpisodeStore(folder, "ro")
        problems = problems_of(store)
    except sqlite3.DatabaseError as e:
        raise DataError(f"{folder}: cannot be read ({e}); restore it from a copy") from e
    for problem in problems:
        console.print(problem, markup=False)
    if problems:
        raise DataError(f"{folder}: {len(problems)} problems; restore it from a copy")
    console.print(f"{store.places():,} episodes, {len(store):,} steps: all whole")


@app.command()
def compact(folder: Folder) -> None:
    """Drop evicted episodes for good and give their room back; readers may go on meanwhile."""
    _not_in_training(folder)
    store = _existing(folder)
    console.print(f"{compacted(store):,} steps dropped, {len(store):,} left; the old files go when the buffer is next opened for writing")


@app.command()
def backfill(folder: Folder, model: Model = None) -> None:
    """Give every step a vector of another encoder, then let that one serve; killed, it goes on where it was."""
    _serves_its_run(folder, model)
    store, encoder = _existing(folder), _encoder(model)
    number = store.add_encoder(identity_of(encoder), serving=not len(store))
    with bar() as progress:
        task = progress.add_task(f"encoding by {encoder.name}", total=len(store), completed=int(store.filled(number).sum()))
        made = filled_in(store, encoder, number, report=lambda done, total: progress.update(task, completed=done, total=total))
    store.serve(number)
    console.print(f"{made:,} steps encoded; {encoder.name} ({encoder.dimension} dimensions) serves now")


@app.command("export")
def export_episodes(folder: Folder, path: Annotated[Path, typer.Argument(help="A .jsonl, .jsonl.xz or .parquet file to write.")]) -> None:
    """All episodes that are not evicted: one JSON line each (the format of logs), or Parquet with one row per step."""
    store = EpisodeStore(folder, "ro")
    if path.suffix == ".parquet":
        write_parquet(path, store.episodes())
    else:
        write_episodes(path, store.episodes())
    console.print(f"{sum(1 for _ in store.episodes()):,} episodes written to {path}")


@app.command("import")
def import_episodes(
    folder: Folder, path: Annotated[Path, typer.Argument(help="A .jsonl, .jsonl.xz or .parquet file of episodes.")], model: Model = None
) -> None:
    """Add the valid episodes of a file that are not in yet, batch by batch; makes the buffer where there is none."""
    _not_in_training(folder)
    if not path.exists():
        raise DataError(f"{path}: no such file of episodes")
    buffer = ReplayBuffer(folder, _encoder(model))
    read, batch = 0, []
    before = buffer.store.places()
    for episode in read_parquet(path) if path.suffix == ".parquet" else read_episodes(path):
        batch.append(episode)
        read += 1
        if len(batch) == BATCH:
            buffer.add(batch)
            batch = []
    buffer.add(batch)
    console.print(f"{read:,} episodes read, {buffer.store.places() - before:,} new; the buffer holds {len(buffer):,} steps")


@app.command()
def search(
    folder: Folder,
    action: Annotated[str, typer.Argument(help="The action of the query.")],
    state: Annotated[list[str] | None, typer.Option(help="A line of the query's state; may be given several times.")] = None,
    k: Annotated[int, typer.Option(help="How many to show.", min=1)] = 5,
    generation: Annotated[int | None, typer.Option(help="As of this iteration; default: now.")] = None,
    exclude_task: Annotated[str | None, typer.Option(help="Nothing of this task.")] = None,
    model: Model = None,
) -> None:
    """The most similar experiences to (state, action), best first."""
    buffer = ReplayBuffer(folder, _encoder(model), "ro")
    query = Query(make_state(state or []), action, exclude_task=exclude_task)
    table = Table("cosine", "action", "what changed", "end", "episode")
    for hit in buffer.snapshot(generation).topk([query], k)[0]:
        t = hit.transition
        change = [*(f"- {s}" for s in t.removed), *(f"+ {s}" for s in t.added)] or ["nothing"]
        table.add_row(f"{hit.score:.3f}", escape(t.action), escape("\n".join(change)), t.outcome, escape(f"{hit.episode} ({hit.source})"))
    console.print(table)
