"""Names that requests may give, and names that must lead nowhere."""

import pytest

from foveal.errors import ConfigError
from foveal.serve.folder import ImageFolder
from foveal.serve.limits import Refused

ESCAPES = {
    "parent": "../secret.png",
    "parent below": "deep/../../secret.png",
    "parent at the end": "deep/..",
    "same folder": "./a.png",
    "twice": "deep//c.png",
    "absolute": "{top}/secret.png",
    "absolute inside": "{root}/a.png",
    "home": "~/secret.png",
    "link out": "out.png",
    "link to a folder above": "up/secret.png",
    "link to a folder above, back in": "up/root/a.png",
    "percent": "%2e%2e/secret.png",
    "percent twice": "%252e%252e%252fsecret.png",
    "backslash": "..\\secret.png",
    "overlong UTF-8": "\udcc0\udcae\udcc0\udcae/secret.png",
    "fullwidth dots": "．．/secret.png",
    "NUL": "a.png\0.txt",
    "NUL first": "\0a.png",
    "newline": "a.png\n",
    "trailing slash": "a.png/",
    "trailing dot": "a.png.",
    "case": "A.PNG",
    "stream": "a.png::$DATA",
    "file URL": "file://{root}/a.png",
    "GDAL": "/vsicurl/http://localhost/a.tif",
    "device": "/dev/zero",
    "process": "/proc/self/environ",
    "hidden": ".hidden.png",
    "no image": "notes.txt",
    "folder": "deep",
    "empty": "",
    "long": "a" * 4000,
    "glob": "*.png",
}


@pytest.fixture(scope="module")
def listed(folder):
    return ImageFolder(folder)


@pytest.mark.parametrize("case", ESCAPES)
def test_a_name_that_is_not_in_the_list_leads_nowhere(case, listed, folder, client):
    name = ESCAPES[case].format(root=folder, top=folder.parent)
    with pytest.raises(Refused) as refused:
        listed.find(name)
    assert refused.value.status == 404
    if "\udcc0" in name:
        return  # cannot be sent as UTF-8
    for route in ("/v1/image", "/v1/tile/0/0/0", "/v1/look", "/v1/report"):
        answer = client.get(route, params={"path": name, "box": "0,0,9,9"})
        assert answer.status_code == 404 and str(folder.parent) not in answer.text
    answer = client.post("/v1/classify", data={"path": name})
    assert answer.status_code in (400, 404) and str(folder.parent) not in answer.text  # an empty path is none


def test_images_are_found_by_the_names_that_are_listed(listed, folder):
    assert listed.names() == ["a.png", "b.png", "broken.png", "d <i>&.png", "deep/c.png", "in.png"]
    assert {name: listed.find(name).resolve() for name in ("a.png", "deep/c.png", "in.png")} == {
        "a.png": folder / "a.png",
        "deep/c.png": folder / "deep/c.png",
        "in.png": folder / "a.png",
    }


def test_a_name_that_is_not_utf8_has_a_name_in_text(tmp_path):
    import os

    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):  # noqa: PTH123
        pass
    (name,) = ImageFolder(tmp_path).names()
    assert name == "\\udcff.png" and os.fsencode(ImageFolder(tmp_path).find(name)).endswith(b"\xff.png")


def test_a_file_that_becomes_a_link_is_not_read(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.png").touch()
    (tmp_path / "secret.png").touch()
    folder = ImageFolder(root)
    assert folder.names() == ["a.png"]
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Refused):
        folder.find("a.png")


def test_new_files_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.serve.folder._FRESH", 0.0)
    folder = ImageFolder(tmp_path)
    assert folder.names() == []
    (tmp_path / "new.png").touch()
    assert folder.find("new.png") == tmp_path / "new.png"


def test_a_folder_beside_one_with_the_same_start_is_outside(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos private").mkdir()
    (tmp_path / "photos private/a.png").touch()
    (tmp_path / "photos/a.png").symlink_to(tmp_path / "photos private/a.png")
    assert ImageFolder(tmp_path / "photos").names() == []


def test_a_wrong_folder_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        ImageFolder(tmp_path / "nowhere")
