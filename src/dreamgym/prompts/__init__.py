"""Prompt texts as files, one per purpose and version; ``$name`` marks what is filled in.

    text = prompt("step.v1", replies=...)

A text is never edited once results were made with it: the next wording is the next version.
"""

from importlib import resources
from string import Template


def prompt(name: str, **values: str) -> str:
    """The text of ``prompts/<name>.md``, filled in. Raises ``KeyError`` for a mark without a value."""
    return Template(resources.files("dreamgym.prompts").joinpath(f"{name}.md").read_text(encoding="utf-8")).substitute(values).strip()
