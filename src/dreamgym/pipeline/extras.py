"""The extras that a configuration needs, asked for before anything is computed: the first to be missed may be used only after hours."""

from collections.abc import Iterator
from importlib.util import find_spec

from dreamgym.core.errors import MissingExtraError
from dreamgym.pipeline.config import RunConfig


def need_extras(config: RunConfig) -> None:
    """``MissingExtraError`` for the first package that some key needs and that is not installed."""
    for module, package, extra in _needed(config):
        if find_spec(module) is None:
            raise MissingExtraError(package, extra)


def _needed(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Module, package and extra, by key."""
    yield "torch", "torch", "train"
    if config.env.startswith("textworld/"):
        yield "textworld", "textworld", "textworld"
    if config.experience.pretrained:
        yield "trl", "trl (with peft and datasets)", "sft"
    opinion, admit = config.experience.second_opinion, config.replay.admit
    judges = config.evaluation.judge, opinion and opinion.judge, admit and admit.judge
    if config.experience.endpoint or config.experience.annotator or config.replay.embeddings or any(judges):
        yield "openai", "openai", "endpoint"
    if config.replay.encoder != "hashing":
        yield "sentence_transformers", "sentence-transformers", "sentence"
    if config.replay.order.bm25:
        yield "bm25s", "bm25s", "lexical"
    if config.curriculum.clusters:
        yield "sklearn", "scikit-learn", "cluster"
    for tracker in config.trackers:
        yield tracker, tracker, tracker
