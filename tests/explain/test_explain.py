import io
import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from rich.console import Console

from foveal.classification import Classification, Glimpses
from foveal.errors import ConfigError, ImageError, StorageError
from foveal.explain import Costs, explain, glimpse_pictures, heat, overlay, report, show
from foveal.explain.page import _from_the_edge
from foveal.explain.pictures import colour, one_view, thumbnail
from foveal.explain.terminal import classification_table
from foveal.glimpse.base import WholeImage
from foveal.glimpse.tnet import TNet
from foveal.images import ArrayPyramid
from foveal.layers import ExplicitAttention, attention_maps, augment_convs
from foveal.models import create_model
from foveal.prediction import classify

NASTY = ("<script>alert(1)</script>", 'a "quoted" & $class', "third", "fourth")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = TNet(num_classes=4, backbone="test_efficientnet", base_size=32, locations=(2, 1)).eval()
    model.class_names = NASTY
    return model


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def seen(model, image) -> Classification:
    return classify(model, image)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def page(image, seen, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    costs = Costs(macs=10**10, dense_macs=16 * 10**10, bytes_read=1024, file_bytes=4096, seconds=0.25)
    return Page(report(seen, image, out, name="<img src=x>.tif", costs=costs).read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(page):
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "action", "poster") if key in a]
    assert len(addresses) == 1 + 5
    assert all(address.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for address in addresses)
    assert not page.of("link") and not page.of("iframe") and "url(" not in page.text and "@import" not in page.text


def test_names_are_text_and_not_markup(page):
    assert len(page.of("script")) == 1
    assert not [a for a in page.of("img") if a["src"] == "x"]
    assert "<img src=x>.tif" in page.text
    assert all(name in page.text for name in NASTY[:2])


def test_the_script_is_small(page):
    script = page.text.rpartition("function markLook")[2].partition("</script>")[0]
    assert 0 < len(script.splitlines()) < 60


def test_every_look_is_on_the_page_with_its_box(page, seen):
    looks = [a["data-look"] for a in page.of("article")]
    boxes = [a["data-look"] for a in page.of("g")]
    assert looks == list("01234") and boxes == list("1234")
    for attributes, glimpse in zip(page.of("rect"), list(seen.glimpses)[1:], strict=True):
        y0, x0, y1, x1 = glimpse.box
        assert [float(attributes[key]) for key in ("y", "x", "height", "width")] == pytest.approx(
            [y0, x0, y1 - y0, x1 - x0], rel=1e-5
        )
    assert page.of("svg")[0]["viewbox"] == "0 0 128 96"


def test_contributions_add_up_to_the_logits(page, seen):
    assert torch.allclose(seen.glimpses.contribution.sum(0), seen.logits, atol=1e-5)
    sums = [float(number) for number in re.findall(r"[+-]\d\.\d{4}", page.text)]
    order = seen.logits.argsort(descending=True)[:3]
    assert sums[0::2] == pytest.approx(seen.logits[order].tolist(), abs=1e-4)
    assert sums[1::2] == pytest.approx(seen.logits[order].tolist(), abs=1e-4)
    each = [float(number) for number in re.findall(r"[+-]\d\.\d{3}(?!\d)", page.text)]
    shares = seen.glimpses.contribution[:, order].flatten().tolist()
    assert each == pytest.approx([share for share in shares if abs(share) >= 5e-4], abs=6e-4)  # 0 has no sign


def test_costs(page):
    assert (
        "160 GMAC, 16.0 times as many" in page.text
        and "1.02 kB of 4.10 kB, 25.0 %" in page.text
        and "0.250 s, model warm" in page.text
    )


def test_no_number_on_the_page_has_an_exponent_or_is_minus_zero(image, seen, tmp_path):
    tiny = replace(seen, glimpses=replace(seen.glimpses, contribution=seen.glimpses.contribution * 0 - 1e-6))
    costs = Costs(macs=77_200_000, dense_macs=6_910_000_000_000, bytes_read=7, file_bytes=10**12, seconds=12_345.6)
    text = Page(report(tiny, image, tmp_path / "page.html", costs=costs).read_text()).text
    assert "77.2 MMAC" in text and "6,910,000 MMAC, 89,500 times as many" in text and "12,300 s" in text
    assert not re.search(r"\de[+-]\d|[-+]0\.0+\b", text.partition("<script")[0])


