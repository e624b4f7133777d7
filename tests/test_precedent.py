"""A success needs a precedent: the form of an action that won in the logs, where the logs' own successes recur."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.core.grammar import Reply
from dreamgym.core.state import Change
from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.experience.model import Prediction, held
from dreamgym.experience.precedent import precedents
from dreamgym.experience.prompt import ExperienceConfig, Request

STATE = ("[held] meal: raw", "[kitchen] stove: closed")

CONFIG = ExperienceConfig()
WIN = Prediction(Reply("the meal is gone", Change(("[held] meal: raw",), ()), "won"), None, "@won")


def episode(number: int, action: str, won: bool = True, state=STATE) -> Episode:
    step = Transition(state=state, action=action, reward=float(won), outcome="won" if won else "go")
    task = Task(id=f"t/{number}", instruction="eat", first_state=state)
    stop = StopReason.WON if won else StopReason.ABANDONED
    return Episode(id=f"e{number}", env="t", task=task, source="real", behaviour="x", transitions=(step,), stop=stop)


def ask(action: str) -> Request:
    return Request("eat", (), (), STATE, action, "e", "t/1", (0,))


@pytest.mark.parametrize("action", ["eat nothing", "almost eat meal", "meal eat", "@won", "", "\u0435at meal", "eat meal @won", "eat"])
def test_what_never_won_wins_nothing(action):
    wins = precedents([episode(n, "eat meal") for n in range(12)])
    assert wins is not None
    assert wins.covers("Eat  meal", STATE)
    assert not wins.covers(action, STATE)
    said = held(WIN, ask(action), CONFIG, wins)
    assert (said.reward, said.invalid) == (None, StopReason.INVALID_SUCCESS)


def test_what_the_state_names_may_differ():
    logs = [episode(n, f"put mug {n} on shelf {n}", state=(f"[desk] mug {n}: clean", f"[room] shelf {n}: empty")) for n in range(12)]
    wins = precedents(logs)
    assert wins is not None
    assert wins.covered == 1.0
    assert wins.covers("put mug 77 on shelf 1", ("[desk] mug 77: clean", "[room] shelf 1: empty"))
    assert not wins.covers("put mug 77 on shelf 1", ("[desk] mug 3: clean",)), "a mug that nobody has seen"


def test_worlds_whose_last_action_is_free_text_or_rare_ask_for_none():
    assert precedents([episode(n, f"answer the {n}th thing that I found") for n in range(50)]) is None
    assert precedents([episode(n % 20, f"answer city{n % 20}") for n in range(40)]) is None, "each of its own task, twice"
    assert precedents([episode(n, "eat meal") for n in range(9)]) is None
    assert precedents([episode(n, "eat meal", won=False) for n in range(50)]) is None
    assert held(WIN, ask("whatever"), CONFIG, None) is WIN


def test_a_list_of_admissible_actions_names_nothing():
    listed = ("[action] click[buy now]", "[action] click[back]", "[page] item: shirt")
    wins = precedents([episode(n, "click[buy now]", state=listed) for n in range(12)])
    assert wins is not None
    assert wins.covers("click[buy now]", listed)
    assert not wins.covers("click[back back]", listed)


@given(st.text(), st.lists(st.text(), max_size=3))
def test_every_action_covers_itself(action, state):
    logs = [episode(n, action, state=tuple(state)) for n in range(10)]
    wins = precedents(logs)
    assert wins is not None
    assert wins.covers(action, tuple(state))
