"""Numbers and tables as printed."""

import io
import math
import random
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from foveal import display
from foveal.display import (
    NAME,
    SHORTEST,
    TEXT,
    Column,
    Table,
    amount,
    console,
    fixed,
    percent,
    shortened,
    shortened_together,
    significant,
    stacked,
    unit_for,
)


def printed(what, width=80):
    shown = Console(width=width, record=True, file=io.StringIO())
    shown.print(what)
    return shown.export_text()


# ---- numbers


def test_three_digits_whatever_the_size():
    rng = np.random.default_rng(0)
    for value in np.concatenate(
        [10 ** rng.uniform(-9, 15, 500), [0.9995, 9.995, 99.95, 999.5, 1000.0, 1e-9, 1e15]]
    ).tolist():
        for signed in (value, -value):
            text = significant(signed)
            assert re.fullmatch(r"-?(\d{1,3}(,\d{3})*)(\.\d+)?", text), text
            assert float(text.replace(",", "")) == pytest.approx(signed, rel=5.001e-3)
            digits = re.sub("[-,.]", "", text).lstrip("0")
            assert len(digits.rstrip("0")) <= 3 <= len(digits), text


def test_numbers_that_are_none():
    assert [significant(None), fixed(None, 2), percent(None), percent(None, (0.1, 0.2))] == [""] * 4
    assert [significant(0), significant(-0.0), significant(math.nan), significant(-math.inf)] == [
        "0",
        "0",
        "nan",
        "-inf",
    ]
    assert fixed(math.nan, 1) == "nan"


@pytest.mark.parametrize("value", [0.0, -0.0, -1e-12, 4e-4, -4e-4])
def test_no_number_is_minus_zero_or_plus_zero(value):
    assert fixed(value, 3) == fixed(value, 3, signed=True) == "0.000"
    assert percent(value / 10, signed=True) == "0.0"


def test_an_interval_lies_within_what_is_written():
    assert percent(0.934, (0.919, 0.949)) == "93.4 ± 1.5"
    for share, low, high in [(0.0, 0.0, 0.046), (1.0, 0.954, 1.0), (0.19, 0.119, 0.29), (0.05, -0.02, 0.1)]:
        middle, half = (float(part) for part in percent(share, (low, high)).split(" ± "))
        assert middle - half <= 100 * low + 0.051 and middle + half >= 100 * high - 0.051


def test_a_column_of_costs_has_one_unit():
    assert unit_for("MAC", [10.9e6, 698e6]).name == "MMAC"
    assert unit_for("MAC", [385e6, 4.94e9]).name == "GMAC"
    beside = unit_for("MAC", [77.2e6, 6.91e12])
    assert [beside.name, beside(77.2e6), beside(6.91e12)] == ["MMAC", "77.2", "6,910,000"]
    assert unit_for("B", []).name == unit_for("B", [None, 0, 3]).name == "B"
    assert unit_for("B", [0, None, 3.2e6])(0) == "0"
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = (10 ** rng.uniform(2, 15, rng.integers(1, 6))).tolist()
        unit = unit_for("MAC", values)
        assert min(values) / unit.size >= 0.1 and max(values) >= unit.size and "e" not in "".join(map(unit, values))


def test_one_cost_with_its_unit():
    assert [amount(n, "MAC") for n in (0, 999, 1000, 1.93e9, 2.5e15)] == [
        "0 MAC",
        "999 MAC",
        "1.00 kMAC",
        "1.93 GMAC",
        "2,500 TMAC",
    ]


# ---- names


@pytest.mark.parametrize(
    "name", ["runs/photographs/tnet_pretrained_0", "鳥" * 30, "a鳥" * 20, "x" * 21, "e\u0301" * 30]
)
@pytest.mark.parametrize("width", [5, 12, 13, 20])
def test_names_lose_their_middle(name, width):
    short = shortened(name, width)
    assert cell_len(short) <= width and cell_len(short) >= width - 2
    head, tail = short.split("…")
    assert name.startswith(head) and name.endswith(tail) and len(head) + len(tail) < len(name)


