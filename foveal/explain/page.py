"""A report page: where the model looked, what it saw there, what each look added, and the cost.

The page is self-contained: it includes all pictures and loads nothing.

Example:
    >>> import tempfile, torch
    >>> from foveal.models import create_model
    >>> from foveal.prediction import classify
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=3, base_size=32, locations=(2,))
    >>> image = torch.rand(3, 96, 128)
    >>> page = report(classify(model, image), image, Path(tempfile.mkdtemp()) / "report.html", name="<noise>")
    >>> "&lt;noise&gt;" in page.read_text(), "<noise>" in page.read_text()
    (True, False)
"""

from __future__ import annotations

import base64
import html
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from foveal.annotations import write_heatmap, write_looks
from foveal.annotations.heatmap import check_file as check_heatmap
from foveal.annotations.looks import check_file as check_looks
from foveal.classification import Classification, Glimpse
from foveal.display import fixed, percent, printable, significant, unit_for
from foveal.draws import Draws
from foveal.errors import ConfigError, ImageError
from foveal.explain.pictures import colour, glimpse_pictures, heat, one_view, overlay, thumbnail
from foveal.files import replacing, storing
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import BlankViews, ImageViews, Pyramid, is_path, uris
from foveal.layers import ExplicitAttention, captions, stage_of
from foveal.policies import Policy
from foveal.prediction.cost import count_cost
from foveal.prediction.predictor import Predictor
from foveal.prediction.rows import Row, file_state, make_row
from foveal.runs import Run
from foveal.tasks import MULTICLASS

SHOWN = 3
"""Number of classes with contributions."""

HEADS = 8
"""Show each head of an attention map if there are at most this many."""

MAPS = 8
"""Show attention maps large and by head if there are at most this many, else small and grouped by stage."""

