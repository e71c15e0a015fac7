"""Draw the pictures of the README, ``docs/assets/*.png``.

    python benchmarks/pictures.py                    the curve, from benchmarks/results/photographs.json
    python benchmarks/pictures.py --run runs/demo    also the explained image, from the run of `make demo`

The explained image is the top of the page that ``foveal explain`` writes, in a headless Chromium.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "docs" / "assets"
RESULTS = ROOT / "benchmarks" / "results" / "photographs.json"
CURVES = (
    ("TNet, looks that it chooses", lambda row: row["contender"] == "tnet" and row["policy"] in ("none", "greedy")),
    ("TNet, stopping once it is sure", lambda row: row["contender"] == "tnet" and row["policy"] == "exit"),
    ("the same backbone, dense", lambda row: row["contender"].startswith("dense")),
)
"""Label of each curve, and which rows of the results belong to it."""


def points(rows: list[dict], training: str = "pretrained") -> dict[str, list[tuple[str, float, float]]]:
    """By curve: name, mean MMACs and mean accuracy over the seeds, in %, of each point; in the order of the cost."""
    found = {}
    for label, belongs in CURVES:
        seeds: dict[str, list[dict]] = {}
        for row in rows:
            if row["training"] == training and belongs(row):
                name = row["contender"].removeprefix("dense ") + " px" if "dense" in row["contender"] else row["asked"]
                seeds.setdefault(str(name), []).append(row)
        curve = [
            (name, mean(row["macs"] for row in same) / 1e6, 100 * mean(row["accuracy"] for row in same))
            for name, same in seeds.items()
        ]
        found[label] = sorted(curve, key=lambda point: point[1])
    return found


def draw_curve(file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (label, curve), colour, line in zip(
        points(json.loads(RESULTS.read_text())["results"]["rows"]).items(),
        ("#2f6db3", "#d1495b", "#666666"),
        ("o-", "s-", "^--"),
        strict=True,
    ):
        axes.plot([macs for _, macs, _ in curve], [share for *_, share in curve], line, color=colour, label=label)
        for name, macs, share in () if "sure" in label else curve:
            axes.annotate(
                name, (macs, share), textcoords="offset points", xytext=(0, -14), ha="center", fontsize=9, color=colour
            )
    axes.set_xscale("log")
    ticks = (75, 150, 300, 600, 1000)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(80, 94)
    axes.set_xlabel("millions of multiply-accumulates for one image")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def draw_explained(run: Path, file: Path, browser: str) -> None:
    from foveal.explain import explain

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        explain(run, run / "images" / "0_0.png", page, device="cpu")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,985"]
        subprocess.run([browser, *flags, f"--screenshot={file}", page.as_uri()], check=True, capture_output=True)
    reduce(file)


def reduce(file: Path) -> None:
    """Write a PNG file with a palette of 256 colours instead, which is a third as large."""
    from PIL import Image

    with Image.open(file) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder of `make demo`; without it, the curve alone is drawn")
    parser.add_argument("--browser", default="chromium", help="a Chromium")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw_curve(args.out / "tradeoff.png")
    if args.run:
        draw_explained(args.run, args.out.resolve() / "explained.png", args.browser)


if __name__ == "__main__":
    main()
