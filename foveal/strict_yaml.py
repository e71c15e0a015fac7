"""Read YAML files from untrusted sources, with the limits of `foveal.strict`. `foveal.runtime` does without PyYAML.

Example:
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "a.yaml")
    >>> _ = file.write_text("lr: 1e-4")
    >>> read_yaml(file)
    {'lr': 0.0001}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from foveal.strict import MAX_DEPTH, ContentError, text_of

MAX_VALUES = 1_000_000
"""Maximum number of values in a YAML file. Values of an alias count each time it is used."""


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
    text = text_of(file)
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
