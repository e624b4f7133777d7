"""The base language model: a tiny LM of the logs' text, the stand-in for a pretrained LLM.

It reads instruction, (half of the time) world sheet and state, and then each logged step twice: what was done and what
came of it, and, where something changed, what came of it and what had been done (inverse dynamics, as in arXiv 2206.11795
§3). No reasoning, no success labels beyond the logged outcome. So it knows what commands do and what they are called, as a
pretrained LLM does; what the explorers chose to do in a state it is not asked to learn. Policy and experience model are fine-tuned from it.

After each world it is also asked what task and state say of a thing, and at last, beside that, by which commands a thing comes to be as
the task wants it, as the logs have it. Where a prompt names many things, looking one up, and what follows from it, is what a pretrained
LLM brings along and a tiny one does not find by itself (docs/development.md). The worlds themselves are read, not learned: their loss
would drown the rest.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dreamgym.core.grammar import escape, render_action, render_line, render_outcome, render_world
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import State
from dreamgym.core.types import Episode, Task
from dreamgym.experience.sft import requests_of
from dreamgym.lm.local import LocalLM
from dreamgym.lm.packing import Segment, Tree

Continuation = tuple[str, str]
"""What is given, and what is learned from it."""
SAID_OF_IT = 2
"""Words of the task after a thing's name that are asked for."""
RECALLED_LINES = 2
"""Lines of each state that are asked for."""
QUESTIONED = 6_000
"""Worlds, at most, after which it is asked for commands."""
Ways = dict[tuple[str, str], str]
"""Of a thing and a word that came to be said of it: the action that did that most often."""


def log_texts(episodes: Iterable[Episode], tasks: dict[str, Task], seed: int) -> dict[str, list[Continuation]]:
    """World texts, each with the continuations that were logged from it, and with what it says of some things."""
    worlds: dict[str, list[Continuation]] = defaultdict(list)
    for episode in episodes:
        for request, t in requests_of(episode, tasks[episode.task.id]):
            sheet = request.sheet if keyed_rng(seed, "sheet", request.task, *request.state).random() < 0.5 else ()
            world = " " + render_world(request.instruction, sheet, (), request.state)
            done, came = f" {render_action(t.action)}", f" {render_outcome(t.change, t.outcome)}"
            if world not in worlds:
                worlds[world] += recalled(request.instruction, request.state, keyed_rng(seed, "recall", request.task, *request.state))
            worlds[world].append((done, came))
            if t.change:
                worlds[world].append((came, done))
    return worlds


def question_texts(episodes: Sequence[Episode], tasks: dict[str, Task], seed: int) -> dict[str, list[Continuation]]:
    """Worlds without their sheets, each with what it is asked: how things come to be as the task wants them, and what is said of them."""
    ways = ways_of(episodes)
    asked = [request for e in episodes for request, _ in requests_of(e, tasks[e.task.id])]
    worlds: dict[str, list[Continuation]] = {}
    for i in keyed_rng(seed, "questions").permutation(len(asked)):
        instruction, state = asked[int(i)].instruction, asked[int(i)].state
        world = " " + render_world(instruction, (), (), state)
        if world not in worlds and len(worlds) < QUESTIONED and (how := list(achieved_by(instruction, state, ways))):
            worlds[world] = [*how, *recalled(instruction, state, keyed_rng(seed, "recall", *state))]
    return worlds


def ways_of(episodes: Iterable[Episode]) -> Ways:
    """What the logged steps, counterfactual ones included, tell of how things come to be so."""
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for t in (t for e in episodes for t in e.steps):
        before = {thing: said for thing, *said in (render_line(line).split(" ") for line in t.removed)}
        for thing, *said in (render_line(line).split(" ") for line in t.added):
            for word in said:
                if word not in before.get(thing, ()):
                    seen[thing, word][t.action] += 1
    return {thing_and_word: actions.most_common(1)[0][0] for thing_and_word, actions in seen.items()}


def achieved_by(instruction: str, state: State, ways: Ways) -> Iterator[Continuation]:
    """Of every thing that instruction and state both name: the commands by which it comes to be as the instruction has it."""
    for thing, words in _wanted(instruction, state):
        if how := [render_action(ways[thing, word]) for word in words if (thing, word) in ways]:
            yield f" @how {thing}", " " + " , ".join(how)


def _wanted(instruction: str, state: State) -> Iterator[tuple[str, list[str]]]:
    """Things that instruction and state both name, and the words after each in the instruction."""
    things, words = {render_line(s).split(" ")[0] for s in state}, escape(instruction).split(" ")
    for i, word in enumerate(words[:-1]):
        if word in things:
            yield word, words[i + 1 : i + 1 + SAID_OF_IT]


def recalled(instruction: str, state: State, rng: np.random.Generator) -> Iterator[Continuation]:
    """Of every thing that instruction and state both name, the words after it in the instruction; of some, what their line says."""
    for thing, words in _wanted(instruction, state):
        yield f" @task {thing}", " " + " ".join(words)
    lines = [render_line(s).split(" ") for s in state]
    for i in sorted(rng.permutation(len(lines))[:RECALLED_LINES]):
        yield f" @state {lines[i][0]}", " " + " ".join(lines[i][1:])


def base_trees(lm: LocalLM, texts: dict[str, list[Continuation]], seed: int) -> list[Tree]:
    """One tree per world (loss on the second half of each continuation) in a keyed order."""
    prefixes = lm.encode_batch(list(texts))
    trees = []
    for prefix, continuations in zip(prefixes, texts.values(), strict=True):
        given = lm.encode_batch([g for g, _ in continuations])
        learned = lm.encode_batch([x for _, x in continuations])
        segments = tuple(Segment((*g, *x, lm.eos), len(x) + 1) for g, x in zip(given, learned, strict=True))
        trees.append(Tree(tuple(prefix), segments))
    order = keyed_rng(seed, "base").permutation(len(trees))
    return [trees[i] for i in order]
