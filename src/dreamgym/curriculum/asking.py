"""M_task behind a chat LLM: the two prompts of arXiv 2511.03773 Appendix C.2 (write, then pick one) and one for what a world lacks.

    writer = ChatWriter(Endpoint(server))            # or a chat model in this process

Their wording is ours. A reply that cannot be used is asked for again, then counted as unreadable; where no pick is usable none of the
drafts is kept.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from dreamgym.core.types import Task
from dreamgym.curriculum.worlds import Lack, Placed
from dreamgym.curriculum.writing import Asked, Choice
from dreamgym.endpoint.config import Chat, Message
from dreamgym.experience.chat import answered, quoted, sectioned
from dreamgym.prompts import prompt

SAMPLES = 3
BUDGET = 512


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    task: str = Field(min_length=1, max_length=2000)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    in_sight: bool
    place: str = Field(min_length=1, max_length=200)
    description: str = Field(max_length=500)


class _Picked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    reasoning: str
    selection: int = Field(ge=0)


class ChatWriter:
    """Writes (at temperature 1, drafts are to differ) and picks (greedily) by asking ``chat``."""

    imitates = False

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def write(self, asked: Sequence[Asked]) -> list[str | None]:
        async def one(a: Asked) -> str | None:
            messages = variation_messages(a.seeds, a.world)
            found = await answered(self.chat, messages, BUDGET, _Written, SAMPLES, "write", *a.key, temperature=1.0)
            return " ".join(found.task.split()) or None if found else None

        return self.chat.together([one(a) for a in asked])

    def furnish(self, lacking: Sequence[Lack]) -> list[Placed | None]:
        async def one(x: Lack) -> Placed | None:
            found = await answered(self.chat, lack_messages(x), BUDGET, _Line, SAMPLES, "furnish", *x.key, temperature=1.0)
            return Placed("state" if found.in_sight else "sheet", found.place, " ".join(found.description.split())) if found else None

        return self.chat.together([one(x) for x in lacking])

    def choose(self, choices: Sequence[Choice]) -> list[int | None]:
        async def one(c: Choice) -> int | None:
            if not c.drafts:
                return None
            found = await answered(self.chat, selection_messages(c), BUDGET, _Picked, SAMPLES, "select", c.parent.id, *c.drafts)
            return found.selection - 1 if found and 1 <= found.selection <= len(c.drafts) else None

        return self.chat.together([one(c) for c in choices])


def variation_messages(seeds: Sequence[str], world: Task) -> tuple[Message, ...]:
    """The prompt that asks for one draft."""
    sections = [("Tasks", [quoted(s) for s in seeds]), *_world(world)]
    return ("system", prompt("vary-task.v2")), ("user", sectioned(sections))


def selection_messages(choice: Choice) -> tuple[Message, ...]:
    """The prompt that asks for a pick."""
    numbered = [quoted(f"{n}. {d}") for n, d in enumerate(choice.drafts, start=1)]
    sections = [("Original task", [quoted(choice.parent.instruction)]), *_world(choice.parent), ("Drafts", numbered)]
    sections += [(f"Added to the world of draft {n}", [quoted(s) for s in lines]) for n, lines in enumerate(choice.added, start=1) if lines]
    return ("system", prompt("select-task.v2")), ("user", sectioned(sections))


def lack_messages(lack: Lack) -> tuple[Message, ...]:
    """The prompt that asks for the line of a world about a thing that it lacks."""
    examples = [
        (f"World {n} {name[0].lower()}{name[1:]}", lines) for n, t in enumerate(lack.alike, start=1) for name, lines in _world(t)
    ]
    sections = [*examples, *_world(lack.world), ("Missing", [quoted(lack.thing)])]
    return ("system", prompt("furnish-world.v1")), ("user", sectioned(sections))


def _world(task: Task) -> list[tuple[str, list[str]]]:
    return [("In sight at the start", [quoted(s) for s in task.first_state]), ("Also in this world", [quoted(s) for s in task.sheet])]
