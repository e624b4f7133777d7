"""Keyed randomness: every draw is named by what it is for, so results do not depend on which episode finishes first.

rng = keyed_rng(seed, task.id, member, turn)
"""

import hashlib

import numpy as np


def key_of(*parts: str | int) -> int:
    """A stable 64-bit integer for ``parts`` (the same on every machine and in every process)."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def keyed_rng(*parts: str | int) -> np.random.Generator:
    """A generator that belongs to ``parts`` alone, such as (seed, task id, member, turn)."""
    return np.random.Generator(np.random.Philox(key_of(*parts)))
