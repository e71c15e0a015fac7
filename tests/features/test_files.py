"""Files of features: the layouts of TRIDENT and CLAM, of foveal, and damaged ones."""

import errno
import json
import multiprocessing
import os
import resource

import h5py
import numpy as np
import pytest
import zarr

from foveal.errors import DataError
from foveal.features import list_files, read, read_header, writing
from foveal.features.files import remove_unfinished

COORDS = np.array([[0, 0], [512, 0], [0, 512], [1024, 512]])


def values(n=4, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def trident(path, features, coords=COORDS, attributes=None, **of_coords):
    """As `save_h5` of trident/IO.py writes, with the attributes of `coords_to_h5`."""
    about = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    about |= {"overlap": 0, "name": path.stem, "savetodir": "x", "level0_width": 2000, "level0_height": 1500}
    with h5py.File(path, "w") as file:
        for name, array in (("features", features), ("coords", np.asarray(coords))):
            chunks = (1, *array.shape[1:])
            file.create_dataset(name, data=array, maxshape=(None, *array.shape[1:]), chunks=chunks)
        file["features"].attrs.update({"name": path.stem, "savetodir": "x", "encoder": "uni_v1"} | (attributes or {}))
        file["coords"].attrs.update(about | of_coords)
    return path


def clam(path, features, coords=COORDS):
    """As `save_hdf5` of CLAM's utils/file_utils.py appends batches, without attributes."""
    with h5py.File(path, "w") as file:
        for name, array in (("features", features), ("coords", np.asarray(coords, np.int32))):
            empty = (0, *array.shape[1:])
            made = file.create_dataset(name, empty, array.dtype, maxshape=(None, *empty[1:]), chunks=(32, *empty[1:]))
            for row in np.split(array, 2):
                made.resize(len(made) + len(row), axis=0)
                made[-len(row) :] = row
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("coords", [COORDS, COORDS.astype(np.float64), COORDS.astype(np.int32)])
def test_trident(tmp_path, dtype, coords):
    path = trident(tmp_path / "a.h5", values().astype(dtype), coords)
    found = read(path)
    np.testing.assert_array_equal(found.features, values().astype(dtype))
    np.testing.assert_array_equal(found.coords, COORDS)
    assert (found.side, found.size) == (512, (1500, 2000)) and read_header(path).encoder == "uni_v1"


def test_a_batch_dimension_and_missing_names(tmp_path):
    path = trident(tmp_path / "a.h5", values()[None], COORDS[None], {"encoder": "None"})
    assert read(path).features.shape == (4, 6) and read(path).coords.shape == (4, 2)
    assert read_header(path).encoder is None and read_header(path).settings == {}


def test_clam(tmp_path):
    """Without attributes, the side is the usual distance of neighbours, and the image ends with the last tile."""
    found = read(clam(tmp_path / "a.h5", values()))
    np.testing.assert_array_equal(found.features, values())
    np.testing.assert_array_equal(found.coords, COORDS)
    assert (found.side, found.size) == (512, (1024, 1536))
    assert read(clam(tmp_path / "b.h5", values(2), COORDS[[0, 0]])).side == 256
    assert read(clam(tmp_path / "c.h5", values(2), np.array([[0, 0], [3, 512]]))).side == 512


def test_clam_begins_a_grid_in_each_piece_of_tissue(tmp_path):
    """`process_contour` of CLAM's wsi_core/WholeSlideImage.py: the grid begins at the bounding box of the contour."""
    pieces = [(1000, 2000, 5, 4), (1701, 9003, 3, 3), (7650, 2130, 2, 6)]
    places = np.array([(x + 256 * i, y + 256 * j) for x, y, w, h in pieces for i in range(w) for j in range(h)])
    places = np.delete(places, [3, 8], axis=0)[:38]
    assert read(clam(tmp_path / "a.h5", values(38), places)).side == 256


def test_attributes_of_coordinates_of_clam(tmp_path):
    path = clam(tmp_path / "a.h5", values())
    with h5py.File(path, "a") as file:
        more = {"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0), "level_dim": (600, 400)}
        file["coords"].attrs.update(more)
    assert (read(path).side, read(path).size) == (1024, (1600, 2400))
    with h5py.File(path, "a") as file:
        del file["coords"].attrs["downsample"]  # the scale of level 1 is not known
    assert read(path).side == 512


@pytest.mark.parametrize("format", ["h5", "zarr"])
def test_what_is_written_is_read(tmp_path, format):
    path = tmp_path / f"a.{format}"
    many, places = values(1000), np.arange(2000).reshape(1000, 2)
    about = {"size": (900, 800), "side": 64, "patch_size": 32, "overlap": 8, "encoder": "resnet18"}
    for _ in range(2):  # replaced
        with writing(path, 6, **about, settings={"digest": "x"}) as file:
            for part in np.split(np.arange(1000), [1, 300, 301, 900]):
                file.append(many[part], places[part])
            file.settings["blank"] = 3
    found, header = read(path), read_header(path)
    assert found.features.dtype == np.float16 and (found.side, found.size) == (64, (900, 800))
    np.testing.assert_array_equal(found.features, many.astype(np.float16))
    np.testing.assert_array_equal(found.coords, places)
    assert header.settings == {"digest": "x", "blank": 3} and header.encoder == "resnet18"
    assert sorted(tmp_path.iterdir()) == [path]
    arrays = h5py.File(path) if format == "h5" else zarr.open_group(path, mode="r")
    assert arrays["features"].shape == (1000, 6) and arrays["coords"].dtype == np.int64
    assert dict(arrays["coords"].attrs) == {
        **{"name": "a", "patch_size": 32, "patch_size_level0": 64, "overlap": 8},
        **{"level0_width": 800, "level0_height": 900},
    }
    assert json.loads(arrays["features"].attrs["foveal"])["blank"] == 3


@pytest.mark.parametrize("format", ["h5", "zarr"])
def test_a_name_that_is_not_utf_8(tmp_path, format):
    path = tmp_path / os.fsdecode(b"a\xff." + format.encode())
    with writing(path, 6) as file:
        file.append(values(), COORDS)
    assert read(path).side == 512 and list(list_files(tmp_path)) == ["a\udcff"]


@pytest.mark.parametrize("format", ["h5", "zarr"])
def test_an_exception_leaves_what_was_there(tmp_path, format):
    path = tmp_path / f"a.{format}"
    with writing(path, 6) as file:
        file.append(values(), COORDS)
    with pytest.raises(KeyError), writing(path, 6) as file:
        file.append(values(seed=1), COORDS)
        raise KeyError
    np.testing.assert_array_equal(read(path).features, values().astype(np.float16))
    assert sorted(tmp_path.iterdir()) == [path]


def test_numbers_beyond_half_precision(tmp_path):
    for bad in (np.nan, np.inf, 7e4):
        with pytest.raises(DataError, match="above 65,504"), writing(tmp_path / "a.h5", 1) as file:
            file.append(np.full((1, 1), bad), np.zeros((1, 2)))
    assert not list(tmp_path.iterdir())


def refused(path, words):
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value), error.value
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    path = trident(tmp_path / "a.h5", values(200, 64), np.zeros((200, 2)))
    whole = path.read_bytes()
    for size in (0, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "is not an HDF5 file that can be read")
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(4000))
    refused(path, "is not an HDF5 file that can be read")
    refused(tmp_path / "none.h5", "there is no such file")
    (tmp_path / "b.zarr").mkdir()
    refused(tmp_path / "b.zarr", "is not a Zarr group that can be read")


