"""Registries of models, objectives, policies and data sets by name.

An entry is added by a decorator. ``--import MODULE`` loads a module that adds entries, for one command. Runs store the
names of such modules as text. Modules that a run, a recipe or another file lists are never imported.

Example:
    >>> TOOLS = Registry("tool")
    >>> @TOOLS.register
    ... def hammer(): ...
    >>> @TOOLS.register("screw-driver")
    ... def driver(): ...
    >>> TOOLS.names(), TOOLS.get("hammer") is hammer, "saw" in TOOLS
    (['hammer', 'screw-driver'], True, False)
    >>> TOOLS.get("hamer")
    Traceback (most recent call last):
    ...
    foveal.registry.UnknownName: hamer: there is no tool of this name; did you mean hammer?
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, overload

from foveal.errors import ConfigError

Entry = TypeVar("Entry")
Added = TypeVar("Added")


class UnknownName(ConfigError):
    """A name that is not registered.

    Attributes:
        kind: kind of the entry, such as ``model``.
        name: the name.
        elsewhere: whether the run lists modules that were not imported, one of which may register the name.
    """

    def __init__(self, sentence: str, kind: str, name: str, elsewhere: bool = False) -> None:
        super().__init__(sentence)
        self.kind, self.name, self.elsewhere = kind, name, elsewhere


class Registry(Generic[Entry]):
    """Entries of one kind by name, in the order in which they were added.

    Args:
        kind: word for an entry, in errors.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    @overload
    def register(self, name: str) -> Callable[[Added], Added]: ...
    @overload
    def register(self, name: Added) -> Added: ...
    def register(self, name: Any) -> Any:
        """Add an entry: ``@register("name")``, or ``@register`` to use the entry's ``name``, or else its ``__name__``.

        Raises:
            ConfigError: another entry has the name.
        """
        if not isinstance(name, str):
            own = getattr(name, "name", None)
            return self.register(own if isinstance(own, str) else name.__name__)(name)

        def add(entry: Added) -> Added:
            there: Any = self._entries.get(name)
            if there is not None and _origin(there) != _origin(entry):  # the same entry again: its module was reloaded
                first, second = _origin(there)[0], _origin(entry)[0]
                raise ConfigError(f"{name}: two {self.kind}s have this name, of {first} and of {second}; rename one")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def get(self, name: str, where: str = "") -> Entry:
        """The entry with a name.

        Args:
            name: its name.
            where: an option, with which the error starts; the name if empty.

        Raises:
            UnknownName: there is no such entry.
        """
        if name in self:
            return self._entries[name]
        near = difflib.get_close_matches(str(name), self._entries, 1)
        advice = f"did you mean {near[0]}?" if near else f"use one of {', '.join(self.names())}"
        what = f"{name}: there is no {self.kind} of this name"
        if where:
            what = f"{where}: there is no {self.kind} {name!r}"
        raise UnknownName(f"{what}; {advice}", self.kind, str(name))

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def name_of(self, entry: object) -> str | None:
        """The name of an entry; None if it is not registered."""
        return next((name for name, known in self._entries.items() if known is entry), None)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _origin(entry: Any) -> tuple[str, str]:
    """Module and name of an entry, or of its function or class."""
    entry = getattr(entry, "func", entry)
    return entry.__module__, getattr(entry, "__qualname__", type(entry).__qualname__)


# ------------------------------------------------------------------------------------------------ external modules

_IMPORTED: list[str] = []


def imported() -> tuple[str, ...]:
    """The modules that `import_module` has loaded, as runs store them."""
    return tuple(_IMPORTED)


def import_module(name: str) -> ModuleType:
    """Import a module that registers entries.

    Args:
        name: name of a module, installed or in the current folder; or path of a ``.py`` file, which is imported under
            its name.

    Raises:
        ConfigError: there is no such module.
    """
    module = _import_file(Path(name)) if name.endswith(".py") else _import_name(name)
    stored = str(Path(name).absolute()) if name.endswith(".py") else name
    if stored not in _IMPORTED:
        _IMPORTED.append(stored)
    return module


def _import_name(name: str) -> ModuleType:
    top = name.partition(".")[0]
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{name}: is not the name of a module; give one as my_package, or a file that ends in .py")
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        sys.path.append(str(Path.cwd()))  # last, so that installed modules have precedence
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that this one imports is missing
        advice = "install it, run the command in its folder, or give the path of a .py file"
        raise ConfigError(f"{name}: there is no such module; {advice}") from error


def _import_file(file: Path) -> ModuleType:
    file, name = file.absolute(), file.stem
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file; check the path")
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    if known is not None or not name.isidentifier() or importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{file}: another module has the name {name}, or it is not a valid name; rename the file")
    sys.path.append(str(file.parent))  # for worker processes, and for its own imports
    return importlib.import_module(name)


@contextmanager
def made_with(modules: object) -> Iterator[None]:
    """Add to an `UnknownName` which modules the run was made with. They are not imported.

    Args:
        modules: the modules that the run's file lists, which may be any value.
    """
    try:
        yield
    except UnknownName as error:
        listed = modules if isinstance(modules, Sequence) and not isinstance(modules, str) else ()
        missing = [name for name in listed if isinstance(name, str) and name not in _IMPORTED]
        flags = " ".join(f"--import {_shown(name)}" for name in missing)
        if not missing:
            raise
        sentence = f"{error.kind} {_shown(error.name)} is not known; the run was made with {flags}, give it again"
        raise UnknownName(sentence, error.kind, error.name, elsewhere=True) from error


def _shown(text: str) -> str:
    """Text from a file, safe to print: at most 200 characters, on one line, without control characters."""
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if re.fullmatch(r"[\w./\\:~+ -]+", text) else ascii(text)


MODELS: Registry[Callable[..., Any]] = Registry("model")
"""Constructors of classifiers by name. Presets have the name of the model and a suffix after a dot.

The keywords of a constructor are the model's options in commands and recipes.
"""
