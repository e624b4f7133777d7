"""The rollout engine: many episodes at once, in any environment that speaks ``Env``.

Every episode is a coroutine; their policy calls (and a dream's experience-model calls) are gathered into batches by
``Lockstep``. A failed environment makes its own episode invalid and stops nobody else's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dreamgym.core.env import Env
from dreamgym.core.errors import DreamgymError
from dreamgym.core.lockstep import BatchFunction, Lockstep
from dreamgym.core.record import stop_of, transition_of
from dreamgym.core.state import state_of_text
from dreamgym.core.types import Episode, Source, StopReason, Task, Transition
from dreamgym.rl.context import Turn
from dreamgym.rl.policy import Actor, Sample


@dataclass(frozen=True)
class Rollout:
    """An episode and the policy's tokens at each of its steps."""

    episode: Episode
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """One episode to play: a task, the member of its group, and the seed and iteration that key its draws."""

    task: Task
    member: int
    seed: int
    iteration: int = 0


MakeEnv = Callable[[Seat, Lockstep], Env]


def rollouts(
    policy: Actor,
    make_env: MakeEnv,
    seats: Sequence[Seat],
    source: Source,
    env_name: str,
    behaviour: str = "policy",
    services: Mapping[str, BatchFunction] | None = None,
    longest: int | None = None,
) -> list[Rollout]:
    """Play all ``seats`` with ``policy``; results in their order.

    ``services``: further batch functions, by name. ``longest``: steps after which an episode is over, where the environment has not
    ended it before.
    """
    lockstep = Lockstep({"policy": policy.act, **(services or {})})

    async def play(seat: Seat) -> Rollout:
        return await _episode(seat, make_env(seat, lockstep), lockstep, source, env_name, behaviour, longest)

    return asyncio.run(lockstep.run([play(s) for s in seats]))


async def _episode(seat: Seat, env: Env, lockstep: Lockstep, source: Source, env_name: str, behaviour: str, longest: int | None) -> Rollout:
    samples: list[Sample] = []
    steps: list[Transition] = []
    stop: StopReason | None = None
    task = seat.task
    try:
        observation, info = await env.reset(seat.task, seat.seed)
        state = state_of_text(observation)
        instruction = str(info.get("instruction", task.instruction))
        task = task.model_copy(update={"instruction": instruction, "first_state": state})
        while stop is None:
            said = (*samples[-1].prompt, *samples[-1].ids) if samples else ()
            turn = Turn(instruction, state, (seat.seed, seat.iteration, seat.task.id, seat.member, len(steps)), tuple(steps), said)
            sample = await lockstep.call("policy", turn.key, turn)
            assert isinstance(sample, Sample)
            answer = await env.step(sample.action)
            after = state_of_text(answer.observation)
            step = transition_of(state, sample.action, answer, after)
            stop = stop_of(answer)
            samples.append(sample)
            steps.append(step)
            state = after
            if stop is None and len(steps) == longest:
                stop = StopReason.MAX_STEPS
    except DreamgymError:
        raise
    except (OSError, RuntimeError, ValueError):
        stop = StopReason.INVALID_ENV
    finally:
        await env.close()
    episode = Episode(
        id=f"{task.id}#{env_name}{seat.seed}.{seat.iteration}.{seat.member}",
        env=env_name,
        task=task,
        source=source,
        behaviour=behaviour,
        policy_version=seat.iteration,
        seed=seat.seed,
        member=seat.member,
        transitions=tuple(steps),
        stop=stop or StopReason.INVALID_ENV,
    )
    return Rollout(episode, tuple(samples))
