"""Reasoning annotations R* from a strong LLM (arXiv 2511.03773 Appendix C.1; the wording of the prompts is ours).

    cost = estimate(episodes, config)                       # before anything is asked
    for episode in teach(episodes, config, endpoint, folder): ...

One call per episode: the teacher sees all of it and its success flag, so its plans carry hindsight. A reply must be strict JSON
with a task tutorial and one transition plan per step (the counterfactual ones too); an unusable one is asked for again with what
is wrong, and after that the episode is quarantined with the reason. What is done is appended to ``folder/annotations.jsonl``
batch by batch: a run that was killed, or stopped by its budget, goes on there.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreamgym.core.errors import BudgetError, DataError, EndpointError
from dreamgym.core.files import write_atomic
from dreamgym.core.seeding import key_of
from dreamgym.core.types import Branch, Episode, Transition
from dreamgym.endpoint.config import Ask, Chat, EndpointConfig, Message
from dreamgym.experience.chat import quoted, read_object, shaped, step_text, undress
from dreamgym.prompts import prompt

ANNOTATIONS = "annotations.jsonl"
VERSION = "v1"


class AnnotatorConfig(BaseModel):
    """Which LLM annotates, what it is told it sees, and when it has cost enough."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    server: EndpointConfig
    kind: Literal["text", "shop", "web"] = "text"
    """Kind of environment: it decides the prompt (``prompts/annotate-<kind>.v1.md``)."""
    tokens_per_step: int = Field(96, ge=8)
    """Tokens of the reply per step, beside 256 for the tutorial."""
    attempts: int = Field(3, ge=1)
    """Replies per episode; each after the first is told what was wrong with the one before."""
    temperature: float = Field(0.0, ge=0)
    batch: int = Field(32, ge=1)
    """Episodes per batch; a kill loses at most the replies of one."""
    budget_usd: float | None = Field(None, ge=0)
    """Stops before a batch that may exceed it; needs the server's prices."""
    budget_tokens: int | None = Field(None, ge=0)
    """The same for tokens of prompts and replies together."""


_SAID = r"\S"


class Tutorial(BaseModel):
    """What the teacher says of the whole task."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)
    overall: str = Field(alias="Overall Plan", pattern=_SAID)
    success: str = Field(alias="Success Mode", pattern=_SAID)
    failure: str = Field(alias="Failure Mode", pattern=_SAID)


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    step_id: int
    transition_plan: str = Field(pattern=_SAID)


class Lesson(BaseModel):
    """A teacher's reply."""

    model_config = ConfigDict(extra="forbid", strict=True)
    task_tutorial: Tutorial
    state_transitions: list[Plan]


class Annotation(BaseModel):
    """A line of ``annotations.jsonl``: an episode's lesson, or why there is none."""

    episode: str
    prompt: str
    lesson: Lesson | None = None
    error: str = ""
    failed: bool = False
    """The server failed, not the teacher: the next start asks again."""
    reply: str = ""
    """The last unusable reply, for people to read."""
    tokens_in: int = 0
    tokens_out: int = 0
    """Of all attempts at this episode."""


@dataclass(frozen=True)
class Estimate:
    """What annotating would cost: about four characters a token, every reply as long as it may be."""

    episodes: int
    steps: int
    tokens_in: int
    tokens_out: int
    usd: float | None


def estimate(episodes: Sequence[Episode], config: AnnotatorConfig, attempts: int = 1) -> Estimate:
    """For ``attempts`` replies per episode; every further one is asked for with the one before in the prompt."""
    tokens_in = tokens_out = 0
    for e in episodes:
        prompt_tokens, reply_tokens = sum(len(text) for _, text in episode_messages(e, config.kind)) // 4, _budget(e, config)
        tokens_in += attempts * prompt_tokens + (attempts - 1) * (reply_tokens + 100)
        tokens_out += attempts * reply_tokens
    steps = sum(len(e.steps) for e in episodes)
    return Estimate(len(episodes), steps, tokens_in, tokens_out, config.server.usd(tokens_in, tokens_out))


