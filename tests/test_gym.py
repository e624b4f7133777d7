"""A user's Gymnasium environments: slow, hanging, failing or odd, they stop nobody, are told and are closed."""

import threading

import pytest

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra [gym]")

from dreamgym.core.env import RealSteps  # noqa: E402
from dreamgym.core.errors import DataError  # noqa: E402
from dreamgym.core.types import StopReason  # noqa: E402
from dreamgym.envs.gym import GymAdapter  # noqa: E402
from dreamgym.pipeline.play import play_real, seats_for  # noqa: E402
from dreamgym.rl.policy import Scripted  # noqa: E402


def test_slow_gymnasium_environments_wait_side_by_side_and_a_hanging_one_is_given_up():
    side_by_side, given_up, threads = threading.Barrier(8), threading.Event(), set()

    class Slow(gymnasium.Env[str, str]):
        def __init__(self):
            self.made_in = threading.get_ident()

        def reset(self, *, seed=None, options=None):
            self.number = seed
            return "[here] door: closed", {}

        def step(self, action):
            threads.add(threading.get_ident())
            assert self.made_in == threading.get_ident()  # as SQLite, for one, wants it
            if self.number == 8:
                given_up.wait(60)
            side_by_side.wait(30)  # goes on only when eight environments are here at once
            return "[here] door: open", 1.0, True, False, {}

    adapter = GymAdapter("slow", Slow, {"train": range(9)}, "open the door", 5, patience=5.0)
    actor = Scripted(lambda i, s, r: "open door")
    played = play_real(actor, adapter, seats_for(adapter.tasks("train", 9), 0), RealSteps(), "rl", "policy")
    assert [r.episode.stop for r in played] == [StopReason.WON] * 8 + [StopReason.INVALID_ENV]
    given_up.set()
    assert len(threads) == 9


def rooms(**how):
    """An adapter of worlds in which "open door" wins; what ``how`` has takes the place of a method."""

    class Room(gymnasium.Env[str, str]):
        def reset(self, *, seed=None, options=None):
            self.number = seed
            return "[here] door: closed", {}

        def step(self, action):
            return "[here] door: open", 1.0, True, False, {"invalid": None}

    opens = {"expert": lambda instruction, state, rng: "open door"}
    return GymAdapter("room", type("Room", (Room,), how), {"train": range(8)}, "open the door", 5, opens)


def test_recording_goes_on_where_an_environment_fails_and_every_one_is_closed(caplog):
    closed = []

    def step(self, action):
        if self.number == 3:
            raise KeyError("no page")
        return "[here] door: open", 1.0, True, False, {}

    adapter = rooms(step=step, close=lambda self: closed.append(self.number))
    recorded = list(adapter.collect(RealSteps(), 8, 0))
    assert [e.stop for e in recorded] == [StopReason.WON] * 3 + [StopReason.INVALID_ENV] + [StopReason.WON] * 4
    assert closed == list(range(8))
    assert "room/3, expert: failed after 0 steps" in caplog.text
    assert "KeyError: 'no page'" in caplog.text


def test_two_lines_about_one_thing_are_told_at_the_first_observation():
    both = "[page] result: red_shirt\n[page] result: blue_shirt"
    adapter = rooms(reset=lambda self, *, seed=None, options=None: (both, {}))
    with pytest.raises(DataError, match=r"two lines about 'result': '\[page\] result: blue_shirt' and '\[page\] result: red_shirt'"):
        list(adapter.collect(RealSteps(), 8, 0))


def test_environments_that_take_long_to_close_do_so_side_by_side():
    together = threading.Barrier(8)

    def close(self):
        together.wait(30)  # goes on only when eight environments are here at once

    adapter = rooms(close=close)
    actor = Scripted(lambda i, s, r: "open door")
    played = play_real(actor, adapter, seats_for(adapter.tasks("train", 8), 0), RealSteps(), "rl", "policy")
    assert [r.episode.stop for r in played] == [StopReason.WON] * 8
    assert not together.broken


def test_a_given_up_environment_is_closed_once_it_answers(caplog):
    answers, closed = threading.Event(), threading.Event()

    def step(self, action):
        answers.wait(60)
        return "[here] door: open", 1.0, True, False, {}

    adapter = rooms(step=step, close=lambda self: closed.set())
    adapter._patience = 0.2
    actor = Scripted(lambda i, s, r: "open door")
    [played] = play_real(actor, adapter, seats_for(adapter.tasks("train", 1), 0), RealSteps(), "rl", "policy")
    assert played.episode.stop is StopReason.INVALID_ENV
    assert "no answer within 0.2 s" in caplog.text, "its own limit is told, not the rollout engine's"
    assert not closed.is_set()
    answers.set()
    assert closed.wait(30)
