"""OME-Zarr: pixels are those of zarr, scales those of the metadata, and damage is one sentence."""

import json
import os
import pickle
import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("zarr")
import zarr

from foveal.errors import ImageError
from foveal.images import ArrayPyramid, open_image, remote, zarr_codecs
from tests.images import remote_server as faults
from tests.images.files import halve, photo
from tests.images.remote_server import Loopback
from tests.images.zarrs import one_file, write_ome_zarr

PIXELS = photo(150, 203)
LEVELS = [np.moveaxis(level, -1, 0).copy() for level in (PIXELS, halve(PIXELS))]


def whole(image, level=0):
    return image.read(level, (0, 0, *image.level_sizes[level]))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int16", ">u2"])
def test_pixels_are_those_of_zarr(tmp_path, version, dtype):
    levels = [level.astype(dtype) for level in LEVELS]
    write_ome_zarr(tmp_path / "a.ome.zarr", levels, version=version)
    image = open_image(tmp_path / "a.ome.zarr", value_range=(0, 255))
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r")
    assert (image.size, image.channels, image.mpp) == ((150, 203), 3, 0.5)
    assert image.dtype == np.dtype(dtype).newbyteorder("=") and image.dtype.isnative
    for level, (y0, x0, y1, x1) in ((0, (0, 0, 150, 203)), (0, (63, 60, 130, 129)), (1, (10, 0, 75, 101))):
        wanted = np.moveaxis(group[str(level)][:, y0:y1, x0:x1], 0, -1)
        assert np.array_equal(image.read(level, (y0, x0, y1, x1)), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"shards": (3, 128, 128), "chunks": (1, 32, 32)},
        {"shards": (1, 192, 256), "chunks": (1, 64, 64), "compressors": zarr.codecs.BloscCodec()},
        {"chunks": (2, 7, 203)},
        {"compressors": zarr.codecs.GzipCodec()},
        {"filters": zarr.codecs.TransposeCodec(order=(2, 0, 1))},
    ],
)
def test_shards_chunks_and_codecs(tmp_path, options):
    write_ome_zarr(tmp_path / "a.zarr", LEVELS, **options)
    image = open_image(tmp_path / "a.zarr")
    assert np.array_equal(whole(image), PIXELS) and np.array_equal(whole(image, 1), halve(PIXELS))


@pytest.mark.parametrize("axes", ["tczyx", "czyx", "tyx", "zyx", "yx", "yxc", "zcyx"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_any_axes_at_the_first_time_and_depth(tmp_path, axes, version):
    pixels = np.random.default_rng(0).integers(0, 255, [{"y": 70, "x": 90}.get(name, 2) for name in axes], np.uint8)
    write_ome_zarr(tmp_path / "a.zarr", [pixels], axes, version=version)
    image = open_image(tmp_path / "a.zarr")
    wanted = pixels[tuple(0 if name in "tz" else slice(None) for name in axes)]
    if axes == "yx" or "c" not in axes:
        wanted = wanted[..., None]
    elif axes != "yxc":
        wanted = np.moveaxis(wanted, 0, -1)
    assert np.array_equal(whole(image), wanted)


def test_axes_of_old_versions(tmp_path):
    group = write_ome_zarr(tmp_path / "a.zarr", [LEVELS[0][None, :, None]], "tczyx", version="0.4")
    image = dict(group.attrs["multiscales"][0])
    for axes in (list("tczyx"), None):
        group.attrs["multiscales"] = [{**image, "axes": axes}]
        assert np.array_equal(whole(open_image(tmp_path / "a.zarr")), PIXELS)


def test_missing_chunks_have_the_fill_value(tmp_path):
    write_ome_zarr(tmp_path / "a.zarr", LEVELS, fill_value=7)
    one_file(tmp_path / "a.zarr/0/c/1/1", "1").unlink()
    image = open_image(tmp_path / "a.zarr")
    wanted = PIXELS.copy()
    wanted[64:128, 64:128, 1] = 7
    assert np.array_equal(whole(image), wanted)


@pytest.mark.parametrize(
    ("unit", "mpp"), [("micrometer", 0.5), ("nanometer", 0.0005), ("millimeter", 500), (None, None)]
)
def test_pixel_size(tmp_path, unit, mpp):
    group = write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    ome = json.loads(json.dumps(group.attrs["ome"]))
    for axis in ome["multiscales"][0]["axes"]:
        axis["unit"] = unit
    group.attrs["ome"] = ome
    assert open_image(tmp_path / "a.zarr").mpp == (None if mpp is None else pytest.approx(mpp))
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 4, 4]}]
    group.attrs["ome"] = ome
    assert open_image(tmp_path / "a.zarr").mpp == (None if mpp is None else pytest.approx(4 * mpp))


