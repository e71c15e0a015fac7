"""Pages of many images, with an index that can be sorted by class, sureness, error and cost.

Example:
    >>> import tempfile, numpy as np
    >>> from PIL import Image
    >>> from foveal.models import create_model
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("a.png", "b.png"):
    ...     Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / name)
    >>> model = create_model("test_resnet", num_classes=2)
    >>> rows = explain_many(model, [folder], folder / "explained", device="cpu")
    >>> len(rows), len(list((folder / "explained").glob("*.html")))
    (2, 3)
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

import torch
from PIL import Image
from torch import nn

from foveal.annotations import HeatmapFolder, LooksFolder, file_stem
from foveal.display import unit_for
from foveal.errors import ConfigError, ImageError
from foveal.explain.page import PAGES, Explainer, data_uri, escape, write
from foveal.files import storing
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import LeftOut, as_text
from foveal.images.uris import identity, is_remote, shown
from foveal.policies import Policy
from foveal.prediction.predictor import Predictor
from foveal.prediction.rows import Row, failed_row, find_images
from foveal.runs import Run

INDEX = "index.html"

ICON = 96
"""Longest side of the picture of an image in the index."""


def explain_many(
    model: GlimpseClassifier | nn.Module | Run | str | Path,
    paths: Sequence[str | Path],
    out: str | Path = "explained",
    *,
    locations: Sequence[int] | None = None,
    policy: str | Policy | None = None,
    device: str | torch.device = "auto",
    precision: str = "32",
    seed: int = 0,
    labels: str | Path | None = None,
    looks: str | Path | None = None,
    heatmap: str | Path | None = None,
    on_progress: Callable[[float, int], None] | None = None,
    left_out: LeftOut | None = None,
) -> list[Row]:
    """Classify images and write a page for each, and ``index.html``, into a folder.

    An image that cannot be read has a line in the index and no page; the others are explained.

    Args:
        model: a classifier, a dense network, or a run folder.
        paths: files, folders and patterns, see `foveal.prediction.find_images`.
        out: the folder; it is created.
        locations, policy, device, precision, seed: see `foveal.explain.explain`.
        labels: a CSV file with the columns ``path`` and ``label``. Paths are relative to its folder or to the current
            one; several labels of an image have ``|`` between them.
        looks: folder for the looks of each image, see `foveal.annotations.LooksFolder`.
        heatmap: folder for the contributions in each image, see `foveal.annotations.HeatmapFolder`.
        on_progress: called with the number of images done, which includes the done part of a scan, and that of all.
        left_out: counts files and folders that are left out, if given.

    Returns:
        The row of each image, see `foveal.prediction.rows.COLUMNS`.

    Raises:
        ConfigError: an option does not fit, or the labels cannot be read.
        StorageError: an output cannot be written.
        RunError: the folder is not a run folder.
    """
    out = Path(out)
    if out.suffix.lower() in PAGES or (out.exists() and not out.is_dir()):
        raise ConfigError(f"{out}: pages of several images are written into a folder; give `out` the name of one")
    predictor = Predictor(model, device=device, precision=precision)
    known = {} if labels is None else read_labels(Path(labels), predictor.class_names)
    explainer = Explainer(predictor, locations, policy, seed)
    found = find_images(paths, left_out)
    with storing(out, "choose another `out`"):
        out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    lines: list[str] = []
    wrong: list[bool] = []
    with ExitStack() as stack:
        kinds = ((LooksFolder, looks), (HeatmapFolder, heatmap))
        sinks = [stack.enter_context(kind(folder)) for kind, folder in kinds if folder is not None]
        for done, (path, error) in enumerate(found):

            def scanned(share: float, done: int = done) -> None:
                if on_progress is not None:
                    on_progress(done + share, len(found))

            name = as_text(shown(path))
            page, picture = out / f"{file_stem(name)}.html", None
            try:
                if error is not None:
                    raise ImageError(error)
                _, row, picture, _ = explainer(path, page, on_scan=scanned, picture_side=ICON)
            except ImageError as problem:
                row = failed_row(shown(path), str(problem))
                with storing(page):
                    page.unlink(missing_ok=True)  # of an earlier call
            for sink in sinks:
                sink.write(row)
            rows.append(row)
            label = known.get(_real(path))
            lines.append(_line(row, page.name, picture, label))
            if label is not None and not row["error"]:
                wrong.append(_parts(label) != _parts(row["label"]))
            scanned(1)
    title = f"{len(rows):,} {'image' if len(rows) == 1 else 'images'}"
    failed = sum(row["error"] is not None for row in rows)
    summary = [f"{failed:,} failed"] if failed else []
    if known:
        summary.append(f"{sum(wrong):,} of {len(wrong):,} with a label are wrong")
    template = Template(files("foveal.explain").joinpath("index.html").read_text(encoding="utf-8"))
    page_text = template.substitute(
        title=title, lines="\n".join(lines), labelled="" if known else "hidden", summary="; ".join(summary)
    )
    write(out / INDEX, page_text.encode())
    return rows


def read_labels(file: Path, class_names: Sequence[str]) -> dict[str, str]:
    """The label of each image by its absolute path.

    Args:
        file: see `explain_many`.
        class_names: names of the classes; if empty, labels are not checked.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has a label that is no class.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"`labels` {file}: cannot be read ({reason}); give a CSV file") from error
    known = {}
    for number, row in enumerate(rows, start=2):
        path, label = row.get("path"), row.get("label")
        if path is None or label is None:
            raise ConfigError(f"`labels` {file}: line {number} has no path or no label; give it these two columns")
        if class_names and (odd := next((one for one in _parts(label) if one not in class_names), None)) is not None:
            raise ConfigError(f"`labels` {file}: line {number}: the model has no class {odd!r}; correct the label")
        for place in [path] if is_remote(path) else [file.parent / path, path]:
            known[_real(place)] = label
    return known


def _real(path: str | os.PathLike[str]) -> str:
    """One text for all paths of a file."""
    return identity(path) if is_remote(path) else os.path.realpath(path)


def _parts(label: str) -> frozenset[str]:
    return frozenset(part for part in label.split("|") if part)


def _line(row: Row, page: str, picture: Image.Image | None, label: str | None) -> str:
    """A line of the table."""
    path = escape(row["path"])
    if row["error"]:
        return (
            f'<tr data-error=""><td></td><th scope="row">{path}</th><td colspan="5" class="failed">'
            f"{escape(row['error'])}</td></tr>"
        )
    icon = ""
    if picture is not None:
        icon = f'<img src="{data_uri(picture)}" alt="" width="{picture.width}" height="{picture.height}">'
    macs = unit_for("MAC", [row["macs"]])
    sure, wrong = row["probability"], label is not None and _parts(label) != _parts(row["label"])
    # The most certain errors come first, then the least certain right answers.
    error = "" if label is None else f"{sure if wrong else -sure:.6f}"
    verdict = "" if label is None else f"{'wrong: ' if wrong else 'right: '}{escape(label) or 'no label'}"
    return (
        f'<tr data-class="{escape(row["label"])}" data-sure="{sure:.6f}" data-error="{error}" '
        f'data-cost="{row["macs"]}" data-looks="{len(row["glimpses"])}">'
        f'<td>{icon}</td><th scope="row"><a href="{quote(page)}">{path}</a></th>'
        f"<td>{escape(row['label']) or 'no label'}</td><td>{100 * sure:.1f} %</td>"
        f'<td class="{"wrong" if wrong else "right"}">{verdict}</td>'
        f"<td>{len(row['glimpses'])}</td><td>{macs(row['macs'])} {macs.name}</td></tr>"
    )
