"""JSON and YAML that others may have written: read with bounds on size, depth and content.

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

LARGEST = 32 * 2**20
"""Bytes of a file."""

DEEPEST = 40
"""Lists and mappings inside each other."""

MOST = 1_000_000
"""Values in a YAML file, those behind an alias counted each time that it stands."""


class ContentError(ValueError):
    """Content that is not read. Its text says why, in a few words without the name of the file."""


def read_json(file: Path) -> Any:
    """Content of a JSON file: no key twice, no NaN, no infinity.

    Raises:
        ContentError: anything else.
        OSError: it cannot be read.
    """
    text = _text(file)
    try:
        return _no_deeper(json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite))
    except RecursionError as error:
        raise ContentError(f"it is nested more than {DEEPEST} levels deep") from error
    except ContentError:
        raise
    except ValueError as error:  # also of numbers with thousands of digits
        raise ContentError(
            f"{f'line {error.lineno}' if isinstance(error, json.JSONDecodeError) else 'it'} is not valid JSON"
        ) from error


def _text(file: Path) -> str:
    with file.open("rb") as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ContentError(f"it is larger than {LARGEST // 2**20} MB")
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
        if depth > DEEPEST:
            raise ContentError(f"it is nested more than {DEEPEST} levels deep")
    return value


class Loader(yaml.SafeLoader):
    """Plain values from YAML, with YAML 1.2's numbers: 1e-4 is one. No key twice; aliases as long as they do not
    multiply.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._counts: dict[int, int] = {}  # values in each node, with those behind its aliases

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ContentError(f"it is nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None or id(node) in self._counts:
            return node
        if isinstance(node, yaml.CollectionNode) and node.end_mark is None:
            raise ContentError("an alias stands inside of what it is an alias of")
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        self._counts[id(node)] = 1 + sum(self._counts[id(part)] for part in inner)
        if self._counts[id(node)] > MOST:
            raise ContentError(f"its aliases make more than {MOST:,} values of it")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in known:
                raise ContentError(f"{key!r} occurs twice")
            known.add(key)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def read_yaml(file: Path) -> Any:
    """Content of a YAML file, as plain values.

    Raises:
        ContentError: no YAML, or more than `Loader` takes.
        OSError: it cannot be read.
    """
    text = _text(file)
    try:
        return yaml.load(text, Loader=Loader)
    except ContentError:
        raise
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # the second and third of impossible dates and keys
        mark = getattr(error, "problem_mark", None)
        raise ContentError(f"{f'line {mark.line + 1}' if mark else 'it'} is not valid YAML") from error
