"""The rollout engine and the trainer, each against the plain way to do the same, within one run.

    python -m benchmarks.rollout            # one thread, some minutes; writes benchmarks/results/rollout.json

- ``vs_hf_loop``: transitions per second in the dream (*easy*, logged tasks), 64 episodes at once, against one episode after the other with
  transformers' ``generate`` for each turn of the policy and of the experience model: same models, prompts, temperatures and budgets.
- ``vs_hf_loop_real``: the same in real TextWorld games (probe), whose own time is in both and not ours to shorten.
- ``ours_env_s``: 16 episodes of 3 turns whose environment takes 50 ms a step, with a policy that takes none (limit 0.15);
  ``trl_env_s``: the same by TRL's ``environment_factory`` (``benchmarks/trl_environment.py``).
- ``overhead_share``, ``overhead_ms_per_transition``: in the real games, the time that is neither in the policy's generation nor in the
  environment: what renders, tokenises, decodes, gathers batches and writes episodes down.
- ``kv_reuse_speedup``: seconds of a policy with transcripts (its warm start) in the same games, keys and values kept from turn to turn,
  against reading each prompt anew.
- ``trainer_ratio``: an update of the trainer against bare forward, backward and optimiser steps on the same batches, the forward pass
  for the old log-probabilities included in both; ``trainer_ratio_without_old``: against the bare steps alone.

Each side is measured three times by turns, and its best is taken, not the best ratio; shares are medians.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from benchmarks.cells import HERE, SFT, commit
from benchmarks.grid import Cell
from benchmarks.trl_environment import trl_environment_s
from dreamgym.core.env import Env, Info, RealSteps, Step
from dreamgym.core.files import write_json
from dreamgym.core.state import state_of_text
from dreamgym.core.types import Task
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.experience.model import LocalExperienceModel
from dreamgym.lm.fit import FitConfig
from dreamgym.lm.local import Generation, LocalLM
from dreamgym.lm.packing import IGNORED, collate, pack
from dreamgym.lm.precision import short
from dreamgym.pipeline.learn import warm_start
from dreamgym.pipeline.logs import successes
from dreamgym.pipeline.play import play_dream
from dreamgym.pipeline.results import versions
from dreamgym.pipeline.stages import shipped
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.rl.config import RLConfig
from dreamgym.rl.context import Transcript, Turn
from dreamgym.rl.policy import ACTION_TOKENS, STATE_CONTEXT, Policy, Sample
from dreamgym.rl.rollout import Rollout, Seat, rollouts
from dreamgym.rl.trainer import Trainer, policy_trees

GAMES, LONGEST = 64, 10
console = Console(highlight=False)


@dataclass
class Clock:
    """Seconds spent inside what is given it."""

    seconds: float = 0.0


class TimedActor:
    def __init__(self, policy: Policy, clock: Clock) -> None:
        self.policy, self.clock = policy, clock

    def act(self, turns: Sequence[Turn]) -> list[Sample]:
        start = time.perf_counter()
        try:
            return self.policy.act(turns)
        finally:
            self.clock.seconds += time.perf_counter() - start


class TimedLM(LocalLM):
    """A model whose generation is timed, and nothing around it."""

    def __init__(self, lm: LocalLM, clock: Clock) -> None:
        super().__init__(lm.model, lm.tokenizer)
        self.clock = clock

    def generate(self, *words: Any, **named: Any) -> list[Generation]:
        start = time.perf_counter()
        try:
            return super().generate(*words, **named)
        finally:
            self.clock.seconds += time.perf_counter() - start


class TimedEnv:
    """An environment whose time is counted; it computes without waiting, so its time is its own."""

    def __init__(self, env: Env, clock: Clock) -> None:
        self.env, self.clock = env, clock

    async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
        start = time.perf_counter()
        try:
            return await self.env.reset(task, seed)
        finally:
            self.clock.seconds += time.perf_counter() - start

    async def step(self, action: str) -> Step:
        start = time.perf_counter()
        try:
            return await self.env.step(action)
        finally:
            self.clock.seconds += time.perf_counter() - start

    async def close(self) -> None:
        await self.env.close()


class Slow:
    """Three turns of 50 ms."""

    async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
        self.turns = 0
        return "[room] lamp: off", {"instruction": "wait"}

    async def step(self, action: str) -> Step:
        await asyncio.sleep(0.05)
        self.turns += 1
        return Step("[room] lamp: off", 0.0, self.turns == 3, False, {})

    async def close(self) -> None:
        pass


class Instant:
    """A policy that takes no time."""

    def act(self, turns: Sequence[Turn]) -> list[Sample]:
        return [Sample((1,), (2,), (0.0,), "wait") for _ in turns]


def at_once(lm: LocalLM, adapter: TextWorldAdapter, tasks: Sequence[Task]) -> tuple[list[Rollout], float, float]:
    """All episodes by the engine: rollouts, seconds, and seconds outside generation and environment."""
    clock, counter = Clock(), RealSteps()
    seats = [Seat(t, 0, 0) for t in tasks]
    start = time.perf_counter()
    played = rollouts(
        Policy(TimedLM(lm, clock), 1.0),
        lambda seat, _: TimedEnv(adapter.env(counter), clock),
        seats,
        "real",
        adapter.name,
        longest=LONGEST,
    )
    wall = time.perf_counter() - start
    return played, wall, wall - clock.seconds


def one_by_one(lm: LocalLM, adapter: TextWorldAdapter, tasks: Sequence[Task]) -> tuple[int, float]:
    """A loop over episodes with transformers' ``generate``: transitions and seconds."""

    async def episode(task: Task) -> int:
        env = adapter.env(RealSteps())
        observation, info = await env.reset(task, 0)
        taken = 0
        while taken < LONGEST:
            turn = Turn(str(info["instruction"]), state_of_text(observation), ())
            [prompt] = STATE_CONTEXT.prompts(lm, [turn])
            with torch.inference_mode():
                ids = lm.model.generate(
                    torch.tensor([prompt]), do_sample=True, temperature=1.0, top_k=0, max_new_tokens=ACTION_TOKENS,
                    pad_token_id=lm.pad, eos_token_id=lm.eos,
                )[0, len(prompt) :]  # fmt: skip
            step = await env.step(" ".join(lm.decode(ids.tolist()).split()))
            taken += 1
            observation = step.observation
            if step.terminated or step.truncated:
                break
        await env.close()
        return taken

    start = time.perf_counter()
    return sum(asyncio.run(episode(t)) for t in tasks), time.perf_counter() - start


