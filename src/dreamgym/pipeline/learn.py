"""Supervised learning, each step from plain inputs to a saved model: base, experience model, warm start.

The run directory's stages and the benchmark grid call the same functions.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dreamgym.core.types import Episode, Task
from dreamgym.curriculum.writing import SEEDS, writing_trees
from dreamgym.experience.base import base_trees, log_texts, question_texts
from dreamgym.experience.prompt import ExperienceConfig
from dreamgym.experience.sft import RepeatConfig, sft_trees, target_texts
from dreamgym.lm.fit import FitConfig, fit
from dreamgym.lm.local import LocalLM
from dreamgym.lm.lora import Lora
from dreamgym.lm.packing import Segment, Tree
from dreamgym.lm.tiny import tiny_llama, train_tokenizer
from dreamgym.lm.words import add_whole_words
from dreamgym.replay.contract import Retrieval
from dreamgym.rl.context import Context, Turn
from dreamgym.rl.policy import STATE_CONTEXT

WHOLE_WORD = 50
"""Words that occur this often in the experience model's targets become one token each."""
ASKED = 2.0
"""Epochs of questions, after those of the texts."""
Report = Callable[[int, int, float], None]


def quiet(done: int, total: int, value: float) -> None:
    """A report that nobody reads."""


def train_base(episodes: Sequence[Episode], tasks: dict[str, Task], config: FitConfig, folder: Path, report: Report = quiet) -> LocalLM:
    """A tokenizer and a tiny language model of the logs' text, saved in ``folder``; at last it is asked for commands, if there are any."""
    texts = log_texts(episodes, tasks, config.seed)
    tokenizer = train_tokenizer(world + given + learned for world, continuations in texts.items() for given, learned in continuations)
    lm = LocalLM(tiny_llama(len(tokenizer), config.seed), tokenizer)
    fit(lm.model, base_trees(lm, texts, config.seed), config, folder / "checkpoints" / "texts", report)
    ask(lm, episodes, tasks, config, folder, report)
    return _keep(lm, folder)


def ask(
    lm: LocalLM, episodes: Sequence[Episode], tasks: dict[str, Task], config: FitConfig, folder: Path, report: Report = quiet
) -> None:
    """The last part of a base's training: questions about its worlds (``question_texts``), at half the learning rate."""
    if questions := question_texts(episodes, tasks, config.seed):
        later = config.model_copy(update={"epochs": ASKED, "learning_rate": config.learning_rate / 2})
        fit(lm.model, base_trees(lm, questions, config.seed), later, folder / "checkpoints" / "questions", report)


def train_experience(
    base: str | Path,
    annotated: Sequence[Episode],
    tasks: dict[str, Task],
    prompt: ExperienceConfig,
    config: FitConfig,
    folder: Path,
    retrieval: Retrieval,
    report: Report = quiet,
    repeat: RepeatConfig | None = None,
    writing: int = 0,
) -> LocalLM:
    """The experience model (Eq. 5): ``base`` fine-tuned on annotated episodes, what ``retrieval`` finds in the prompt.

    ``writing``: it also learns to write tasks (Eq. 6), from every logged one this often.
    """
    lm = LocalLM.load(base)
    add_whole_words(lm, target_texts(annotated, prompt.reasoning), WHOLE_WORD)
    trees = sft_trees(lm, annotated, tasks, retrieval, prompt, repeat or RepeatConfig(), config.seed)
    trees += writing_trees(lm, list(tasks.values()), SEEDS, writing, config.seed) if writing else []
    fit(lm.model, trees, config, folder / "checkpoints", report)
    return _keep(lm, folder)


def warm_start(
    base: str | Path,
    demonstrations: Sequence[Episode],
    config: FitConfig,
    folder: Path,
    report: Report = quiet,
    context: Context = STATE_CONTEXT,
    lora: Lora | None = None,
) -> LocalLM:
    """The policy's start: ``base`` (or, with ``lora``, an adapter on it) fine-tuned on successful episodes (behaviour cloning)."""
    torch.manual_seed(config.seed)  # a new adapter is drawn
    lm = LocalLM.load(base, lora)
    fit(lm.model, demonstration_trees(lm, demonstrations, context), config, folder / "checkpoints", report)
    return _keep(lm, folder)


def demonstration_trees(lm: LocalLM, episodes: Sequence[Episode], context: Context = STATE_CONTEXT) -> list[Tree]:
    """One tree per demonstrated step: the policy's prompt, and the reply with its end; a chain per episode where the context appends."""
    if context.appends:
        return [_transcript(lm, e, context) for e in episodes]
    trees = []
    for e in episodes:
        turns = [Turn(e.task.instruction, t.state, (), e.transitions[:i]) for i, t in enumerate(e.transitions)]
        for prompt, t in zip(context.prompts(lm, turns), e.transitions, strict=True):
            reply = lm.encode(context.reply(t.action))
            trees.append(Tree(tuple(prompt[:-1]), (Segment((prompt[-1], *reply, lm.eos), len(reply) + 1),)))
    return trees


def _transcript(lm: LocalLM, episode: Episode, context: Context) -> Tree:
    """An episode as the policy would have seen and said it."""
    said, prefix, segments = tuple[int, ...](), tuple[int, ...](), list[Segment]()
    for i, t in enumerate(episode.transitions):
        [prompt] = context.prompts(lm, [Turn(episode.task.instruction, t.state, (), episode.transitions[:i], said)])
        reply = (*lm.encode(context.reply(t.action)), lm.eos)
        prefix = prefix or tuple(prompt[:-1])
        segments.append(Segment((*prompt[len(said or prefix) :], *reply), len(reply)))
        said = (*prompt, *reply)
    return Tree(prefix, tuple(segments), chain=True)


def _keep(lm: LocalLM, folder: Path) -> LocalLM:
    lm.save(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    lm.model.eval()
    return lm
