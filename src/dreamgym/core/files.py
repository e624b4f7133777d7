"""Files of episodes: JSON lines, optionally xz-compressed, written atomically and read with file and line in every error.

write_episodes(path, episodes)
for episode in read_episodes(path): ...
"""

import json
import lzma
import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, cast

from pydantic import ValidationError

from dreamgym.core.errors import DataError
from dreamgym.core.types import Episode


def open_text(path: Path, mode: str) -> IO[str]:
    """Open plain or ``.xz`` text, UTF-8, ``mode`` being ``r`` or ``w``."""
    if path.suffix == ".xz":
        return cast(IO[str], lzma.open(path, mode + "t", encoding="utf-8"))
    return cast(IO[str], open(path, mode, encoding="utf-8"))


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds the old content or the new one, never a part (fsync, then rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({e.strerror}); what was there is untouched") from e


def write_json(path: Path, value: object) -> None:
    """``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from ``path``; ``DataError`` names the file (and line) where it is missing or malformed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file; run the stage that makes it") from e
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read ({e})") from e
    except json.JSONDecodeError as e:
        raise DataError(f"{path}:{e.lineno}: not JSON ({e.msg})") from e
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, an object is needed")
    return value


def write_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """All ``episodes`` as one file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with open_text(temporary, "w") as f:
            for episode in episodes:
                f.write(episode_line(episode) + "\n")
        with open(temporary, "rb") as done:
            os.fsync(done.fileno())
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({e.strerror}); what was there is untouched") from e


def read_episodes(path: Path) -> Iterator[Episode]:
    """Episodes of a file, one by one. ``DataError`` names file, line and field of what is wrong."""
    number = 0
    try:
        with open_text(path, "r") as f:
            for text in f:
                number += 1
                if text.strip():
                    yield episode_of_line(text)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file of episodes") from e
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as e:
        raise DataError(f"{path}:{number + 1}: cannot be read ({e})") from e
    except json.JSONDecodeError as e:
        raise DataError(f"{path}:{number}: not JSON ({e.msg} at column {e.colno}); mend or delete this line") from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "episode"
        raise DataError(f"{path}:{number}: field {where}: {first['msg']}; mend or delete this line") from e
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise DataError(f"{path}:{number}: not an episode ({type(e).__name__}: {e}); mend or delete this line") from e


def episode_line(episode: Episode) -> str:
    """An episode as one JSON line. States are chained: only the first is stored, changes give the others."""
    data = episode.model_dump(mode="json", exclude_defaults=True)
    steps = episode.transitions
    states = [t.state for t in steps] + ([steps[-1].next_state] if steps else [episode.task.first_state])
    chained = all(a.next_state == b.state for a, b in pairwise(steps))
    if chained and all(b.at < len(states) and b.transition.state == states[b.at] for b in episode.branches):
        data["start"] = None if states[0] == episode.task.first_state else list(states[0])
        for t in data["transitions"]:
            del t["state"]
        for b in data.get("branches", ()):
            del b["transition"]["state"]
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def episode_of_line(text: str) -> Episode:
    data = json.loads(text)
    if "start" in data:
        states = [data.pop("start") or data["task"]["first_state"]]
        for t in data["transitions"]:
            t["state"] = states[-1]
            states.append(sorted(set(states[-1]).difference(t.get("removed", ())).union(t.get("added", ()))))
        for b in data.get("branches", ()):
            b["transition"]["state"] = states[b["at"]]
    return Episode.model_validate(data)