@pytest.mark.parametrize(
    ("stated", "found"), [(3.0, 1 / 3), (2.0, 50 / 150), (None, 50 / 150)], ids=["stated", "contradictory", "none"]
)
def test_scales_of_levels_are_those_stated_unless_they_contradict_the_sizes(tmp_path, stated, found):
    pixels = photo(151, 200, 1)
    small = pixels[: 50 * 3, : 66 * 3].reshape(50, 3, 66, 3).mean((1, 3)).astype(np.uint8)
    step, mpp = stated or 1, None if stated is None else 0.5
    write_ome_zarr(tmp_path / "a.zarr", [pixels[..., 0], small], "yx", step=step, mpp=mpp)
    image = open_image(tmp_path / "a.zarr")
    expected = 1 / 3 if stated == 3 else 50 / 151
    assert image._scales[1][0] == pytest.approx(expected) and found == pytest.approx(expected, abs=0.01)


def test_looks_are_those_of_the_same_pixels_in_memory(tmp_path):
    write_ome_zarr(tmp_path / "a.zarr", LEVELS[:1])
    image, memory = open_image(tmp_path / "a.zarr", channels=3), ArrayPyramid(PIXELS)
    boxes = np.array([[0, 0, 150, 203], [-20, 30, 60, 110], [70.5, 80.25, 90, 100]])
    torch.testing.assert_close(image.look(boxes, (32, 32)), memory.look(boxes, (32, 32)), atol=1e-6, rtol=0)


def test_a_look_reads_its_chunks_only(tmp_path):
    write_ome_zarr(tmp_path / "a.zarr", LEVELS, compressors=None)
    image = open_image(tmp_path / "a.zarr")
    assert image.bytes_read == 0
    image.look(np.array([[0, 0, 32, 32]]), (32, 32))
    assert (image.tiles_decoded, image.bytes_read) == (1, 3 * 64 * 64)
    image.look(np.array([[10, 10, 40, 40]]), (30, 30))
    assert (image.tiles_decoded, image.bytes_read) == (1, 3 * 64 * 64)


def test_the_cache_of_tiles_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.images.grid._KEPT", 40_000)
    monkeypatch.setattr("foveal.images.grid._MOST_KEPT", 30_000)
    write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    image = open_image(tmp_path / "a.zarr")
    whole(image)
    assert 0 < image._kept_bytes <= 40_000
    assert image._kept_bytes == sum(tile.nbytes for tile, _ in image._kept.values())