def test_names_that_fit_stay():
    assert shortened("runs/demo", 9) == "runs/demo" and shortened("", 3) == ""


def test_names_are_told_apart_where_they_differ():
    names = [f"runs/photographs/seed_{seed}_at_learning_rate_0.001_for_a_day" for seed in range(5)]
    short = shortened_together(["model", *names], 16)
    assert len(set(short)) == 6 and short[0] == "model" and max(map(len, short)) <= 16


# ---- tables


def of_cells(header, rows, kinds, keys=1, title="a title"):
    columns = [
        Column(name, lambda row, i=i: row[i], kind) for i, (name, kind) in enumerate(zip(header, kinds, strict=True))
    ]
    return Table(title, columns, rows, keys=keys)


def test_a_table_fits_and_only_names_are_cut():
    rng = np.random.default_rng(0)
    for _ in range(20):
        names, numbers = int(rng.integers(1, 3)), int(rng.integers(1, 14))
        header = [f"name{'!' * i}" for i in range(names)] + [
            f"column {'%' * int(rng.integers(0, 12))}" for _ in range(numbers)
        ]
        rows = [
            ["".join(rng.choice(list("abcdefgh/_ "), int(rng.integers(1, 120)))).strip() or "a" for _ in range(names)]
            + [significant(float(10 ** rng.uniform(-4, 9))) for _ in range(numbers)]
            for _ in range(4)
        ]
        table = of_cells(header, rows, [NAME] * names + ["number"] * numbers, keys=names)
        text = printed(table)
        assert max(map(cell_len, text.splitlines())) <= 80
        found = Counter(re.findall(r"\d[\d,.]*", text))
        assert found == Counter(cell for row in rows for cell in row[names:])
        whole = printed(table, 10_000)
        assert all(name in whole for row in rows for name in row[:names]) and "…" not in whole
        assert len(whole.splitlines()) == 1 + 2 + 4


def test_columns_that_find_no_room_follow_below():
    rows = [[f"runs/{i}", *(f"{i}{j}" * 5 for j in range(9))] for i in range(2)]
    lines = printed(of_cells(["model", *(f"number {j}" for j in range(9))], rows, [NAME, *["number"] * 9])).splitlines()
    assert [line.split()[0] for line in lines if line.strip() and "─" not in line] == [
        "a",
        *["model", "runs/0", "runs/1"] * 2,
    ]
    assert "…" not in "".join(lines)


def test_a_name_is_cut_in_one_place():
    names = [f"{'a' * 60}/{i}/{'b' * 60}" for i in range(3)]
    text = printed(of_cells(["model", "by", "n"], [[name, name, "1.0"] for name in names], [NAME, NAME, "number"]), 50)
    assert all(word.count("…") <= 2 for word in text.split()) and len(set(re.findall(r"\S*…\S*", text))) >= 3


def test_the_header_of_numbers_may_be_a_name():
    columns = [
        Column("look", lambda row: "1", TEXT),
        *(Column("a class of trees " * 9, lambda row: "+12.5", least=8) for _ in range(3)),
    ]
    lines = printed(Table("", columns, [0])).splitlines()
    assert len(lines) == 3 and len(lines[0]) <= 80 and lines[2].split() == ["1", *["+12.5"] * 3]
    assert printed(Table("", columns, [0]), 10_000).count("a class of trees") == 27


def test_the_longest_names_give_way_first():
    rows = [["runs/a_very_long_name_of_a_run_that_goes_on_and_on", "short", "1.0"]]
    text = printed(of_cells(["model", "by", "number"], rows, [NAME, NAME, "number"]), 30)
    assert "short" in text and "runs/a" in text and max(map(len, text.splitlines())) <= 30
    narrow = printed(of_cells(["model", "by", "number"], rows, [NAME, NAME, "number"]), 22)
    assert [len(word) for word in narrow.split() if "…" in word] == [SHORTEST] * 2  # the number follows below