@pytest.mark.parametrize(
    ("features", "coords", "words"),
    [
        (values(0), COORDS[:0], "has no features"),
        (np.zeros(0, np.float32), COORDS[:0], "features have the shape (0,); give features of tiles"),
        (values(1)[0], COORDS, "features have the shape (6,); give features of tiles"),
        (values(5), COORDS, "coords have the shape (4, 2) for 5 tiles"),
        (values(4), COORDS[:, :1], "coords have the shape (4, 1) for 4 tiles"),
        (np.arange(24).reshape(4, 6), COORDS, "features has the type int64; write floating-point numbers"),
        (values(4).astype(np.complex64), COORDS, "features has the type complex64"),
        (np.where(np.eye(4, 6) * [[0], [0], [1], [0]], np.nan, values()), COORDS, "features of tile 2 are not all"),
        (values(4), np.where(COORDS == 1024, np.inf, COORDS), "some coords are not pixels of an image"),
        (values(4), np.where(COORDS == 1024, 1e300, COORDS), "some coords are not pixels of an image"),
        (np.full((4, 6), 1e300), COORDS, "features of tile 0 are not all finite numbers"),
    ],
)
def test_wrong_arrays(tmp_path, features, coords, words):
    refused(trident(tmp_path / "a.h5", np.asarray(features), coords), words)


