"""The base language model: a tiny LM of the logs' text, the stand-in for a pretrained LLM.

It reads instruction, (half of the time) world sheet, state, and then what was tried and what changed: no reasoning, no
success labels beyond the logged outcome. Policy and experience model are both fine-tuned from it.
"""

from collections import defaultdict
from collections.abc import Iterable

from dreamgym.core.grammar import render_outcome, render_query, render_world
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Episode, Task
from dreamgym.experience.sft import requests_of
from dreamgym.lm.local import LocalLM
from dreamgym.lm.packing import Segment, Tree


def log_texts(episodes: Iterable[Episode], tasks: dict[str, Task], seed: int) -> dict[str, list[str]]:
    """World texts, each with the continuations that were logged from it."""
    worlds: dict[str, list[str]] = defaultdict(list)
    for episode in episodes:
        for request, t in requests_of(episode, tasks[episode.task.id]):
            sheet = request.sheet if keyed_rng(seed, "sheet", request.task, *request.state).random() < 0.5 else ()
            world = " " + render_world(request.instruction, sheet, (), request.state)
            worlds[world].append(f" {render_query((), t.action)} {render_outcome(t.change, t.outcome)}")
    return worlds


def base_trees(lm: LocalLM, texts: dict[str, list[str]], seed: int) -> list[Tree]:
    """Language-modelling trees (loss on everything) in a keyed order."""
    prefixes = lm.encode_batch(list(texts))
    trees = []
    for prefix, continuations in zip(prefixes, texts.values(), strict=True):
        segments = tuple(Segment((*ids, lm.eos), len(ids)) for ids in lm.encode_batch(continuations))
        trees.append(Tree(tuple(prefix), segments, prefix_trained=True))
    order = keyed_rng(seed, "base").permutation(len(trees))
    return [trees[i] for i in order]
