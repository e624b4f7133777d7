"""The base language model: a tiny LM of the logs' text, the stand-in for a pretrained LLM.

It reads instruction, (half of the time) world sheet, state, and then what was tried and what changed: no reasoning, no
success labels beyond the logged outcome. It learns to write what the environment writes, not what the explorers did: no loss
on actions, so a warm start owes its skill to its demonstrations alone. Policy and experience model are fine-tuned from it.
"""

from collections import defaultdict
from collections.abc import Iterable

from dreamgym.core.grammar import render_outcome, render_query, render_world
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Episode, Task
from dreamgym.experience.sft import requests_of
from dreamgym.lm.local import LocalLM
from dreamgym.lm.packing import Segment, Tree

Continuation = tuple[str, str]
"""What was done, and what came of it."""


def log_texts(episodes: Iterable[Episode], tasks: dict[str, Task], seed: int) -> dict[str, list[Continuation]]:
    """World texts, each with the continuations that were logged from it."""
    worlds: dict[str, list[Continuation]] = defaultdict(list)
    for episode in episodes:
        for request, t in requests_of(episode, tasks[episode.task.id]):
            sheet = request.sheet if keyed_rng(seed, "sheet", request.task, *request.state).random() < 0.5 else ()
            world = " " + render_world(request.instruction, sheet, (), request.state)
            worlds[world].append((f" {render_query((), t.action)}", f" {render_outcome(t.change, t.outcome)}"))
    return worlds


def base_trees(lm: LocalLM, texts: dict[str, list[Continuation]], seed: int) -> list[Tree]:
    """Language-modelling trees (loss on all but the actions) in a keyed order."""
    prefixes = lm.encode_batch(list(texts))
    trees = []
    for prefix, continuations in zip(prefixes, texts.values(), strict=True):
        done = lm.encode_batch([action for action, _ in continuations])
        came = lm.encode_batch([outcome for _, outcome in continuations])
        segments = tuple(Segment((*a, *o, lm.eos), len(o) + 1) for a, o in zip(done, came, strict=True))
        trees.append(Tree(tuple(prefix), segments, prefix_trained=True))
    order = keyed_rng(seed, "base").permutation(len(trees))
    return [trees[i] for i in order]
