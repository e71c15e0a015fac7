"""What each extra adds to foveal without extras: packages, megabytes on disk, and seconds of pip.

Run it where all extras are installed. Each extra is installed again into an empty folder, without pip's cache.

    python benchmarks/extras.py --out benchmarks/results/extras.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from harness import write
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = ("docs", "dev")


def installed(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The packages that requirements need, and those that these need, by name."""
    todo, seen, found = [Requirement(text) for text in requirements], set(), {}
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name == "foveal":
            todo += [Requirement(text) for extra in one.extras for text in EXTRAS[extra]]
        if name == "foveal" or (name, *sorted(one.extras)) in seen:
            continue
        seen.add((name, *sorted(one.extras)))
        with suppress(PackageNotFoundError):
            found[name] = package = distribution(name)
            for needed in map(Requirement, package.requires or ()):
                if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *one.extras)):
                    todo.append(needed)
    return found


def size(package: Distribution) -> int:
    """Bytes of the files of a package."""
    files = (Path(str(file.locate())) for file in package.files or ())
    return sum(file.stat().st_size for file in files if file.is_file())


def install_seconds(packages: Iterable[Distribution]) -> float:
    """Seconds in which pip downloads and installs packages, without what they need."""
    pins = [f"{package.name}=={package.version}" for package in packages]
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir", "--target", target]
        start = time.perf_counter()
        subprocess.run([*command, *pins], check=True)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    args = parser.parse_args()
    base, rows = installed(PROJECT["dependencies"]), []
    for extra in (extra for extra in EXTRAS if extra not in FOR_DEVELOPERS):
        added = {name: package for name, package in installed(EXTRAS[extra]).items() if name not in base}
        sizes = {name: round(size(package) / 1e6, 1) for name, package in added.items()}
        seconds = round(install_seconds(added.values()), 1)
        rows.append({"extra": extra, "megabytes": round(sum(sizes.values())), "seconds": seconds, "packages": sizes})
        print(extra, rows[-1]["megabytes"], "MB", seconds, "s", flush=True)
        write(args.out, rows, seed=None)


if __name__ == "__main__":
    main()
