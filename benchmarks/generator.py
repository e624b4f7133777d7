"""The validity report of the task generator: are its tasks well formed, possible, new, and worth playing?

    python -m benchmarks.generator         # writes benchmarks/results/generator.json

The experience model of the mixed pool writes; the policy is the warm start of seed 0. 200 logged tasks, drawn uniformly, are played in
groups of four, which gives the values by which the generator picks what to vary, and once more, which gives the mean value that written
tasks are held against. What is written in a round is played in groups of four too before the next, as in a run, so that it has a value and
may be varied. Each written task is built as a real game that a scripted cook tries to win (its real steps are counted). What the
simulator's own dice add to a group's variance is measured by playing the same actions again under other keys (``pipeline/noise.py``).
"""

import os
import sys
from collections import Counter
from statistics import fmean

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.cells import HERE, POOL, all_levels, commit, measure_code
from benchmarks.grid import Cell, console
from dreamgym.core.env import RealSteps
from dreamgym.core.files import write_json
from dreamgym.core.seeding import keyed_rng
from dreamgym.curriculum.config import GeneratorConfig
from dreamgym.curriculum.generator import LACKING
from dreamgym.curriculum.sampler import ValueSampler
from dreamgym.curriculum.values import variance
from dreamgym.envs.textworld.realise import solved
from dreamgym.experience.model import LocalExperienceModel
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.config import Curriculum
from dreamgym.pipeline.noise import Groups, groups, simulators_share
from dreamgym.pipeline.play import play_dream, seats_for
from dreamgym.pipeline.player import task_generator
from dreamgym.pipeline.results import versions
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.rl.credit import episode_return
from dreamgym.rl.policy import Policy
from dreamgym.rl.rollout import Rollout

TASKS, GROUP, WANTED, ROUNDS = 200, 4, 200, 20
PARENTS = 24
"""Tasks varied in a round."""


def mean_value(found: Groups) -> float:
    """Mean V (Eq. 7) of the groups that have two valid members."""
    values = [variance([episode_return(r) for r in rs]) for rs in found.values()]
    return fmean(v for v in values if v is not None)


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if POOL not in all_levels():
        sys.exit(f"error: no logs of {POOL}; fix: python -m benchmarks.ship logs {POOL}, then base rooms")
    cell, buffer = Cell(POOL, "grpo_dream+lambda_25", 0), ReplayBuffer()
    buffer.add(cell.logs)
    model = LocalExperienceModel(cell.trained(), cell.prompt(), buffer.snapshot(), cell.wins)
    actor, cap = Policy(LocalLM.load(cell.warm()), 1.0), cell.adapter.cap
    names = sorted(cell.tasks)
    drawn = [names[int(i)] for i in keyed_rng("generator", "uniform").permutation(len(names))[:TASKS]]
    first = play_dream(actor, model, cap, seats_for([cell.tasks[n] for n in drawn], 0, GROUP))
    fresh = play_dream(actor, model, cap, seats_for([cell.tasks[n] for n in drawn], 1, GROUP))
    sampler = ValueSampler(names, 0)
    for name, rs in groups(first).items():
        sampler.observe(name, [episode_return(r) for r in rs])
    curriculum = Curriculum(synthetic=0.25, generator=GeneratorConfig(parents=PARENTS))
    generator, _ = task_generator(model, cell.adapter, list(cell.tasks.values()), curriculum, 0)
    drafts, tasks, played = [], dict(cell.tasks), list[Rollout]()
    for n in range(ROUNDS):
        found = generator.vary(tasks, sampler.values(), n)
        new = [d.task for d in found if d.task]
        sampler.add(new)
        now = play_dream(actor, model, cap, seats_for(new, 0, GROUP)) if new else []
        for name, rs in groups(now).items():
            sampler.observe(name, [episode_return(r) for r in rs])
        drafts, tasks, played = [*drafts, *found], tasks | {t.id: t for t in new}, [*played, *now]
        worth = f", their mean value {mean_value(groups(now)):.3f}" if new else ""
        console.print(f"round {n + 1}: {len(drafts)} drafts, {len(tasks) - len(cell.tasks)} kept; {len(new)} of this round{worth}")
        if len(tasks) - len(cell.tasks) >= WANTED:
            break
    kept = [d.task for d in drafts if d.task]
    counter = RealSteps(purpose="audit")
    proofs = []
    for i, task in enumerate(kept):
        proofs.append(solved(task, counter, cap))
        if i % 20 == 19:
            console.print(f"{i + 1} of {len(kept)} realised, {sum(p.solvable for p in proofs)} solved")
    known = {cell.adapter.canonical(t.instruction) for t in cell.tasks.values()}
    verdicts = Counter(d.verdict.partition(":")[0] for d in drafts)
    held = [d for d in drafts if d.task or d.verdict.startswith((LACKING, "another draft", "none was"))]  # against their worlds
    uniform, written = mean_value(groups(fresh)), mean_value(groups(played))
    result = {
        "level": POOL,
        "n": len(kept),
        "drafts": len(drafts),
        "well_formed": fmean(generator.well_formed(d.instruction) for d in drafts),
        "possible": fmean(not d.verdict.startswith(LACKING) for d in held),
        "furnished": fmean(bool(d.furnished) for d in held),
        "solvable": fmean(p.solvable for p in proofs),
        "not_solvable": Counter(p.reason.partition(":")[0] for p in proofs if not p.solvable),
        "novel": fmean(cell.adapter.canonical(t.instruction) not in known for t in kept),
        "value_uniform": uniform,
        "value_written": written,
        "value_ratio": written / uniform,
        "rejected": {k: n for k, n in verdicts.most_common() if k != "kept"},
        "by_difficulty": Counter(t.difficulty for t in kept),
        "examples": [{"seeds": d.seeds, "instruction": d.instruction, "verdict": d.verdict} for d in drafts[:40]],
        "simulator_variance_share": simulators_share(model, buffer.snapshot(), cap, first, cell.tasks),
        "real_steps_audit": counter.total,
        "code": measure_code("generator", POOL),
        "commit": commit(),
        "versions": versions(),
    }
    write_json(HERE / "results" / "generator.json", result)
    for name, value in result.items():
        if name != "examples":
            console.print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
