"""Training data of the experience model (arXiv 2511.03773 Eq. 5): prompts with retrieval, targets = reasoning + outcome.

Logged steps from one state share that state's prompt: a tree with the world as prefix and one segment per action. The
own episode is never retrieved, the own task not for half of the prompts. Rare kinds of change are repeated, because a
tiny model that sees a fridge opened once in a thousand steps does not learn to copy its content; so are steps that went
another way than the most similar experience, because copying that is right nearly always.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from dreamgym.core.grammar import Reply, render_query, render_reply
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import entity
from dreamgym.core.types import Episode, Task, Transition
from dreamgym.experience.kinds import StepKinds
from dreamgym.experience.prompt import ExperienceConfig, Past, PromptBuilder, Request, unseen_part
from dreamgym.lm.local import LocalLM
from dreamgym.lm.packing import Segment, Tree
from dreamgym.replay.contract import Retrieval


class RepeatConfig(BaseModel):
    """How often rare kinds of steps are shown per epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    several: int = 3
    """Steps that change more than one thing."""
    won: int = 8
    absent: int = 2
    """Commands about things that are not there: a model that has seen few of them puts a similar thing in their place."""
    surprising: int = 2
    """Steps whose most similar experience changed something else or ended otherwise."""


def target(t: Transition, reasoning: bool) -> str:
    """What the experience model should write for a logged step."""
    return render_reply(Reply(t.reasoning if reasoning else "", t.change, t.outcome))


def target_texts(episodes: Iterable[Episode], reasoning: bool) -> Iterator[str]:
    """All targets, each with its query's marker words."""
    for episode in episodes:
        for t in episode.steps:
            yield f"{render_query([t], t.action)} {target(t, reasoning)}"


def requests_of(episode: Episode, task: Task) -> list[tuple[Request, Transition]]:
    """What the experience model would have been asked at every step of a logged episode, with the true answer."""
    out: list[tuple[Request, Transition]] = []
    seen: set[str] = set()
    past: list[Past] = []
    at: list[tuple[set[str], tuple[Past, ...]]] = []
    for i, t in enumerate(episode.transitions):
        seen = seen | {entity(s) for s in t.state}
        at.append((seen, tuple(past)))
        out.append((_request(episode, task, t, seen, tuple(past), i), t))
        past.append(Past(t.action, t.change))
        seen = seen | {entity(s) for s in t.added}
    at.append((seen, tuple(past)))
    for n, branch in enumerate(episode.branches):
        known, before = at[branch.at]
        known = known | {entity(s) for s in branch.transition.state}
        out.append((_request(episode, task, branch.transition, known, before, 1000 + n), branch.transition))
    return out


def _request(episode: Episode, task: Task, t: Transition, seen: set[str], past: tuple[Past, ...], turn: int) -> Request:
    return Request(
        task.instruction,
        unseen_part(task.sheet, seen),
        past,
        t.state,
        t.action,
        episode.id,
        task.id,
        (episode.seed, task.id, episode.member, turn),
    )


def sft_trees(
    lm: LocalLM,
    episodes: Sequence[Episode],
    tasks: dict[str, Task],
    retrieval: Retrieval,
    config: ExperienceConfig,
    repeat: RepeatConfig,
    seed: int,
) -> list[Tree]:
    """Packed-ready trees for one epoch. ``tasks`` holds each task with its sheet; episodes of other tasks are an error.

    What is repeated does not depend on ``config``, so that ablations learn from the same steps.
    """
    pairs = [p for e in episodes for p in requests_of(e, tasks[e.task.id])]
    kinds = StepKinds.of(episodes)
    prompts = PromptBuilder(config, retrieval)
    own_task = [keyed_rng(seed, "own-task", *r.key).random() < 0.5 for r, _ in pairs]
    similar = prompts.similar([r for r, _ in pairs], own_task, max(config.k, 1))
    queries = [prompts.query(r, s) for (r, _), s in zip(pairs, similar, strict=True)]
    targets = [target(t, config.reasoning) for _, t in pairs]
    worlds: dict[str, list[int]] = defaultdict(list)
    for i, (r, t) in enumerate(pairs):
        times = {"several": repeat.several, "won": repeat.won, "absent": repeat.absent}.get(kinds.kind(t), 1)
        surprising = any((s.change, s.outcome) != (t.change, t.outcome) for s in similar[i][:1])
        worlds[prompts.world(r)] += [i] * max(times, repeat.surprising if surprising else 1)
    prefixes = lm.encode_batch([f" {w}" for w in worlds])
    query_ids = lm.encode_batch([f" {q}" for q in queries])
    target_ids = lm.encode_batch([f" {t}" for t in targets])
    trees = []
    for prefix, members in zip(prefixes, worlds.values(), strict=True):
        for some in _distinct_rounds(members):
            segments = tuple(Segment((*query_ids[i], *target_ids[i], lm.eos), len(target_ids[i]) + 1) for i in some)
            trees.append(Tree(tuple(prefix), segments))
    order = keyed_rng(seed, "order").permutation(len(trees))
    return [trees[i] for i in order]


def _distinct_rounds(members: Sequence[int]) -> list[list[int]]:
    """Repeated members go to separate copies of the tree, so that no tree holds a logged step twice."""
    rounds: list[list[int]] = []
    counts: dict[int, int] = {}
    for i in members:
        n = counts.get(i, 0)
        counts[i] = n + 1
        if n == len(rounds):
            rounds.append([])
        rounds[n].append(i)
    return rounds
