import pyarrow as pa
import pytest
from pyarrow import parquet

from foveal.distributed import open_manifest
from foveal.distributed.shards import shard_rows
from foveal.errors import DataError


@pytest.fixture(params=["csv", "parquet"])
def table(request, tmp_path):
    """A table of 1,000 paths, in Parquet in row groups of 70."""
    paths = [f"{i}, ü.png" for i in range(1000)]
    file = tmp_path / f"images.{request.param}"
    if request.param == "csv":
        file.write_text("label,path\n" + "".join(f'x,"{path}"\n' for path in paths), encoding="utf-8-sig")
    else:
        parquet.write_table(pa.table({"label": ["x"] * 1000, "path": paths}), file, row_group_size=70)
    return file, paths


def test_rows_are_those_of_the_table(table):
    file, paths = table
    manifest = open_manifest(file)
    assert manifest.rows == 1000
    for shards in (1, 7, 1000, 1003):
        rows = [shard_rows(1000, shard, shards) for shard in range(shards)]
        assert [row for part in rows for row in part] == list(range(1000))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        for part in rows[:: shards // 7 or 1]:
            assert manifest.paths(part) == paths[part.start : part.stop]


def test_another_table_in_its_place_is_named(table):
    """Rows of two tables in the parts of one job would be wrong."""
    file, paths = table
    manifest, content = open_manifest(file), file.read_bytes()
    file.write_bytes(content)  # a copy on another machine has another time
    assert manifest.paths(range(3)) == paths[:3]
    if file.suffix == ".csv":
        file.write_bytes(content.replace(b"999, ", b"998, "))
    else:
        parquet.write_table(pa.table({"label": ["x"] * 1000, "path": [*paths[:-1], "z.png"]}), file, row_group_size=70)
    with pytest.raises(DataError, match="was changed while it was in use; run the command again"):
        manifest.paths(range(3))


def test_paths_of_parquet_are_text_in_any_encoding(tmp_path):
    text = pa.array(["ü.png", None])
    for column in (text.cast(pa.binary()), text.dictionary_encode(), text.cast(pa.large_string())):
        parquet.write_table(pa.table({"path": column}), tmp_path / "a.parquet")
        assert open_manifest(tmp_path / "a.parquet").paths(range(2)) == ["ü.png", ""]
    for column, kind in ((pa.array([1, 2]), "int64"), (pa.array([["a.png"]]), "list")):
        parquet.write_table(pa.table({"path": column}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=f"the column 'path' holds {kind}.*, not text"):
            open_manifest(tmp_path / "a.parquet")
    parquet.write_table(pa.Table.from_arrays([text, text], names=["path", "path"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the column 'path' is there 2 times"):
        open_manifest(tmp_path / "a.parquet")
    parquet.write_table(pa.table({"path": pa.array([b"\xff"])}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="this is not a Parquet file that can be read"):
        open_manifest(tmp_path / "a.parquet").paths(range(1))


def test_only_the_row_groups_of_a_shard_are_read(tmp_path, monkeypatch):
    file, read = tmp_path / "images.parquet", []
    parquet.write_table(pa.table({"path": [f"{i}.png" for i in range(1000)]}), file, row_group_size=100)
    manifest = open_manifest(file)
    real = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile, "iter_batches", lambda self, *a, **k: read.append(k) or real(self, *a, **k)
    )
    assert manifest.paths(range(350, 352)) == ["350.png", "351.png"]
    assert read[0]["row_groups"][0] == 3 and read[0]["columns"] == ["path"]


def test_images_have_the_names_of_the_table_and_the_files_of_the_root(tmp_path):
    (tmp_path / "images.csv").write_text("path\na.png\n\n /b.png\nhttps://me:secret@web/c.tif\n,\n")
    (tmp_path / "photos").mkdir()
    manifest = open_manifest(tmp_path / "images.csv", tmp_path / "photos")
    a, b, c, none = manifest.images(range(4))
    assert (a.path, a.image) == ("a.png", str(tmp_path / "photos" / "a.png"))
    assert (b.image, c.image, c.path) == ("/b.png", "https://me:secret@web/c.tif", "https://web/c.tif")
    assert open_manifest(tmp_path / "images.csv", "s3://bucket/x").images(range(1))[0].image == "s3://bucket/x/a.png"
    assert none.error == "images.csv: row 3 has no path; complete it or remove it"


def test_the_digest_is_that_of_the_content(table, tmp_path):
    file, paths = table
    before = open_manifest(file).digest
    moved = tmp_path / f"moved{file.suffix}"
    moved.write_bytes(file.read_bytes())
    assert open_manifest(moved).digest == before
    if file.suffix == ".csv":
        moved.write_text(moved.read_text("utf-8").replace("999, ü", "998, ü"), encoding="utf-8")
    else:
        parquet.write_table(pa.table({"label": ["x"] * 1000, "path": [*paths[:-1], "z.png"]}), moved, row_group_size=70)
    assert open_manifest(moved).digest != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, "there is no such file or folder"),
        ("a.csv", b"file\nx.png\n", "the column 'path' is missing"),
        ("a.csv", b"path\n", "there are no rows"),
        ("a.csv", b"", "the column 'path' is missing"),
        ("a.csv", b"path,path\na.png,b.png\n", "the column 'path' is there 2 times"),
        ("a.csv", b'path\n"a.png\nb.png\n', "this is not a CSV file in UTF-8"),
        ("a.csv", b"path\n\xff.png\n", "this is not a CSV file in UTF-8"),
        ("a.parquet", b"path\nx.png\n", "this is not a Parquet file"),
        ("a.parquet", b"", "this is not a Parquet file"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        open_manifest(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
