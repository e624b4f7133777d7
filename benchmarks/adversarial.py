"""The adversarial suite on an experience model of the grid: what is granted that the real environment does not give.

    python -m benchmarks.adversarial easy          # writes benchmarks/results/adversarial-easy.json

Scenes come from real wins of the competent explorer on test games; its steps and those of the attacks are counted as audit. The
attacks come twice: on the experience model as runs have it, where a success needs a precedent in the logs, and without that.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.cells import HERE, commit, measure_code
from benchmarks.grid import Cell
from dreamgym.core.env import RealSteps
from dreamgym.core.files import write_json
from dreamgym.core.types import StopReason
from dreamgym.experience.model import LocalExperienceModel
from dreamgym.experience.prompt import ExperienceConfig
from dreamgym.pipeline.attack import attack_run
from dreamgym.pipeline.play import play_real, seats_for
from dreamgym.pipeline.results import versions
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.rl.policy import Scripted

GAMES = 30


def main(level: str) -> None:
    cell = Cell(level, "grpo_dream", 0)
    buffer = ReplayBuffer()
    buffer.add(cell.logs)
    lm = cell.trained()
    model = LocalExperienceModel(lm, ExperienceConfig(), buffer.snapshot(), cell.wins)
    alone = LocalExperienceModel(lm, ExperienceConfig(), buffer.snapshot())
    counter = RealSteps()
    expert = Scripted(cell.adapter.explorers()["expert"])
    seats = seats_for(cell.adapter.tasks("test", GAMES), 0)
    played = [r.episode for r in play_real(expert, cell.adapter, seats, counter, "audit", "expert")]
    won = [e for e in played if e.stop == StopReason.WON]
    found = attack_run(model, cell.adapter, won, counter).result()
    without = attack_run(alone, cell.adapter, won, counter).result()
    shown = {k: without[k] for k in ("granted", "due_granted", "granted_by_kind", "examples")}
    result = {"level": level, "games": len(won), **found, "without_precedent": shown, "real_steps_audit": counter.total}
    named = {"code": measure_code("adversarial", level), "commit": commit(), "versions": versions()}
    write_json(HERE / "results" / f"adversarial-{level}.json", {**result, **named})
    for name, value in result.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "easy")
