"""How much of the variance of a group's rewards is the simulator's own dice, and not the policy's: Eq. 7 would take it for a task's worth.

    share = simulators_share(model, retrieval, adapter.cap, play_dream(...), tasks)

Tasks are played in groups in the dream, and then each episode's actions twice more under other keys. An experience model that answers a
question as before, whatever the key, adds nothing: 0. One that samples (a server at a temperature above 0) does.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, variance

from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Task
from dreamgym.experience.model import ExperienceModel
from dreamgym.pipeline.fidelity import Replayed
from dreamgym.pipeline.play import play_dream, seats_for
from dreamgym.replay.contract import Retrieval
from dreamgym.rl.credit import episode_return
from dreamgym.rl.policy import Actor
from dreamgym.rl.rollout import Rollout, Seat

TASKS, GROUP = 20, 4
"""Of the long audit."""
Groups = dict[str, list[Rollout]]


def groups(played: Sequence[Rollout]) -> Groups:
    """Episodes by task."""
    found: Groups = {}
    for r in played:
        found.setdefault(r.episode.task.id, []).append(r)
    return found


def simulators_share(model: ExperienceModel, retrieval: Retrieval, cap: int, played: Sequence[Rollout], tasks: Mapping[str, Task]) -> float:
    """Variance of an episode's reward when its actions are taken again under other keys, over the variance inside groups; both unbiased,
    means over all episodes and groups. 0 where groups do not vary."""
    size = 1 + max(r.episode.member for r in played)
    seated = {(r.episode.task.id, r.episode.member + size * n): r.episode for r in played for n in (1, 2)}
    seats = [Seat(tasks[task], member, 1 + member // size, 1 + member // size) for task, member in seated]
    model.use(retrieval)  # what it answered is forgotten
    again = groups(play_dream(Replayed(seated), model, cap, seats))
    noise, whole = [], []
    for name, first in groups(played).items():
        own = [v for v in map(episode_return, first) if v is not None]
        if len(own) > 1:
            whole.append(variance(own))
        for r in first:
            same = [x for x in again[name] if x.episode.member % size == r.episode.member]
            rewards = [v for v in map(episode_return, [r, *same]) if v is not None]
            if len(rewards) > 1:
                noise.append(variance(rewards))
    return fmean(noise) / fmean(whole) if noise and any(whole) else 0.0


def share_on_logged_tasks(
    model: ExperienceModel, retrieval: Retrieval, cap: int, policy: Actor, tasks: Mapping[str, Task], seed: int
) -> float:
    """``simulators_share`` on ``TASKS`` logged tasks, drawn, in groups of ``GROUP`` that ``policy`` plays as in training."""
    names = sorted(tasks)
    drawn = [tasks[names[int(i)]] for i in keyed_rng(seed, "noise").permutation(len(names))[:TASKS]]
    model.use(retrieval)
    return simulators_share(model, retrieval, cap, play_dream(policy, model, cap, seats_for(drawn, seed, GROUP)), tasks)
