"""Read JSON and YAML files from untrusted sources, with limits on size, depth and content.

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
import re
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 32 * 2**20
"""Maximum size of a file in bytes."""

MAX_DEPTH = 40
"""Maximum depth of nested lists and mappings."""

MAX_VALUES = 1_000_000
"""Maximum number of values in a YAML file. Values of an alias count each time it is used."""


class ContentError(ValueError):
    """Invalid content of a file. The message does not include the path."""


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        ContentError: the content is not valid JSON, exceeds a limit, or has a duplicate key, NaN or infinity.
        OSError: the file cannot be read.
    """
    text = _text(file)
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


def _text(file: Path) -> str:
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


class StrictLoader(yaml.SafeLoader):
    """YAML loader for plain values, with numbers as in YAML 1.2 (``1e-4``). It raises `ContentError` for duplicate keys
    and exceeded limits.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._counts: dict[int, int] = {}  # values in each node, aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ContentError(f"it is nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None or id(node) in self._counts:
            return node
        if isinstance(node, yaml.CollectionNode) and node.end_mark is None:
            raise ContentError("an alias refers to a value that contains it")
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        self._counts[id(node)] = 1 + sum(self._counts[id(part)] for part in inner)
        if self._counts[id(node)] > MAX_VALUES:
            raise ContentError(f"it has more than {MAX_VALUES:,} values, with its aliases expanded")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in found:
                raise ContentError(f"{key!r} occurs twice")
            found.add(key)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(file: Path) -> Any:
    """Read a YAML file as plain values.

    Raises:
        ContentError: the content is not valid YAML, exceeds a limit, or has a duplicate key.
        OSError: the file cannot be read.
    """
    text = _text(file)
    try:
        return yaml.load(text, Loader=StrictLoader)
    except ContentError:
        raise
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # ValueError: invalid dates; TypeError: invalid keys
        mark = getattr(error, "problem_mark", None)
        raise ContentError(f"{f'line {mark.line + 1}' if mark else 'it'} is not valid YAML") from error
