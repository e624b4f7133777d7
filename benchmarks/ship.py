"""Makes the data files that come with the package. Order: panels, logs of each level, bases, agent of each level.

    python -m dreamgym.envs.textworld.panels src/dreamgym/data/panels.json     # an hour and a half on one core
    python -m benchmarks.ship logs easy        # 620 games, about 20 minutes on one core; standard: 25, mixed: 60, hard: 80 minutes
    python -m benchmarks.ship logs hard 1/2    # the second half of the games only, beside another process; then the whole
    python -m benchmarks.ship base             # the tiny language model of the logs of easy and standard
    python -m benchmarks.ship base rooms       # and that of hard and mixed
    python -m benchmarks.ship agent easy       # a weak policy's own episodes, appended to the logs
    python -m benchmarks.ship model hard       # for benchmarks/models only: the experience model of a level's cells, 75 minutes
    python -m benchmarks.ship starts mixed 0   # likewise: the warm starts of these seeds, 5 to 20 minutes each

The base language model has not read the agent's own episodes (they were played by a policy that was fine-tuned from an
earlier base), nor the seeking, fussing and moving ones. As shipped, the logs were recorded in parts: those three explorers, and the
demonstrations of *standard*, came after the base, which has read two demonstrations of *easy* and 180 of *standard* (by the cook
who takes steps in any order) that were left out later.
That of easy and standard was also trained on the worlds' own text, and was asked nothing (``experience/base.py``). That of hard and
mixed was asked for commands when the logs were as they are now, by the last part of its training alone (``learn.ask``), four minutes of
one core; before, it has read 100 demonstrations of *hard* and 60 of *mixed* by a cook who fetches all first (1,554 and 655 real
steps), which were left out later.
``logs.json`` counts the real steps of what the logs hold, the reading of each cookbook at every part included; the demonstrations
of *standard* that were left out took another 1,950.
"""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cells import MODELS, SFT, WORK
from benchmarks.grid import Cell, begin
from dreamgym.core.env import RealSteps
from dreamgym.core.files import read_episodes, read_json, write_episodes, write_json
from dreamgym.core.types import Episode
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.envs.textworld.collect import DEMONSTRATIONS
from dreamgym.envs.textworld.env import TextWorldEnv, look_at
from dreamgym.envs.textworld.games import parse_task_id
from dreamgym.envs.textworld.panels import check_game, panels
from dreamgym.lm.fit import FitConfig
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.learn import train_base, warm_start
from dreamgym.pipeline.logs import counts, load_logs, tasks_of
from dreamgym.pipeline.play import play_real, seats_for
from dreamgym.pipeline.rl_run import fingerprint
from dreamgym.pipeline.stages import shipped_base
from dreamgym.rl.policy import Policy

DATA = Path(__file__).parents[1] / "src" / "dreamgym" / "data"
GAMES = 620
BASES = {"base": (("easy", "standard"), 4, 256, 24), "base-rooms": (("hard", "mixed"), 4, 640, 8)}
"""Levels whose logs a base has read, how often, the tokens of a row, and the rows of an update."""
UNREAD = ("agent", "seeking", "fussing", "moving")
AGENT_EPOCHS = {"easy": 8, "standard": 4, "hard": 4, "mixed": 4}
"""The logged agent is an early, weak warm start: its own episodes are nearly all failures."""
AGENT_GAMES = {"easy": 150, "standard": 200, "hard": 150, "mixed": 150}
console = Console(highlight=False)


def logs_path(level: str) -> Path:
    return DATA / f"logs-{level}.jsonl.xz"


def write_logs(level: str, episodes: list[Episode], recording: int, agent: int) -> None:
    """The shipped file and its entry in ``logs.json``: real steps of recording (re-played prefixes included) and of the agent."""
    write_episodes(logs_path(level), episodes)
    meta_path = DATA / "logs.json"
    meta = read_json(meta_path) if meta_path.exists() else {}
    meta[level] = {
        "real_steps": recording + agent,
        "recording_steps": recording,
        "agent_steps": agent,
        "episodes": len(episodes),
        "counts": counts(episodes),
    }
    write_json(meta_path, meta)
    console.print(f"{logs_path(level).name}: {meta[level]}, {logs_path(level).stat().st_size / 2**20:.2f} MiB")