def episode_messages(episode: Episode, kind: str) -> tuple[Message, ...]:
    """The whole-episode prompt: instruction, success flag, every step."""
    success = episode.stop.value == "won"
    lines = ["## Task", quoted(episode.task.instruction), "", "## Success", "true" if success else "false", "", "## Steps"]
    for number, t in enumerate(episode.transitions):
        lines.append(_step(number, t))
    for number, b in enumerate(episode.branches, start=len(episode.transitions)):
        lines.append(_step(number, b.transition, instead_of=b.at))
    return ("system", prompt(f"annotate-{kind}.{VERSION}")), ("user", "\n".join(lines))


def _step(number: int, t: Transition, instead_of: int | None = None) -> str:
    head = [f'"step_id": {number}'] + ([] if instead_of is None else [f'"alternative_to_step": {instead_of}'])
    return step_text(t, {"go": "the episode goes on", "won": "success", "lost": "failure"}[t.outcome], head)


def _budget(episode: Episode, config: AnnotatorConfig) -> int:
    return 256 + config.tokens_per_step * len(episode.steps)


def read_lesson(text: str, steps: int) -> Lesson:
    """A strict reading of a reply. Raises ``ValueError`` that says what is wrong, in words that the teacher can use."""
    lesson = shaped(read_object(undress(text)[1]), Lesson)
    ids = [p.step_id for p in lesson.state_transitions]
    if ids != list(range(steps)):
        raise ValueError(f"state_transitions has the step_ids {_some(ids)}; exactly 0 to {steps - 1} in order are needed, {steps} in all")
    return lesson


