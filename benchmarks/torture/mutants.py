"""Damaged copies of files of every format (mutants): reading them must give the right pixels or an error.

A mutant is made from an intact file and a seed. A worker predicts it and looks at every level. If the looks differ from
those of the intact file, or there is an error, a second worker reads it with other libraries and checks its checksums.
The outcome is one of `OUTCOMES`.

Example:
    >>> import random
    >>> change, data = mutate(bytes(100), bytes(100), random.Random(1))
    >>> change, sum(a != b for a, b in zip(data, bytes(100)))
    ('three bits', 3)
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.torture.libraries import (
    READERS,
    damage_reports,
    is_proven,
    lost_tiles,
    read_by,
    with_intact_notes,
    without_later_frames,
)
from benchmarks.torture.seeds import VARIANTS, Variant
from benchmarks.torture.worker import Worker

LIMIT_S, LIMIT_MIB = 10, 2048
OUTCOMES = {
    "right": "the pixels of the intact file",
    "named": "an error that names the file",
    "metadata": "the stored pixels, which checksums and two other libraries confirm, without damaged metadata",
    "undetectable": "other pixels; no library and no checksum reports damage",
    "accepted": "other pixels, although a library or a checksum reports damage",
    "refused": "an error, although two other libraries read the pixels of the intact file and none reports damage",
    "unnamed": "an exception, or an error that is not one sentence with the path first",
    "crash": "the process died",
    "hang": f"more than {LIMIT_S} s in two trials",
    "memory": f"more than {LIMIT_MIB} MiB",
}
BAD = ("accepted", "refused", "unnamed", "crash", "hang", "memory")
_SPECIAL = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

# ------------------------------------------------------------------------------------------------------------- mutation


def mutate(data: bytes, other: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Make a changed copy of a file.

    Args:
        data: contents of the file.
        other: contents of another file of the same format, from which a part may be inserted.
        draw: generator of the kind and position of the change.

    Returns:
        Name of the change, and the changed copy.
    """
    length = len(data)
    # Headers are a small part of a file, but a third of the changes are in the first 400 bytes.
    at = draw.randrange(min(length, 400)) if draw.random() < 0.33 else draw.randrange(length)
    changed = bytearray(data)
    kind = draw.choice(_KINDS)
    if kind == "one bit":
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == "three bits":
        for place in (at, draw.randrange(length), draw.randrange(length)):
            changed[place] ^= 1 << draw.randrange(8)
    elif kind == "8 random bytes":
        changed[at : at + 8] = draw.randbytes(len(changed[at : at + 8]))
    elif kind == "64 random bytes":
        changed[at : at + 64] = draw.randbytes(len(changed[at : at + 64]))
    elif kind == "zeros":
        end = at + draw.choice((4, 16, 64, 512))
        changed[at:end] = bytes(len(changed[at:end]))
    elif kind == "second half zeros":
        changed[length // 2 :] = bytes(length - length // 2)
    elif kind == "cut":
        del changed[draw.randrange(1, length) :]
    elif kind == "cut, end kept":
        cut = draw.randrange(length // 2, length)
        changed[cut:] = data[-min(12, length - cut) :]
    elif kind == "few bytes cut":
        del changed[-draw.randrange(1, 40) :]
    elif kind == "bytes put in":
        changed[at:at] = draw.randbytes(draw.choice((1, 2, 8, 40)))
    elif kind == "bytes left out":
        del changed[at : at + draw.choice((1, 2, 8, 40, 400))]
    elif kind == "bytes twice":
        changed[at:at] = data[at : at + draw.choice((4, 40, 400))]
    elif kind == "bytes after the end":
        changed += draw.randbytes(draw.choice((1, 100, 5000)))
    elif kind == "part of another file":
        size = draw.choice((16, 128, 1024))
        start = draw.randrange(max(1, len(other) - size))
        changed[at : at + size] = other[start : start + size]
    else:  # a number in the header
        form = draw.choice(("<H", ">H", "<I", ">I"))
        value = draw.choice(_SPECIAL) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
        at = draw.randrange(min(length, 400))
        piece = struct.pack(form, value)
        changed[at : at + len(piece)] = piece
        del changed[max(length, at) :]
    return kind, bytes(changed)


_KINDS = (
    "one bit",
    "one bit",
    "three bits",
    "8 random bytes",
    "64 random bytes",
    "zeros",
    "second half zeros",
    "cut",
    "cut, end kept",
    "few bytes cut",
    "bytes put in",
    "bytes left out",
    "bytes twice",
    "bytes after the end",
    "part of another file",
    "a number",
    "a number",
    "a number",
)


# ----------------------------------------------------------------------------------------------------- what foveal does


def models() -> dict[tuple[int, Any], torch.nn.Module]:
    """A small model for each number of bands and value range."""
    from foveal.glimpse.tnet import TNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for bands, value_range in {(4 if "4 bands" in v.name else 3, v.value_range) for v in VARIANTS}:
        model = TNet(num_classes=3, backbone="test_efficientnet", base_size=32, in_chans=bands, locations=(1, 1)).eval()
        model.class_names, model.value_range = ("a", "b", "c"), value_range
        found[bands, value_range] = model
    return found


class Foveal:
    """Task of a worker: predict a file and look at all of its levels."""

    def __init__(self) -> None:
        from foveal.prediction import rows

        rows.LookCounter = lambda *_: lambda *_: 0  # type: ignore[misc, assignment]  # counting is slow
        self._models = models()

    def __call__(self, task: tuple[str, int, Any]) -> dict[str, Any]:
        """Return the digests of looks at each level, or the errors, of a task (path, bands, value range)."""
        import foveal
        from foveal.errors import FovealError
        from foveal.images import open_image

        path, bands, value_range = task
        found: dict[str, Any] = {"errors": [], "looks": {}}
        (row,) = foveal.predict(self._models[bands, value_range], [path], threads=1).rows
        if row["error"]:
            found["errors"].append(row["error"])
        try:
            with open_image(path, value_range=value_range) as image:
                h, w = image.size
                for size in image.level_sizes:  # a look of the size of a level reads that level
                    seen = image.look(np.array([[0, 0, h, w]], float), size, fill=torch.full((image.channels,), 0.37))
                    found["looks"][size] = hashlib.blake2b(seen.numpy().tobytes(), digest_size=8).hexdigest()
                image.look(np.array([[h / 3, w / 4, h / 2, w / 2], [-9, -9, 40, 30]]), (24, 24))
        except FovealError as error:
            found["errors"].append(str(error))
        return found


class Others:
    """Task of a worker: read a file with other libraries and check its checksums."""

    def __init__(self) -> None:
        self._intact: dict[str, dict[str, Any]] = {}

    def __call__(self, task: tuple[str, str]) -> dict[str, Any]:
        """Return which libraries report damage or read the intact pixels, of a task (path, path of intact file)."""
        path, intact = (str(without_later_frames(Path(name))) for name in task)
        path = str(with_intact_notes(Path(path), Path(intact)))
        if intact not in self._intact:
            self._intact[intact] = {name: read_by(name, Path(intact)) for name in READERS}
        told = damage_reports(Path(path))
        same = []
        for name, expected in self._intact[intact].items():
            if expected is None or isinstance(expected, str):
                continue  # the library cannot read the intact file
            got = read_by(name, Path(path))
            if isinstance(got, str):
                told[name] = got
            elif path.endswith(".scn") and name != "OpenSlide":
                continue  # it does not read the areas and levels
            elif got is not None and len(got) == len(expected) and all(map(np.array_equal, got, expected)):
                same.append(name)
        warned = damage_reports(Path(path), all_warnings=True)
        if lost_tiles(
            Path(path)
        ):  # missing tiles, for GDAL, tifffile and OpenSlide; Pillow and libvips read no such file
            told = {name: text for name, text in told.items() if name not in READERS}
        return {"told": told, "same": same, "warned": warned, "proven": is_proven(Path(path))}


def judge(seen: dict[str, Any], intact: dict[str, Any], others: dict[str, Any] | None) -> str:
    """Outcome of one mutant; "ask" if ``others`` is None but needed."""
    if seen["errors"]:
        if others is None:
            return "ask"
        read = not others["told"] and not others["warned"] and len(others["same"]) > 1
        return "refused" if read and not seen["looks"] else "named"
    looks, expected = seen["looks"], intact["looks"]
    full = next(iter(expected))
    if next(iter(looks)) == full and all(expected.get(size) == digest for size, digest in looks.items()):
        return "right"
    if others is None:
        return "ask"
    # Viewers ignore EXIF data with a wrong checksum, and so foveal must; Pillow refuses some of these files.
    if others.get("proven") and len(others["same"]) > 1:
        return "metadata"
    # An unrecognised format, or damaged metadata, is not evidence of damaged pixels.
    told = {**others["told"], **others["warned"]}
    return (
        "accepted"
        if any("not recognized" not in text and "a tag continues" not in text for text in told.values())
        else "undetectable"
    )


def is_clear(path: str, errors: Iterable[str]) -> bool:
    return all(error.startswith(f"{path}: ") and "\n" not in error and len(error) < 500 for error in errors)


# -------------------------------------------------------------------------------------------------------------- the run


class Trial:
    """Two workers, and cached looks at the intact files.

    Args:
        folder: folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        os.environ["FOVEAL_CACHE"] = str(folder / "cache")
        self._folder = folder
        (folder / "intact").mkdir(parents=True, exist_ok=True)
        self._foveal, self._others = Worker(Foveal()), Worker(Others())
        self._intact: dict[str, dict[str, Any]] = {}
        self.slowest, self.largest = 0.0, 0.0

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._foveal.stop()
        self._others.stop()

    def write(self, variant: Variant) -> Path:
        return variant.write(self._folder / "intact")

    def intact(self, variant: Variant) -> dict[str, Any]:
        """Digests of the looks at the intact file, or its errors."""
        if variant.title not in self._intact:
            path = self.write(variant)
            self._intact[variant.title] = self._foveal.ask(_task(path, variant), 60).value or {
                "errors": ["none"],
                "looks": {},
            }
        return self._intact[variant.title]

    def judge(self, variant: Variant, data: bytes) -> dict[str, Any]:
        """Test a changed copy of a file; return its outcome with time, memory and errors."""
        source = self.write(variant)
        path = source.with_name(f"mutant{variant.suffix}")
        path.write_bytes(data)
        for beside in source.parent.glob(f"{source.stem}.*"):
            if beside.suffix != source.suffix and variant.name in ("BIL",):
                shutil.copy(beside, path.with_suffix(beside.suffix))
        intact = self.intact(variant)
        answer = self._foveal.ask(_task(path, variant), LIMIT_S)
        if answer.kind == "hang":
            answer = self._foveal.ask(_task(path, variant), LIMIT_S)
        self.slowest, self.largest = max(self.slowest, answer.seconds), max(self.largest, answer.mebibytes)
        found: dict[str, Any] = {"seconds": round(answer.seconds, 3), "mebibytes": round(answer.mebibytes)}
        if answer.kind != "done":
            return found | {"outcome": "unnamed" if answer.kind == "exception" else answer.kind, "why": answer.trouble}
        seen = answer.value
        found["errors"] = seen["errors"]
        if not is_clear(str(path), seen["errors"]):
            return found | {"outcome": "unnamed", "why": seen["errors"][0]}
        if answer.mebibytes > LIMIT_MIB:
            return found | {"outcome": "memory", "why": f"{answer.mebibytes:.0f} MiB"}
        outcome = judge(seen, intact, None)
        if outcome == "ask":
            others = self._others.ask((str(path), str(source)), 30)
            told = others.value or {"told": {}, "same": [], "warned": {}}
            outcome = judge(seen, intact, told)
            found["told"], found["same"] = told["warned"] | told["told"], told["same"]
        return found | {"outcome": outcome}


def _task(path: Path, variant: Variant) -> tuple[str, int, Any]:
    return str(path), 4 if "4 bands" in variant.name else 3, variant.value_range


def draws(variants: Sequence[Variant], count: int) -> Iterator[tuple[Variant, int]]:
    """Yield the variant and number of each mutant. Variants read by libvips, which start a child, get a tenth."""
    weights = [0.1 if variant.module == "pyvips" else 1 for variant in variants]
    for variant, weight in zip(variants, weights, strict=True):
        share = max(1, round(count * weight / sum(weights)))
        yield from ((variant, i) for i in range(share))


def run(
    folder: Path, count: int, seed: int = 0, variants: Sequence[Variant] = VARIANTS, say: Any = None
) -> dict[str, Any]:
    """Test damaged copies of files.

    Args:
        folder: folder of the files; those of bad outcomes are kept in its subfolder ``bad``.
        count: approximate number of mutants.
        seed: seed of the changes.
        variants: variants to change, in equal shares.
        say: function that is called with a line of text for each bad outcome, or None.

    Returns:
        Counts of outcomes by format, the bad outcomes with their reasons, and the largest time and memory.
    """
    by_format: dict[str, Counter[str]] = {}
    bad, skipped = [], []
    start = time.perf_counter()
    with Trial(folder) as trial:
        data = {v.title: trial.write(v).read_bytes() for v in variants}
        for variant, i in draws(variants, count):
            if trial.intact(variant)["errors"]:
                if i == 0:
                    skipped.append({"variant": variant.title, "error": trial.intact(variant)["errors"][0]})
                continue
            draw = random.Random(f"{seed} {variant.title} {i}")
            kin = draw.choice([v for v in variants if v.format == variant.format])
            change, mutant = mutate(data[variant.title], data[kin.title], draw)
            if mutant == data[variant.title]:
                continue
            found = trial.judge(variant, mutant)
            by_format.setdefault(variant.format, Counter())[found["outcome"]] += 1
            if found["outcome"] in BAD:
                told = json.dumps(found).replace(f"{folder}/intact/", "")  # a temporary folder of this machine
                bad.append({"variant": variant.title, "number": i, "change": change, **json.loads(told)})
                (folder / "bad").mkdir(exist_ok=True)
                (folder / "bad" / f"{variant.title.replace('/', ' ')} {i}{variant.suffix}").write_bytes(mutant)
                if say is not None:
                    say(
                        f"{found['outcome']}: {variant.title} {i}, {change}: "
                        f"{found.get('why') or found.get('told') or found['errors']}"
                    )
            if i % 50 == 0:
                shutil.rmtree(folder / "cache", ignore_errors=True)
        total: Counter[str] = sum(by_format.values(), Counter())
        return {
            "seed": seed,
            "mutants": total.total(),
            "variants": len(variants) - len(skipped),
            "outcomes": dict(total),
            "by_format": {name: dict(counts) for name, counts in by_format.items()},
            "bad": bad,
            "intact_refused": skipped,
            "slowest_seconds": round(trial.slowest, 2),
            "most_mebibytes": round(trial.largest),
            "seconds": round(time.perf_counter() - start),
        }
