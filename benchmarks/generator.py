"""The validity report of the task generator: are its tasks well formed, possible, new, and worth playing?

    python -m benchmarks.generator         # writes benchmarks/results/generator.json, after each seed; killed, it goes on at the next

The experience model of the mixed pool writes; the policies are the warm starts of the pool's seeds. 200 logged tasks, drawn uniformly, are
played in groups of four, which gives the values by which the generator picks what to vary, and once more, which gives the mean value that
written tasks are held against. What is written in a round is played in groups of four too before the next, as in a run, so that it has a
value and may be varied. Each written task is built as a real game that a scripted cook tries to win (its real steps are counted). What the
simulator's own dice add to a group's variance is measured by playing the same actions again under other keys (``pipeline/noise.py``).
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.cells import HERE, POOL, SEEDS, WORK, all_levels, commit, measure_code
from benchmarks.grid import Cell, console
from dreamgym.core.env import RealSteps
from dreamgym.core.files import read_json, write_json
from dreamgym.core.seeding import keyed_rng
from dreamgym.curriculum.config import GeneratorConfig
from dreamgym.curriculum.generator import LACKING, Draft
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
SHARES = {"well_formed": "drafts", "possible": "held", "furnished": "held", "solvable": "n", "novel": "n"}
"""What is reported as a share, and of what."""
Json = dict[str, Any]


def worth(found: Groups) -> list[float]:
    """V (Eq. 7) of each group that has two valid members."""
    values = [variance([episode_return(r) for r in rs]) for rs in found.values()]
    return [v for v in values if v is not None]


def measured(seed: int) -> Json:
    """With the warm start of ``seed``: counts, and the values of tasks drawn uniformly and of written ones."""
    cell, buffer = Cell(POOL, "grpo_dream+lambda_25", seed), ReplayBuffer()
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
    generator, _ = task_generator(model, cell.adapter, list(cell.tasks.values()), curriculum, seed)
    drafts, tasks, played = list[Draft](), dict(cell.tasks), list[Rollout]()
    for n in range(ROUNDS):
        found = generator.vary(tasks, sampler.values(), n)
        new = [d.task for d in found if d.task]
        sampler.add(new)
        now = play_dream(actor, model, cap, seats_for(new, 0, GROUP)) if new else []
        for name, rs in groups(now).items():
            sampler.observe(name, [episode_return(r) for r in rs])
        drafts, tasks, played = [*drafts, *found], tasks | {t.id: t for t in new}, [*played, *now]
        of_round = f", their mean value {fmean(worth(groups(now))):.3f}" if new else ""
        console.print(
            f"seed {seed}, round {n + 1}: {len(drafts)} drafts, {len(tasks) - len(cell.tasks)} kept; {len(new)} of this round{of_round}"
        )
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
    held = [d for d in drafts if d.task or d.verdict.startswith((LACKING, "another draft", "none was"))]  # against their worlds
    return {
        "n": len(kept),
        "drafts": len(drafts),
        "held": len(held),
        "well_formed": sum(generator.well_formed(d.instruction) for d in drafts),
        "possible": sum(not d.verdict.startswith(LACKING) for d in held),
        "furnished": sum(bool(d.furnished) for d in held),
        "solvable": sum(p.solvable for p in proofs),
        "not_solvable": Counter(p.reason.partition(":")[0] for p in proofs if not p.solvable),
        "novel": sum(cell.adapter.canonical(t.instruction) not in known for t in kept),
        "uniform": worth(groups(fresh)),
        "written": worth(groups(played)),
        "rejected": Counter(d.verdict.partition(":")[0] for d in drafts if not d.task),
        "by_difficulty": Counter(t.difficulty for t in kept),
        "examples": [{"seeds": d.seeds, "instruction": d.instruction, "verdict": d.verdict} for d in drafts[:40]],
        "simulator_variance_share": simulators_share(model, buffer.snapshot(), cap, first, cell.tasks),
        "real_steps_audit": counter.total,
    }


def together(found: Sequence[Json]) -> Json:
    """Shares of the drafts and written tasks of all seeds; the values are means over seeds of each one's mean."""
    total = {k: sum(f[k] for f in found) for k in ("n", "drafts", "held", "real_steps_audit", *SHARES)}
    counts = {k: sum((Counter(f[k]) for f in found), Counter()) for k in ("not_solvable", "rejected", "by_difficulty")}
    uniform, written = ([fmean(f[k]) for f in found] for k in ("uniform", "written"))
    return {
        "n": total["n"],
        "drafts": total["drafts"],
        **{k: total[k] / total[of] for k, of in SHARES.items()},
        "value_uniform": fmean(uniform),
        "value_written": fmean(written),
        "value_ratio": fmean(written) / fmean(uniform),
        "by_seed": {"value_uniform": uniform, "value_written": written},
        **{k: dict(c.most_common()) for k, c in counts.items()},
        "simulator_variance_share": fmean(f["simulator_variance_share"] for f in found),
        "real_steps_audit": total["real_steps_audit"],
        "examples": found[0]["examples"],
    }


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if POOL not in all_levels():
        sys.exit(f"error: no logs of {POOL}; fix: python -m benchmarks.ship logs {POOL}, then base rooms")
    code, found = measure_code("generator", POOL), {}
    for seed in SEEDS:
        path = WORK / f"generator-s{seed}-{code}.json"
        if not path.exists():
            write_json(path, measured(seed))
        found[seed] = read_json(path)
        said = {"code": code, "commit": commit(), "versions": versions()}
        result = {"level": POOL, "seeds": list(found), **together(list(found.values())), **said}
        write_json(HERE / "results" / "generator.json", result)
    for name, value in result.items():
        if name != "examples":
            console.print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
