import io
import os

import numpy as np
import pytest
import tifffile

from foveal.images.headers import outline
from tests.images.files import photo, write_pyramid


@pytest.mark.parametrize("subifds", [False, True])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_outline_says_what_the_file_says(tmp_path, byteorder, bigtiff, subifds):
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=byteorder, bigtiff=bigtiff) as writer:
        for i, n in enumerate((300, 150, 75)):
            text = "a description " * 9 if i == 0 else None
            writer.write(
                photo(n, n + 20),
                tile=(32, 48),
                compression="deflate",
                photometric="rgb",
                description=text,
                metadata=None,
                subifds=2 if subifds and i == 0 else None,
                resolution=(1e4, 1e4),
            )
    descriptor = os.open(tmp_path / "a.tif", os.O_RDONLY)
    small, lists = outline(descriptor)
    assert len(small) < 4000
    with tifffile.TiffFile(tmp_path / "a.tif") as full, tifffile.TiffFile(io.BytesIO(small)) as copy:
        assert len(full.pages) == len(copy.pages) == (1 if subifds else 3)
        for pages in [(full.pages, copy.pages), *([(full.pages[0].pages, copy.pages[0].pages)] if subifds else [])]:
            for one, other in zip(*pages, strict=True):
                for code in {tag.code for tag in one.tags} - {324, 325, 330}:
                    assert one.tags[code].value == other.tags[code].value
                offsets, counts = lists[other.offset]
                assert (
                    tuple(offsets.all(descriptor)) == one.dataoffsets
                    and tuple(counts.all(descriptor)) == one.databytecounts
                )
                assert offsets.get(descriptor, len(offsets) - 1) == one.dataoffsets[-1]
    os.close(descriptor)


def test_circle_of_headers_is_refused(tmp_path):
    write_pyramid(tmp_path / "a.tif", photo(64, 64), 2)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        first, second, tags = file.pages[0].offset, file.pages[1].offset, len(file.pages[1].tags)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = second + 2 + 12 * tags
    data[at : at + 4] = np.uint32(first).tobytes()
    (tmp_path / "a.tif").write_bytes(data)
    descriptor = os.open(tmp_path / "a.tif", os.O_RDONLY)
    with pytest.raises(ValueError, match="circle"):
        outline(descriptor)
    os.close(descriptor)


def test_outline_does_not_grow_with_the_number_of_tiles(tmp_path):
    sizes = []
    for side in (64, 1024):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((side, side), np.uint8), tile=(16, 16))
        descriptor = os.open(tmp_path / "a.tif", os.O_RDONLY)
        sizes.append(len(outline(descriptor)[0]))
        os.close(descriptor)
    assert sizes[0] == sizes[1]
