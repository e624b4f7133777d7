"""The long audit of an experience model of the grid, over eight policies, four of them checkpoints of dream training.

    python -m benchmarks.fidelity easy            # writes benchmarks/results/fidelity-easy.json

Policies: the four scripted cooks, and the policy of seed 0 at the start, one third, two thirds and the end of its GRPO run (run anew
here, to have the checkpoints; killed, it goes on). 150 test games, each played twice by each policy, for real and in the dream.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.cells import GRPO, HERE, WORK, cell_path, commit, measure_code
from benchmarks.grid import Cell, console
from dreamgym.core.files import write_json
from dreamgym.experience.fidelity import local_draws
from dreamgym.experience.model import LocalExperienceModel
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.fidelity import fidelity_run
from dreamgym.pipeline.results import versions
from dreamgym.pipeline.rl_run import RLRun
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.rl.config import RLConfig


def main(level: str) -> None:
    cell = Cell(level, "grpo_dream", 0)
    model, buffer = cell.experience()
    assert isinstance(model, LocalExperienceModel)
    total = GRPO[level]["iterations"]
    folder = WORK / f"{cell_path(level, 'grpo_dream', 0).stem}-thirds"
    config = RLConfig(**GRPO[level])
    run = RLRun(cell.warm(), config, cell.tasks, cell.adapter, folder, model, buffer, cell.counter, choose=cell.curriculum())
    marks = {total // 3: "third", 2 * total // 3: "two_thirds", total: "end"}

    def report(metrics: dict[str, float]) -> None:
        console.print(f"GRPO {run.iteration}/{total}: dream reward {metrics['reward']:.2f}")
        if run.iteration in marks:
            run.lm.save(folder / marks[run.iteration])

    run.run(report)
    policies = {"start": LocalLM.load(cell.warm())} | {name: LocalLM.load(folder / name) for name in marks.values()}
    frozen = ReplayBuffer()
    frozen.add(cell.logs)
    prompt = model.config.model_copy(update={"same_task": False})
    judge = LocalExperienceModel(model.lm, prompt, frozen.snapshot(), cell.wins)
    draw = local_draws(model.lm, prompt, frozen.snapshot(), cell.wins)
    found = fidelity_run(cell.audit_config(), cell.adapter, judge, draw, cell.logs, policies, list(marks.values()))
    named = {"code": measure_code("fidelity", level), "commit": commit(), "versions": versions()}
    write_json(HERE / "results" / f"fidelity-{level}.json", {"level": level, **found, **named})
    for name, value in found.items():
        if name != "by_depth":
            console.print(f"{name:24} {value}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "easy")