def record(level: str, part: int = 0, parts: int = 1) -> list[Path]:
    """Every ``parts``-th game from ``part`` on into a file of its own under ``benchmarks/work``; games that have one are skipped, but
    for a demonstration that was not asked for then.

    As ``TextWorldAdapter.collect`` does it, whose games do not depend on each other. Returns the files.
    """
    adapter, (demonstrated, demonstrator) = TextWorldAdapter(level), DEMONSTRATIONS[level]
    games = list(enumerate(panels(level, "train")[:GAMES]))[part::parts]
    files = [WORK / f"logs-{level}" / f"{i}.jsonl.xz" for i, _ in games]
    for n, ((i, game), path) in enumerate(zip(games, files, strict=True), start=1):
        recorded = list(read_episodes(path)) if path.exists() else []
        if recorded and (i >= demonstrated or recorded[0].behaviour == "expert"):
            continue
        check_game(game)
        counter = RealSteps()
        recorder = adapter.recorder(counter, 0)
        if recorded:
            env = TextWorldEnv(counter, recorder.view, recorder.cap)
            shown = recorder.episode(env, recorded[0].task, "expert", demonstrator, branches=0, give_up=None)
            write_json(steps_path(path), {"real_steps": int(str(read_json(steps_path(path))["real_steps"])) + counter.total})
            write_episodes(path, [shown, *recorded])
            continue
        task = look_at(*parse_task_id(game.task), "train", counter, recorder.view)
        episodes = list(recorder.game(task, demonstrate=i < demonstrated))
        write_json(steps_path(path), {"real_steps": counter.total})
        write_episodes(path, episodes)  # last: it says that the game is whole
        console.print(f"{level}: {n} of {len(games)} games recorded")
    return files


def steps_path(game: Path) -> Path:
    return game.with_name(game.name.replace(".jsonl.xz", ".steps.json"))


def logs(level: str) -> None:
    files = record(level)
    episodes = [e for path in files for e in read_episodes(path)]
    write_logs(level, episodes, sum(int(str(read_json(steps_path(path))["real_steps"])) for path in files), 0)


def base(name: str) -> None:
    torch.set_num_threads(2)
    levels, epochs, tokens, rows = BASES[name]
    episodes = [e for level in levels for e in load_logs([logs_path(level)]) if e.behaviour not in UNREAD]
    lm = train_base(
        episodes,
        tasks_of(episodes),
        FitConfig(epochs=epochs, learning_rate=2e-3, row_length=tokens, rows=rows),
        WORK / name,
        lambda done, total, loss: console.print(f"{done}/{total} loss {loss:.4f}"),
    )
    lm.save(DATA / name)


def agent(level: str) -> None:
    adapter = TextWorldAdapter(level)
    episodes = [e for e in load_logs([logs_path(level)]) if e.behaviour != "agent"]
    demos = [e for e in episodes if e.behaviour == "expert"]
    weak = warm_start(shipped_base(level), demos, FitConfig(**SFT[level] | {"epochs": AGENT_EPOCHS[level]}), WORK / f"weak-{level}")
    tasks = adapter.tasks("train", AGENT_GAMES[level])
    counter = RealSteps()
    played = play_real(Policy(LocalLM(weak.model, weak.tokenizer), 1.0), adapter, seats_for(tasks, 0), counter, "logs", "agent")
    own = [r.episode.model_copy(update={"id": f"{r.episode.task.id}#agent0"}) for r in played if r.episode.valid]
    before = read_json(DATA / "logs.json")[level]
    assert isinstance(before, dict)
    write_logs(level, episodes + own, int(before["recording_steps"]), counter.total)


def model(level: str) -> None:
    begin()
    keep(Cell(level, "grpo_dream", 0).model_folder())


def starts(level: str, seeds: Iterable[int]) -> None:
    begin()
    for seed in seeds:
        keep(Cell(level, "sft", seed).warm())


def keep(trained: Path) -> None:
    """A model that all cells of its level share from now on, on whatever machine."""
    if trained.parent != MODELS:
        shutil.copytree(trained, MODELS / trained.name, ignore=shutil.ignore_patterns("checkpoints", "started.json"))
    console.print(f"{MODELS / trained.name}: weights {fingerprint(MODELS / trained.name)}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["logs", level]:
            logs(level)
        case ["logs", level, half]:
            record(level, *map(int, half.split("/")))
        case ["base"]:
            base("base")
        case ["base", "rooms"]:
            base("base-rooms")
        case ["agent", level]:
            agent(level)
        case ["model", level]:
            model(level)
        case ["starts", level, *seeds]:
            starts(level, map(int, seeds))
        case _:
            sys.exit(__doc__)
