"""The command line for tests, in their own process: a new one takes ten seconds to import torch and transformers, and has its tests where
runs are killed. ``ENV`` and ``ROOT`` are for those.
"""

import contextlib
import importlib.util
import io
import os
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
WIDTH = {"COLUMNS": "200"}
ENV = {**os.environ, **WIDTH, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
SMALL = [
    "env=short_vault:adapter",
    "logs=collect",
    "base=tiny",
    "collect_tasks=40",
    "threads=1",
    "pretrain.epochs=2",
    "experience.teacher=generic",
    "experience.fit.epochs=3",
    "experience.fit.rows=8",
    "sft.fit.epochs=6",
    "rl.iterations=3",
    "rl.tasks=4",
    "rl.group=4",
    "evaluation.games=8",
    "evaluation.samples=2",
    "evaluation.audit_games=1",
    "experience.prompt.budget=64",
    "evaluation.probe_games=4",
    "rl.probe_every=2",
    "s2r.iterations=8",
    "s2r.tasks=3",
]
"""Overrides of a small run, whose experience model learns enough for replies that end and can be used."""


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def dreamgym(*words: str) -> Done:
    """``dreamgym WORDS`` from the repository's root. What it does not handle itself, it raises here."""
    from dreamgym.cli import main

    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    out, err, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads() if torch else 0
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "argv", ["dreamgym", *words]),
        patch.dict(os.environ, WIDTH),
    ):
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        finally:
            if torch:
                torch.set_num_threads(threads)
    return Done(code, out.getvalue(), err.getvalue())


def code_of(page: str, word: str) -> str:
    """The block of Python on a page that has ``word`` in it."""
    blocks = (ROOT / "docs" / page).read_text().split("```python\n")[1:]
    [found] = [code for code in (b.partition("```")[0] for b in blocks) if word in code]
    return found
