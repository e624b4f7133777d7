"""The order of tests: those that take minutes begin, so that no process is left alone with them at the end."""

import pytest

LONG = ("test_whole_runs", "test_ranks", "test_chat_sft", "test_transcript", "test_lora")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
