"""Several runs as one result: real success over seeds, and what separates the arms.

    found = compare([Path("runs/dream-0"), Path("runs/dream-1"), Path("runs/real-0"), Path("runs/real-1")])
    found.arms[0].success["after"].mean

Runs that differ in their seed alone are one arm. All must have played the same games of the same panel. Success is read from the rows
of each evaluation, which are real episodes; differences have a bootstrap interval over seeds and games, between arms where both have
the same seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from dreamgym.core.errors import DataError
from dreamgym.core.files import read_episodes, read_json
from dreamgym.pipeline.config import RunConfig
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.results import panel_hash, successes_by_task
from dreamgym.pipeline.run import decisive, differing
from dreamgym.pipeline.stats import paired_interval

WHEN = {"sft": "before", "policy": "after", "s2r": "s2r"}
"""Evaluations of a run, by what they play: its start, what it trained, and what learned on in the real environment."""
LIMITS = ("real_budget", "patience", "watch")
"""Keys of learning that may change while a run goes on, and yet set arms apart."""
LEARNING = ("train", "sim-to-real")


@dataclass(frozen=True)
class Evaluated:
    """What one run has to say."""

    folder: Path
    seed: int
    env: str
    panel: str
    panel_hash: str
    config: dict[str, Any]
    """What makes an arm of it: its configuration without the seed, the run that it continues, and what does not decide results."""
    played: dict[str, dict[str, float]]
    """Real success by game, of each of ``WHEN`` that was evaluated."""
    invalid: int
    """Episodes of all its evaluations that count for nothing."""
    real_steps: dict[str, float]
    wall_s: float


@dataclass(frozen=True)
class Success:
    """Real success, in the order of the arm's seeds."""

    by_seed: list[float]
    mean: float
    sd: float | None
    """None of one seed."""


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration. Steps and seconds are means over them."""

    name: str
    """What sets its configuration apart."""
    seeds: list[int]
    runs: list[str]
    success: dict[str, Success]
    """By ``WHEN``, where all its runs have it."""
    invalid: int
    real_steps: dict[str, float]
    """Of logs; of learning, that of a warm start by Early Experience included (``rl``); of probes."""
    wall_s: float


@dataclass(frozen=True)
class Difference:
    """The mean of ``first`` - ``second`` and its 95 % interval over seeds and games (``stats.paired_interval``)."""

    first: str
    second: str
    mean: float
    low: float
    high: float
    n_seeds: int
    n_games: int


@dataclass(frozen=True)
class Comparison:
    panel: str
    panel_hash: str
    n_test: int
    arms: list[Arm]
    differences: list[Difference]

    def tables(self) -> Iterator[Table]:
        """For people: success, what it took, and differences."""
        success = Table(title=f"Real success on {self.n_test} games of the panel {self.panel} ({self.panel_hash})")
        for column in ("arm", "seeds", *WHEN.values(), "invalid"):
            success.add_column(column, overflow="fold")
        took = Table(title="Real steps and minutes, means over runs")
        for column in ("arm", "logs", "RL", "probe", "min"):
            took.add_column(column, overflow="fold")
        for a in self.arms:
            success.add_row(a.name, ", ".join(map(str, a.seeds)), *(_shown(a.success.get(when)) for when in WHEN.values()), str(a.invalid))
            took.add_row(a.name, *(f"{a.real_steps[k]:,.0f}" for k in ("logs", "rl", "probe")), f"{a.wall_s / 60:.0f}")
        yield success
        yield took
        apart = Table(title="Differences, with 95 % intervals over seeds and games")
        for column in ("first", "second", "first - second", "low", "high", "seeds"):
            apart.add_column(column, overflow="fold")
        for d in self.differences:
            apart.add_row(d.first, d.second, *(f"{x:+.3f}" for x in (d.mean, d.low, d.high)), str(d.n_seeds))
        yield apart


def _shown(success: Success | None) -> str:
    if success is None:
        return "-"
    return f"{success.mean:.3f}" + (" (one seed)" if success.sd is None else f" ± {success.sd:.3f}")


def evaluated(folder: Path, panel: str | None = None) -> Evaluated:
    """Raises ``DataError`` where ``folder`` is no run, or has no evaluation on the panel (of its configuration, where none is named)."""
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise DataError(f"{folder}: holds no config.yaml, so it is no run directory")
    config = load_config(saved)
    name = panel or config.evaluation.panel
    episodes = {w: list(read_episodes(p)) for arm, w in WHEN.items() if (p := folder / f"eval-{arm}-{name}.jsonl").exists()}
    if "after" not in episodes:
        raise DataError(f"{folder}: its policy has no evaluation on the panel {name}; run: dreamgym eval --run {folder}")
    if any(e.source != "real" for found in episodes.values() for e in found):
        raise DataError(f"{folder}: its evaluations hold a dreamed episode; only real ones are results, evaluate anew")
    hashes = {w: panel_hash(found) for w, found in episodes.items()}
    if len(set(hashes.values())) > 1:
        raise DataError(f"{folder}: its evaluations ({', '.join(hashes)}) played other games each; evaluate anew")
    played = {w: successes_by_task(found) for w, found in episodes.items()}
    if none := [w for w, games in played.items() if not games]:
        raise DataError(f"{folder}: no episode of its evaluation {none[0]} is valid, which is no result; evaluate anew")
    stages = {p.stem: read_json(p) for p in sorted((folder / "stages").glob("*.json"))}

    def told(key: str, *names: str) -> float:
        return sum(float(str(stages.get(name, {}).get(key, 0))) for name in names)

    return Evaluated(
        folder,
        config.seed,
        config.env,
        name,
        hashes["after"],
        _arm_of(config),
        played,
        sum(not e.valid for found in episodes.values() for e in found),
        {
            "logs": told("real_steps", "collect") + told("earlier_real_steps", "collect"),
            "rl": told("rl_real_steps", *LEARNING) + told("learning_real_steps", "warm-start"),
            "probe": told("probe_real_steps", *LEARNING),
        },
        told("wall_s", *stages),
    )


def _arm_of(config: RunConfig) -> dict[str, Any]:
    whole, data = config.model_dump(mode="json"), decisive(config)
    for phase in ("rl", "s2r"):
        data[phase] |= {key: whole[phase][key] for key in LIMITS}
    del data["seed"]
    if data["continued"]:
        del data["continued"]["run"]
    return data


def _value(config: Mapping[str, Any], key: str) -> object:
    """Of a key as ``differing`` names it."""
    found: object = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def arms_of(runs: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
    """Runs of one configuration, by seed; an arm's name is what sets it apart. Raises ``DataError`` where one seed is there twice."""
    apart = sorted({key for run in runs for key in differing(runs[0].config, run.config)})
    arms: dict[str, list[Evaluated]] = {}
    for run in runs:
        same = arms.setdefault(" ".join(f"{key}={_value(run.config, key)}" for key in apart) or run.env, [])
        if twice := [r.folder for r in same if r.seed == run.seed]:
            raise DataError(f"{run.folder} and {twice[0]}: both are of seed {run.seed} and one configuration, which is one result")
        same.append(run)
    return {name: sorted(same, key=lambda r: r.seed) for name, same in arms.items()}


