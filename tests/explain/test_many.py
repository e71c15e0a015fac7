"""Pages of many images and their index; annotations of the command."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.cli import main
from foveal.errors import ConfigError
from foveal.explain import explain_many
from foveal.explain.many import read_labels
from foveal.glimpse.tnet import TNet
from foveal.prediction import predict
from foveal.runs import ModelInfo, save_model
from tests.tiny import failure

NASTY = '"><script>alert(1)</script> & #1%.png'


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = TNet(num_classes=3, backbone="test_efficientnet", base_size=32, locations=(2,)).eval()
    model.class_names = ("a", "<b>", "c")
    return model


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    info = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2]}
    save_model(folder, model, ModelInfo(info, model.class_names))
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two images of one name, one with a name for attacks, and a damaged one."""
    top = tmp_path_factory.mktemp("images")
    for i, name in enumerate(("x/scan.png", "y/scan.png", NASTY.replace("/", "\u2215"))):
        (top / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (64 + 32 * i, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(top / name)
    (top / "z.png").write_text("not an image")
    return top


class Index(HTMLParser):
    """Lines of the table: attributes of the row, links and text."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(page.partition("<tbody>")[2].partition("</tbody>")[0])

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append({"text": "", **dict(attributes)})
        if tag == "a":
            self.rows[-1]["href"] = dict(attributes)["href"]

    def handle_data(self, data):
        if self.rows:
            self.rows[-1]["text"] += data


def test_an_index_leads_to_the_page_of_each_image(model, images, tmp_path):
    rows = explain_many(model, [images], tmp_path / "out", device="cpu")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    index = Index(page)
    alone = {row["path"]: row for row in predict(model, images, device="cpu").rows}
    assert [row["path"] for row in rows] == list(alone) and len(index.rows) == 4
    for line, row in zip(index.rows, rows, strict=True):
        want = alone[row["path"]]
        assert row["path"] in line["text"] and (row["label"], row["error"]) == (want["label"], want["error"])
        if row["error"]:
            assert row["error"] in line["text"] and "href" not in line
            continue
        linked = (tmp_path / "out" / unquote(line["href"])).read_text(encoding="utf-8")
        assert f"{row['label']}".replace("<b>", "&lt;b&gt;") in linked
        assert line["data-class"] == row["label"] and float(line["data-sure"]) == pytest.approx(
            row["probability"], abs=1e-6
        )
        assert int(line["data-cost"]) == want["macs"] and int(line["data-looks"]) == 3
        assert line["data-error"] == ""
    assert "script" not in index.tags and not re.search(r"(src|href)=\"(?!data:|[^\"]*-[0-9a-f]{12}\.html\")", page)
    assert len(list((tmp_path / "out").iterdir())) == 4
    # An image that fails now has no page any more.
    (images / "y" / "scan.png").rename(images / "kept")
    try:
        explain_many(model, [images / "x" / "scan.png", images / "y" / "scan.png"], tmp_path / "out", device="cpu")
    finally:
        (images / "kept").rename(images / "y" / "scan.png")
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_labels_tell_what_is_wrong(model, images, tmp_path):
    labels = tmp_path / "labels.csv"
    right = {row["path"]: row["label"] for row in predict(model, images, device="cpu").rows if not row["error"]}
    first, second, _ = right
    other = next(name for name in model.class_names if name != right[second])
    labels.write_text(f"path,label\n{first},{right[first]}\n{second},{other}\n", encoding="utf-8")
    explain_many(model, [images], tmp_path / "out", labels=labels, device="cpu")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "1 of 2 with a label are wrong" in page and "1 failed" in page
    lines = {line["text"].partition(".png")[0]: line for line in Index(page).rows}
    errors = [float(line["data-error"] or "nan") for line in lines.values()]
    sure = [float(line.get("data-sure", "nan")) for line in lines.values()]
    signs = {path.partition(".png")[0]: sign for path, sign in ((first, -1), (second, 1))}
    want = [signs.get(name, np.nan) * s for name, s in zip(lines, sure, strict=True)]
    assert np.allclose(errors, want, equal_nan=True)


@pytest.mark.parametrize(
    "text, says",
    [
        ("path,label\nx.png,no\n", "line 2: the model has no class 'no'"),
        ("file,label\nx.png,a\n", "line 2 has no path or no label"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_cannot_be(tmp_path, text, says):
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ConfigError, match=rf"^`labels` .*labels\.csv: .*{says}|{says}"):
        read_labels(tmp_path / "labels.csv", ("a", "b"))


def test_paths_of_labels_are_relative_to_their_file(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "labels.csv").write_text("path,label,more\nx.png,a|b,1\n")
    monkeypatch.chdir(tmp_path)
    known = read_labels(tmp_path / "deep" / "labels.csv", ("a", "b"))
    assert known == {str(tmp_path / "deep" / "x.png"): "a|b", str(tmp_path / "x.png"): "a|b"}


@pytest.mark.chromium
@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium")
def test_a_key_sorts_the_index(model, images, tmp_path):
    """Headers are buttons, so that Tab and Enter reach them; the first click on sureness puts the least sure first."""
    rows = explain_many(model, [images], tmp_path / "out", device="cpu")
    page = tmp_path / "out" / "index.html"
    click = "<script>document.querySelector('button[data-key=sure]').click()</script></body>"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", click), encoding="utf-8")
    flags = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync")
    command = ["chromium", *(f"--{flag}" for flag in flags), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'aria-sort="ascending"' in shown
    order = [float(line["data-sure"]) for line in Index(shown).rows if "data-sure" in line]
    want = sorted(row["probability"] for row in rows if not row["error"])
    assert order == pytest.approx(want, abs=1e-5) and order[0] < order[-1]
    assert "data-sure" not in Index(shown).rows[-1]  # failed images are last


# ---- the commands


def test_the_command_explains_one_image_or_many(run, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = str(images / "x" / "scan.png")
    assert main(["explain", run, one, "--looks", "one.geojson", "--heatmap", "one.tif", "--device", "cpu"]) == 0
    assert "The page is in report.html" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "one.geojson").read_text())["features"]) == 3
    code = main(["explain", run, str(images), "--looks", "looks", "--heatmap", "maps", "--device", "cpu"])
    told = capsys.readouterr()
    assert code == 1 and "The index is in explained/index.html" in told.out and "1 image failed" in told.err
    assert len(list((tmp_path / "looks").iterdir())) == len(list((tmp_path / "maps").iterdir())) == 3
    for options, says in (
        (["--labels", "none.csv"], "--labels none.csv: cannot be read"),
        (["--overlay", "a.png"], "--overlay a.png: is for one image; leave it out"),
        (["--out", "a.html"], "pages of several images are written into a folder; give --out the name of one"),
    ):
        code, said = failure(capsys, "explain", run, images, *options, "--device", "cpu")
        assert code == 2 and says in said
    for options, says in (
        (["--labels", "none.csv"], "--labels none.csv: are for several images"),
        (["--looks", "a.json"], "a.json: looks are written as .geojson or .gpkg"),
        (["--looks", "a.gpkg"], "has no coordinate system, so it is on no map"),
        (["--heatmap", "a.png"], "a.png: heatmaps are GeoTIFF"),
    ):
        code, said = failure(capsys, "explain", run, one, *options, "--device", "cpu", "--quiet")
        assert code == 2 and says in said


def test_predict_writes_the_same_looks_as_explain(run, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = ["--out", "rows.jsonl", "--looks", "looks", "--heatmap", "maps", "--device", "cpu", "--quiet"]
    assert main(["predict", run, str(images), *table]) == 1
    one = str(images / "x" / "scan.png")
    row = next(row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines()) if row["path"] == one)
    assert main(["explain", run, one, "--looks", "one.geojson", "--device", "cpu", "--quiet"]) == 0
    (file,) = (file for file in (tmp_path / "looks").iterdir() if json.loads(file.read_text())["foveal"]["path"] == one)
    mine, other = (json.loads(each.read_text())["features"] for each in (file, tmp_path / "one.geojson"))
    assert [a["geometry"] for a in mine] == [b["geometry"] for b in other] and len(mine) == 3
    for look, a, b in zip(row["glimpses"], mine, other, strict=True):
        for name in ("Probability", "Contribution"):
            values = [each["properties"]["measurements"][name] for each in (a, b)]
            assert values == pytest.approx([look[name.lower()]] * 2, abs=1e-5)
    assert len(list((tmp_path / "maps").glob("*.tif"))) == 3
