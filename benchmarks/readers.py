"""Do the readers give the right pixels? Compares every image of a folder with a library that reads it exactly.

    python benchmarks/readers.py FOLDER [--out benchmarks/results/readers.json]

rasterio is exact for rasters (16 bits, strips, deflate), OpenSlide for slides with JPEG and JPEG 2000 tiles that it
opens, and tifffile, which decodes whole pages, for the rest. Up to 9 windows of 256 pixels of each level are compared.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
from harness import write

from foveal.errors import ImageError
from foveal.images import Pyramid, open_image

SIDE = 256


def windows(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Windows at corners, edges and centre of a level."""
    starts = [sorted({0, max(0, (n - SIDE) // 2), max(0, n - SIDE)}) for n in size]
    return [(y, x, min(y + SIDE, size[0]), min(x + SIDE, size[1])) for y in starts[0] for x in starts[1]]


def by_rasterio(path: Path, level: int, box: tuple[int, int, int, int], image: Pyramid) -> np.ndarray:
    import rasterio

    y0, x0, y1, x1 = box
    with rasterio.open(path, **({"overview_level": level - 1} if level else {})) as data:
        if (data.height, data.width) != image.level_sizes[level]:
            raise LookupError("another size")
        return data.read(window=((y0, y1), (x0, x1))).transpose(1, 2, 0)


def by_openslide(path: Path, level: int, box: tuple[int, int, int, int], image: Pyramid) -> np.ndarray:
    import openslide

    if image.dtype != np.uint8:
        raise LookupError("OpenSlide makes 8 bits of it")
    y0, x0, y1, x1 = box
    with openslide.OpenSlide(path) as slide:
        if slide.level_dimensions[level][::-1] != image.level_sizes[level]:
            raise LookupError("another size")
        down = slide.level_downsamples[level]
        if down == round(down):
            return np.asarray(slide.read_region((round(x0 * down), round(y0 * down)), level, (x1 - x0, y1 - y0)))
        # Corners are in pixels of level 0, so other corners would be shifted by a fraction of a pixel and interpolated.
        return np.asarray(slide.read_region((0, 0), level, (x1, y1)))[y0:, x0:]


def by_tifffile(path: Path, level: int, box: tuple[int, int, int, int], image: Pyramid) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = next(p for p in file.pages if p.shape[:2] == image.level_sizes[level] and (p.is_tiled or level == 0))
        pixels = page.asarray()
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels[box[0] : box[2], box[1] : box[3]]


READERS = {"rasterio": by_rasterio, "OpenSlide": by_openslide, "tifffile": by_tifffile}


def compare(path: Path) -> dict:
    """One row of the table."""
    start = time.perf_counter()
    image = open_image(path)
    opened = round(1e3 * (time.perf_counter() - start), 2)
    row: dict = {"file": path.name, "size": image.size, "levels": len(image.level_sizes), "dtype": str(image.dtype)}
    row |= {"channels": image.channels, "open_ms": opened, "compared_with": {}}
    for name, reader in READERS.items():
        worst, count = 0, 0
        try:
            for level in range(len(image.level_sizes)):
                for box in windows(image.level_sizes[level]):
                    expected = reader(path, level, box, image)[..., : image.channels].astype(np.int64)
                    worst = max(worst, int(np.abs(image.read(level, box).astype(np.int64) - expected).max()))
                    count += 1
        except ImageError:
            raise
        except Exception as error:  # not every library opens every file
            row["compared_with"][name] = f"cannot: {' '.join(str(error).split())[:60] or type(error).__name__}"
            continue
        row["compared_with"][name] = {"max_difference": worst, "windows": count}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rows = [compare(path) for path in sorted(arguments.folder.iterdir()) if path.is_file()]
    print(f"{'file':34} {'size':>15} {'levels':>6} {'type':>9} {'open ms':>8}  largest difference from")
    for row in rows:
        worst = {name: v["max_difference"] if isinstance(v, dict) else "-" for name, v in row["compared_with"].items()}
        found = ", ".join(f"{name} {value}" for name, value in worst.items())
        kind = f"{row['dtype']}x{row['channels']}"
        print(
            f"{row['file']:34} {row['size'][0]:>7}x{row['size'][1]:<7} {row['levels']:>6} {kind:>9} "
            f"{row['open_ms']:>8}  {found}"
        )
    write(arguments.out, rows, seed=None)


if __name__ == "__main__":
    main()