def test_rows_are_one_line_high_whatever_names_hold():
    nasty = ["[bold]no markup[/bold]", "two\nlines", "a\ttab", ":smile:", "\x1b[31mred", "\x00"]
    lines = printed(
        of_cells(["name", "n"], [[name, str(i)] for i, name in enumerate(nasty)], [NAME, "number"])
    ).splitlines()
    assert len(lines) == 3 + len(nasty)
    assert "[bold]no markup[/bold]" in lines[3] and ":smile:" in lines[6] and "\x1b" not in "".join(lines)


def test_numbers_end_in_one_place_whatever_follows_them():
    rows = [["93.4 ± 1.5"], ["100.0 ± 10.0"], ["5.0"], ["1,234.5 *"], [""]]
    lines = [
        line.rstrip("\n")
        for line in printed(of_cells(["accuracy, %"], rows, ["number"], keys=0, title="")).splitlines()[2:]
    ]
    ends = [re.match(r" *[\d,.]+", line).end() for line in lines[:4]]
    assert len(set(ends)) == 1 and lines[0].index("±") == lines[1].index("±")


def test_empty_columns_are_left_out_and_none_parts_rows():
    table = Table(
        "",
        [Column("key", str, TEXT), Column("nothing", lambda row: ""), Column("twice", lambda row: str(2 * row))],
        [1, None, 2],
    )
    lines = [line.rstrip() for line in printed(table).splitlines()]
    assert lines[0].split() == ["key", "twice"] and [lines[2].split(), lines[3], lines[4].split()] == [
        ["1", "2"],
        "",
        ["2", "4"],
    ]


def test_paragraphs_fill_their_lines_and_stand_apart():
    text = printed(stacked("word " * 40, "", of_cells(["n"], [["1"]], ["number"], keys=0), "[not markup]"))
    assert max(map(len, text.splitlines())) <= 80 and "[not markup]" in text
    assert [line.rstrip() for line in text.splitlines()].count("") == 2


def test_what_is_no_terminal_has_no_end(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setenv("COLUMNS", "40")
    table = of_cells(["name", "n"], [["x" * 500, "1"]], [NAME, "number"])
    console().print(stacked(table, "word " * 100))
    import sys

    lines = sys.stdout.getvalue().splitlines()
    assert "x" * 500 in lines[3] and len(lines) == 6


# ---- unsafe names


HOSTILE = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\rb",
    "\u202egnp.exe",
    "\u2066x",
    "\udce9",
    "\x00",
    "\x7f",
    "\u2028",
    "\x85",
    "\u200e",
    "\U000e0041",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_moves_the_cursor_or_turns_the_text(name):
    for shown in (display.printable(name), through_the_stream(name)):
        assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown), shown
        shown.encode()


def through_the_stream(text: str) -> str:
    stream = io.StringIO()
    print(f"a{text}b", end="", file=display.Printed(stream))
    return stream.getvalue()


def test_ordinary_text_of_any_language_stays():
    for text in ("naïve 日本\u3000語", "می\u200cخواهم", "👩\u200d🔬 ok", "tab\tand\nline", "C:\\x1b"):
        assert through_the_stream(text) == f"a{text}b"
    assert display.printable("می\u200cخواهم") == "می\u200cخواهم"


def test_cells_are_no_formulas_and_come_back():
    rng = random.Random(0)
    texts = ["".join(rng.choices("=+-@\t\r\n'\"a,;＝1", k=rng.randrange(5))) for _ in range(2000)]
    for text in texts:
        cell = display.as_cell(text)
        assert display.from_cell(cell) == text
        assert not cell.startswith(tuple("=+-@\t\r\n＝")), cell
    assert display.as_cell("-5.jpg") == "'-5.jpg" and display.as_cell("it's") == "it's"
