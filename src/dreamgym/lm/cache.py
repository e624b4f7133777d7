"""Keys and values with room ahead: transformers' ``DynamicCache`` joins old and new at every token and copies the rows that stay
whenever one ends, which is most of the time of a small model on a CPU. Here a token costs a token, and a row that ends costs the row
that takes its place. What attention reads is the same, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

STEP = 64
"""Tokens of room that a layer gains when it runs full."""


class RoomyLayer(DynamicLayer):
    """``keys`` and ``values`` are views of the filled part of larger tensors of shape [rows, heads, tokens + room, head size]."""

    larger_keys: torch.Tensor
    larger_values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [rows, heads, new tokens, head size] of each; all there is now, in return."""
        if self.keys is None or self.values is None:  # a prompt's: as they are, room comes with the first token after it
            self.lazy_initialization(key_states, value_states)
            self.keys = self.larger_keys = key_states
            self.values = self.larger_values = value_states
            return self.keys, self.values
        done = self.keys.shape[-2]
        now = done + key_states.shape[-2]
        if now > self.larger_keys.shape[-2]:
            every = torch.arange(len(key_states), device=key_states.device)
            self.larger_keys = _with_room([self.keys], key_states.dtype, every, key_states.shape[-2] + STEP)
            self.larger_values = _with_room([self.values], value_states.dtype, every, key_states.shape[-2] + STEP)
        self.larger_keys[: len(key_states), :, done:now] = key_states
        self.larger_values[: len(value_states), :, done:now] = value_states
        return self._fill(len(key_states), now)

    def hold(self, keys: torch.Tensor, values: torch.Tensor, tokens: int) -> None:
        """Be the first ``tokens`` of ``keys`` and ``values``, the rest of which is room."""
        self.lazy_initialization(keys, values)
        self.larger_keys, self.larger_values = keys, values
        self._fill(len(keys), tokens)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; only those that change their place are copied."""
        rows, tokens = len(indices), self.get_seq_length()
        moved = torch.nonzero(indices != torch.arange(rows, device=indices.device))[:, 0]
        for larger in (self.larger_keys, self.larger_values):
            larger[moved, :, :tokens] = larger[indices[moved], :, :tokens]
        self._fill(rows, tokens)

    def _fill(self, rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = self.larger_keys[:rows, :, :tokens], self.larger_values[:rows, :, :tokens]
        return self.keys, self.values


def roomy_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache whose plain layers keep room; those with a sliding window are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def join(caches: Sequence[DynamicCache], rows: torch.Tensor, dtype: torch.dtype) -> DynamicCache:
    """One cache of the rows of several, equally long; ``rows``: which of all their rows, in this order, also more than once;
    ``dtype``: of what will be added."""
    first = caches[0]
    if len(caches) == 1 and _as_they_are(first, rows, dtype):
        return first
    for layer, *others in zip(*(c.layers for c in caches), strict=True):
        same = [layer, *others]
        if isinstance(layer, RoomyLayer):
            layer.larger_keys = _with_room([s.keys for s in same], dtype, rows)
            layer.larger_values = _with_room([s.values for s in same], dtype, rows)
            layer._fill(len(rows), layer.get_seq_length())
        else:
            layer.keys, layer.values = torch.cat([s.keys for s in same])[rows], torch.cat([s.values for s in same])[rows]
    return first


def _as_they_are(cache: DynamicCache, rows: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether ``rows`` are all of the cache's in their order, and hold what will be added."""
    layers = [layer for layer in cache.layers if isinstance(layer, RoomyLayer)]
    wide = all(torch.promote_types(x.larger_keys.dtype, dtype) == x.larger_keys.dtype and len(x.larger_keys) == len(rows) for x in layers)
    return len(layers) == len(cache.layers) and wide and torch.equal(rows, torch.arange(len(rows), device=rows.device))


def _with_room(parts: Sequence[torch.Tensor], dtype: torch.dtype, rows: torch.Tensor, room: int = STEP) -> torch.Tensor:
    """``torch.cat(parts)[rows]`` with room for further tokens, in a type that holds both (a prompt read in 16 bit goes on in 32)."""
    _, heads, tokens, size = parts[0].shape
    larger = parts[0].new_empty((len(rows), heads, tokens + room, size), dtype=torch.promote_types(parts[0].dtype, dtype))
    start = 0
    for part in parts:
        here = torch.nonzero((rows >= start) & (rows < start + len(part)))[:, 0]
        larger[here, :, :tokens] = part[rows[here] - start].to(larger.dtype)
        start += len(part)
    return larger


Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one sequence by layer, each [heads, tokens, head size]."""


@dataclass
class Memory:
    """What was read and said, from call to call: a sequence's keys and values by its ids. Each is taken once, by what goes on from it."""

    kept: dict[tuple[int, ...], Layers] = field(default_factory=dict)
    room: int = 0

    def keep(self, ids: tuple[int, ...], cache: DynamicCache, row: int, mask: torch.Tensor) -> None:
        """Row ``row`` of ``cache`` under ``ids``, whose last has not been read; ``mask`` [tokens]: which of its tokens are no padding."""
        layers = [layer for layer in cache.layers if isinstance(layer, RoomyLayer)]
        if len(layers) < len(cache.layers):
            return  # a sliding window has forgotten the beginning
        where = torch.nonzero(mask)[:, 0]
        self.kept[ids] = [(layer.larger_keys[row][:, where], layer.larger_values[row][:, where]) for layer in layers]

    def take(self, ids: tuple[int, ...]) -> Layers | None:
        """Of the sequence ``ids`` without its last token; None where it is not known."""
        return self.kept.pop(ids, None)

    def trim(self, rows: int) -> None:
        """Let the oldest go, beyond twice the most ``rows`` of a call: nobody says that a sequence has ended. A missed one is read anew."""
        self.room = max(self.room, 2 * rows)
        for ids in list(self.kept)[: max(0, len(self.kept) - self.room)]:
            del self.kept[ids]


def preload(cache: DynamicCache, rows: Sequence[Layers | None], width: int, new: int, shapes: Layers) -> None:
    """Fill an empty ``cache`` with ``width`` tokens per row, known ones at the right end, with room for ``new`` ones and for a reply.

    ``shapes``: any sequence of the same model.
    """
    for layer, (number, (keys, _)) in zip(cache.layers, enumerate(shapes), strict=True):
        heads, _, size = keys.shape
        both = keys.new_zeros((2, len(rows), heads, width + new + STEP, size))
        for i, row in enumerate(rows):
            for held, one in zip(both, row[number] if row else (), strict=False):
                held[i, :, width - one.shape[1] : width] = one
        assert isinstance(layer, RoomyLayer)
        layer.hold(both[0], both[1], width)
