"""Which steps an experience model of the grid gets wrong: for docs/results.md, by verb, and for moves between rooms by what is wrong.

    python -m benchmarks.wrong_steps hard            # prints; a minute

The scripted cooks play 20 *probe* games (real steps, counted as audit); every determined step of theirs is asked once, from its true
state. ``--read N`` also prints the first N wrong steps with state, truth, reply and trace, to be read side by side.
"""

import os
import sys
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.grid import Cell, console
from dreamgym.core.env import RealSteps
from dreamgym.core.grammar import Reply
from dreamgym.core.types import Transition
from dreamgym.experience.audit import determined, same_step
from dreamgym.experience.model import LocalExperienceModel
from dreamgym.experience.sft import requests_of
from dreamgym.pipeline.logs import tasks_of
from dreamgym.pipeline.play import play_real, seats_for
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.rl.policy import Scripted

GAMES = 20
SEED = 7


def what_is_wrong(real: Transition, reply: Reply | None) -> str:
    """Of one wrong step, the first of these that holds."""
    if reply is None:
        return "no usable reply"
    if reply.outcome != real.outcome:
        return f"said {reply.outcome} for {real.outcome}"
    said, truth = reply.change, set(real.added)
    here = {fact for fact in truth if fact.endswith(" you: here")}
    if not real.removed and not truth:
        return "said that something changes where nothing does"
    if not said.removed and not said.added:
        return "said that nothing changes"
    if here and not here & set(said.added):
        return "another room than the one that the exit leads to"
    if set(said.added) < truth and set(said.removed) == set(real.removed):
        return "facts left out"
    return "other facts"


def main(level: str, read: int) -> None:
    cell = Cell(level, "grpo_dream", 0)
    trained, _ = cell.experience()
    assert isinstance(trained, LocalExperienceModel)
    frozen = ReplayBuffer()
    frozen.add(cell.logs)
    prompt = trained.config.model_copy(update={"same_task": False})
    model = LocalExperienceModel(trained.lm, prompt, frozen.snapshot(), cell.wins)
    seats = seats_for(cell.adapter.tasks("probe", GAMES), SEED, 1)
    cooks = [Scripted(e) for e in cell.adapter.explorers().values()]
    counter = RealSteps(purpose="audit")
    episodes = [r.episode for cook in cooks for r in play_real(cook, cell.adapter, seats, counter, "audit", "explorer")]
    tasks = tasks_of(episodes)
    steps = [(e, i, r, t) for e in episodes for i, (r, t) in enumerate(requests_of(e, tasks[e.task.id])) if determined(r, t)]
    asked, wrong, kinds = Counter[str](), Counter[str](), Counter[str]()
    for (e, i, request, real), said in zip(steps, model.predict([r for _, _, r, _ in steps]), strict=True):
        verb = (real.action.split() or ["(empty)"])[0]
        asked[verb] += 1
        if same_step(said, real):
            continue
        wrong[verb] += 1
        kinds[f"{verb}: {what_is_wrong(real, said.reply)}"] += 1
        if wrong.total() <= read:
            console.print(f"{e.task.id}, step {i}: {real.action}\n  state {list(real.state)}\n  sheet {list(request.sheet)}", markup=False)
            console.print(f"  real  -{list(real.removed)} +{list(real.added)} {real.outcome}", markup=False)
            if said.reply:
                change = said.reply.change
                console.print(f"  said  -{list(change.removed)} +{list(change.added)} {said.reply.outcome}", markup=False)
                console.print(f"  trace {said.reply.reasoning}", markup=False)
    console.print(f"{wrong.total()} of {asked.total()} steps wrong ({counter.total} real steps); per verb, wrong of asked:")
    console.print(", ".join(f"{verb} {wrong[verb]} of {n}" for verb, n in asked.most_common()))
    for kind, n in kinds.most_common():
        console.print(f"{n:4} {kind}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    read = int(arguments[arguments.index("--read") + 1]) if "--read" in arguments else 0
    main(arguments[0] if arguments else "hard", read)
