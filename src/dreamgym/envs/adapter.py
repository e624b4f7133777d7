"""What the pipeline asks of an environment: how to make it, its tasks, its step cap and its teacher.

TextWorld cooking has one (``dreamgym.envs.textworld.adapter``); a user's own environment brings another, named in the
configuration as ``module:object``. ``dreamgym.envs.gym.GymAdapter`` makes one from any Gymnasium text environment.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from dreamgym.core.env import Env, RealSteps
from dreamgym.core.errors import ConfigError
from dreamgym.core.state import State
from dreamgym.core.types import Episode, Panel, Task
from dreamgym.experience.annotate import Teacher

Explorer = Callable[[str, State, np.random.Generator], str]
"""(instruction, state, rng) -> action."""


@runtime_checkable
class Adapter(Protocol):
    """An environment as the pipeline sees it."""

    name: str
    """Goes into the provenance of every episode."""
    cap: int
    """Steps after which an episode is truncated, real and dreamed alike."""

    @property
    def teacher(self) -> Teacher: ...

    def env(self, counter: RealSteps) -> Env:
        """A fresh environment whose every real step goes through ``counter``."""
        ...

    def tasks(self, panel: Panel, limit: int) -> list[Task]:
        """At most ``limit`` tasks of a panel, always in the same order. Evaluation panels share no task with ``train``."""
        ...

    def collect(self, counter: RealSteps, limit: int, seed: int) -> Iterator[Episode]:
        """Record logs on ``limit`` training tasks, for environments that bring their own explorers."""
        ...

    def explorers(self) -> dict[str, Explorer]:
        """Scripted policies by name, for audits; the audit needs real episodes of several kinds of behaviour."""
        ...


def load_adapter(name: str) -> Adapter:
    """``textworld/easy``, ``/standard`` (or with ``/current``: the view without memory), ``/hard``, ``/mixed``, or ``module:object``."""
    if name.startswith("textworld/"):
        from dreamgym.envs.textworld.adapter import TextWorldAdapter

        level, _, view = name.removeprefix("textworld/").partition("/")
        return TextWorldAdapter(level, view or "carried")
    if ":" not in name:
        known = "textworld/<easy|standard|hard|mixed> (easy and standard also with /current) or module:object"
        raise ConfigError(f"env: {name!r} is not known; use {known}")
    found = load_object(name, "env")
    if not isinstance(found, Adapter):
        raise ConfigError(f"env: {name!r} is no Adapter; it needs name, cap, teacher, env(), tasks(), collect() and explorers()")
    return found


def load_object(name: str, key: str) -> object:
    """What ``module:object`` names; the current folder is importable. ``ConfigError`` names the configuration's ``key``."""
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"{key}: {name!r} cannot be imported ({e})") from e