class OneByOne(LocalLM):
    """Answers prompt after prompt by transformers' ``generate``."""

    def generate(self, prompts: Sequence[Sequence[int]], budget: int, temperature: float = 0.0, *_: object) -> list[Generation]:
        found = []
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        for prompt in prompts:
            with torch.inference_mode():
                ids = self.model.generate(
                    torch.tensor([list(prompt)]), max_new_tokens=budget, pad_token_id=self.pad, eos_token_id=self.eos, **how
                )[0, len(prompt) :].tolist()  # fmt: skip
            found.append(Generation(tuple(ids), (0.0,) * len(ids), ids[-1] == self.eos))
        return found


def dreamed_per_s(cell: Cell, player: LocalExperienceModel, make: type[LocalLM], policy: LocalLM, tasks: int, together: bool) -> float:
    """Transitions per second in the dream, all episodes at once or one after the other."""
    chosen = [cell.tasks[name] for name in sorted(cell.tasks)[:tasks]]
    frozen = ReplayBuffer()
    frozen.add(cell.logs)
    model = LocalExperienceModel(make(player.lm.model, player.lm.tokenizer), player.config, frozen.snapshot())
    actor, seats = Policy(make(policy.model, policy.tokenizer), 1.0), [Seat(t, 0, 0) for t in chosen]
    parts = [seats] if together else [[s] for s in seats]
    start = time.perf_counter()
    played = [r for part in parts for r in play_dream(actor, model, LONGEST, part)]
    return sum(len(r.samples) for r in played) / (time.perf_counter() - start)


def transcripts_s(lm: LocalLM, adapter: TextWorldAdapter, tasks: Sequence[Task], keep: bool) -> float:
    """Seconds of the policy in ``tasks``, with what it read and said kept from turn to turn or not."""
    clock, counter, policy = Clock(), RealSteps(), Policy(lm, 1.0, context=Transcript())
    if not keep:
        policy.memory = None
    rollouts(TimedActor(policy, clock), lambda seat, _: adapter.env(counter), [Seat(t, 0, 0) for t in tasks], "real", adapter.name)
    return clock.seconds


def slow_environment_s() -> float:
    seats = [Seat(Task(id=f"slow/{i}", instruction="wait", first_state=()), 0, 0) for i in range(16)]
    start = time.perf_counter()
    rollouts(Instant(), lambda seat, _: Slow(), seats, "real", "slow")
    return time.perf_counter() - start


