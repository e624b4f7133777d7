"""The reverse query transform (arXiv 2301.03767): a small network from new embeddings to old ones, so that a query is encoded once.

    psi = fit_reverse(new_vectors, old_vectors)                           # L_RQT: ψ(φ_new(x)) close to φ_old(x)
    psi = fit_metric_compatible(new_vectors, old_vectors, labels)         # scores of both parts on one scale
    new = Refined.fit(SentenceEncoder(...), vectors, labels)              # a layer on top of the new encoder, trained by the labels

Both encoders stay frozen. A ψ that has seen labels makes the old part better than a new encoder that has not, and every step that is
re-embedded then gets worse: so give the new one its layer first (the paper's last variant; the composition is the encoder of record).
With s^n_ij = φ_new(x_i)·φ_new(x_j) / t and s^r_ij = (ψ(φ_new(x_i))·φ_old(x_j) + b) / t the second one's loss is
a supervised contrastive one whose negatives come from both systems, in both directions (a reconstruction; ψ's output is not
normalised and b is learned, since cosines of two encoders differ in scale and offset):

    L(i) = -log Σ_p e^{s^r_ip} / (Σ_p e^{s^r_ip} + Σ_n e^{s^r_in} + Σ_n e^{s^n_in})  and the same with s^n in the numerator
"""

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dreamgym.core.errors import DataError
from dreamgym.core.state import LINE
from dreamgym.core.types import Transition
from dreamgym.replay.encoders import Encoder, Pair
from dreamgym.replay.search import Floats


def label_of(t: Transition) -> tuple[object, ...]:
    """Which steps belong together: same verb, same outcome, same template of the state lines that the action names, names left out."""
    words = set(t.action.split())
    read = [m for m in map(LINE.fullmatch, t.state) if m]
    template = sorted({f"{m['place']}: {m['text']}" for m in read if words & {m["kind"], m["place"]}})
    return (t.action.split()[:1], t.outcome, *template)


class Refined:
    """``inner`` with a residual layer on its vectors. An ``Encoder`` of its own: the layer's weights are part of its revision."""

    def __init__(self, inner: Encoder, layer: nn.Sequential) -> None:
        self.inner, self.layer = inner, layer.eval()
        weights = b"".join(p.detach().numpy().tobytes() for p in layer.parameters())
        self.name, self.dimension, self.remembers = f"{inner.name}+layer", inner.dimension, inner.remembers
        self.revision = f"{inner.revision}+{hashlib.blake2b(weights, digest_size=8).hexdigest()}"

    @classmethod
    def fit(
        cls,
        inner: Encoder,
        vectors: Floats,
        labels: Sequence[int],
        steps: int = 1500,
        batch: int = 256,
        temperature: float = 0.05,
        seed: int = 0,
    ) -> "Refined":
        """By a supervised contrastive loss (arXiv 2004.11362) on ``vectors`` [n, dimension] of ``inner``; it starts as the identity."""
        layer = _layer(inner.dimension, seed)
        x, names = torch.from_numpy(np.array(vectors)), torch.tensor(list(labels))

        def loss(rows: torch.Tensor) -> torch.Tensor:
            near = _refined(layer, x[rows])
            same = names[rows][:, None] == names[rows][None, :]
            positive = same & ~torch.eye(len(rows), dtype=torch.bool)
            has, scores = positive.any(1), near @ near.T / temperature
            mine = torch.logsumexp(_only(scores, positive), 1)[has]
            against = torch.logsumexp(_only(scores, ~same), 1)[has]
            return (torch.logaddexp(mine, against) - mine).mean()

        _descend(layer, loss, len(x), steps, batch, seed)
        return cls(inner, layer)

    def encode(self, pairs: Sequence[Pair]) -> Floats:
        return self.refine(self.inner.encode(pairs))

    def refine(self, vectors: Floats) -> Floats:
        """Of vectors of ``inner``."""
        with torch.no_grad():
            return np.asarray(_refined(self.layer, torch.from_numpy(np.array(vectors))).numpy(), dtype=np.float32)

    def save(self, path: Path) -> None:
        torch.save(self.layer.state_dict(), path)

    @classmethod
    def load(cls, inner: Encoder, path: Path) -> "Refined":
        """Raises ``DataError`` where the file is no layer for ``inner``."""
        layer = _layer(inner.dimension, 0)
        try:
            layer.load_state_dict(torch.load(path, weights_only=True))
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as e:
            raise DataError(f"{path}: holds no layer for {inner.name} ({e})") from e
        return cls(inner, layer)


