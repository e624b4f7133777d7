"""The paper's judge (arXiv 2511.03773, Appendix C.4; the wording is ours): an LLM scores dreamed steps on four rubrics, 0 to 2.

    scores = judge_steps(chat, episodes, steps=100, seed=0)
    rule = WellJudged(chat)                    # of a replay buffer: what is consistent and not made up may come in

It needs no real environment, so it also works where there is none to ask. It is an opinion: replayed success and next states
(``audit``) are facts. A reply that is not usable is asked for again, then counted apart; it is never a 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Episode, Task, Transition
from dreamgym.endpoint.config import Chat, Message
from dreamgym.experience.chat import answered, quoted, sectioned
from dreamgym.prompts import prompt
from dreamgym.replay.buffer import ReplayBuffer

SAMPLES = 3
BUDGET = 512


class Rubric(BaseModel):
    """Four scores, 2 = best."""

    model_config = ConfigDict(extra="forbid", strict=True)
    causal_consistency: int = Field(ge=0, le=2)
    diversity: int = Field(ge=0, le=2)
    informativeness: int = Field(ge=0, le=2)
    hallucination: int = Field(ge=0, le=2)


class _Scores(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    rubric_scores: Rubric


@dataclass(frozen=True)
class Judged:
    """Mean of each rubric over the steps that could be scored."""

    means: dict[str, float]
    scored: int
    unusable: int
    """Steps without a usable score after all samples."""


def judge_steps(chat: Chat, episodes: Sequence[Episode], steps: int, seed: int) -> Judged:
    """Scores of ``steps`` dreamed steps, drawn at random from valid ``episodes``."""
    all_steps = [(e.task, t, e.id, n) for e in episodes if e.valid for n, t in enumerate(e.transitions)]
    chosen = sorted(keyed_rng("judge", seed).permutation(len(all_steps))[:steps])
    found = chat.together([_score(chat, *all_steps[i]) for i in chosen])
    usable = [r.model_dump() for r in found if r is not None]
    means = {name: sum(r[name] for r in usable) / len(usable) for name in Rubric.model_fields} if usable else {}
    return Judged(means, len(usable), len(found) - len(usable))


class WellJudged:
    """A buffer's ``Rule``: one step of the episode, drawn by its id, is consistent and not made up (at least 1 of 2 on both rubrics)."""

    name = "judged"

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def admits(self, episodes: Sequence[Episode], buffer: ReplayBuffer) -> list[bool]:
        """An episode without a usable score is not admitted."""
        chosen = [int(keyed_rng("admit", e.id).integers(len(e.transitions))) for e in episodes]
        found = self.chat.together([_score(self.chat, e.task, e.transitions[n], e.id, n) for e, n in zip(episodes, chosen, strict=True)])
        return [r is not None and min(r.causal_consistency, r.hallucination) >= 1 for r in found]


async def _score(chat: Chat, task: Task, t: Transition, episode: str, number: int) -> Rubric | None:
    found = await answered(chat, step_to_judge(task, t), BUDGET, _Scores, SAMPLES, "judge", episode, number)
    return found.rubric_scores if found else None


def step_to_judge(task: Task, t: Transition) -> tuple[Message, ...]:
    """The judge's prompt for one step."""
    outcome = {"go": "the episode goes on", "won": "success", "lost": "failure"}[t.outcome]
    sections = [
        ("Task", [task.instruction]),
        ("State before", list(t.state)),
        ("Action", [t.action]),
        ("Predicted next state", list(t.next_state)),
        ("Predicted outcome", [outcome]),
    ]
    return ("system", prompt("judge-step.v1")), ("user", sectioned([(name, [quoted(x) for x in lines]) for name, lines in sections]))
