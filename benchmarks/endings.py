"""How the last training episodes of cells end: what docs/results.md says of *hard* and *mixed*.

    python -m benchmarks.endings mixed grpo_dream+uniform 3 4 5     # level, method, seeds
    python -m benchmarks.endings hard ppo_dream 3 4 5

Reads the ``episodes.jsonl`` that a reinforced cell leaves in ``benchmarks/work`` on the machine that made it (the file is not kept with the
cell; ``python -m benchmarks.grid`` makes both anew), and counts, for tasks of so many foods, the episodes of the last five iterations: how
they ended (shares of all), of those that ran out of steps how many changed nothing in their last ten (*stuck*), how many of these walked
towards an open way that their state names (*at a way*, which only a dream refuses), how many went to and fro between two actions, and per
draw the groups with four valid members and those of them whose members differ. Training episodes at T = 1, a dream's are no result.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from benchmarks.cells import WORK, cell_path
from benchmarks.tables import console, markdown
from dreamgym.core.files import read_episodes
from dreamgym.core.types import Episode, StopReason, Transition

LAST = 5
TAIL = 10
AT_A_WAY = "at a way"
MEMBERS = 4
"""Fewer say little of whether a group differs; written tasks are checked by two."""


def foods(episode: Episode) -> int:
    """Of the dish that a cooking task asks for."""
    return episode.task.instruction.count(" and ") + 1


def stuck(episode: Episode) -> str:
    """What its last steps were: nothing, nothing at an open way, to and fro, or none of these ("")."""
    tail = episode.transitions[-TAIL:]
    if not any(t.added or t.removed for t in tail):
        return AT_A_WAY if at_a_way(tail) else "stuck"
    return "to and fro" if len({t.action for t in tail}) <= 2 else ""


def at_a_way(tail: Sequence[Transition]) -> bool:
    """Whether most of these steps of several rooms walk from where one is towards an open way of the state, which never changes."""
    rooms = [line[1:].partition("]")[0] for line in tail[-1].state if line.endswith("] you: here")]
    [(action, _)] = Counter(t.action for t in tail).most_common(1)
    verb, _, where = action.partition(" ")
    return verb == "go" and any(line.endswith(f"] {room}_{where}: way") for room in rooms for line in tail[-1].state)


def counted(episodes: Iterable[Episode]) -> list[list[str]]:
    """Rows of the table, one for each number of foods."""
    found = list(episodes)
    last = max(e.policy_version for e in found) + 1
    groups: dict[tuple[int, str], list[Episode]] = defaultdict(list)
    for e in found:
        if e.policy_version >= last - LAST:
            groups[e.policy_version, e.task.id].append(e)
    lines = []
    for n in sorted({foods(e) for g in groups.values() for e in g}):
        of = [g for g in groups.values() if foods(g[0]) == n]
        ends = Counter(e.stop for g in of for e in g)
        how = Counter(stuck(e) for g in of for e in g if e.stop is StopReason.MAX_STEPS)
        full = [won for won in ([e.stop is StopReason.WON for e in g if e.valid] for g in of) if len(won) >= MEMBERS]
        shares = [f"{ends[stop] / ends.total():.2f}" for stop in (StopReason.WON, StopReason.LOST, StopReason.MAX_STEPS)]
        draws = min(LAST, last)
        differ = sum(any(g) and not all(g) for g in full)
        per_draw = [f"{len(full) / draws:.1f}", f"{differ / draws:.1f}"]
        how["stuck"] += how[AT_A_WAY]
        lines.append([str(n), str(ends.total()), *shares, *(str(how[k]) for k in ("stuck", AT_A_WAY, "to and fro")), *per_draw])
    return lines


def main(words: list[str]) -> None:
    if len(words) < 3:
        sys.exit(__doc__)
    level, method, *seeds = words
    head = ["seed", "foods", "episodes", "won", "lost", "out of steps", "stuck", AT_A_WAY, "to and fro", "groups a draw", "that differ"]
    lines = [head, ["---"] * len(head)]
    for seed in map(int, seeds):
        path = WORK / cell_path(level, method, seed).stem / "episodes.jsonl"
        if not path.exists():
            sys.exit(f"{path}: not there; python -m benchmarks.grid {level} {method} {seed} leaves it, once the cell's file is moved away")
        lines += [[str(seed), *line] for line in counted(read_episodes(path))]
    console.print(markdown(lines), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main(sys.argv[1:])