def compare(folders: Sequence[Path], panel: str | None = None) -> Comparison:
    """All arms and their differences. Raises ``DataError`` where runs cannot be held against one another, saying why."""
    runs = [evaluated(folder, panel) for folder in folders]
    for run in runs:
        if (run.panel, run.panel_hash) != (runs[0].panel, runs[0].panel_hash):
            what = "they were evaluated on other games; give both the same env and evaluation.games, or name a --panel that both have"
            raise DataError(f"{run.folder} and {runs[0].folder}: {what}")
    arms = arms_of(runs)
    found = [_arm(name, same) for name, same in arms.items()]
    return Comparison(runs[0].panel, runs[0].panel_hash, len(runs[0].played["after"]), found, list(_differences(arms)))


def _there(runs: Sequence[Evaluated]) -> list[str]:
    """The evaluations that all of them have."""
    return [when for when in WHEN.values() if all(when in r.played for r in runs)]


def _arm(name: str, runs: Sequence[Evaluated]) -> Arm:
    success = {}
    for when in _there(runs):
        rates = [fmean(r.played[when].values()) for r in runs]
        success[when] = Success(rates, fmean(rates), stdev(rates) if len(rates) > 1 else None)
    steps = {k: fmean(r.real_steps[k] for r in runs) for k in runs[0].real_steps}
    folders = [str(r.folder) for r in runs]
    return Arm(name, [r.seed for r in runs], folders, success, sum(r.invalid for r in runs), steps, fmean(r.wall_s for r in runs))


def _differences(arms: dict[str, list[Evaluated]]) -> Iterator[Difference]:
    """Within an arm what training and what learning on did; between arms of the same seeds their ends."""
    wanted = [((a, later), (a, earlier)) for a, runs in arms.items() for earlier, later in pairwise(_there(runs))]
    for (a, ours), (b, theirs) in combinations(arms.items(), 2):
        if [r.seed for r in ours] == [r.seed for r in theirs]:
            wanted += [((a, when), (b, when)) for when in _there([*ours, *theirs]) if when != "before"]
    for (a, this), (b, that) in wanted:
        names = (f"{a}, {this}", f"{b}, {that}") if len(arms) > 1 else (this, that)
        found = paired_interval([r.played[this] for r in arms[a]], [r.played[that] for r in arms[b]], names)
        mean, low, high = (float(str(found[k])) for k in ("mean", "low", "high"))
        yield Difference(*names, mean, low, high, int(str(found["n_seeds"])), int(str(found["n_games"])))