def test_glimpses_are_shown_as_the_model_saw_them(model, image, seen, monkeypatch):
    looks, see = [], model.see

    def watched(*args):
        looks.append(see(*args))
        return looks[-1].clone()

    monkeypatch.setattr(model, "see", watched)
    classify(model, image)
    monkeypatch.undo()
    pictures = glimpse_pictures(seen, image, fill=model.mean.tolist(), antialias=model.antialias)
    given = torch.cat(looks) * model.std[:, None, None] + model.mean[:, None, None]
    shown = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])
    assert (shown - given).abs().max() < 0.51 / 255
    assert len(given) == 5 and given.std() > 0.1


def test_boxes_are_drawn_where_they_are(image, seen):
    picture = overlay(seen, image)
    assert picture.size == (128, 96)
    pixels = np.array(picture)
    plain = np.array(thumbnail(image))
    inside = [glimpse for glimpse in list(seen.glimpses)[3:] if 0 < glimpse.box[2] <= 96]
    assert inside
    for glimpse in inside:  # later boxes are on top
        _, x0, y1, x1 = (round(v) for v in glimpse.box)
        rgb = [int(colour(glimpse.level)[i : i + 2], 16) for i in (1, 3, 5)]
        middle = (max(x0, 0) + min(x1, 128)) // 2
        assert pixels[y1 - 1, middle].tolist() == rgb
    changed = (pixels != plain).any(2)
    assert 0.02 < changed.mean() < 0.6


def test_a_large_image_is_shown_small():
    assert thumbnail(torch.zeros(3, 100, 1000), 250).size == (250, 25)
    assert thumbnail(torch.zeros(5, 40, 30)).mode == thumbnail(torch.zeros(1, 40, 30)).mode == "RGB"


def test_heat_is_bright_where_attention_is():
    attention = torch.zeros(8, 8)
    attention[6, 1] = 3
    pixels = np.array(heat(Image.new("RGB", (64, 64), "#808080"), attention)).sum(2)
    y, x = np.unravel_index(pixels.argmax(), pixels.shape)
    assert abs(y - 52) <= 2 and abs(x - 12) <= 2
    assert np.isfinite(np.array(heat(Image.new("RGB", (4, 4)), torch.ones(2, 2)))).all()


def test_show_takes_one_image(seen):
    with pytest.raises(ConfigError, match=r"is of 2 images, but show prints one image; show\(c\[0\]\)$"):
        show(Classification.cat([replace(seen, logits=seen.logits[None], maps={})] * 2))


