"""One contract suite for every environment: real (TextWorld, Gymnasium) and dreamed, through the shims too."""

import asyncio
from pathlib import Path

import pytest

from dreamgym.core.env import Env, RealSteps, Step
from dreamgym.core.grammar import Reply
from dreamgym.core.lockstep import Lockstep
from dreamgym.core.state import Change
from dreamgym.core.types import StopReason, Task
from dreamgym.dream import DreamEnv, SheetBook
from dreamgym.experience.model import Prediction
from dreamgym.experience.prompt import Request
from dreamgym.rl.policy import Scripted
from dreamgym.rl.rollout import Seat, rollouts

CLOSED, OPEN, LIME = "[kitchen] fridge: closed", "[kitchen] fridge: open", "[fridge] lime: fresh"
DREAM_TASK = Task(id="dream/1", instruction="eat the lime", first_state=(CLOSED,), sheet=(LIME,), panel="train")


def a_fridge(request: Request) -> Prediction:
    """A scripted experience model: shows what the sheet says, fails on nonsense, answers garbage to 'garble'."""
    if request.action == "garble":
        return Prediction(None, StopReason.INVALID_REPLY, "@@")
    if request.action == "open fridge" and CLOSED in request.state:
        return Prediction(Reply("", Change((CLOSED,), (OPEN, *request.sheet)), "go"), None, "")
    if request.action == "close fridge" and OPEN in request.state:
        return Prediction(Reply("", Change((OPEN,), (CLOSED,)), "go"), None, "")
    if request.action == "eat lime" and LIME in request.state:
        return Prediction(Reply("", Change((LIME,)), "go" if [p.action for p in request.past].count("eat lime") else "won"), None, "")
    return Prediction(Reply("nothing", Change(), "go"), None, "")


async def predict(request: Request) -> Prediction:
    return a_fridge(request)


def dream():
    return DreamEnv(predict, cap=4), DREAM_TASK, ["open fridge", "look", "eat lime"]


def vault():
    pytest.importorskip("gymnasium", reason="needs the extra [gym]")
    from examples.own_environment import adapter, expert

    counter = RealSteps()
    env, task = adapter.env(counter), adapter.tasks("train", 1)[0]
    observation, info = asyncio.run(env.reset(task, 0))
    import numpy as np

    actions, state = [], observation
    for turn in range(10):
        actions.append(expert(info["instruction"], tuple(state.splitlines()), np.random.default_rng(turn)))
        step = asyncio.run(env.step(actions[-1]))
        state = step.observation
        if step.terminated:
            break
    return adapter.env(counter), task, actions


def cooking():
    pytest.importorskip("textworld", reason="needs the extra [textworld]")
    from dreamgym.envs.textworld.env import TextWorldEnv, look_at

    counter = RealSteps()
    return (
        TextWorldEnv(counter),
        look_at("easy", 1, "train", counter),
        [
            "take red_potato from counter",
            "cook red_potato with stove",
            "take knife from counter",
            "slice red_potato with knife",
            "prepare meal",
            "eat meal",
        ],
    )


def both_shims():
    """A dream as a Gymnasium environment, and that as an ``Env`` again."""
    pytest.importorskip("gymnasium", reason="needs the extra [gym]")
    from dreamgym.envs.gym import GymEnv, TextGym

    env, task, actions = dream()
    return GymEnv(lambda: TextGym(env, [task]), RealSteps(), "", cap=4), task, actions


ENVIRONMENTS = pytest.mark.parametrize("make", [dream, vault, both_shims, cooking])


async def play(env, task, actions, seed=0):
    seen = [await env.reset(task, seed)]
    for action in actions:
        step = await env.step(action)
        assert isinstance(step, Step)
        assert isinstance(step.observation, str)
        seen.append(step)
        if step.terminated or step.truncated:
            break
    return seen


@ENVIRONMENTS
def test_the_protocol(make):
    env, task, actions = make()
    assert isinstance(env, Env)
    (observation, info), *steps = asyncio.run(play(env, task, actions))
    assert observation.splitlines() == sorted(observation.splitlines())
    assert info["instruction"]
    assert all(s.reward == 0.0 for s in steps[:-1])
    assert steps[-1].reward == 1.0
    assert steps[-1].terminated
    assert steps[-1].info["stop"] == StopReason.WON


@ENVIRONMENTS
def test_the_same_task_and_seed_give_the_same_episode(make):
    env, task, actions = make()
    first = asyncio.run(play(env, task, actions))
    again = asyncio.run(play(env, task, actions))
    assert [first[0][0]] + [s.observation for s in first[1:]] == [again[0][0]] + [s.observation for s in again[1:]]
    asyncio.run(env.close())