PAGES = (".html", ".htm")
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats of pictures by suffix."""

HOW_TO_READ = (
    "Bright is high. Each picture is scaled from its lowest to its highest value. "
    "A map that depends on the query is that of the central query unless its name says otherwise."
)


@dataclass(frozen=True)
class Costs:
    """Costs of a classification; None where unknown.

    Attributes:
        macs: multiply-accumulates.
        dense_macs: multiply-accumulates of the backbone on the image at full size.
        bytes_read: bytes read from the file.
        file_bytes: size of the file in bytes.
        seconds: time from opening the file to the class, after a warm-up.
    """

    macs: int | None = None
    dense_macs: int | None = None
    bytes_read: int | None = None
    file_bytes: int | None = None
    seconds: float | None = None


def explain(
    model: GlimpseClassifier | nn.Module | Run | str | Path,
    path: Any,
    out: str | Path = "report.html",
    *,
    locations: Sequence[int] | None = None,
    policy: str | Policy | None = None,
    device: str | torch.device = "auto",
    precision: str = "32",
    seed: int = 0,
    overlay_out: str | Path | None = None,
    looks_out: str | Path | None = None,
    heatmap_out: str | Path | None = None,
    mask: str | Path | None = None,
    on_scan: Callable[[float], None] | None = None,
) -> Classification:
    """Classify one image and write a page that explains the result.

    Args:
        model: a classifier, a dense network, or a run folder.
        path: the image: a file, or an image in memory as for `foveal.classify`.
        out: the page, ``.html``.
        locations: looks per grid at each level; the model's own if None.
        policy: how cells are selected, one of ``model.policies``; if None, see `foveal.classify`.
        device: see `foveal.prediction.find_device`.
        precision: see `foveal.prediction.autocast`.
        seed: seed of random policies.
        overlay_out: file for the image with the boxes, with a suffix from `PICTURES`; None writes none.
        looks_out: file for the looks, ``.geojson`` or ``.gpkg``, see `foveal.annotations.write_looks`.
        heatmap_out: file for the contributions, ``.tif``, see `foveal.annotations.write_heatmap`.
        mask: where a scan may look, see `foveal.images.masks`; for an image in a file.
        on_scan: see `foveal.images.Views`.

    Raises:
        ImageError: the image cannot be opened or read.
        ConfigError: an option does not fit.
        StorageError: an output cannot be written.
        RunError: the folder is not a run folder.
    """
    check_page(Path(out))
    kind = None if overlay_out is None else _picture_kind(Path(overlay_out), path)
    for file, check in ((looks_out, check_looks), (heatmap_out, check_heatmap)):
        if file is not None:
            check(Path(file))
    explainer = Explainer(Predictor(model, device=device, precision=precision), locations, policy, seed)
    done = explainer(path, out, mask=mask, on_scan=on_scan, overlay_side=None if kind is None else 2048)
    if looks_out is not None:
        write_looks(done.row, looks_out)
    if heatmap_out is not None:
        write_heatmap(done.row, heatmap_out)
    if overlay_out is not None and kind is not None and done.overlay is not None:
        write(Path(overlay_out), _encoded(done.overlay, kind))
    return done.seen


class Explained(NamedTuple):
    """An image that was explained.

    Attributes:
        seen: its classification.
        row: its row, see `foveal.prediction.rows.COLUMNS`.
        picture: the image, reduced, if asked for.
        overlay: the image with the boxes, if asked for.
    """

    seen: Classification
    row: Row
    picture: Image.Image | None
    overlay: Image.Image | None


class Explainer:
    """Classifies images one by one and writes the page of each.

    Args:
        predictor: the model.
        locations, policy, seed: see `explain`.

    Raises:
        ConfigError: the model does not support the locations or the policy.
    """

    def __init__(
        self,
        predictor: Predictor,
        locations: Sequence[int] | None = None,
        policy: str | Policy | None = None,
        seed: int = 0,
    ) -> None:
        self.predictor, self.seed = predictor, seed
        self.policy = policy or predictor.model.usual_policy
        self.locations = predictor.locations(locations, self.policy)
        # Warm-up: the first pass of a process allocates memory and loads kernels.
        model = predictor.model
        blank = BlankViews(1, model.size, model.channels, predictor.device)
        predictor(blank, self.locations, self.policy).logits.cpu()
        self._macs: dict[tuple[tuple[int, int], float | None], tuple[int, int | None]] = {}

    def macs(self, size: tuple[int, int], mpp: float | None) -> tuple[int, int | None]:
        """Multiply-accumulates of an image of a size, and of the dense backbone; None if it does not take this size."""
        if (size, mpp) not in self._macs:
            model = self.predictor.model
            counted = count_cost(model, size, self.locations, self.policy, mpp).macs
            self._macs[size, mpp] = counted, _backbone_macs(model, size)
        return self._macs[size, mpp]

    def __call__(
        self,
        path: Any,
        out: str | Path,
        *,
        mask: str | Path | None = None,
        on_scan: Callable[[float], None] | None = None,
        picture_side: int | None = None,
        overlay_side: int | None = None,
    ) -> Explained:
        """Classify an image and write its page; see `explain`.

        Args:
            picture_side, overlay_side: longest sides of the two pictures; None for none.
        """
        classifier, start = self.predictor.model, time.perf_counter()
        is_file, before = is_path(path), file_state(path)
        with self.predictor.open(path, mask=mask) as image:
            views = ImageViews([image])
            views.on_scan = on_scan
            draws = Draws(self.seed, 0, np.zeros(1, dtype=np.int64))
            seen = Classification.cat([self.predictor(views, self.locations, self.policy, draws)])[0]
            seconds = time.perf_counter() - start
            for reason in views.errors.values():
                raise ImageError(reason)
            size = (int(views.sizes[0, 0]), int(views.sizes[0, 1]))
            read = int(views.bytes_read[0]) if is_file else None
            macs, dense_macs = self.macs(size, views.views[0].mpp)
            costs = Costs(macs, dense_macs, read, _stored_bytes(path, image), seconds)
            name = "image" if not is_file else uris.shown(path) if uris.is_remote(path) else str(Path(path))
            state = file_state(path, image)
            if image.remote is None and state != before:
                raise ImageError(f"{name}: was changed while it was read; explain it again")
            row = make_row(name, seen, image, top_k=5, macs=macs, seconds=seconds, state=state)
            network = classifier.dense() if seen.maps else nn.Identity()
            shown = replace(seen, maps={**seen.maps, **_from_the_edge(network, seen.maps)})
            drawn = None if overlay_side is None else overlay(seen, views, side=overlay_side)
            report(
                shown,
                views,
                out,
                name=name,
                costs=costs,
                fill=classifier.mean.tolist(),
                antialias=classifier.antialias,
                captions=captions(network),
            )
            picture = None if picture_side is None else thumbnail(views, picture_side)
            return Explained(seen, row, picture, drawn)


def _stored_bytes(path: Any, image: Pyramid) -> int | None:
    """Bytes of the file of an image; None if they are not known."""
    if image.remote is not None:
        return image.remote.size
    is_file = is_path(path) and not uris.is_remote(path) and Path(path).is_file()
    return image.metadata.get("file_bytes") or (Path(path).stat().st_size if is_file else None)


def check_page(out: Path) -> None:
    """Check the suffix of a page.

    Raises:
        ConfigError: it is another one.
    """
    if out.suffix.lower() not in PAGES:
        raise ConfigError(
            f"{out}: the page is HTML; give `out` a name that ends in .html, and `overlay_out` that of the picture"
        )


def _picture_kind(out: Path, image: Any) -> str:
    """Format of a picture by its suffix. The picture must not replace the image."""
    kind = PICTURES.get(out.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"{out}: pictures are {', '.join(PICTURES)}; give `overlay_out` a name with one of these suffixes"
        )
    if is_path(image) and out.exists() and Path(image).exists() and out.samefile(image):
        raise ConfigError(f"{out}: this is the image itself; give `overlay_out` another name")
    return kind


def _from_the_edge(network: nn.Module, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps for queries at the border and in the corner, of the last `ExplicitAttention` layer of each stage."""
    modules = dict(network.named_modules())
    last = {stage_of(name): name for name in maps if isinstance(modules.get(name), ExplicitAttention)}
    found = {}
    for name in last.values():
        layer, grid = cast(ExplicitAttention, modules[name]), (maps[name].shape[-2], maps[name].shape[-1])
        # With a stride, there are fewer queries than cells.
        for where, query in (("border", (0, layer.output_grid(grid)[1] // 2)), ("corner", (0, 0))):
            with torch.no_grad():
                found[f"{name}, query at the {where}"] = layer.attention_map_of(query, grid)
    return found


def report(
    classification: Classification,
    image: Any,
    out: str | Path = "report.html",
    *,
    name: str = "image",
    costs: Costs = Costs(),
    fill: Sequence[float] | None = None,
    antialias: bool = True,
    captions: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write the page of a classification.

    Args:
        classification: the classification of one image.
        image: the image, see `foveal.explain.pictures.one_view`.
        out: the page, ``.html``.
        name: title of the image.
        costs: costs to show.
        fill, antialias: how the model sees the image, see `foveal.explain.pictures.glimpse_pictures`.
        captions: captions of attention maps by name, see `foveal.layers.captions`.

    Returns:
        The path of the page.

    Raises:
        ImageError: the image cannot be read.
        ConfigError: the suffix is not that of a page.
        StorageError: the page cannot be written.
    """
    check_page(Path(out))
    views = one_view(image)
    height, width = (int(n) for n in views.sizes[0])
    mpp = float(views.mpp[0])
    pictures = glimpse_pictures(classification, views, fill=fill, antialias=antialias)
    looks = list(classification.glimpses)
    top = classification.logits.float().topk(min(SHOWN, classification.logits.shape[-1])).indices.tolist()
    page = Template(_part("report.html")).substitute(
        style=_part("looks.css"),
        script=_part("looks.js"),
        name=escape(name),
        label=escape(str(classification.label) or "no label"),
        certainty=f"{'' if classification.task.name == MULTICLASS.name else 'least certain label: '}"
        f"{100 * float(classification.probability):.1f} %",
        summary=escape(
            f"{width} × {height} px{_pixel_size(mpp)}, {len(looks)} {'look' if len(looks) == 1 else 'looks'}"
            f"{''.join(f'; {line}' for line in classification.decision_rules())}"
        ),
        picture=data_uri(thumbnail(views, 1024)),
        grain="coarse" if max(height, width) < 128 else "fine",
        width=width,
        height=height,
        boxes="\n".join(_box(i, g, max(height, width)) for i, g in enumerate(looks) if g.level > 1),
        classes="\n".join(_class_bar(label, p) for label, p in classification.top(5)),
        looks="\n".join(
            _look_card(i, g, picture, classification, top, mpp)
            for i, (g, picture) in enumerate(zip(looks, pictures, strict=True))
        ),
        total=_total_table(classification, top),
        maps=_maps(classification, pictures[0], captions) if classification.maps else "",
        costs="\n".join(
            f"<div><dt>{escape(what)}</dt><dd>{escape(how)}</dd></div>" for what, how in _cost_lines(costs)
        ),
    )
    write(Path(out), page.encode())
    return Path(out)


def escape(text: str) -> str:
    """A text for HTML, which cannot turn the direction of the page either."""
    return html.escape(printable(text))


def _part(name: str) -> str:
    return files("foveal.explain").joinpath(name).read_text(encoding="utf-8")


def _box(number: int, glimpse: Glimpse, longest: int) -> str:
    y0, x0, y1, x1 = glimpse.box
    label = f"look {number}, level {glimpse.level}"
    font = longest / 36
    # A cell often shares its corner with a cell of the next level, so the labels of levels are at different heights.
    at = max(x0, 0) + 0.3 * font, max(y0, 0) + (1.1 + 1.15 * (glimpse.level - 2)) * font
    return (
        f'<g class="box" tabindex="0" data-look="{number}" aria-label="{label}" '
        f'style="--level: {colour(glimpse.level)}">'
        f'<rect x="{x0:.6g}" y="{y0:.6g}" width="{x1 - x0:.6g}" height="{y1 - y0:.6g}"/>'
        f'<text x="{at[0]:.6g}" y="{at[1]:.6g}" font-size="{font:.6g}">{number}</text></g>'
    )


def _class_bar(label: str, probability: float) -> str:
    return (
        f'<li><span class="what">{escape(label)}</span>'
        f'<span class="track"><i style="width: {100 * probability:.2f}%"></i></span>'
        f'<span class="number">{100 * probability:.1f} %</span></li>'
    )


def _pixel_size(mpp: float) -> str:
    """Size of a pixel as text; empty if it is unknown. Pixels of maps are in metres."""
    if math.isnan(mpp):
        return ""
    return f", {mpp / 1e6:.3g} m per pixel" if mpp >= 1e5 else f", {mpp:.3g} µm per pixel"


def _look_card(
    number: int, glimpse: Glimpse, picture: Image.Image, whole: Classification, top: Sequence[int], mpp: float
) -> str:
    if glimpse.parent is None:
        how = "the first look, always taken"
    else:
        how = f"chosen from look {glimpse.parent} with probability {glimpse.probability:.3f}"
    y0, x0, y1, x1 = map(round, glimpse.box)
    seen = f"{picture.width} × {picture.height} px{_pixel_size(mpp * glimpse.pixels_each)}"
    return (
        f'<article class="look" tabindex="0" data-look="{number}" style="--level: {colour(glimpse.level)}">'
        f'<img src="{data_uri(picture)}" alt="what the model saw in look {number}">'
        f"<div><h3><b>{number}</b> level {glimpse.level}</h3><p>{how}<br>rows {y0} to {y1}, columns {x0} to {x1}, "
        f"seen at {seen}</p>{_contribution_bars(glimpse.contribution, whole, top)}</div></article>"
    )


def _contribution_bars(contribution: Tensor | None, whole: Classification, top: Sequence[int]) -> str:
    """Bars with the contributions to the top classes. All looks of a page have the same scale."""
    if contribution is None:
        return ""
    largest = float(whole.glimpses.contribution[:, list(top)].abs().max()) or 1.0  # type: ignore[index]
    bars = []
    for i in top:
        value = float(contribution[i])
        half = 50 * abs(value) / largest
        side = f"left: {50 if value >= 0 else 50 - half:.2f}%; width: {half:.2f}%"
        bars.append(
            f'<li><span class="what">{_class_name(whole, i)}</span>'
            f'<span class="track signed"><i class="{"more" if value >= 0 else "less"}" style="{side}"></i></span>'
            f'<span class="number">{fixed(value, 3, signed=True)}</span></li>'
        )
    return f'<ul class="bars">{"".join(bars)}</ul>'


def _total_table(whole: Classification, top: Sequence[int]) -> str:
    """Table of the sums of contributions and the logits."""
    if whole.glimpses.contribution is None:
        return "<p>The logits of this model are not a sum over looks, so there are no contributions.</p>"
    sums = whole.glimpses.contribution.double().sum(0)
    cells = ((_class_name(whole, i), float(sums[i]), float(whole.logits[i])) for i in top)
    rows = "".join(
        f"<tr><th>{name}</th><td>{fixed(total, 4, signed=True)}</td><td>{fixed(logit, 4, signed=True)}</td></tr>"
        for name, total, logit in cells
    )
    return (
        "<table><thead><tr><th>class</th><th>sum of all "
        f"looks</th><th>logit</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _class_name(whole: Classification, i: int) -> str:
    return escape(whole.class_names[i] if whole.class_names else str(i))


def _maps(whole: Classification, ground: Image.Image, captions: Mapping[str, str]) -> str:
    """Attention maps over the first look: the mean over heads, and each head if there are few maps and heads."""
    many = len(whole.maps) > MAPS
    if many:
        ground = ground.copy()
        ground.thumbnail((128, 128))
    kind = f"maps{' many' if many else ''}{' coarse' if max(ground.size) < 128 else ''}"
    figures: dict[str, list[str]] = {}
    for name, maps in whole.maps.items():
        maps = maps.float()
        shown = [("", maps.mean(0))]
        if 1 < len(maps) <= HEADS and not many:
            shown += [(f", head {i}", head) for i, head in enumerate(maps, start=1)]
        stage = stage_of(name) if many else ""
        for which, values in shown:
            low, high = (f"{float(v / values.mean()):.2g}" for v in (values.min(), values.max()))
            caption = captions[name] if name in captions and not which else f"{low} to {high} times the mean"
            text = f"{escape(name.removeprefix(f'{stage}.') + which)}<br>{escape(caption)}"
            picture = f'<img src="{data_uri(heat(ground, values))}" alt="{escape(name + which)}">'
            figures.setdefault(stage, []).append(f"<figure>{picture}<figcaption>{text}</figcaption></figure>")
    parts = []
    for stage, group in figures.items():
        heading = f"<h3>{escape(stage)}</h3>" if stage else ""
        parts.append(f'{heading}<div class="{kind}">{"".join(group)}</div>')
    return f"<section><h2>Attention maps</h2><p>{HOW_TO_READ}</p>{''.join(parts)}</section>"


def _cost_lines(costs: Costs) -> list[tuple[str, str]]:
    lines = []
    if costs.macs is not None:
        macs = unit_for("MAC", [costs.macs, costs.dense_macs])
        lines.append(("multiply-accumulates", f"{macs(costs.macs)} {macs.name}"))
        if costs.dense_macs is not None:
            times = significant(costs.dense_macs / costs.macs)
            lines.append(
                ("dense backbone at full size", f"{macs(costs.dense_macs)} {macs.name}, {times} times as many")
            )
    if costs.bytes_read is not None:
        read = unit_for("B", [costs.bytes_read, costs.file_bytes])
        share = (
            f" of {read(costs.file_bytes)} {read.name}, {percent(costs.bytes_read / costs.file_bytes)} %"
            if costs.file_bytes
            else ""
        )
        lines.append(("read from the file", f"{read(costs.bytes_read)} {read.name}{share}"))
    if costs.seconds is not None:
        lines.append(("from opening to class", f"{significant(costs.seconds)} s, model warm"))
    return lines or [("cost", "not measured")]


def _backbone_macs(model: GlimpseClassifier, size: tuple[int, int]) -> int | None:
    try:
        return count_cost(model.dense(), size).macs
    except ConfigError:
        return None


def data_uri(picture: Image.Image) -> str:
    # Small looks are stored losslessly, large photographs are not.
    kind = "PNG" if max(picture.size) <= 256 else "JPEG"
    return f"data:image/{kind.lower()};base64,{base64.b64encode(_encoded(picture, kind)).decode()}"


def _encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=88)
    return file.getvalue()


def write(path: Path, content: bytes) -> None:
    with storing(path, "make space, or choose another `out`"), replacing(path) as unfinished:
        unfinished.write_bytes(content)
