"""The dream environment: experience model + replay snapshot + task, behind the same ``Env`` protocol as the real one.

    env = DreamEnv(predict, cap=30, member=3)
    observation, info = await env.reset(task, seed=0)     # the task's first state: no real call
    step = await env.step("open fridge")                   # reward None = invalid

Code here adds and removes lines; which ones, the model decides. The world sheet is shown to the experience model only,
and only the facts of things that have not been in sight yet: what has been seen is the state's business, so a fridge
opened twice does not reveal again what was eaten meanwhile.
"""

from collections.abc import Awaitable, Callable, Iterable

from dreamgym.core.env import Info, Step
from dreamgym.core.state import State, apply_change, entity, revelations, text_of_state
from dreamgym.core.types import Episode, StopReason, Task
from dreamgym.experience.model import Prediction
from dreamgym.experience.prompt import Past, Request, unseen_part

ENV = "dream"
Predict = Callable[[Request], Awaitable[Prediction]]


class DreamEnv:
    """One live dreamed episode."""

    def __init__(self, predict: Predict, cap: int, member: int = 0, iteration: int = 0) -> None:
        self._predict = predict
        self._cap = cap
        self._member = member
        self._iteration = iteration
        self._task: Task | None = None
        self._state: State = ()
        self._seen: set[str] = set()
        self._past: list[Past] = []
        self._seed = 0
        self._done = True

    async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
        self._task, self._state, self._seed = task, task.first_state, seed
        self._seen = {entity(s) for s in task.first_state}
        self._past = []
        self._done = False
        return text_of_state(self._state), {"instruction": task.instruction}

    async def step(self, action: str) -> Step:
        if self._task is None or self._done:
            raise RuntimeError("step() on an episode that has ended or never began; call reset() first")
        task = self._task
        request = Request(
            task.instruction,
            unseen_part(task.sheet, self._seen),
            tuple(self._past),
            self._state,
            action,
            f"{task.id}#{ENV}{self._seed}.{self._iteration}.{self._member}",
            task.id,
            (self._seed, self._iteration, task.id, self._member, len(self._past)),
        )
        prediction = await self._predict(request)
        if prediction.reply is None:
            self._done = True
            return Step(text_of_state(self._state), None, False, True, {"stop": prediction.invalid, "reply": prediction.text})
        reply = prediction.reply
        self._past.append(Past(action, reply.change))
        self._state = apply_change(self._state, reply.change)
        self._seen.update(entity(s) for s in self._state)
        terminated = reply.outcome != "go"
        truncated = not terminated and len(self._past) >= self._cap
        self._done = terminated or truncated
        info: Info = {"reasoning": reply.reasoning, "surprise": prediction.surprise}
        if self._done:
            info["stop"] = StopReason(reply.outcome) if terminated else StopReason.MAX_STEPS
        return Step(text_of_state(self._state), prediction.reward, terminated, truncated, info)

    async def close(self) -> None:
        self._done = True


class SheetBook:
    """World sheets of the dream's tasks. What the experience model invents is recorded when an episode has ended and is
    part of the sheet from the next iteration on; inventions that conflict inside one batch are counted."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks = {t.id: t for t in tasks}
        self.invented = 0
        self.conflicts = 0

    def learn(self, episodes: Iterable[Episode]) -> None:
        """Add to each task's sheet the facts about unseen things that its dreamed episodes revealed beyond it."""
        new: dict[str, dict[str, str]] = {}
        for episode in episodes:
            task = self.tasks.get(episode.task.id)
            if task is None or not episode.valid:
                continue
            known = {entity(s) for s in (*task.first_state, *task.sheet)}
            seen: set[str] = set()
            for t in episode.transitions:
                for fact in revelations(t.change):
                    thing = entity(fact)
                    if thing not in known and thing not in seen:
                        first = new.setdefault(task.id, {}).setdefault(thing, fact)
                        self.conflicts += first != fact
                seen.update(entity(s) for s in t.added)
        for name, facts in new.items():
            self.invented += len(facts)
            task = self.tasks[name]
            self.tasks[name] = task.model_copy(update={"sheet": tuple(sorted({*task.sheet, *facts.values()}))})
