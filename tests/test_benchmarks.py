"""Tables in the docs equal the results files, and these record how they were made."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted(path.name for path in (ROOT / "benchmarks" / "results").glob("*.json"))
UNUSED: set[str] = set()  # results files that no page uses, on purpose


def render(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Without site-packages: the script needs only the standard library."""
    command = [sys.executable, "-I", "-S", "-X", "utf8", str(root / "benchmarks" / "render.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture
def copy(tmp_path):
    """A copy of the pages and the results."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def pages(root: Path) -> dict[Path, bytes]:
    return {
        page: page.read_bytes()
        for page in (root / "README.md", root / "benchmarks" / "README.md", *(root / "docs").rglob("*.md"))
    }


def test_docs_say_what_the_results_say():
    done = render(ROOT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_result_is_noticed_and_written(copy):
    file = copy / "benchmarks" / "results" / "bundled.json"
    first = json.loads(file.read_text())["results"]["runs"][0]["accuracy"]
    change(file, f'"accuracy": {first}', '"accuracy": 0.5005')
    before = pages(copy)
    done = render(copy, "--check")
    assert done.returncode == 1
    for page, table in (("benchmarks/README.md", "bundled_ingredients"), ("docs/results.md", "bundled")):
        assert f"--- {page} table {table}\n+++ benchmarks/results/bundled.json\n" in done.stdout
    changed = [line.split(" | ")[-1] for line in done.stdout.splitlines() if line.startswith(("-|", "+|"))]
    assert [figures.split(",")[0] for figures in changed] == [f"{100 * first:.1f}", "50.0"] * 2
    assert pages(copy) == before
    assert render(copy).returncode == 0
    old, new = (figures.encode() for figures in changed[:2])
    assert pages(copy) == {page: text.replace(old, new) for page, text in before.items()}
    assert render(copy, "--check").returncode == 0


def test_a_figure_typed_by_hand_is_noticed_and_undone(copy):
    before = pages(copy)
    change(copy / "docs" / "soft_attention.md", "| 737 of 10,000 |", "| 736 of 10,000 |")
    done = render(copy, "--check")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("--- docs/soft_attention.md table cifar_weights\n")
    assert render(copy).returncode == 0
    assert pages(copy) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nonsense -->\n<!-- end -->", "docs/new.md:3: benchmarks/render.py knows no table 'nonsense'"),
        ("<!-- tabel: bundled -->\n<!-- end -->", "docs/new.md:3: benchmarks/render.py knows no tabel 'bundled'"),
        ("<!-- table: bundled -->\n", "docs/new.md:3: the mark of table 'bundled' is not closed"),
        (
            "<!-- table: bundled -->\n\n<!-- table: objectives -->\n<!-- end -->",
            "docs/new.md:3: the mark of table 'bundled' is not closed",
        ),
        ("text\n<!-- end -->", "docs/new.md:4: this mark closes none"),
        ("<!-- value: expatt_step --><!-- end --> times", "docs/new.md:3: the value 'expatt_step' begins a line"),
        (
            "<!-- table: cifar_loader -->\n<!-- end -->",
            "the table 'cifar_loader' needs benchmarks/results/cifar_loader.json",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(copy, text, message):
    (copy / "docs" / "new.md").write_text(f"# New\n\n{text}\n")
    if "cifar_loader" in text:
        (copy / "benchmarks" / "README.md").write_text("")
        (copy / "benchmarks" / "results" / "cifar_loader.json").unlink()
    change(copy / "docs" / "results.md", "| the same checkpoints, thumbnail only |", "| a label typed by hand |")
    before = pages(copy)
    for flags in ((), ("--check",)):
        done = render(copy, *flags)
        assert done.returncode == 1
        assert message in done.stderr and done.stderr.count("\n") == 1
    assert pages(copy) == before


@pytest.mark.parametrize("name", RESULTS)
def test_results_say_how_they_were_made(name):
    record = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    if record["command"].startswith("foveal "):  # written by the foveal command
        assert {"device", "machine", "foveal", "torch", "seed"} <= set(record) and record["points"]
        return
    assert {"command", "device", "versions", "seed", "results"} <= set(record)
    assert record["command"].startswith("python benchmarks/") and {"python", "torch"} <= set(record["versions"])
    assert record["results"]


@pytest.mark.parametrize("name", RESULTS)
def test_every_results_file_is_told_of(copy, name):
    (copy / "benchmarks" / "results" / name).unlink()
    done = render(copy, "--check")
    assert (done.returncode, name in done.stderr) == ((0, False) if name in UNUSED else (1, True)), (
        f"{name}: no page has a mark for it"
    )


def test_mean_and_standard_deviation_over_seeds(copy):
    rng = np.random.default_rng(0)
    accuracy = {(policy, k): rng.integers(0, 10_001, 3) / 10_000 for policy in ("greedy", "random") for k in (1, 20)}
    rows = [
        {"run": "saccader", "seed": seed, "policy": policy, "glimpses": k, "accuracy": float(share), "coverage": 0.25}
        for (policy, k), shares in accuracy.items()
        for seed, share in enumerate(shares)
    ]
    rows.append({"run": "stage 1", "seed": 0, "policy": "greedy", "glimpses": 0, "accuracy": 0.71, "coverage": 1.0})
    (copy / "benchmarks" / "results" / "saccader.json").write_text(json.dumps({"results": rows}))
    page = copy / "docs" / "new.md"
    page.write_text("<!-- table: saccader -->\n<!-- end -->\n\n<!-- table: saccader_coverage -->\n<!-- end -->\n")
    assert render(copy).returncode == 0
    first, second = page.read_text().split("\n\n")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines()[1:-1]]
    assert table[0] == ["accuracy, %, by glimpses", "policy", "0", "1", "20"]
    for row, policy in zip(table[2:4], ("greedy", "random"), strict=True):
        told = [
            f"{100 * accuracy[policy, k].mean():.1f} ± {100 * accuracy[policy, k].std(ddof=1):.1f}" for k in (1, 20)
        ]
        assert row == ["all three stages", f"`{policy}`", "", *told]
    assert table[4:] == [["stage 1", "`greedy`", "71.0", "", ""]]
    assert "| stage 1 | `greedy` | 100.0 |" in second


def test_differences_of_stage_3(copy):
    about = {"seed": 0, "images": 4, "processor_seconds": 30.4}
    rows = [
        {**about, "run": "stage 2", "policy": policy, "glimpses": k, "accuracy": share, "nll": nll, "largest": 21.6}
        for policy, k, share, nll in (("none", 0, 0.7, 0.875), ("greedy", 1, 0.5, 4.0), ("greedy", 6, 0.625, 1.234))
    ]
    pair = {"first": ["new stage 3", "greedy"], "second": ["stage 1", "ordered_logits"]}
    differences = [
        {**pair, "glimpses": k, "difference": value, "interval": [value - 0.0125, value + 0.02], "by_seed": [value]}
        for k, value in ((1, 0.0425), (6, -0.0034))
    ]
    (copy / "benchmarks" / "results" / "saccader_stage3.json").write_text(
        json.dumps({"results": {"rows": rows, "differences": differences}})
    )
    page = copy / "docs" / "new.md"
    page.write_text(
        "<!-- table: saccader_stage3 -->\n<!-- end -->\n\n<!-- table: saccader_stage3_differences -->\n<!-- end -->\n"
    )
    assert render(copy).returncode == 0
    lines = page.read_text().splitlines()
    assert lines[3:5] == [
        "| stages 1 and 2 | all cells | 70.0 |  |  | 0.88 | 21.6 | 30 |",
        "| stages 1 and 2 | learned |  | 50.0 | 62.5 | 1.23 | 21.6 | 30 |",
    ]
    assert lines[10] == (
        "| stages 1 to 3, default: learned | stage 1: ordered logits | +4.2 (+3.0 to +6.2) | -0.3 (-1.6 to +1.7) |"
    )


def test_cost_of_looking(copy):
    told = {
        "batch_size": 1,
        "p50": 123.45,
        "p95": 130.0,
        "repeats": 9,
        "peak_memory": 3 * 2**20,
        "bytes_read": 65_500.0,
    }
    rows = [
        {"model": "tnet", "side": 4096, "macs": 1_234_567_890, "parameters": 1, "measured": told},
        {"model": "tnet", "side": 4096, "macs": 12_345_678_900, "parameters": 1, "measured": None},
        {"model": "tnet", "side": 224, "macs": 12_345_678, "parameters": 1, "measured": told | {"peak_memory": None}},
    ]
    (copy / "benchmarks" / "results" / "looking_cost.json").write_text(
        json.dumps({"device": "a machine", "results": rows})
    )
    page = copy / "docs" / "new.md"
    page.write_text("<!-- table: looking_cost -->\n<!-- end -->\n")
    assert render(copy).returncode == 0
    assert page.read_text().splitlines()[3:6] == [
        "| 4,096 | tnet | 1.23 | 123 | 3.00 | 65.5 |",
        "| 4,096 | tnet | 12.3 | counted only |  |  |",
        "| 224 | tnet | 0.012 | 123 |  | 65.5 |",
    ]


def test_early_exit_beside_mixed_fixed_budgets(copy):
    told = {"task": "small", "seed": 0, "batch": 1}
    fixed = ((0, 10_000_000, 1.0, 0.5), (1, 20_000_000, 3.0, 0.9))
    ways = [
        told | {"way": "fixed", "name": str(k), "looks": k, "macs": n, "processor_ms": t, "accuracy": a}
        for k, n, t, a in fixed
    ]
    exits = (
        # Fixed budgets mixed to the same products are right on 62 %, and to the same time on 70 %; on 80 % for 17.5 and
        # 2.5.
        ("0.5 looks", 13_000_000, 2.0, 0.8),
        # Slower and more accurate than all of them, so there is nothing to compare with.
        ("9 looks", 90_000_000, 4.0, 0.95),
    )
    ways += [
        told | {"way": "exit", "name": name, "looks": 0.5, "macs": n, "processor_ms": t, "accuracy": a}
        for name, n, t, a in exits
    ]
    (copy / "benchmarks" / "results" / "early_exit.json").write_text(
        json.dumps({"results": {"ways": ways, "turns": []}})
    )
    page = copy / "docs" / "new.md"
    page.write_text("<!-- table: early_exit_small -->\n<!-- end -->\n")
    (copy / "docs" / "evidence.md").unlink()  # needs more rows than these
    assert render(copy).returncode == 0
    assert page.read_text().splitlines()[3:7] == [
        "| 0 | 0.00 | 50.0 | 10.0 |  | 1.00 |  |",
        "| 1 | 1.00 | 90.0 | 20.0 |  | 3.00 |  |",
        "| early exit, 0.5 looks | 0.50 | 80.0 | 13.0 | +18.0, +26 % | 2.00 | +10.0, +20 % |",
        "| early exit, 9 looks | 0.50 | 95.0 | 90.0 | –, – % | 4.00 | –, – % |",
    ]


def test_peers_with_and_without_a_training(copy):
    cost = {"ms": 1234.5, "peak_memory": 3 * 2**20, "bytes": 2_250_000, "macs": 4_000_000_000}
    row = {"contender": "mil", "task": "one", "updates": 150, "batch_size": 8, "processor_seconds": 612.4}
    row |= {"accuracy": 0.1234, "interval": [0.1041, 0.1456], "found": None}
    results = {
        "rows": [row, {**row, "contender": "ips.reference", "found": 0.5}],
        "costs": [{"contender": name, **cost} for name in ("ips.reference", "mil", "dense, a quarter")],
        "authors": {"seconds_per_update": 28.04, "updates_in_1400": 49},
    }
    (copy / "benchmarks" / "results" / "peers.json").write_text(json.dumps({"results": results}))
    page = copy / "docs" / "new.md"
    page.write_text("<!-- table: peers -->\n<!-- end -->\n\nIt takes <!-- value: peers_authors -->1<!-- end --> s.\n")
    assert render(copy).returncode == 0
    told = page.read_text().splitlines()
    assert told[3].endswith("| one | 150 | 8 | 612 | 12.3 (10.4 to 14.6) | 50.0 | 1,234 | 3.00 | 4.00 | 2,250 |")
    assert told[4] == "| `mil`, gated | one | 150 | 8 | 612 | 12.3 (10.4 to 14.6) |  | 1,234 | 3.00 | 4.00 | 2,250 |"
    assert told[5].endswith("of 375 px |  |  |  |  |  |  | 1,234 | 3.00 | 4.00 | 2,250 |")
    assert "28.0<!-- end --> s" in told[-1]