def test_attention_maps_are_shown_head_by_head(image, seen, tmp_path):
    maps = {"stage <3>": torch.rand(3, 7, 7), "one": torch.rand(1, 7, 7), "many": torch.rand(20, 7, 7)}
    page = Page(report(replace(seen, maps=maps), image, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.of("figure")) == (1 + 3) + 1 + 1
    assert "stage <3>, head 2" in page.text


@pytest.mark.parametrize("attn_stride, column", [("query", 6.5), ("pool", 3)])
def test_the_query_on_the_border_is_in_the_middle_of_it(attn_stride, column):
    layer = ExplicitAttention(4, 8, stride=2, ratio=0.5, attn_stride=attn_stride)
    network = torch.nn.Sequential(layer)
    with attention_maps(network) as maps:
        network(torch.rand(1, 4, 14, 14 if attn_stride == "query" else 12))
    edge = _from_the_edge(network, maps)["0, query at the border"][0]
    at = (edge.sum(0) * torch.arange(edge.shape[1])).sum()
    assert edge.sum(1).argmax() == 0 and at.item() == pytest.approx(column, abs=0.1)


def test_many_attention_maps_are_small_pictures_by_stage(seen, tmp_path):
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
    names = [f"layer{stage}.{block}.attention" for stage in (1, 2, 3) for block in range(18)]
    maps = {name: torch.rand(4, 2 ** (6 - int(name[5])), 8) for name in names}
    whole = replace(classify(WholeImage(create_model("test_resnet", num_classes=2), 32), image), maps=maps)
    said = {name: f"radius <{i}> px" for i, name in enumerate(names)}
    text = report(whole, image, tmp_path / "page.html", captions=said).read_text(encoding="utf-8")
    page = Page(text)
    assert (
        len(page.of("figure")) == 54
        and [a["class"] for a in page.of("div") if "maps" in a.get("class", "")] == ["maps many coarse"] * 3
    )
    assert [text.count(f"<h3>layer{stage}</h3>") for stage in (1, 2, 3)] == [1, 1, 1]
    assert all(words in page.text for words in said.values())
    text = report(whole, image, tmp_path / "page.html").read_text(encoding="utf-8")
    mean = maps[names[0]].mean(0)
    assert (
        f"<figcaption>0.attention<br>{float(mean.min() / mean.mean()):.2g} to {float(mean.max() / mean.mean()):.2g} "
        "times the mean" in text
    )
    assert len(text) < 500_000


def test_a_file_is_explained_with_the_radius_of_every_gaussian(tmp_path):
    network = augment_convs(timm.create_model("test_resnet", num_classes=4), ExplicitAttention, stages=(2, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    seen = explain(WholeImage(network, 64), tmp_path / "photo.png", tmp_path / "report.html", device="cpu")
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert seen.maps and all(name in text for name in seen.maps)
    assert text.count("radius 0.10 of the side") == len(seen.maps)
    last = [[name for name in seen.maps if name.startswith(stage)][-1] for stage in ("layer2", "layer3")]
    assert all(f"{name}, query at the {where}" in text for name in last for where in ("border", "corner"))


def test_a_terminal_says_that_there_are_maps(seen, capsys):
    show(replace(seen, maps={"one": torch.rand(1, 7, 7)}))
    assert "1 attention map: foveal explain draws it" in capsys.readouterr().out


def test_a_model_that_does_not_add_up_says_so(image, seen, tmp_path):
    whole = replace(seen, glimpses=replace(seen.glimpses, contribution=None))
    assert "not a sum over looks" in Page(report(whole, image, tmp_path / "page.html").read_text()).text
    (drawn, _, said) = classification_table(whole).renderables
    assert [column.header for column in drawn.columns] == ["look", "level", "chosen", "rows", "columns"]
    assert "not a sum over looks" in said.plain


def test_a_dense_network_has_a_page_too(image, tmp_path):
    page = Page(
        report(classify(create_model("test_resnet", num_classes=2), image), image, tmp_path / "page.html").read_text()
    )
    assert len(page.of("article")) == 1 and not page.of("g")


def test_a_table_in_the_terminal(image, seen, capsys):
    show(seen, image)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for number, glimpse in enumerate(seen.glimpses):
        y0, x0, y1, x1 = glimpse.box
        (row,) = (r for r in rows if r[:2] == [str(number), str(glimpse.level)])
        assert {f"{y0:.0f}:{y1:.0f}", f"{x0:.0f}:{x1:.0f}"} <= set(row)
        assert number == 0 or f"{glimpse.probability:.3f}" in row


def screen(classification, wide=False, width=80):
    shown = Console(width=width, record=True, file=io.StringIO())
    shown.print(classification_table(classification, wide))
    return shown.export_text()


def made(logits, contribution, boxes=None, names=(), level=None):
    """A classification of one image with the given contributions (looks, classes)."""
    count = len(contribution)
    looks = Glimpses(
        np.zeros(count, int),
        np.array(boxes if boxes is not None else [[0.0, 0, 64, 64]] * count),
        (32, 32),
        np.array(level or [1] + [2] * (count - 1)),
        np.array([-1] + [0] * (count - 1)),
        torch.full((count,), 0.1851),
        torch.tensor(contribution),
    )
    return Classification(torch.tensor(logits), looks, tuple(names))


def test_each_look_shows_what_it_added_to_the_class_and_to_the_next():
    shares = [[0.5, 0.25, -1.0], [2.0, 0.0, 0.0], [-0.5, 0.5, 0.0]]
    lines = screen(made([2.0, 0.75, -1.0], shares, names=("birch", "oak", "elm"))).splitlines()
    assert lines[0].rstrip() == "birch 74.8 %, then oak 21.4 %"
    assert lines[1].split() == ["look", "level", "chosen", "rows", "columns", "birch", "oak", "lead"]
    assert [line.split() for line in lines[3:6]] == [
        ["0", "1", "0:64", "0:64", "+0.50", "+0.25", "+"],
        ["1", "2", "0.185", "0:64", "0:64", "+2.00", "0.00", "++++++++"],
        ["2", "2", "0.185", "0:64", "0:64", "-0.50", "+0.50", "----"],
    ]
    assert lines[7].split() == ["all", "+2.00", "+0.75"]  # the logits
    wide = screen(made([2.0, 0.75, -1.0], shares, names=("birch", "oak", "elm")), wide=True).splitlines()
    assert wide[1].split() == ["look", "level", "from", "chosen", "rows", "columns", "birch", "oak", "elm", "lead"]
    assert wide[3].split()[-2:] == ["-1.00", "+"] and wide[4].split()[2] == "0"


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 123.4, 1e5])
@pytest.mark.parametrize("wide", [False, True])
def test_looks_fit_a_terminal_whatever_they_added(scale, wide):
    rng = np.random.default_rng(0)
    names = [f"a class with quite a long name that ends in {'x' * i}" for i in range(1000)]
    shares = (scale * rng.normal(size=(83, 1000))).astype(np.float32)
    boxes = rng.uniform(-20_000, 999_999, (83, 4))
    seen = made(shares.sum(0).tolist(), shares.tolist(), boxes, names)
    text, whole = screen(seen, wide), screen(seen, wide, 10_000)
    assert max(map(len, text.splitlines())) <= 80 and not re.search(r"\de[+-]\d|[-+]0(\.0*)?(?![\d.])", text)
    rows = [line.split() for line in whole.splitlines()]
    assert len([row for row in rows if row[:1] and row[0].isdigit()]) == 83
    numbers = [Counter(re.findall(r"[-+]\d[\d,.]*(?!\d)", part)) for part in (text, whole)]
    assert not numbers[1] - numbers[0] and (scale < 1e-4 or sum(numbers[0].values()) > 160)
    order = np.argsort(-shares.sum(0))[: 5 if wide else 2]
    shown = [float(cell.replace(",", "")) for cell in rows[3] if re.fullmatch(r"[-+]?\d[\d,.]*", cell)]
    assert shown[-len(order) :] == pytest.approx(
        shares[0, order].tolist(), abs=max(0.01 * float(np.abs(shares[:, order]).max()), 6e-5)
    )


def test_one_class_or_no_numbers_can_be_shown():
    assert "lead" not in screen(made([1.0], [[0.5], [0.5]])) and "100.0 %" in screen(made([1.0], [[0.5], [0.5]]))
    assert "nan" in screen(made([math.nan] * 2, [[math.nan] * 2] * 2))
    assert "0.00" in screen(made([0.0, 0.0], [[0.0, 0.0]]))


def test_boxes_at_the_edge_are_not_at_minus_zero():
    assert " 0:64" in screen(made([1.0, 0.0], [[1.0, 0.0]], [[-0.3, -0.0, 64.2, 64.0]])) and "-0" not in screen(
        made([1.0, 0.0], [[1.0, 0.0]], [[-0.3, -0.0, 64.2, 64.0]])
    )


def test_one_image_at_a_time(image):
    with pytest.raises(ImageError, match="expected one image, got 2"):
        one_view(image.repeat(2, 1, 1, 1))


def test_explaining_a_file(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    seen = explain(
        model, tmp_path / "photo.png", tmp_path / "report.html", device="cpu", overlay_out=tmp_path / "boxes.png"
    )
    assert torch.allclose(seen.logits, classify(model, tmp_path / "photo.png").logits, atol=1e-5)
    assert Image.open(tmp_path / "boxes.png").size == (150, 200)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (
        len(page.of("article")) == 5
        and "dense backbone at full size" in page.text
        and "read from the file" in page.text
    )
    with pytest.raises(ImageError, match=r"none\.png"):
        explain(model, tmp_path / "none.png", tmp_path / "other.html", device="cpu")
    with pytest.raises(StorageError, match="cannot be written"):
        explain(model, tmp_path / "photo.png", tmp_path / "nowhere" / "report.html", device="cpu")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boxes.png", "photo.png", "report.html"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            {"out": "g.png"},
            r"g\.png: the page is HTML; give `out` a name that ends in \.html, and `overlay_out` that of the picture",
        ),
        ({"out": "page"}, r"page: the page is HTML; give `out` a name that ends in \.html"),
        (
            {"overlay_out": "g.html"},
            r"g\.html: pictures are \.png, \.jpg, \.jpeg, \.webp; give `overlay_out` a name with one of",
        ),
        ({"overlay_out": "photo.png"}, r"photo\.png: this is the image itself; give `overlay_out` another name"),
    ],
)
def test_files_are_what_their_names_say(tmp_path, names, sentence):
    """The error comes before the model is loaded, and nothing is written."""
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    paths = {"out": tmp_path / "report.html", **{key: tmp_path / name for key, name in names.items()}}
    with pytest.raises(ConfigError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        explain(tmp_path / "no run", tmp_path / "photo.png", device="cpu", **paths)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"] and (tmp_path / "photo.png").read_bytes() == before


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("JPG", "JPEG"), ("webp", "WEBP")])
def test_the_overlay_is_of_the_kind_of_its_suffix(model, tmp_path, suffix, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    explain(model, pixels, tmp_path / "report.htm", device="cpu", overlay_out=tmp_path / f"g.{suffix}")
    assert Image.open(tmp_path / f"g.{suffix}").format == kind


def test_images_in_memory_are_explained(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    pages = {}
    for name, image in {
        "array": pixels,
        "picture": Image.fromarray(pixels),
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
    }.items():
        seen = explain(model, image, tmp_path / f"{name}.html", device="cpu")
        assert torch.equal(seen.logits, classify(model, pixels).logits)
        page = Page((tmp_path / f"{name}.html").read_text(encoding="utf-8"))
        assert "read from the file" not in page.text
        pages[name] = [a["src"] for a in page.of("img")]
        assert np.array_equal(np.asarray(overlay(seen, image)), np.asarray(overlay(seen, pixels)))
    assert pages["array"] == pages["picture"] == pages["tensor"]


def test_the_page_says_how_large_a_pixel_is(tmp_path):
    torch.manual_seed(0)
    model = TNet(num_classes=4, backbone="test_efficientnet", base_size=32, locations=(2,), region_mpp=1.5).eval()
    pixels = np.zeros((256, 256, 3), np.uint8)
    how = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "slide.tif", pixels, **how)
    seen = explain(model, tmp_path / "slide.tif", tmp_path / "report.html", device="cpu")
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "256 × 256 px, 0.5 µm per pixel, 3 looks" in text
    assert (
        text.count("seen at 32 × 32 px, 4 µm per pixel") == 1
        and text.count("seen at 32 × 32 px, 1.5 µm per pixel") == 2
    )
    assert {g.box[2] - g.box[0] for g in list(seen.glimpses)[1:]} == {96}
    raster = ArrayPyramid(pixels, metadata={"mpp": 10e6})
    dense = create_model("test_resnet", num_classes=4)
    report(classify(dense, raster), raster, tmp_path / "raster.html")
    assert "256 × 256 px, 10 m per pixel, 1 look" in Page((tmp_path / "raster.html").read_text(encoding="utf-8")).text


def test_boxes_of_a_long_image_are_drawn_inside_it(tmp_path):
    """They equal the boxes of the looks."""
    torch.manual_seed(0)
    model = TNet(num_classes=4, backbone="test_efficientnet", base_size=32, locations=(3, 1)).eval()
    image = torch.rand(3, 100, 250)
    seen = classify(model, image)
    page = Page(report(seen, image, tmp_path / "report.html").read_text(encoding="utf-8"))
    drawn = [tuple(float(box[key]) for key in ("y", "x", "height", "width")) for box in page.of("rect")]
    assert drawn == [(y0, x0, y1 - y0, x1 - x0) for y0, x0, y1, x1 in (g.box for g in list(seen.glimpses)[1:])]
    assert all(y >= 0 and x >= 0 and y + h <= 100 and x + w <= 250 and h == w for y, x, h, w in drawn)
    pixels = np.array(overlay(seen, image))
    rgb = np.array([int(colour(2)[i : i + 2], 16) for i in (1, 3, 5)])
    # Boxes of level 2 have the height of the image, and three of them cover it. Boxes of level 3 are on top.
    assert (pixels[0] == rgb).all(1).sum() > 200 and (pixels[99] == rgb).all(1).sum() > 50


@pytest.mark.chromium
@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium")
def test_a_look_lights_up_its_box(image, seen, tmp_path):
    out = report(seen, image, tmp_path / "report.html")
    focus = "<script>document.querySelector('.look[data-look=\"3\"]').focus()</script></body>"
    out.write_text(out.read_text(encoding="utf-8").replace("</body>", focus), encoding="utf-8")
    flags = (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
    command = [
        "chromium",
        *(f"--{flag}" for flag in flags),
        "--disable-quic",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        out.as_uri(),
    ]
    page = Page(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    lit = [(tag, a["data-look"]) for tag, a in page.tags if "on" in a.get("class", "").split()]
    assert lit == [("g", "3"), ("article", "3")]
