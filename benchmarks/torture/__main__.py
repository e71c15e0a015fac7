"""Robustness tests: damaged files, intact files of many variants, and interrupted commands.

    python benchmarks/torture [PART ...] [--mutants N] [--tiles N] [--kills N] [--seed N] [--folder FOLDER] [--out FILE]

Parts: variants, mutants, tiles, kills; all by default. Prints a table for each part; `docs/reliability.md` explains
them. Files of bad outcomes are kept in the folder. Results of parts that are not run are kept in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]
os.environ["OMP_NUM_THREADS"] = "1"

PARTS = ("variants", "mutants", "tiles", "kills")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to run (default: all)")
    parser.add_argument("--mutants", type=int, default=10_000, help="damaged files (default: 10000)")
    parser.add_argument("--tiles", type=int, default=2_800, help="damaged JPEG tiles (default: 2800)")
    parser.add_argument("--kills", type=int, default=200, help="kills of training, and of prediction (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="folder of generated files (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    logging.getLogger("foveal").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    results: dict[str, Any] = (
        json.loads(arguments.out.read_text())["results"] if arguments.out and arguments.out.exists() else {}
    )
    for part in arguments.parts or PARTS:
        print(f"\n{part}", flush=True)
        results[part] = _run(part, folder / part, arguments)
        if arguments.out:
            from benchmarks.harness import write

            write(arguments.out, results, seed=arguments.seed)
    print(f"\nfiles are in {folder}")
    return int(any(_bad(results[part]) for part in arguments.parts or PARTS))


def _run(part: str, folder: Path, arguments: argparse.Namespace) -> Any:
    from benchmarks.torture import kills, mutants, tiles, variants

    folder.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print("  " + text[:300], flush=True)

    if part == "variants":
        rows = variants.run(folder)
        for row in rows:
            print(f"  {row['format']:10} {row['name']:30} {row['foveal'][:20]:20} {row['others']}")
        return rows
    if part == "kills":
        found = kills.run(folder, arguments.kills, arguments.seed, say=say)
        for row in found["rows"]:
            counts = f"{row['trials']:4} trials, {row['kills']:4} kills, {len(row['wrong']):3} wrong"
            print(f"  {row['job']:20} {row['kind']:26} {counts}")
        return found
    count, module = (arguments.mutants, mutants) if part == "mutants" else (arguments.tiles, tiles)
    result = module.run(folder, count, arguments.seed, say=say)
    for name, counts in result["by_format" if part == "mutants" else "by_kind"].items():
        print(f"  {name:34} {', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items()))}")
    print(f"  in all: {result['outcomes']}; at most {result['slowest_seconds']} s and {result['most_mebibytes']} MiB")
    return result


def _bad(result: Any) -> bool:
    from benchmarks.torture.mutants import BAD

    if isinstance(result, list):
        return any(
            row["foveal"] != "read" and sum(o in ("read", "same", "close") for o in row["others"].values()) > 1
            for row in result
        )
    if "rows" in result:
        return any(row["wrong"] for row in result["rows"])
    return any(result["outcomes"].get(name) for name in BAD)


if __name__ == "__main__":
    sys.exit(main())