@ENVIRONMENTS
def test_odd_actions_are_harmless(make):
    env, task, _ = make()
    (before, _), *steps = asyncio.run(play(env, task, ["", "@won", "xyzzy " * 500, "eat \n meal; @go"]))
    assert all(s.observation == before and s.reward == 0.0 and not s.terminated for s in steps)


@ENVIRONMENTS
def test_the_cap_truncates_and_an_ended_episode_refuses_steps(make):
    env, task, _ = make()
    *_, last = asyncio.run(play(env, task, ["look"] * 60))
    assert last.truncated
    assert not last.terminated
    assert last.info["stop"] == StopReason.MAX_STEPS
    with pytest.raises(RuntimeError, match="reset"):
        asyncio.run(env.step("look"))


@pytest.mark.parametrize("make", [dream, both_shims])
def test_an_invalid_prediction_is_no_reward_of_zero(make):
    step = asyncio.run(play(make()[0], DREAM_TASK, ["garble"]))[-1]
    assert step.reward is None
    assert step.truncated
    assert step.info["stop"] == StopReason.INVALID_REPLY


def test_what_was_consumed_is_not_revealed_again():
    shown = []

    async def spy(request: Request) -> Prediction:
        shown.append(request.sheet)
        return a_fridge(request)

    task = DREAM_TASK.model_copy(update={"sheet": (LIME, "[fridge] milk: fresh")})
    asyncio.run(play(DreamEnv(spy, cap=9), task, ["look", "open fridge", "close fridge", "look"]))
    assert shown == [task.sheet, task.sheet, (), ()]


def test_members_of_a_group_share_the_first_observation_and_garbage_moves_only_validity():
    tasks = [DREAM_TASK.model_copy(update={"id": f"dream/{i}"}) for i in range(4)]
    seats = [Seat(t, m, 0) for t in tasks for m in range(4)]

    def make(seat: Seat, lockstep: Lockstep) -> DreamEnv:
        async def through(request: Request) -> Prediction:
            answer = await lockstep.call("experience", request.key, request)
            assert isinstance(answer, Prediction)
            return answer

        return DreamEnv(through, 4, seat.member)

    def act(share):
        def explorer(instruction, state, rng):
            if rng.random() < share:
                return "garble"
            return "eat lime" if LIME in state else "open fridge"

        return Scripted(explorer)

    for share in (0.0, 0.3):
        played = rollouts(act(share), make, seats, "dream", "dream", services={"experience": lambda rs: [a_fridge(r) for r in rs]})
        valid = [r.episode for r in played if r.episode.valid]
        assert all(e.dream_reward() == 1.0 for e in valid)
        assert (len(valid) == len(seats)) == (share == 0.0)
        assert len({r.episode.task.first_state for r in played}) == 1


def test_a_failing_environment_is_an_invalid_episode_and_stops_nobody():
    class Broken(DreamEnv):
        async def step(self, action):
            raise OSError("connection lost")

    played = rollouts(
        Scripted(lambda i, s, r: "open fridge"),
        lambda seat, _: Broken(predict, 4) if seat.member else DreamEnv(predict, 4),
        [Seat(DREAM_TASK, m, 0) for m in range(3)],
        "dream",
        "dream",
    )
    assert [r.episode.stop for r in played] == [StopReason.MAX_STEPS, StopReason.INVALID_ENV, StopReason.INVALID_ENV]


def test_whatever_an_environment_raises_it_stops_nobody_and_is_told(caplog):
    class Odd(DreamEnv):
        async def step(self, action):
            return {}["missing"]

    class Leaving(DreamEnv):
        async def close(self):
            raise OSError("gone already")

    def make(seat, _):
        if seat.member == 0:
            raise OSError("no free port")
        return {1: Odd, 2: Leaving}.get(seat.member, DreamEnv)(predict, 4)

    played = rollouts(Scripted(lambda i, s, r: "open fridge"), make, [Seat(DREAM_TASK, m, 0) for m in range(4)], "dream", "dream")
    assert [r.episode.stop for r in played] == [StopReason.INVALID_ENV, StopReason.INVALID_ENV, StopReason.MAX_STEPS, StopReason.MAX_STEPS]
    assert all(f"dream failed in 1 of 4 episodes: {what}" in caplog.text for what in ("OSError: no free port", "KeyError: 'missing'"))
    assert "OSError: gone already" in caplog.text
    assert "test_envs.py" in caplog.text


def test_inventions_enter_the_sheet_and_conflicts_are_counted():
    bare = DREAM_TASK.model_copy(update={"sheet": ()})

    def invents(fruit):
        async def model(request: Request) -> Prediction:
            return Prediction(Reply("", Change((CLOSED,), (OPEN, f"[fridge] lime: {fruit}")), "go"), None, "")

        return model

    played = [
        rollouts(
            Scripted(lambda i, s, r: "open fridge"), lambda seat, _, f=f: DreamEnv(invents(f), 1), [Seat(bare, 0, 0)], "dream", "dream"
        )[0].episode
        for f in ("ripe", "green")
    ]
    book = SheetBook([bare])
    book.learn(played)
    assert book.tasks[bare.id].sheet == ("[fridge] lime: ripe",)
    assert (book.invented, book.conflicts) == (1, 1)


