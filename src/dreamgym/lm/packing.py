"""Trees of tokens, packed: a prefix is encoded once and its continuations share it.

The continuations (*segments*) of a prefix see the prefix and themselves, never each other: one block-sparse attention
mask instead of one copy of the prefix per continuation. Several trees fill one row. With states as prefixes and the
actions tried in them as segments this halves the tokens of a training step; the result equals separate sequences (tested).
In a *chain* each segment goes on from the one before: the turns of an append-only transcript, read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Segment:
    """One continuation: token ids, and how many of them at the end are trained on."""

    ids: tuple[int, ...]
    trained: int
    advantage: float = 0.0
    """Weight of the trained tokens in a policy loss; unused in supervised training."""
    logprobs: tuple[float, ...] = ()
    """Of the trained tokens when they were sampled; unused in supervised training."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A prefix, which is read, and its continuations, which are learned. ``chain``: one after the other."""

    prefix: tuple[int, ...]
    segments: tuple[Segment, ...]
    chain: bool = False

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(s.ids) for s in self.segments)


@dataclass
class Row:
    """Trees that share one row of a batch."""

    trees: list[Tree] = field(default_factory=list)
    length: int = 0


def split(tree: Tree, length: int) -> list[Tree]:
    """The same tree as several that fit into ``length`` tokens each (the prefix is repeated).

    A chain stays whole, and makes its row longer where it has to: how long an episode gets nobody can know before. Raises ``ValueError``
    where prefix and one segment alone are longer than a row.
    """
    if tree.chain:
        return [tree]
    parts: list[Tree] = []
    current: list[Segment] = []
    used = len(tree.prefix)
    for s in tree.segments:
        if len(tree.prefix) + len(s.ids) > length:
            raise ValueError(f"a prompt and its target have {len(tree.prefix) + len(s.ids)} tokens, a row {length}; raise row_length")
        if used + len(s.ids) > length:
            parts.append(Tree(tree.prefix, tuple(current)))
            current, used = [], len(tree.prefix)
        current.append(s)
        used += len(s.ids)
    return [*parts, Tree(tree.prefix, tuple(current))]


def pack(trees: Sequence[Tree], length: int) -> list[Row]:
    """Rows of at most ``length`` tokens (but for longer chains), first fit over a few open rows, in the order of ``trees``."""
    rows: list[Row] = []
    open_rows: list[Row] = []
    for tree in (part for t in trees for part in split(t, length)):
        row = next((r for r in open_rows if r.length + len(tree) <= length), None)
        if row is None:
            row = Row()
            rows.append(row)
            open_rows.append(row)
            if len(open_rows) > 16:
                open_rows.remove(max(open_rows, key=lambda r: r.length))
        row.trees.append(tree)
        row.length += len(tree)
    return rows


def collate(rows: Sequence[Row], pad: int = 0, policy: bool = False) -> dict[str, torch.Tensor]:
    """Tensors of a batch [B, T]: ``input_ids``, ``position_ids``, ``labels`` and ``attention_mask`` [B, 1, T, T] (added to scores).

    With ``policy`` also, for the trained tokens of each segment, [B, T]: its ``advantages``, their log-probabilities when they were
    ``sampled``, and their number (``lengths``).
    """
    width = max(r.length for r in rows)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
    tree_of = np.full((len(rows), width), -1, dtype=np.int32)
    part_of = np.zeros((len(rows), width), dtype=np.int32)
    chained = np.zeros((len(rows), width), dtype=np.bool_)
    advantages = np.zeros((len(rows), width), dtype=np.float32)
    sampled = np.zeros((len(rows), width), dtype=np.float32)
    lengths = np.zeros((len(rows), width), dtype=np.float32)
    for b, row in enumerate(rows):
        at = 0
        for k, tree in enumerate(row.trees):
            n = len(tree.prefix)
            ids[b, at : at + n] = tree.prefix
            positions[b, at : at + n] = np.arange(n)
            start, at = at, at + n
            for p, s in enumerate(tree.segments, start=1):
                m = len(s.ids)
                ids[b, at : at + m] = s.ids
                positions[b, at : at + m] = (at - start if tree.chain else n) + np.arange(m)
                part_of[b, at : at + m] = p
                chained[b, at : at + m] = tree.chain
                labels[b, at + m - s.trained : at + m] = s.ids[m - s.trained :]
                labels[b, at] = IGNORED
                advantages[b, at : at + m] = s.advantage
                lengths[b, at : at + m] = s.trained
                if s.logprobs:
                    sampled[b, at + m - s.trained : at + m] = s.logprobs
                at += m
            tree_of[b, start:at] = k
    tree_t, part_t = torch.from_numpy(tree_of), torch.from_numpy(part_of)
    same_tree = tree_t[:, :, None] == tree_t[:, None, :]
    visible = (part_t[:, None, :] == 0) | (part_t[:, :, None] == part_t[:, None, :]) | torch.from_numpy(chained)[:, :, None]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    hidden = ~(same_tree & visible & causal)[:, None]
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(torch.float32).min)
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "labels": torch.from_numpy(labels),
        "attention_mask": mask,
        **(
            {
                "advantages": torch.from_numpy(advantages),
                "sampled": torch.from_numpy(sampled),
                "lengths": torch.from_numpy(lengths),
            }
            if policy
            else {}
        ),
    }
