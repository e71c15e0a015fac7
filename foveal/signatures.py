"""Type hints of constructors: read them, check plain values against them, and describe them in errors.

Values come from JSON and YAML and are not converted: the string ``"3"`` is not a number, and null is not a string.

Example:
    >>> class Box(TypedDict):
    ...     side: Annotated[int, range(1, 101)]
    ...     name: str | None
    >>> hints = get_type_hints(Box, include_extras=True)
    >>> fits(100, hints["side"]), fits(True, hints["side"]), fits(None, hints["name"])
    (True, False, True)
    >>> mismatch({"side": 0}, hints)
    'side: 0 does not fit; give a whole number from 1 to 100'
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    TypedDict,  # noqa: F401  (the example)
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

Build = TypeVar("Build", bound=Callable[..., Any])

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    Any: "a value",
}


def chain_of(build: Callable[..., Any]) -> Iterable[Callable[..., Any]]:
    """``build``, and the base classes or the returned class to which it passes keyword arguments on."""
    yield build
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(build).parameters.values()):
        target = build.__mro__[1] if inspect.isclass(build) else target_of(build)
        if inspect.isclass(target):
            yield from chain_of(target)


def target_of(build: Callable[..., Any]) -> Any:
    """The class of the object that a constructor returns, from its type hints."""
    build = getattr(build, "func", build)
    return build if inspect.isclass(build) else hints_of(build).get("return", (None, ()))[0]


def hints_of(function: Any) -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Type hints by parameter, each with the names of ``Annotated[str, names]`` in it."""
    function = getattr(function, "func", function)  # of a partial
    if inspect.isclass(function) and not is_dataclass(function):  # hints of bases may refer to other modules
        function = function.__init__
    try:
        types_, annotated = (get_type_hints(function, include_extras=extras) for extras in (False, True))
    except NameError:
        return {}
    return {name: (types_[name], _table(annotated[name])) for name in types_}


def _table(hint: Any) -> tuple[str, ...]:
    """The names of ``Annotated[str, names]``, at any depth of the type."""
    if get_origin(hint) is Annotated:
        return tuple(hint.__metadata__[0])
    return next((table for part in get_args(hint) if (table := _table(part))), ())


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value has a type. For ``Annotated[type, values]`` it must also be one of the values.

    A mapping may have more keys than a ``TypedDict``.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return fits(value, inner[0]) and value in inner[1]
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if hint is float:
        return type(value) in (int, float)
    if hint in _WORDS:
        return type(value) is hint
    if is_typeddict(hint):
        parts = get_type_hints(hint, include_extras=True)
        return isinstance(value, Mapping) and all(
            key in value and fits(value[key], part) for key, part in parts.items()
        )
    kind = origin or hint
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and (
            not inner or all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
        )
    if issubclass(kind, Sequence) and isinstance(value, list | tuple):
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(fits, value, inner))
        return not inner or all(fits(item, inner[0]) for item in value)
    return not inner and isinstance(value, kind)


def mismatch(values: Mapping[str, Any], hints: Mapping[str, Any], where: str = "") -> str | None:
    """The error of the first value with an unknown key or another type; None if all values fit.

    Args:
        values: values by key.
        hints: types of all allowed keys.
        where: prefix of keys in the error, such as ``optimiser.``.
    """
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            return f"{where}{_short(key)}: there is no such option{f'; did you mean {where}{near[0]}' if near else ''}"
        if not fits(value, hints[key]):
            return f"{where}{key}: {_short(value)} does not fit; give {in_words(hints[key])}"
    return None


def typed(build: Build, error: type[Exception] = ValueError) -> Build:
    """Let the constructor of a class, or a function, check its arguments against their type hints. Numbers of NumPy
    count as numbers.

    Args:
        build: a class, which is changed; one without an ``__init__`` of its own stays as it is. Or a function.
        error: raised for an argument of another type.
    """
    call: Any = vars(build).get("__init__") if inspect.isclass(build) else build
    if call is None:
        return build
    names = [p.name for p in inspect.signature(call).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @functools.cache  # at the first call, as types may be defined later; a network has the same layer many times
    def hints() -> dict[str, tuple[Any, Any]]:
        return {name: (hint, _any_text(hint)) for name, (hint, _) in hints_of(call).items()}

    @functools.wraps(call)
    def checking(*args: Any, **options: Any) -> Any:
        for name, value in {**dict(zip(names, args, strict=False)), **options}.items():
            if name in hints() and not fits(_plain(value), hints()[name][1]):
                raise error(f"`{name}` {_short(value)}: does not fit; give {in_words(hints()[name][0])}")
        return call(*args, **options)

    if not inspect.isclass(build):
        return cast("Build", checking)
    build.__init__ = checking  # type: ignore[method-assign, misc]
    return build


def _any_text(hint: Any) -> Any:
    """A type with any text instead of some: constructors have sentences of their own for unknown names."""
    if get_origin(hint) is Literal:
        return Union[tuple({type(one) for one in get_args(hint)})]  # noqa: UP007
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(map(_any_text, get_args(hint)))]  # noqa: UP007
    return hint


def _plain(value: Any) -> Any:
    """A value with the numbers of Python instead of those of NumPy."""
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) in (bool, int, float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _short(value: Any) -> str:
    return value if isinstance(value, str) and value.isidentifier() and len(value) < 40 else reprlib.repr(value)


def in_words(hint: Any) -> str:
    """Description of a type for errors."""
    if hint in _WORDS:
        return _WORDS[hint]
    if is_typeddict(hint):
        return f"a mapping with {', '.join(get_type_hints(hint))}"
    origin, inner = get_origin(hint), [a for a in get_args(hint) if a is not Ellipsis]
    if origin is Annotated:
        values = inner[1]
        if isinstance(values, range):
            return f"{in_words(inner[0])} from {values[0]:,} to {values[-1]:,}"
        return "one of " + ", ".join(map(str, values))
    if origin in (Union, types.UnionType):
        return ", or ".join(in_words(a) for a in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is dict or hint is dict:
        return "a mapping as {key: value}"
    if origin is tuple and Ellipsis not in get_args(hint):
        return "[" + ", ".join(in_words(a) for a in inner) + "]"
    if inner and get_origin(inner[0]) is Annotated:
        return f"a list, each {in_words(inner[0])}"
    return f"a list of {in_words(inner[0]).removeprefix('a ').removeprefix('whole ')}s as 2,1" if inner else str(hint)