def _layer(dimension: int, seed: int, width: int = 512) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        last = nn.Linear(width, dimension)
        layer = nn.Sequential(nn.Linear(dimension, width), nn.GELU(), last)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return layer


def _refined(layer: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(x + layer(x), dim=1)


class ReverseTransform(nn.Module):
    """ψ and its offset b."""

    def __init__(self, new: int, old: int, width: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(new, width), nn.GELU(), nn.Linear(width, old))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class ReverseQuery:
    """A merge that never asks the old encoder: its queries are ψ of the new ones."""

    def __init__(self, psi: ReverseTransform, normalised: bool) -> None:
        self.psi, self.normalised = psi.eval(), normalised

    def old_queries(self, pairs: Sequence[Pair], new: Floats) -> Floats:
        with torch.no_grad():
            found = self.psi(torch.from_numpy(np.array(new)))
            found = nn.functional.normalize(found, dim=1) if self.normalised else found
        return np.asarray(found.numpy(), dtype=np.float32)

    def comparable(self, old: Floats, new: Floats) -> tuple[Floats, Floats]:
        return (old if self.normalised else old + float(self.psi.offset.detach())), new


def fit_reverse(new: Floats, old: Floats, steps: int = 1500, batch: int = 256, seed: int = 0) -> ReverseTransform:
    """ψ by L_RQT = E |ψ(φ_new(x)) / |ψ(φ_new(x))| - φ_old(x)|²; ``new`` [n, d_new] and ``old`` [n, d_old] are of the same texts."""
    psi = _new(new, old, seed)
    x, y = torch.from_numpy(np.array(new)), torch.from_numpy(np.array(old))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return (nn.functional.normalize(psi(x[rows]), dim=1) - y[rows]).pow(2).sum(1).mean()

    _descend(psi, loss, len(x), steps, batch, seed)
    return psi


def fit_metric_compatible(
    new: Floats, old: Floats, labels: Sequence[int], steps: int = 1500, batch: int = 256, temperature: float = 0.05, seed: int = 0
) -> ReverseTransform:
    """ψ by the loss of this module's text; pairs with the same label belong together."""
    psi = fit_reverse(new, old, steps, batch, seed)
    x, y, names = torch.from_numpy(np.array(new)), torch.from_numpy(np.array(old)), torch.tensor(list(labels))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        a, b = x[rows], y[rows]
        same = names[rows][:, None] == names[rows][None, :]
        others = ~torch.eye(len(rows), dtype=torch.bool)
        positive, negative = same & others, ~same
        fresh, reverse = a @ a.T / temperature, (psi(a) @ b.T + psi.offset) / temperature
        against = torch.logsumexp(torch.cat([_only(fresh, negative), _only(reverse, negative)], 1), 1)
        has = positive.any(1)
        terms = []
        for scores in (fresh, reverse):
            mine = torch.logsumexp(_only(scores, positive), 1)[has]
            terms.append((torch.logaddexp(mine, against[has]) - mine).mean())
        return terms[0] + terms[1]

    _descend(psi, loss, len(x), steps, batch, seed + 1)
    return psi


def _only(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def _new(new: Floats, old: Floats, seed: int) -> ReverseTransform:
    if len(new) != len(old):
        raise ValueError(f"{len(new)} new and {len(old)} old vectors are not of the same texts")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ReverseTransform(new.shape[1], old.shape[1])


def _descend(psi: nn.Module, loss: object, n: int, steps: int, batch: int, seed: int) -> None:
    """Adam with a cosine schedule, on batches drawn by ``seed``."""
    assert callable(loss)
    optimizer = torch.optim.AdamW(psi.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(n, generator=generator)[:batch]
        optimizer.zero_grad(set_to_none=True)
        loss(rows).backward()
        optimizer.step()
        schedule.step()
