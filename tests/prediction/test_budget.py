import pytest

from foveal.errors import ConfigError
from foveal.prediction.budget import format_budget, parse_budget, parse_locations


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("0..3", [(), (1,), (2,), (3,)]),
        ("2,1", [(2, 1)]),
        ("1..3,1", [(1, 1), (2, 1), (3, 1)]),
        ("0..1,2", [(), (1, 2)]),
        ("0", [()]),
        (" 2 , 1 ", [(2, 1)]),
        ("2,0,1", [(2,)]),
        ("4..4", [(4,)]),
    ],
)
def test_budgets(text, budgets):
    assert parse_locations(text) == budgets


@pytest.mark.parametrize("text", ["", "two", "1..", "3..1", "-1", "1,2..3", "2,,1", "1.5"])
def test_what_is_no_budget_says_how_to_write_one(text):
    with pytest.raises(ConfigError, match=r"^locations .*; "):
        parse_locations(text)


def test_one_budget_is_no_sweep():
    assert parse_budget("3,1") == (3, 1)
    with pytest.raises(ConfigError, match="only evaluation sweeps"):
        parse_budget("0..3")


def test_a_budget_is_written_as_it_is_read():
    assert all(parse_budget(format_budget(budget)) == budget for budget in [(), (3,), (2, 1)])