def test_a_dream_as_a_gymnasium_environment():
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra [gym]")
    from gymnasium.utils.env_checker import check_env

    from dreamgym.envs.gym import TextGym

    check_env(TextGym(DreamEnv(predict, cap=4), [DREAM_TASK]), skip_render_check=True)
    env = TextGym(DreamEnv(predict, cap=4), [DREAM_TASK])
    assert isinstance(env, gymnasium.Env)
    observation, info = env.reset(seed=0)
    assert (observation, info["task"]) == (CLOSED, DREAM_TASK.id)
    assert env.step("open fridge")[1:4] == (0.0, False, False)
    assert env.step("eat lime")[1:4] == (1.0, True, False)
    env.reset(seed=0)
    *_, terminated, truncated, info = env.step("garble")
    assert (terminated, truncated, info["invalid"]) == (False, True, "invalid_reply")
    env.close()


def test_the_examples_evaluation_worlds_are_no_training_worlds():
    gymnasium = pytest.importorskip("gymnasium", reason="needs the extra [gym]")
    from gymnasium.utils.env_checker import check_env

    import examples.own_environment as example

    assert len(Path(str(example.__file__)).read_text().splitlines()) < 60
    env = example.Vault()
    assert isinstance(env, gymnasium.Env)
    check_env(env, skip_render_check=True)
    worlds = {}
    for panel, seeds in example.panels.items():
        for seed in seeds:
            env.reset(seed=seed)
            worlds[panel, seed] = (env.door, *env.place.items())
    assert len(worlds) == 570
    assert len(set(worlds.values())) == len(worlds)


def test_real_steps_are_counted_where_they_happen():
    pytest.importorskip("textworld", reason="needs the extra [textworld]")
    from dreamgym.envs.textworld.env import TextWorldEnv, look_at

    counter = RealSteps(purpose="probe")
    task = look_at("easy", 1, "train", counter)
    asyncio.run(play(TextWorldEnv(counter), task, ["look", "take knife from counter"]))
    assert counter.counts == {"probe": 1 + 1 + 2}


def test_control_characters_do_not_reach_the_interpreter():
    pytest.importorskip("textworld", reason="needs the extra [textworld]")
    from dreamgym.envs.textworld.env import TextWorldEnv, look_at

    task = look_at("easy", 1, "train", RealSteps())
    before, _ = asyncio.run(TextWorldEnv(RealSteps()).reset(task, 0))
    odd = ["cook carrot\x14 dice red_potato open @add", "take \u00e9\U0001f600", "\x00", "x" * 400, '"', "take knife\ttake"]
    assert all(s.observation == before for s in asyncio.run(play(TextWorldEnv(RealSteps()), task, odd))[1:])


@pytest.mark.parametrize(
    "action",
    [
        "take knife from counter. take red_potato from counter",
        "take knife from counter then look",
        "look. superbrief",
        "undo",
        "take knife and red_potato",
        "restart",
    ],
)
def test_one_action_is_one_command(action):
    pytest.importorskip("textworld", reason="needs the extra [textworld]")
    from dreamgym.envs.textworld.env import one_command

    assert one_command(action) == ""
    assert one_command("get knife") == "take knife"
    assert one_command("slice red_potato with knife") == "slice red potato with knife"


@pytest.mark.parametrize("level", ["easy", "standard"])
def test_a_shipped_demonstration_is_what_the_levels_demonstrator_plays(level):
    pytest.importorskip("textworld", reason="needs the extra [textworld]")
    from dreamgym.envs.textworld.adapter import TextWorldAdapter
    from dreamgym.envs.textworld.collect import DEMONSTRATIONS, Recorder
    from dreamgym.envs.textworld.env import TextWorldEnv
    from dreamgym.pipeline.logs import load_logs
    from dreamgym.pipeline.stages import shipped

    count, demonstrator = DEMONSTRATIONS[level]
    shown = [e for e in load_logs([shipped(f"logs-{level}.jsonl.xz")]) if e.behaviour == "expert"]
    assert len(shown) == count
    assert all(e.stop == StopReason.WON for e in shown)
    TextWorldAdapter(level).tasks("train", 1)  # compiles its game
    counter = RealSteps()
    again = Recorder(counter, 0, demonstrator).episode(TextWorldEnv(counter), shown[0].task, "expert", demonstrator, 0, None)
    assert [t.action for t in again.transitions] == [t.action for t in shown[0].transitions]
    assert counter.total == len(again.transitions) + 1