def test_copies_threads_and_forks(tmp_path):
    write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    image = open_image(tmp_path / "a.zarr")
    assert np.array_equal(whole(pickle.loads(pickle.dumps(image))), PIXELS)
    found = []
    threads = [threading.Thread(target=lambda: found.append(whole(image))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(one, PIXELS) for one in found)
    image._kept.clear()
    if (child := os.fork()) == 0:
        os._exit(0 if np.array_equal(whole(image), PIXELS) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_containers_of_bioformats2raw_show_their_first_image(tmp_path):
    for version in ("0.4", "0.5"):
        place = tmp_path / f"{version}.zarr"
        write_ome_zarr(place, LEVELS, version=version, path="0")
        group, mark = zarr.open_group(str(place), mode="a"), {"bioformats2raw.layout": 3}
        group.attrs.update(mark if version == "0.4" else {"ome": mark})
        assert np.array_equal(whole(open_image(place)), PIXELS)


def test_plates_and_labels_say_what_to_name(tmp_path):
    place = tmp_path / "a.zarr"
    write_ome_zarr(place / "A" / "1", LEVELS, path="0")
    zarr.open_group(str(place), mode="a").attrs["ome"] = {"plate": {"wells": [{"path": "A/1"}]}}
    zarr.open_group(str(place / "A" / "1"), mode="a").attrs["ome"] = {"well": {"images": [{"path": "0"}]}}
    with pytest.raises(ImageError, match=r"a\.zarr: is a plate of several wells; name .*, such as .*a\.zarr/A/1/0$"):
        open_image(place)
    with pytest.raises(ImageError, match=r"A/1: is a well with several fields; name .*, such as .*a\.zarr/A/1/0$"):
        open_image(place / "A" / "1")
    assert np.array_equal(whole(open_image(place / "A" / "1" / "0")), PIXELS)
    group = write_ome_zarr(tmp_path / "b.zarr", LEVELS)
    group.create_group("labels").attrs["ome"] = {"labels": ["cells"]}
    assert np.array_equal(whole(open_image(tmp_path / "b.zarr")), PIXELS)


def _edit(file, change):
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def _image(**changes):
    return lambda place: _edit(
        place / "zarr.json", lambda found: found["attributes"]["ome"]["multiscales"][0].update(changes)
    )


def _array(**changes):
    return lambda place: _edit(place / "0/zarr.json", lambda found: found.update(changes))


DAMAGE = {
    "no metadata": (lambda place: (place / "zarr.json").unlink(), r"has no zarr\.json, and no \.zgroup"),
    "cut metadata": (
        lambda place: (place / "zarr.json").write_text((place / "zarr.json").read_text()[:100]),
        "its Zarr metadata cannot be read",
    ),
    "no image": (
        lambda place: _edit(place / "zarr.json", lambda found: found.update(attributes={})),
        "has no OME-Zarr metadata",
    ),
    "no level": (lambda place: shutil.rmtree(place / "1"), "its level 1 is missing"),
    "no levels": (_image(datasets=[]), "has no levels"),
    "wrong list": (_image(datasets=3), "its Zarr metadata cannot be read"),
    "no y": (
        _image(axes=[{"name": name} for name in "cax"]),
        "has the axes c, a, x for arrays of 3, where y and x are",
    ),
    "too few axes": (_image(axes=[{"name": name} for name in "yx"]), "has the axes y, x for arrays of 3"),
    "above the folder": (_image(datasets=[{"path": "../b.zarr/0"}]), "its Zarr metadata cannot be read"),
    "same sizes": (_image(datasets=[{"path": "0"}] * 2), "level 1 of 203 x 150 pixels is not smaller"),
    "growing": (_image(datasets=[{"path": "1"}, {"path": "0"}]), "level 1 of 203 x 150 pixels is not smaller"),
    "huge chunks": (
        _array(chunk_grid={"name": "regular", "configuration": {"chunk_shape": [3, 10**6, 10**6]}}),
        "claims 1000000 x 1000000 pixels, which take 3,000,000,000,000 bytes",
    ),
    "no pixels": (_array(shape=[3, 0, 5]), "is not smaller|with nothing to see"),
    "unknown codec": (_array(codecs=[{"name": "newest", "configuration": {}}]), "newest"),
    "wrong codec": (
        _array(codecs=[{"name": "bytes"}, {"name": "blosc", "configuration": {"what": 1}}]),
        "its Zarr metadata cannot be read",
    ),
    "text": (_array(data_type="string", codecs=[{"name": "vlen-utf8"}], fill_value=""), "not numbers|cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_metadata_are_one_sentence(tmp_path, kind):
    damage, message = DAMAGE[kind]
    place = tmp_path / "a.zarr"
    write_ome_zarr(place, LEVELS)
    damage(place)
    with pytest.raises(ImageError, match=rf"^{place}: .*({message}).*; ") as found:
        open_image(place)
    assert "\n" not in str(found.value)


CODECS = ["blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd", None]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("keep", [0, 5, 0.3, 0.99])
def test_a_chunk_cut_short_is_damaged(tmp_path, codec, keep):
    import numcodecs

    compressor = None if codec is None else numcodecs.get_codec({"id": codec})
    write_ome_zarr(tmp_path / "a.zarr", LEVELS, version="0.4", compressors=compressor)
    file = tmp_path / "a.zarr/0/1/1/1"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    image = open_image(tmp_path / "a.zarr")
    assert np.array_equal(image.read(0, (0, 0, 60, 60)), PIXELS[:60, :60])
    with pytest.raises(
        ImageError, match=r"a\.zarr: the chunk at \(1, 1\) of level 0 cannot be read .*; the image is dam"
    ):
        whole(image)


@pytest.mark.parametrize("shards", [None, (3, 128, 128)])
@pytest.mark.parametrize("codec", [zarr.codecs.BloscCodec(), zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec()])
def test_a_chunk_or_shard_cut_short_is_damaged(tmp_path, shards, codec):
    write_ome_zarr(tmp_path / "a.zarr", LEVELS, compressors=codec, shards=shards)
    file = one_file(tmp_path / "a.zarr/0/c/0/0", "0")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ImageError, match=r"a\.zarr: the chunk at \(0, 0\) of level 0 cannot be read"):
        whole(open_image(tmp_path / "a.zarr"))


def test_damage_inside_a_shard_of_blosc_is_found(tmp_path):
    write_ome_zarr(
        tmp_path / "a.zarr",
        LEVELS,
        compressors=zarr.codecs.BloscCodec(),
        shards=(3, 128, 128),
        chunks=(3, 64, 64),
    )
    file = one_file(tmp_path / "a.zarr/0/c/0/0", "0")
    data = bytearray(file.read_bytes())
    data[12:16] = (1 << 24).to_bytes(4, "little")  # the length of the first chunk, which is in its header
    file.write_bytes(data)
    with pytest.raises(ImageError, match=r"bytes long, and 16777216 by its header"):
        whole(open_image(tmp_path / "a.zarr"))


@pytest.mark.parametrize("key", ["compressor", "filters"])
def test_pickle_is_never_decoded(tmp_path, key):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    place = tmp_path / "a.zarr"
    write_ome_zarr(place, LEVELS, version="0.4", compressors=None)
    trap = {"id": "pickle", "protocol": 5}
    _edit(place / "0/.zarray", lambda found: found.update({key: trap if key == "compressor" else [trap]}))
    for file in (place / "0").rglob("[0-9]"):
        if file.is_file():
            file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ImageError, match="pickle"):
        whole(open_image(place))
    assert not (tmp_path / "ran").exists()
    metadata = SimpleNamespace(to_dict=lambda: {key: trap if key == "compressor" else [trap]})
    array = SimpleNamespace(chunks=(1,), dtype=np.dtype("uint8"), metadata=metadata)
    with pytest.raises(ImageError, match=r"a\.zarr: its level 0 has the codec pickle, which is not read; convert it"):
        zarr_codecs.check_array("a.zarr", "level 0", array)
    with pytest.raises(ImageError, match="holds object, not numbers"):
        zarr_codecs.check_array("a.zarr", "level 0", SimpleNamespace(chunks=(1,), dtype=np.dtype(object)))


def test_arrays_and_other_folders(tmp_path):
    zarr.save_array(str(tmp_path / "a.zarr"), PIXELS)
    with pytest.raises(ImageError, match=r"a\.zarr: is a Zarr array without OME-Zarr metadata; give the folder above"):
        open_image(tmp_path / "a.zarr")
    (tmp_path / "b").mkdir()
    with pytest.raises(ImageError, match="is a folder, and neither OME-Zarr nor a DICOM slide; give the image files"):
        open_image(tmp_path / "b")


def test_absent_extra_is_named(tmp_path, monkeypatch):
    write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImageError, match=r"a\.zarr: needs zarr, which is not .*pip install 'foveal\[zarr\]'"):
        open_image(tmp_path / "a.zarr")


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    write_ome_zarr(tmp_path / "a.ome.zarr", LEVELS)
    with Loopback(tmp_path) as running:
        yield running


def test_a_remote_image(server, tmp_path):
    image = open_image(f"{server.url}/a.ome.zarr?token=SECRET")
    assert image.mpp == 0.5 and np.array_equal(whole(image), PIXELS)
    assert image.bytes_read == sum(f.stat().st_size for f in (tmp_path / "a.ome.zarr/0/c").rglob("*") if f.is_file())
    assert (image.remote.requests, image.remote.bytes) == (len(server.log), server.sent)
    assert np.array_equal(whole(pickle.loads(pickle.dumps(image)), 1), halve(PIXELS))
    with pytest.raises(ImageError, match=r"b\.zarr: has no zarr\.json"):
        open_image(f"{server.url}/b.zarr")


def test_chunks_of_a_look_are_read_in_one_round(server):
    image = open_image(f"{server.url}/a.ome.zarr")
    server.clear()
    server.delay = 0.2
    whole(image)
    assert server.rounds == 1 and len(server.log) > 4


def test_faults_of_chunks_are_repeated_or_named(server, tmp_path):
    files = filter(Path.is_file, (tmp_path / "a.ome.zarr").rglob("*"))
    server.contents = {f"held.zarr/{file.relative_to(tmp_path / 'a.ome.zarr')}": file.read_bytes() for file in files}
    image = open_image(f"{server.url}/held.zarr?token=SECRET")
    answers = iter([503, 500, 429])

    def fail(handler, content):
        if (status := next(answers, None)) is not None:
            handler.answer(status)
        return status is not None

    server.fault = fail
    assert np.array_equal(whole(image), PIXELS) and next(answers, None) is None
    for answer, text in (
        (faults.status(500), r"the server fails \(500\), in 5 attempts; try again later"),
        (faults.status(403), r"access is denied \(403\); set the credentials of the store .*"),
        (faults.shorter, "the connection was lost, in 5 attempts; check the network"),
    ):
        server.fault = lambda handler, content, answer=answer: answer(handler, content) or True
        with pytest.raises(ImageError) as raised:
            whole(image, 1)
        assert re.fullmatch(re.escape(f"{server.url}/held.zarr: ") + text, str(raised.value))
