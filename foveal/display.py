"""Numbers and tables for the terminal.

Numbers have no exponent and no minus zero. All costs of a column have the same unit. If a table is too wide, names are
shortened in the middle; columns that still do not fit continue below. Numbers are never cut.

Example:
    >>> percent(0.934, (0.917, 0.947)), percent(None), significant(6912.3), fixed(-0.0004, 3)
    ('93.4 ± 1.7', '', '6,910', '0.000')
    >>> unit = unit_for("MAC", [385e6, 4.94e9, None])
    >>> unit.name, unit(385e6), unit(4.94e9), unit(None)
    ('GMAC', '0.385', '4.94', '')
    >>> costs = {"runs/photographs/tnet": 385e6, "efficientnet_b0": 4.94e9}
    >>> columns = [Column("model", lambda row: row[0], NAME), Column(unit.name, lambda row: unit(row[1]))]
    >>> from rich.console import Console
    >>> Console(width=20).print(Table("what they cost", columns, costs.items()))
    what they cost
    model           GMAC
    ────────────────────
    runs/p…s/tnet  0.385
    effici…net_b0   4.94
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
    from rich.table import Table as RichTable

PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
"""Prefixes of units of costs."""

UNLIMITED = 1_000_000
"""Width of an output that is not a terminal: nothing is cut or wrapped."""

NARROWEST = 40
"""Smallest width of printed tables, enough for a name, locations and an accuracy with its interval."""

SHORTEST = 12
"""Smallest width of a name. If a table is still too wide, it continues below."""

GAP = 2
"""Spaces between columns."""

NAME, TEXT, NUMBER = "name", "text", "number"
"""Kinds of columns. Only names can be shortened. Numbers are aligned on the right."""


# ---- numbers


def significant(value: float | None, digits: int = 3) -> str:
    """A number with three significant digits, ``6,910`` or ``0.0772``; empty for None.

    >>> [significant(x) for x in (0, 0.99951, 27.14, 205_123, 7.72e-05, -3.0)]
    ['0', '1.00', '27.1', '205,000', '0.0000772', '-3.00']
    """
    if value is None:
        return ""
    if not value or not math.isfinite(value):
        return f"{value or 0:g}"
    rounded = f"{value:.{digits - 1}e}"
    return f"{float(rounded):,.{max(digits - 1 - int(rounded.partition('e')[2]), 0)}f}"


def fixed(value: float | None, decimals: int, signed: bool = False) -> str:
    """A number with a fixed number of decimals, with a plus sign if ``signed``; empty for None.

    >>> fixed(1234.5, 1), fixed(0.25, 1, signed=True), fixed(-0.04, 1, signed=True)
    ('1,234.5', '+0.2', '0.0')
    """
    if value is None:
        return ""
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    return text if re.search("[1-9]|n", text) else text.lstrip("+-")  # n: nan and inf


def percent(share: float | None, interval: tuple[float, float] | None = None, signed: bool = False) -> str:
    """A proportion in per cent without the sign: ``93.4``, or ``93.4 ± 1.7`` with a confidence interval.

    Intervals of proportions are not symmetric. The number after ± is the distance to the farther end, so the printed
    interval contains the given one.

    >>> percent(1.0, (0.9536, 1.0)), percent(-0.0004, signed=True), percent(0.12, (-0.01, 0.24), signed=True)
    ('100.0 ± 4.6', '0.0', '+12.0 ± 13.0')
    """
    if share is None:
        return ""
    text = fixed(100 * share, 1, signed)
    return text if interval is None else f"{text} ± {fixed(100 * max(share - interval[0], interval[1] - share), 1)}"


class Unit(NamedTuple):
    """A unit of costs. Calling it with a cost returns the number in this unit.

    Attributes:
        name: name with prefix, ``"GMAC"``.
        size: size in base units, 1e9.
    """

    name: str
    size: float

    def __call__(self, value: float | None) -> str:
        return "" if value is None else significant(value / self.size)


def unit_for(base: str, values: Iterable[float | None]) -> Unit:
    """The unit of a column of costs: the largest in which the largest cost is 1 or more and the smallest 0.1 or more.

    Args:
        base: ``"MAC"``, ``"B"``, ...
        values: the costs; None and 0 are ignored.
    """
    sizes = [abs(value) for value in values if value]
    fit = [prefix for prefix, size in PREFIXES.items() if sizes and size <= max(sizes) and size <= 10 * min(sizes)]
    prefix = fit[-1] if fit else ""
    return Unit(prefix + base, PREFIXES[prefix])


def amount(value: float, base: str) -> str:
    """A cost with its unit.

    >>> amount(6_912_300_000_000, "MAC"), amount(999, "B"), amount(77_200_000, "B")
    ('6.91 TMAC', '999 B', '77.2 MB')
    """
    unit = unit_for(base, [value])
    return f"{unit(value)} {unit.name}"


def counted(count: int, what: str) -> str:
    """A number with a noun: ``1 image``, ``1,234 images``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def image_size(size: int | Sequence[int]) -> str:
    """The size of an image, given as side or (height, width) in pixels: ``500 x 1260``."""
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"


