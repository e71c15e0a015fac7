"""Damaged JPEG tiles in TIFFs with intact headers.

Example:
    >>> import random
    >>> tile = bytes(range(200)) + b"\\xff\\xd9"
    >>> damaged = damage(tile, 100, "cut, end marker kept", random.Random(0))
    >>> len(damaged) == len(tile), damaged.rstrip(b"\\0").endswith(b"\\xff\\xd9")
    (True, True)
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import tifffile

from benchmarks.torture.mutants import BAD, Trial
from benchmarks.torture.seeds import Variant, picture, write_tiff

DAMAGES = ("one bit", "second half zeros", "64 random bytes", "cut, end marker kept")


def _variant(name: str, bands: int = 3, planar: bool = False, **options: Any) -> Variant:
    options = {"compression": "jpeg", "compressionargs": {"level": 85}, "tile": (96, 128), **options}
    make = write_tiff(lambda: picture(bands, size=(200, 260)), planar=planar, **options)
    return Variant("tiles", name, ".tif", make)


VARIANTS = (
    _variant("YCbCr 4:2:0", photometric="ycbcr", subsampling=(2, 2)),
    _variant("YCbCr 4:4:4", photometric="ycbcr", subsampling=(1, 1)),
    _variant("RGB", photometric="rgb"),
    _variant("grey", 1),
    _variant("CMYK", 4, photometric="separated"),
    _variant("planar", planar=True, photometric="rgb"),
    _variant("strips", tile=None, rowsperstrip=64, photometric="ycbcr", subsampling=(2, 2)),
)


def damage(tile: bytes, start: int, kind: str, draw: random.Random) -> bytes:
    """Damage a tile without changing its length.

    Args:
        tile: the bytes of the tile.
        start: position of the coded data in the tile.
        kind: one of `DAMAGES`.
        draw: generator of the position of the damage.
    """
    changed, end = bytearray(tile), len(tile) - 2
    if kind == "one bit":
        changed[draw.randrange(start, end)] ^= 1 << draw.randrange(8)
    elif kind == "64 random bytes":
        at = draw.randrange(start, max(start + 1, end - 64))
        changed[at : min(at + 64, end)] = draw.randbytes(min(64, end - at))
    elif kind == "second half zeros":
        half = (start + end) // 2
        changed[half:end] = bytes(end - half)
    else:
        half = draw.randrange(start + 1, end)
        changed[half:] = (b"\xff\xd9" + bytes(end - half))[: end + 2 - half]
    return bytes(changed)


def run(folder: Path, count: int, seed: int = 0, say: Any = None) -> dict[str, Any]:
    """Test ``count`` damaged tiles; see `benchmarks.torture.mutants.run`."""
    by_kind: dict[str, Counter[str]] = {}
    bad = []
    with Trial(folder) as trial:
        for variant in VARIANTS:
            data = trial.write(variant).read_bytes()
            with tifffile.TiffFile(trial.write(variant)) as file:
                page = file.pages[0].aspage()
                places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
            for kind in DAMAGES:
                for i in range(max(1, count // (len(VARIANTS) * len(DAMAGES)))):
                    draw = random.Random(f"{seed} {variant.title} {kind} {i}")
                    at, length = draw.choice(places)
                    tile = data[at : at + length]
                    scan = tile.index(b"\xff\xda")
                    start = scan + 2 + int.from_bytes(tile[scan + 2 : scan + 4], "big")
                    found = trial.judge(variant, data[:at] + damage(tile, start, kind, draw) + data[at + length :])
                    by_kind.setdefault(f"{variant.name}, {kind}", Counter())[found["outcome"]] += 1
                    if found["outcome"] in BAD:
                        bad.append({"variant": variant.title, "damage": kind, "number": i, **found})
                        if say is not None:
                            say(
                                f"{found['outcome']}: {variant.title}, {kind} {i}: "
                                f"{found.get('why') or found.get('told')}"
                            )
        total: Counter[str] = sum(by_kind.values(), Counter())
        return {
            "seed": seed,
            "tiles": total.total(),
            "outcomes": dict(total),
            "by_kind": {name: dict(c) for name, c in by_kind.items()},
            "bad": bad,
            "slowest_seconds": round(trial.slowest, 2),
            "most_mebibytes": round(trial.largest),
        }
