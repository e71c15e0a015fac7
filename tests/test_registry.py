"""Registries: names, errors, and external modules."""

from __future__ import annotations

import sys

import pytest

from foveal.errors import ConfigError
from foveal.registry import Registry, UnknownName, import_module, imported, made_with


@pytest.fixture
def tools() -> Registry:
    tools: Registry = Registry("tool")

    @tools.register
    def hammer():
        return "bang"

    @tools.register("saw")
    class _Saw:
        pass

    return tools


def test_names_and_entries(tools):
    assert tools.names() == ["hammer", "saw"] == list(tools) and len(tools) == 2
    assert tools.get("hammer")() == "bang" and "saw" in tools and "Saw" not in tools and ["saw"] not in tools
    assert tools.name_of(tools.get("saw")) == "saw" and tools.name_of(object()) is None


def test_unknown_names_say_what_may_be_meant(tools):
    with pytest.raises(UnknownName, match=r"^hamer: there is no tool of this name; did you mean hammer\?$"):
        tools.get("hamer")
    with pytest.raises(UnknownName, match=r"^kit.tool: there is no tool 'x'; use one of hammer, saw$") as error:
        tools.get("x", "kit.tool")
    assert (error.value.kind, error.value.name) == ("tool", "x") and isinstance(error.value, ConfigError)
    with pytest.raises(UnknownName):
        tools.get(["saw"])


def test_two_entries_of_one_name_are_refused_but_a_module_may_be_run_again(tools):
    def other():
        pass

    with pytest.raises(
        ConfigError, match=r"^saw: two tools have this name, of tests.test_registry and of tests.test_registry; rename"
    ):
        tools.register("saw")(other)
    again = type(tools.get("saw"))("_Saw", (), {})
    again.__module__, again.__qualname__ = tools.get("saw").__module__, tools.get("saw").__qualname__
    assert tools.register("saw")(again) is tools.get("saw") is again


# ---- external modules


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("foveal.registry._IMPORTED", [])
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_modules_by_name_and_by_path(tmp_path):
    (tmp_path / "of_a_friend.py").write_text("from neighbour import X\n")
    (tmp_path / "neighbour.py").write_text("X = 3\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "in_a_file.py").write_text("Y = 4\n")
    assert import_module("of_a_friend").X == 3 and import_module("sub/in_a_file.py").Y == 4
    assert imported() == ("of_a_friend", str(tmp_path / "sub" / "in_a_file.py"))
    assert import_module("sub/in_a_file.py") is sys.modules["in_a_file"] and len(imported()) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere_at_all", "nowhere_at_all: there is no such module; install it"),
        ("json.nowhere", "json.nowhere: there is no such module"),
        ("a/b", "a/b: is not the name of a module"),
        ("nowhere.py", "nowhere.py: there is no such file"),
        ("json.py", "json.py: another module has the name json"),
        (
            "two words.py",
            "two words.py: another module has the name two words, or it is not a valid name; rename the file",
        ),
    ],
)
def test_modules_that_cannot_be_loaded(tmp_path, name, says):
    for file in ("json.py", "two words.py"):
        (tmp_path / file).write_text("raise SystemExit('executed')\n")
    with pytest.raises(ConfigError, match=says):
        import_module(name)
    assert imported() == ()


def test_what_is_installed_comes_before_what_lies_in_the_current_folder(tmp_path):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('executed')\n")
    assert hasattr(import_module("colorsys"), "rgb_to_hsv")


def test_errors_inside_a_module_are_its_own(tmp_path):
    (tmp_path / "lacking.py").write_text("import nowhere_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        import_module("lacking")


def test_an_unknown_name_tells_of_the_modules_of_the_run_and_imports_nothing(tmp_path, tools):
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')\n")
    with (
        pytest.raises(UnknownName, match=r"^tool x is not known; the run was made with --import evil, give it again$"),
        made_with(["evil"]),
    ):
        tools.get("x")
    assert "evil" not in sys.modules
    for nothing in (None, [], "evil", 5, [5]):
        with pytest.raises(UnknownName, match="there is no tool"), made_with(nothing):
            tools.get("x")


def test_text_of_a_file_is_shown_as_text(tools):
    with pytest.raises(UnknownName) as error, made_with(["a\x1b[2J\nb", "c" * 500]):
        tools.get("x\x07")
    said = str(error.value)
    assert said.isprintable() and len(said) < 600 and "\\x1b[2J\\nb" in said