# ---- names


JOINERS = "\u200c\u200d\u00ad"
"""Invisible signs that words of several languages, and emoji, are written with."""


def printable(text: str) -> str:
    """A name on one line that is safe for a terminal.

    Line breaks, tabs and other spaces become spaces. Control and bidirectional characters are escaped.

    >>> printable("a\\tb\\x1b[2J\\u202ecod")
    'a b\\\\x1b[2J\\\\u202ecod'
    """
    return "".join(" " if c.isspace() else c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(c: str) -> bool:
    return c.isprintable() or c in JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs")


class Printed:
    """A text stream that escapes all characters that `printable` escapes. Line breaks and tabs are kept.

    A carriage return at the beginning of a text is kept too, for progress bars of other libraries.

    Attributes:
        unfiltered: the underlying stream, for the control sequences of rich. Texts for it must be printable.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unfiltered = stream

    def write(self, text: str) -> int:
        back = text[:1] if text.startswith("\r") else ""
        self.unfiltered.write(back + re.sub(r"[^\n\t -~]+", _named, text[len(back) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unfiltered, name)


def _named(found: re.Match[str]) -> str:
    return "".join(c if unicodedata.category(c) == "Zs" else printable(c) for c in found[0])


@contextmanager
def printed(for_good: bool = False) -> Iterator[None]:
    """Print through `Printed`; ``for_good`` does not restore the streams, if the process ends afterwards."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if isinstance(stream, Printed) else Printed(stream) for stream in streams)  # type: ignore[assignment]
    try:
        yield
    finally:
        if not for_good:
            sys.stdout, sys.stderr = streams


_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""Beginning of a text that a spreadsheet reads as a formula, after any quotes."""


def as_cell(text: str) -> str:
    """A text for a cell of a CSV file, quoted if a spreadsheet would read it as a formula.

    Formulas begin with = + - @, their full-width forms, a tab or a line break. Texts with quotes before these are
    quoted too, so that `from_cell` is the inverse.

    >>> [as_cell(text) for text in ("=1+1", "'=1+1", "'a'", "a=b")], from_cell(as_cell("'=1+1"))
    (["'=1+1", "''=1+1", "'a'", 'a=b'], "'=1+1")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(text: str) -> str:
    """The inverse of `as_cell`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def shortened(name: str, width: int) -> str:
    """Shorten a name in the middle to a number of terminal columns.

    >>> shortened("runs/photographs/tnet_pretrained_0", 16)
    'runs/ph…rained_0'
    """
    from rich.cells import cell_len

    if cell_len(name) <= width:
        return name
    head, tail = "", ""
    while cell_len(head + name[len(head)]) <= (width - 1) // 2:
        head += name[len(head)]
    while cell_len(head + name[-len(tail) - 1] + tail) <= width - 1:
        tail = name[-len(tail) - 1] + tail
    return f"{head}…{tail}"


def shortened_together(names: Sequence[str], width: int) -> list[str]:
    """Shorten several names. If they would become equal, their common beginning is removed first."""
    found = [shortened(name, width) for name in names]
    if len(set(found)) < len(set(names)):
        cut = [name for name, short in zip(names, found, strict=True) if name != short]
        common = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*cut, strict=False)))
        apart = [shortened(f"…{name[common:]}" if name in cut and common > 1 else name, width) for name in names]
        found = apart if len(set(apart)) > len(set(found)) else found
    return found


# ---- tables


class Column(NamedTuple):
    """A column of a `Table`.

    Attributes:
        header: header, one line.
        cell: text of a row, one line.
        kind: `NAME`, `TEXT` or `NUMBER`.
        least: smallest width of a name, `SHORTEST` if None. If set for numbers, their header can be shortened too.
    """

    header: str
    cell: Callable[[Any], str]
    kind: str = NUMBER
    least: int | None = None


class Table:
    """A table for rich. If it is wider than the output, it continues below.

    Empty columns are omitted.

    Args:
        title: title of the table.
        columns: the columns.
        rows: objects that the columns can format; None is an empty line.
        keys: number of leading columns to repeat in each part of a split table.
    """

    def __init__(self, title: str, columns: Sequence[Column], rows: Iterable[Any], keys: int = 1) -> None:
        rows = list(rows)
        written = [["" if row is None else printable(column.cell(row)) for row in rows] for column in columns]
        kept = [i for i, cells in enumerate(written) if i < keys or any(cells)]
        self.title, self.keys, self.columns = title, keys, [columns[i] for i in kept]
        self.rows = [None if row is None else [written[i][number] for i in kept] for number, row in enumerate(rows)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if self.title:
            yield Text(printable(self.title), style="bold")
        texts = self._fitted(options.max_width)
        for number, block in enumerate(self._blocks(texts, options.max_width)):
            if number:
                yield Text("")
            yield self._drawn([texts[i] for i in block], [self.columns[i] for i in block])

    def _fitted(self, room: int) -> list[list[str]]:
        """Header and cells of each column, with names shortened as much as needed and allowed."""
        whole = [
            [printable(column.header), *(row[i] for row in self.rows if row)] for i, column in enumerate(self.columns)
        ]
        texts = [_aligned(column) if self.columns[i].kind == NUMBER else [*column] for i, column in enumerate(whole)]
        least = {
            i: column.least or SHORTEST for i, column in enumerate(self.columns) if column.kind == NAME or column.least
        }
        least = {i: n if self.columns[i].kind == NAME else max(n, _widest(texts[i][1:])) for i, n in least.items()}
        while (excess := _width(texts) - room) > 0:
            widths = {i: width for i in least if (width := _widest(texts[i])) > least[i]}
            if not widths:
                break
            # Shorten the longest name column to the width of the second longest.
            longest = max(widths, key=lambda i: widths[i])
            next_longest = max((widths[i] for i in widths if i != longest), default=0)
            width = max(widths[longest] - excess, min(next_longest, widths[longest] - 1), least[longest])
            named = slice(None) if self.columns[longest].kind == NAME else slice(1)
            texts[longest][named] = shortened_together(whole[longest][named], width)
        return texts

    def _blocks(self, texts: list[list[str]], room: int) -> list[list[int]]:
        """Columns of each part of the table. Key columns are repeated in each part."""
        keys, blocks = list(range(self.keys)), [list(range(self.keys))]
        for i in range(self.keys, len(texts)):
            if len(blocks[-1]) > len(keys) and _width([texts[j] for j in (*blocks[-1], i)]) > room:
                blocks.append([*keys])
            blocks[-1].append(i)
        return blocks

    def _drawn(self, texts: list[list[str]], columns: list[Column]) -> RichTable:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
        # Rich strips the spaces that `_aligned` adds, so numbers are aligned on the right here.
        texts = [_to_the_right(t) if column.kind == NUMBER else t for t, column in zip(texts, columns, strict=True)]
        header, *cells = zip(*texts, strict=True)
        for text in header:
            drawn.add_column(Text(text), no_wrap=True)
        left = iter(cells)
        for row in self.rows:
            if row is None:
                drawn.add_section()
            else:
                drawn.add_row(*map(Text, next(left)))
        return drawn


def _aligned(texts: list[str]) -> list[str]:
    """Pad number cells on the right so that numbers align if text follows them."""
    header, *cells = texts
    parts = [re.fullmatch(r"([-+]?\d[\d,.]*)(\D.*)?", cell) for cell in cells]
    widest = max((len(part[2] or "") for part in parts if part), default=0)
    return [
        header,
        *(part[1] + (part[2] or "").ljust(widest) if part else cell for part, cell in zip(parts, cells, strict=True)),
    ]


def _to_the_right(texts: list[str]) -> list[str]:
    from rich.cells import cell_len

    width = _widest(texts)
    return [" " * (width - cell_len(text)) + text for text in texts]


def _widest(texts: Iterable[str]) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, texts), default=0)


def _width(texts: Sequence[Sequence[str]]) -> int:
    return sum(map(_widest, texts)) + GAP * (len(texts) - 1)


def stacked(*parts: Table | str) -> Group:
    """Tables and paragraphs, separated by empty lines, for rich. Paragraphs fill the width of the output."""
    from rich.console import Group
    from rich.text import Text

    shown: list[RenderableType] = []
    for part in (part for part in parts if part):
        shown += [Text("")] if shown else []
        shown.append(Text("\n".join(map(printable, part.split("\n")))) if isinstance(part, str) else part)
    return Group(*shown)


def console() -> Console:
    """Console for results: as wide as the terminal, or unlimited if the output is not a terminal."""
    from rich.console import Console

    terminal = Console(file=unfiltered(sys.stdout))
    return Console(
        file=unfiltered(sys.stdout), width=max(terminal.width, NARROWEST) if terminal.is_terminal else UNLIMITED
    )


def unfiltered(stream: Any) -> Any:
    """The stream of a `Printed`, for rich; None for any other stream, so that rich uses its default."""
    return stream.unfiltered if isinstance(stream, Printed) else None
