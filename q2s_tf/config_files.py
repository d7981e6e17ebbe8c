"""Reading, checking and writing config files.

A file is validated when it is read: an unknown key, a value out of range or a channel with an undeclared encoder is one
`InputError`.
"""

import difflib
import reprlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import ValidationError

from q2s_tf.config import Config, Section
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a TOML config.

    Args:
        path: the file.
        overrides: `key=value` with a dotted key and a TOML value (`stage1.batch_size=512`); a bare word is a string.

    Raises:
        InputError: the file is not there or not TOML, or a key or value breaks a rule.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"config {path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"config {path}: not a TOML file in UTF-8: {error}") from None
    return check_config(tables, str(path), overrides)


def check_config(tables: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Validates plain tables, after overrides as in `read_config`; an `InputError` names them as `source`."""
    for override in overrides:
        _override(tables, override)
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        raise InputError(f"config {source}: " + "; ".join(problems)) from None


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved config as TOML, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")


def _override(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: expected key=value, for example stage1.batch_size=512")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        tables = tables.setdefault(parent, {})
        if not isinstance(tables, dict):
            raise InputError(f"--set {override}: '{parent}' is a value, not a table")
    tables[last] = value


def _describe(problem: Any) -> str:
    parts = [str(part) for part in problem["loc"]]
    if parts[:1] == ["channels"] and len(parts) > 2:
        del parts[2]  # the kind, by which pydantic tells the tables of channels apart; no key of the file
    place = ".".join(parts) or "the whole"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        sections = [Config] if len(parts) == 1 else _sections(Config.model_fields[parts[0]].annotation)
        keys = {key for section in sections for key in section.model_fields}
        nearest = difflib.get_close_matches(parts[-1], sorted(keys), 1)
        return f"unknown key '{place}'" + (f"; the nearest key is '{nearest[0]}'" if nearest else "")
    if problem["type"] in ("value_error", "missing"):
        return f"{place}: {message}" if problem["loc"] else message
    return f"{place}: {message} (got {reprlib.repr(problem['input'])})"


def _sections(annotation: Any) -> list[type[Section]]:
    """The tables of the config in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]
