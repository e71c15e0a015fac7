"""Read JSON files from untrusted sources, with limits on size, depth and content, and check names of classes. For YAML
see `foveal.strict_yaml`.

Example:
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "a.json")
    >>> _ = file.write_text('{"a": 1, "a": 2}')
    >>> read_json(file)
    Traceback (most recent call last):
    ...
    foveal.strict.ContentError: 'a' occurs twice
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 32 * 2**20
"""Maximum size of a file in bytes."""

MAX_DEPTH = 40
"""Maximum depth of nested lists and mappings."""


class ContentError(ValueError):
    """Invalid content of a file. The message does not include the path."""


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        ContentError: the content is not valid JSON, exceeds a limit, or has a duplicate key, NaN or infinity.
        OSError: the file cannot be read.
    """
    text = text_of(file)
    try:
        return _no_deeper(json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite))
    except RecursionError as error:
        raise ContentError(f"it is nested more than {MAX_DEPTH} levels deep") from error
    except ContentError:
        raise
    except ValueError as error:  # also raised for numbers with thousands of digits
        raise ContentError(
            f"{f'line {error.lineno}' if isinstance(error, json.JSONDecodeError) else 'it'} is not valid JSON"
        ) from error


def text_of(file: Path) -> str:
    """The text of a file.

    Raises:
        ContentError: it is too large, or not UTF-8.
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ContentError(f"it is larger than {MAX_BYTES // 2**20} MB")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ContentError(f"byte {error.start} is not UTF-8") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ContentError(f"{key!r} occurs twice")
        found[key] = value
    return found


def _constant(name: str) -> float:
    raise ContentError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ContentError(f"{text} is too large")
    return value


def _no_deeper(value: Any) -> Any:
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ContentError(f"it is nested more than {MAX_DEPTH} levels deep")
    return value


def class_names_error(names: Sequence[Any]) -> str | None:
    """The first error in names of classes; None if they are distinct, non-empty strings without control characters."""
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            return f"name {i}, {name!r}, is not a non-empty string"
        if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
            return f"name {i}, {name!r}, has a line break or another control character"
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    return None if twice is None else f"{twice!r} occurs twice"
