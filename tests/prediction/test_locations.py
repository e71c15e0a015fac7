import pytest

from foveal.errors import ConfigError
from foveal.prediction.locations import format_locations, parse_location_sweep, parse_locations


@pytest.mark.parametrize(
    ("text", "locations"),
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
def test_a_sweep(text, locations):
    assert parse_location_sweep(text) == locations


@pytest.mark.parametrize("text", ["", "two", "1..", "3..1", "-1", "1,2..3", "2,,1", "1.5"])
def test_errors_show_how_to_write_locations(text):
    with pytest.raises(ConfigError, match=r"^`locations` .*; "):
        parse_location_sweep(text)


def test_only_a_sweep_has_dots():
    assert parse_locations("3,1") == (3, 1)
    with pytest.raises(ConfigError, match="only evaluation takes a sweep"):
        parse_locations("0..3")


def test_formatting_and_parsing():
    assert all(parse_locations(format_locations(one)) == one for one in [(), (3,), (2, 1)])
