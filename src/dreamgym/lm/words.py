"""Whole words: frequent words that a tokenizer splits become one token each.

A tiny model mixes up names of several tokens (red/purple/yellow potato), and a reasoning trace of split words is twice as
long. The new embeddings start as the mean of the pieces' embeddings, so a pretrained model keeps what it knows.
"""

from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import AddedToken

from dreamgym.lm.local import LocalLM


def add_whole_words(lm: LocalLM, texts: Iterable[str], minimum: int) -> list[str]:
    """Add every word (with the space before it) that occurs ``minimum`` times in ``texts`` and is split; returns them."""
    counts = Counter(word for text in texts for word in text.split(" ") if word)
    frequent = sorted(w for w, n in counts.items() if n >= minimum)
    pieces = {w: p for w, p in zip(frequent, lm.encode_batch([f" {w}" for w in frequent]), strict=True) if len(p) > 1}
    if not pieces:
        return []
    first = len(lm.tokenizer)
    lm.tokenizer.add_tokens([AddedToken(f" {w}", normalized=False, special=False) for w in pieces])
    lm.model.resize_token_embeddings(len(lm.tokenizer), mean_resizing=False)
    weights = lm.model.get_input_embeddings().weight
    assert isinstance(weights, torch.Tensor)
    with torch.no_grad():
        for row, ids in enumerate(pieces.values(), start=first):
            weights[row] = weights[ids].mean(0)
    return list(pieces)