def _some(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{ids[:6]} ... {ids[-3:]} ({len(ids)} in all)"


def unexplained(episodes: Sequence[Episode], folder: Path) -> list[Episode]:
    """Those that ``teach`` would still ask about in this folder."""
    done = _load(folder / ANNOTATIONS)
    return [e for e in episodes if e.id not in done or done[e.id].failed]


def teach(
    episodes: Sequence[Episode],
    config: AnnotatorConfig,
    endpoint: Chat,
    folder: Path,
    report: Callable[[int, int], None] | None = None,
) -> Iterator[Episode]:
    """The episodes that could be annotated, with a reasoning on every step, in order; the others are in the file with their reason.

    ``report`` hears how many of how many are done. Raises ``BudgetError`` before a batch that the budget may not bear, should every
    episode need all its attempts, and ``EndpointError`` where the server left episodes unasked. A kill loses the count of one batch.
    """
    path = folder / ANNOTATIONS
    done = _load(path)
    todo = unexplained(episodes, folder)
    for start in range(0, len(todo), config.batch):
        if report:
            report(len(episodes) - len(todo) + start, len(episodes))
        batch = todo[start : start + config.batch]
        _check_budget(batch, config, done, len(episodes))
        _append(path, endpoint.together([_lesson(e, config, endpoint) for e in batch]))
        done = _load(path)
    if report:
        report(len(episodes), len(episodes))
    unasked = [n for n in done.values() if n.failed]
    if unasked:
        raise EndpointError(
            f"{config.server.base_url}: {len(unasked)} of {len(episodes)} episodes could not be asked about ({unasked[0].error});"
            " what is done is kept, run again when the server is up"
        )
    for e in episodes:
        lesson = done[e.id].lesson
        if lesson is not None:
            yield explained(e, [p.transition_plan for p in lesson.state_transitions])


def explained(episode: Episode, plans: Sequence[str]) -> Episode:
    """The episode with ``plans`` as its steps' reasoning: the transitions first, then the branches."""
    steps = [t.model_copy(update={"reasoning": " ".join(p.split())}) for t, p in zip(episode.steps, plans, strict=True)]
    n = len(episode.transitions)
    branches = tuple(Branch(at=b.at, transition=t) for b, t in zip(episode.branches, steps[n:], strict=True))
    return episode.model_copy(update={"transitions": tuple(steps[:n]), "branches": branches})


async def _lesson(episode: Episode, config: AnnotatorConfig, endpoint: Chat) -> Annotation:
    """Ask, and ask again with what was wrong, until a reply is usable or the attempts are spent."""
    messages = episode_messages(episode, config.kind)
    name = f"annotate-{config.kind}.{VERSION}"
    error, text, failed = "", "", False
    spent = {"tokens_in": 0, "tokens_out": 0}
    for attempt in range(config.attempts):
        ask = Ask(
            messages=messages if not error else (*messages, ("assistant", text or "(nothing)"), ("user", _again(error))),
            budget=_budget(episode, config),
            temperature=config.temperature,
            seed=key_of("annotate", episode.id, attempt),
            reply=Lesson.model_json_schema(by_alias=True),
        )
        answer = await endpoint.reply(ask)
        text, error, failed = answer.text, answer.error, answer.failed
        spent = {"tokens_in": spent["tokens_in"] + answer.tokens_in, "tokens_out": spent["tokens_out"] + answer.tokens_out}
        if not error:
            try:
                return Annotation(episode=episode.id, prompt=name, lesson=read_lesson(text, len(episode.steps)), **spent)
            except ValueError as e:
                error = str(e)
        if failed:
            break
    return Annotation(episode=episode.id, prompt=name, error=error, failed=failed, reply=text[:2000], **spent)


def _again(error: str) -> str:
    return f"Your answer cannot be used: {error}. Answer again with the whole JSON object and nothing else."


def spent_tokens(done: dict[str, Annotation]) -> tuple[int, int]:
    """Tokens of prompts and of replies so far, earlier starts included."""
    return sum(n.tokens_in for n in done.values()), sum(n.tokens_out for n in done.values())


def _check_budget(batch: Sequence[Episode], config: AnnotatorConfig, done: dict[str, Annotation], total: int) -> None:
    tokens_in, tokens_out = spent_tokens(done)
    coming = estimate(batch, config, config.attempts)
    where = f"after {len(done)} of {total} episodes; what is done is kept, raise it and run again"
    tokens = tokens_in + tokens_out + coming.tokens_in + coming.tokens_out
    if config.budget_tokens is not None and tokens > config.budget_tokens:
        raise BudgetError(f"experience.annotator.budget_tokens: {config.budget_tokens} do not bear the next batch ({tokens}), {where}")
    if config.budget_usd is None:
        return
    usd = config.server.usd(tokens_in + coming.tokens_in, tokens_out + coming.tokens_out)
    if usd is None:
        raise BudgetError("experience.annotator.budget_usd needs server.price_in and server.price_out (US dollars per million tokens)")
    if usd > config.budget_usd:
        raise BudgetError(f"experience.annotator.budget_usd: ${config.budget_usd:g} do not bear the next batch (${usd:.2f}), {where}")


def _load(path: Path) -> dict[str, Annotation]:
    """What earlier starts have done, the last word on each episode. A last line that a kill tore is dropped."""
    if not path.exists():
        return {}
    *whole, torn = path.read_bytes().split(b"\n")
    if torn:
        write_atomic(path, "".join(x.decode(errors="replace") + "\n" for x in whole))
    found: dict[str, Annotation] = {}
    for number, line in enumerate(whole, start=1):
        try:
            note = Annotation.model_validate_json(line)
        except ValidationError as e:
            raise DataError(f"{path}:{number}: not an annotation ({e.errors()[0]['msg']}); mend or delete this line") from e
        if old := found.get(note.episode):  # asked again: what its first batch cost stays counted
            spent = {"tokens_in": note.tokens_in + old.tokens_in, "tokens_out": note.tokens_out + old.tokens_out}
            note = note.model_copy(update=spent)
        found[note.episode] = note
    return found


def _append(path: Path, notes: Sequence[Annotation]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "a", encoding="utf-8") as f:
            f.write("".join(n.model_dump_json(by_alias=True) + "\n" for n in notes))
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise DataError(f"{path}: cannot be written ({e.strerror}); what was there is kept") from e


def quarantined(folder: Path) -> list[Annotation]:
    """Episodes without a usable lesson, with the reason."""
    return [n for n in _load(folder / ANNOTATIONS).values() if n.lesson is None]


def summary(folder: Path, config: AnnotatorConfig) -> dict[str, object]:
    """Counts, tokens and dollars of all starts."""
    done, without = _load(folder / ANNOTATIONS), quarantined(folder)
    tokens_in, tokens_out = spent_tokens(done)
    return {
        "annotated": len(done) - len(without),
        "quarantined": len(without),
        "quarantine_reasons": dict(Counter(n.error.partition(":")[0] for n in without)),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "usd": config.server.usd(tokens_in, tokens_out),
    }
