"""The configuration of a run as a file and ``key=value`` overrides: read, with errors that name key and place, and written.

config = load_config(Path("my.yaml"), ["rl.iterations=20", "experience.prompt.reasoning=false"])
"""

import difflib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel, ValidationError

from dreamgym.core.errors import ConfigError
from dreamgym.pipeline.config import TAKEN, RunConfig


class _OnceLoader(yaml.SafeLoader):
    """YAML lets a key come twice, and the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        keys = [self.construct_object(key, deep) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key, (place, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {place.start_mark.line + 1}: the key {key!r} is given twice")
        return super().construct_mapping(node, deep)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Defaults, then the file, then the overrides. ``ConfigError`` names the key, the file and the nearest real key."""
    data: dict[str, object] = {}
    where = "configuration"
    given: dict[tuple[str, ...], str] = {}
    if path is not None:
        where = str(path)
        try:
            loaded = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)  # a SafeLoader
        except OSError as e:
            raise ConfigError(f"{path}: cannot be read ({e.strerror})") from e
        except UnicodeDecodeError as e:
            raise ConfigError(f"{path}: not UTF-8 ({e.reason} at byte {e.start})") from e
        except yaml.YAMLError as e:
            raise ConfigError(f"{path}: not YAML ({e})") from e
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{path}: must hold keys and values at the top")
        data = loaded or {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"override {text!r} has no '='; the form is key.subkey=value")
        try:
            _put(data, key.split("."), yaml.safe_load(value))
            given[tuple(key.split("."))] = f"override {text}"
        except yaml.YAMLError as e:
            raise ConfigError(f"override {text!r}: the value is not YAML ({' '.join(str(e).split())})") from e
    try:
        return RunConfig.model_validate(data)
    except ValidationError as e:
        told, own = [], data.get("s2r")
        of_rl = {(*error["loc"][1:], error["msg"]) for error in e.errors() if error["loc"][:1] == ("rl",)}
        for error in e.errors():
            loc = tuple(map(str, error["loc"]))
            given_there = isinstance(own, dict) and bool(loc[1:]) and loc[1] in own
            if loc[:1] == ("s2r",) and not given_there and (*error["loc"][1:], error["msg"]) in of_rl:
                continue  # s2r has the key from rl
            source = next((said for keys, said in given.items() if loc[: len(keys)] == keys), where)
            told.append(_explain(error["loc"], error["msg"], error["type"], source))
        raise ConfigError("; ".join(told)) from e


def dump_config(config: RunConfig) -> str:
    """As YAML. What ``s2r`` has from ``rl`` is not written: it follows ``rl`` where the file is read with overrides."""
    data = config.model_dump(mode="json")
    data["s2r"] = {k: v for k, v in data["s2r"].items() if not (k in TAKEN and v == data["rl"][k])}
    return yaml.safe_dump(data, sort_keys=False)


def _put(data: dict[str, object], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        inner = data[key] = {} if data.get(key) is None else data[key]
        if not isinstance(inner, dict):
            raise ConfigError(f"override {'.'.join(keys)}: {key} holds a value, not a section")
        data = inner
    data[keys[-1]] = value


def _explain(loc: tuple[int | str, ...], message: str, kind: str, where: str) -> str:
    key = ".".join(map(str, loc))
    if kind != "extra_forbidden":
        return f"{where}: {key}: {message}"
    model: type[BaseModel] = RunConfig
    for part in loc[:-1]:
        annotation = model.model_fields[str(part)].annotation
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    near = difflib.get_close_matches(str(loc[-1]), model.model_fields, n=1)
    return f"{where}: unknown key {key}" + (f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(model.model_fields)}")