def trainer_and_bare_s(lm: LocalLM, played: Sequence[Rollout]) -> tuple[float, float, float]:
    """Seconds of the trainer's update, of the bare pass for old log-probabilities and of bare steps, on the same tokens."""
    config = RLConfig(iterations=1000)
    trees = policy_trees([(r, [1.0 if i % 2 else -1.0 for i in range(len(r.samples))]) for i, r in enumerate(played)])
    trainer = Trainer(lm, config, lambda seats: [], shipped("base"))
    start = time.perf_counter()
    trainer._update(trees)
    ours = time.perf_counter() - start

    rows = pack(trees, config.row_length)
    batches = [collate(rows[i : i + config.rows], lm.pad, policy=True) for i in range(0, len(rows), config.rows)]
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-5, betas=(0.9, 0.98))
    share = max(1, -(-len(batches) // config.updates))

    def logp(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        where = batch["labels"][:, 1:] != IGNORED
        with short(torch.device("cpu")):
            inputs = {k: batch[k] for k in ("input_ids", "position_ids", "attention_mask")}
            logits = lm.model.lm_head(lm.model.model(**inputs, use_cache=False).last_hidden_state[:, :-1][where])
        return torch.log_softmax(logits.float(), -1).gather(1, batch["labels"][:, 1:][where][:, None])[:, 0]

    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            logp(batch)
    old = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(config.passes):
        for first in range(0, len(batches), share):
            for batch in batches[first : first + share]:
                advantage = batch["advantages"][:, 1:][batch["labels"][:, 1:] != IGNORED]
                (-(logp(batch) * advantage).mean()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    bare = time.perf_counter() - start
    return ours, old, bare


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    adapter = TextWorldAdapter("easy")
    lm, tasks = LocalLM.load(shipped("base")), adapter.tasks("probe", GAMES)
    at_once(lm, adapter, tasks[:8])  # games are made at their first use
    one_by_one(lm, adapter, tasks[:2])
    together, apart, outsides, shares = [], [], [], []
    for _ in range(3):
        played, wall, outside = at_once(lm, adapter, tasks)
        n = sum(len(r.episode.transitions) for r in played)
        m, alone = one_by_one(lm, adapter, tasks[:16])
        together.append(n / wall)
        apart.append(m / alone)
        outsides.append(1e3 * outside / n)
        shares.append(outside / wall)
        console.print(f"{n / wall:.0f} transitions/s at once, {m / alone:.0f} one by one, outside {outside / wall:.3f}")
    cell = Cell("easy", "grpo_dream", 0)
    player, warm = cell.experience()[0], LocalLM.load(cell.warm())
    assert isinstance(player, LocalExperienceModel)
    dreaming, looping = [], []
    for _ in range(3):
        dreaming.append(dreamed_per_s(cell, player, LocalLM, warm, GAMES, True))
        looping.append(dreamed_per_s(cell, player, OneByOne, warm, 8, False))
        console.print(f"dreamed: {dreaming[-1]:.0f} transitions/s at once, {looping[-1]:.1f} one by one")
    demos = [e for e in successes(cell.logs) if e.behaviour == "expert"]
    with tempfile.TemporaryDirectory() as folder:
        fit = FitConfig(**SFT["easy"] | {"row_length": 1024, "rows": 1})
        transcript = warm_start(shipped("base"), demos, fit, Path(folder) / "sft", context=Transcript())
    kept, anew = [], []
    for _ in range(3):
        kept.append(transcripts_s(transcript, adapter, tasks, True))
        anew.append(transcripts_s(transcript, adapter, tasks, False))
        console.print(f"transcripts: {kept[-1]:.2f} s with keys and values kept, {anew[-1]:.2f} s without")
    ours, old, bare = map(min, zip(*(trainer_and_bare_s(LocalLM.load(shipped("base")), played) for _ in range(3)), strict=True))
    found = {
        "vs_hf_loop": max(dreaming) / max(looping),
        "vs_hf_loop_real": max(together) / max(apart),
        "overhead_share": median(shares),
        "overhead_ms_per_transition": median(outsides),
        "ours_env_s": min(slow_environment_s() for _ in range(3)),
        "trl_env_s": min(trl_environment_s() for _ in range(3)),
        "kv_reuse_speedup": min(anew) / min(kept),
        "trainer_ratio": ours / (bare + old),
        "trainer_ratio_without_old": ours / bare,
        "games": GAMES,
        "longest": LONGEST,
        "commit": commit(),
        "versions": versions(),
    }
    write_json(HERE / "results" / "rollout.json", found)
    console.print({k: round(v, 3) for k, v in found.items() if isinstance(v, float)})


if __name__ == "__main__":
    main()