def test_nothing_but_numbers_is_read(tmp_path):
    """Objects, links to other files, external and virtual data are refused."""
    path, other = tmp_path / "a.h5", trident(tmp_path / "other.h5", values())
    (tmp_path / "raw").write_bytes(values().tobytes())
    layout = h5py.VirtualLayout((4, 6), np.float32)
    layout[:] = h5py.VirtualSource(other, "features", (4, 6))

    def made(add, words):
        with h5py.File(path, "w") as file:
            file["coords"] = COORDS
            add(file)
        refused(path, words)

    made(lambda file: None, "has no data set 'features'")
    made(lambda file: file.create_dataset("features", (4, 6), h5py.string_dtype()), "features has the type object")
    made(lambda file: file.create_group("features"), "refers to other data")
    made(lambda file: file.__setitem__("features", h5py.ExternalLink(other, "features")), "refers to other data")
    made(lambda file: file.__setitem__("features", h5py.SoftLink("/coords")), "refers to other data")
    external = [(str(tmp_path / "raw"), 0, 96)]
    made(lambda file: file.create_dataset("features", (4, 6), "f4", external=external), "refers to other data")
    made(lambda file: file.create_virtual_dataset("features", layout), "refers to other data")
    made(lambda file: file.create_dataset("features", (10**9, 10**6), "f4", chunks=(1, 10**6)), "GiB, and the limit is")
    zarr.create_group(tmp_path / "b.zarr", zarr_format=2).create_array("features", shape=(4, 6), dtype="f4")
    refused(tmp_path / "b.zarr", "is not a Zarr group")
    made(lambda file: file.create_dataset("features", (4, 6), "f4", chunks=(2**28, 6), maxshape=(None, 6)), "GiB, and")


def test_a_missing_or_damaged_chunk_of_zarr_is_found(tmp_path):
    """Zarr reads zeros instead of a missing chunk, and Blosc does not know that its bytes are cut short."""
    path = tmp_path / "a.zarr"
    with writing(path, 6, settings={"digest": "x"}) as file:
        file.append(values(1), np.zeros((1, 2)))
    assert read(path).coords.tolist() == [[0, 0]]
    for name in ("features", "coords"):
        (path / name / "c/0/0").rename(tmp_path / "chunk")
        refused(path, "some of its chunks are missing; make the file again")
        (tmp_path / "chunk").rename(path / name / "c/0/0")
    group = zarr.create_group(tmp_path / "b.zarr", zarr_format=3)
    group.create_array("coords", data=COORDS)
    group.create_array("features", data=values(), compressors=zarr.codecs.BloscCodec())
    assert read(tmp_path / "b.zarr").features.shape == (4, 6)
    chunk = tmp_path / "b.zarr/features/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    refused(tmp_path / "b.zarr", "bytes long, and")


def test_what_killed_processes_left_is_removed(tmp_path):
    mine = [
        ".1.h5.17.unfinished",
        "a/.1.zarr.17.unfinished/x",
        "a/.1.zarr.17.before/x",
        ".encoder.safetensors.1.before",
    ]
    others = ["a/.shards.unfinished/x", "b/.1.h5.17.unfinished", "b/.embed.lock", "a/1.zarr/.1.h5.2.unfinished"]
    for name in mine + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert [name for name in mine + others if (tmp_path / name).exists()] == others


def test_attributes_of_any_kind_do_no_harm(tmp_path):
    strange = {"patch_size_level0": "many", "level0_width": np.nan, "level0_height": -3.0, "patch_size": [[1, 2]]}
    path = trident(tmp_path / "a.h5", values(), attributes={"foveal": "{", "encoder": b"\xff"}, **strange)
    assert read(path).side == 1 and read(path).size == (513, 1025) and read_header(path).settings == {}


def test_names(tmp_path):
    for name in ("b/1", "a", "b/c.d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        trident(tmp_path / f"{name}.h5", values())
    with writing(tmp_path / "b" / "z.zarr", 6) as file:
        file.append(values(), COORDS)
    (tmp_path / ".hidden.h5").touch()
    assert list(list_files(tmp_path)) == ["a", "b/1", "b/c.d", "b/z"]
    (tmp_path / "a.hdf5").touch()
    with pytest.raises(DataError, match="has the features of the same image"):
        list_files(tmp_path)


def _on_a_full_disk(path, limit, rows):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with writing(path, 64) as file:
            for seed in range(rows):
                file.append(values(40, 64, seed), np.zeros((40, 2)))
    except OSError as error:
        os._exit(3 if error.errno == errno.EFBIG else 4)
    os._exit(0)


@pytest.mark.parametrize("format", ["h5", "zarr"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, format):
    """HDF5 would end the process by a segmentation fault."""
    for limit, rows, code in ((0, 1, 3), (100, 1, 3), (3000, 1, 3), (60_000, 20, 3), (10**6, 2, 0)):
        process = multiprocessing.get_context("fork").Process(
            target=_on_a_full_disk, args=(tmp_path / f"a.{format}", limit, rows)
        )
        process.start()
        process.join()
        assert process.exitcode == code
        assert [path.name for path in tmp_path.iterdir()] == ([] if code else [f"a.{format}"])
    assert read(tmp_path / f"a.{format}").features.shape == (80, 64)
