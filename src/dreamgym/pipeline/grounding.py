"""The replay buffer of a run, in its folder ``buffer``: seeded once with the logs, opened by every stage, grown by training.

    retrieval = logged(run)                 # its logs and nothing else: for audits, and for training the experience model
    replay = growing(run)                   # for RL: with the run's enrichment policy; None where nothing is to come in
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from dreamgym.core.errors import DataError
from dreamgym.core.types import Episode
from dreamgym.experience.judge import WellJudged
from dreamgym.pipeline.config import Admission, Buffer
from dreamgym.pipeline.logs import load_logs
from dreamgym.pipeline.player import server
from dreamgym.pipeline.run import BUFFER, LOGS, Run
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.contract import Retrieval
from dreamgym.replay.database import Mode
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.encoders import Encoder, EndpointEncoder, SentenceEncoder
from dreamgym.replay.enrichment import Enriched, Novel, Rule, Search, Sure
from dreamgym.replay.rerank import Reranked, Words
from dreamgym.replay.store import EpisodeStore

TEXTS = "encoded.sqlite"
LOGGED = 0
"""The generation in which the buffer holds the logs and nothing else."""


def encoder_of(run: Run) -> Encoder:
    """φ of the run's configuration; texts that a model has encoded are kept beside the buffer."""
    c = run.config.replay
    if c.embeddings:
        return EndpointEncoder(c.embeddings.base_url, c.embeddings.model, c.embeddings.dimension, run.path(TEXTS))
    return HashingEncoder() if c.encoder == "hashing" else SentenceEncoder(c.encoder, run.path(TEXTS))


def run_buffer(run: Run, mode: Mode = "ro") -> ReplayBuffer:
    """The run's buffer with its logs in it (also where nothing is retrieved: what is repeated in training is chosen by it)."""
    encoder, folder = encoder_of(run), run.path(BUFFER)
    if mode == "ro" and _seeded(folder):
        return ReplayBuffer(folder, encoder, "ro")
    buffer = ReplayBuffer(folder, encoder)
    if not len(buffer):
        buffer.add(load_logs([run.path(LOGS)]), LOGGED)  # one commit: all of it or nothing
    if mode == "rw":
        return buffer
    buffer.close()
    return ReplayBuffer(folder, encoder, "ro")


def _seeded(folder: Path) -> bool:
    try:
        store = EpisodeStore(folder, "ro")
    except DataError:  # not there, or half made; a writer says so where it is damaged
        return False
    store.close()
    return len(store) > 0


def logged(run: Run) -> Retrieval:
    """Retrieval from the run's logs, in the run's order."""
    buffer = run_buffer(run)
    return search_of(run.config.replay, buffer)(buffer.snapshot(LOGGED))


def search_of(config: Buffer, buffer: ReplayBuffer) -> Search:
    """How snapshots of ``buffer`` are searched."""
    if config.order.plain:
        return lambda snapshot: snapshot
    words = Words(buffer) if config.order.bm25 else None
    return lambda snapshot: Reranked(snapshot, config.order, words)


def growing(run: Run) -> Enriched | None:
    """The run's buffer for training, which takes in what its configuration says; None where that is nothing."""
    c = run.config.replay
    if not _grows(run):
        return None
    buffer = run_buffer(run, "rw")
    rules, search = rules_of(c), search_of(c, buffer)
    judge = next((rule for rule in rules if isinstance(rule, WellJudged)), None)
    return Judged(buffer, rules, judge, c.capacity, search) if judge else Enriched(buffer, rules, c.capacity, search)


def following(run: Run) -> "Followed | None":
    """The same buffer for a process that only reads what another writes."""
    buffer = run_buffer(run) if _grows(run) else None
    return None if buffer is None else Followed(buffer, search_of(run.config.replay, buffer))


def _grows(run: Run) -> bool:
    return run.config.replay.enrichment != "real_frozen" and run.config.experience.prompt.k > 0


class Judged(Enriched):
    """An enrichment that asks an LLM: what that took since the last call is among its metrics."""

    def __init__(self, buffer: ReplayBuffer, rules: Sequence[Rule], judge: WellJudged, capacity: int | None, search: Search) -> None:
        super().__init__(buffer, rules, capacity, search)
        self.judge, self._told = judge, dict[str, int]()

    def metrics(self) -> dict[str, float]:
        spent = {f"admission_{name}": self.judge.chat.counts[name] for name in ("calls", "tokens_in", "tokens_out")}
        since = {name: float(n - self._told.get(name, 0)) for name, n in spent.items()}
        self._told = spent
        return super().metrics() | since


class Followed:
    """A buffer that another process writes: snapshots of what is committed, nothing added. Satisfies ``Replay``."""

    def __init__(self, buffer: ReplayBuffer, search: Search) -> None:
        self.buffer, self.search = buffer, search

    def __len__(self) -> int:
        return len(self.buffer)

    def prepare(self, episodes: Sequence[Episode]) -> None:
        """The writer's work."""

    def add(self, episodes: Iterable[Episode], generation: int | None = None) -> int:
        """The writer's work."""
        return 0

    def rewind(self, generation: int) -> None:
        """The writer's work."""

    def snapshot(self) -> Retrieval:
        self.buffer.store.refresh()
        return self.search(self.buffer.snapshot())

    def held(self) -> int:
        self.buffer.store.refresh()
        return self.buffer.held()

    def metrics(self) -> dict[str, float]:
        return {}


def rules_of(config: Buffer) -> list[Rule]:
    """The cheap ones first."""
    admit = config.admit or Admission.model_construct()
    rules: list[Rule] = []
    if admit.surprise is not None:
        rules.append(Sure(admit.surprise))
    if admit.novelty is not None:
        rules.append(Novel(admit.novelty))
    if admit.judge is not None:
        rules.append(WellJudged(server(admit.judge)))
    return rules
