import csv
import json
import os
import shutil
import time

import pyarrow
import pytest
import torch
from pyarrow import parquet

from foveal.data import get_data
from foveal.errors import ConfigError, StorageError
from foveal.glimpse.tnet import TNet
from foveal.models import create_classifier
from foveal.prediction import COLUMNS, LOOK_KEYS, SCHEMA, predict
from foveal.prediction.journal import Journal
from foveal.prediction.output import FORMATS, Output, fingerprint, read_rows, write_rows
from foveal.prediction.rows import failed_row
from foveal.runs import ModelInfo, load, save_model


def some_rows(n):
    ground = [[5e5, 6e6], [5e5 + 640.5, 6e6], [5e5 + 640.5, 6e6 - 640], [5e5, 6e6 - 640]]
    looks = [
        ([0.0, -8.5, 64.0, 55.5], [32, 32], 1, None, 1.0, -0.1, 2.0, [0.0, -4.25, 32.0, 27.75], None),
        ([0.0, 0.0, 32.0, 32.0], [32, 32], 2, 0, 0.25, None, 1.0, None, ground),
    ]
    glimpses = [dict(zip(LOOK_KEYS, look, strict=True)) for look in looks]
    good = {
        "path": "",
        "label": 'a "b", c\n',
        "probability": 0.5,
        "top_k": [{"label": "x", "probability": 0.5}],
        "locations": 1,
        "glimpses": glimpses,
        "size": [64, 47],
        "levels": [[64, 47], [32, 24]],
        "mpp": 0.5,
        "crs": 'PROJCS["a, b"]',
        "transform": [10.0, 0.0, 5e5, 0.0, -10.0, 6e6],
        "bounds": [0, 1, 64, 47],
        "macs": 10**10,
        "bytes_read": None,
        "requests": 3,
        "bytes": 10**10,
        "file_size": 10**11,
        "file_version": '"5f0d-2"',
        "seconds": 0.125,
        "error": None,
        "schema": SCHEMA,
    }
    bad = failed_row("", "x: is empty; copy it again")
    assert list(good) == list(bad) == list(COLUMNS)
    return [(bad if i % 3 == 2 else good) | {"path": f"\u00fc {i}.tif"} for i in range(n)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_come_back_as_they_were(tmp_path, suffix):
    rows = some_rows(2500)
    write_rows(tmp_path / f"rows{suffix}", iter(rows), suffix)
    assert list(read_rows(tmp_path / f"rows{suffix}")) == rows


def test_other_programs_read_them(tmp_path):
    rows = some_rows(3)
    for suffix in FORMATS:
        write_rows(tmp_path / f"rows{suffix}", rows, suffix)
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names == list(COLUMNS) and table["glimpses"][0][1]["level"].as_py() == 2
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["label"] == rows[0]["label"] and json.loads(lines[0]["glimpses"]) == rows[0]["glimpses"]
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_output_of_an_earlier_version_is_continued(folder, model, tmp_path, suffix):
    """Its rows have no ``mpp`` and no other key of schema 2, and the first line of its journal is nothing but the
    settings.
    """
    out = tmp_path / f"rows{suffix}"
    predict(model, folder / "0.png", out=out, device="cpu")
    (row,) = read_rows(out)
    kept = ("path", "label", "probability", "top_k", "locations", "glimpses", "macs", "bytes_read", "seconds", "error")
    row = {key: row[key] for key in kept}
    row["glimpses"] = [{key: look[key] for key in ("box", "level", "probability")} for look in row["glimpses"]]
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist([row]), out)
    elif suffix == ".csv":
        with out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, row)
            table.writeheader()
            table.writerow({key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()})
    else:
        out.write_text(json.dumps(row) + "\n")
    journal = tmp_path / f".rows{suffix}.foveal"
    journal.write_text(json.dumps(header(journal)["settings"]) + "\n")
    assert predict(model, [folder / "0.png", folder / "1.png"], out=out, device="cpu").skipped == 1
    first, second = read_rows(out)
    assert {key: first[key] for key in kept} | {"glimpses": None} == row | {"glimpses": None}
    assert (first["schema"], second["schema"]) == (1, SCHEMA) and list(first) == list(second) == list(COLUMNS)
    assert first["size"] is None and first["glimpses"][1]["contribution"] is None
    assert first["glimpses"][1]["box"] == row["glimpses"][1]["box"]
    assert second["size"] == [80, 90] and second["glimpses"][1]["parent"] == 0


def header(journal):
    return next(Journal(journal).lines())


class Stop(Exception):
    pass


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_interrupted_run_goes_on_where_it_stopped(folder, model, tmp_path, suffix):
    out, seen = tmp_path / f"rows{suffix}", []

    def stop_after_four(done, total, rows):
        seen.extend(row["path"] for row in rows)
        assert total == 7
        if done >= 4:
            raise Stop

    with pytest.raises(Stop):
        predict(model, folder, out=out, batch_size=2, device="cpu", on_progress=stop_after_four)
    assert not out.exists()
    with (tmp_path / f".rows{suffix}.foveal").open("a") as journal:
        journal.write('{"path": "half a li')
    summary = predict(
        model,
        folder,
        out=out,
        batch_size=2,
        device="cpu",
        on_progress=lambda done, total, rows: seen.extend(r["path"] for r in rows),
    )
    assert (summary.images, summary.predicted, summary.skipped) == (7, 3, 4)
    assert len(seen) == len(set(seen)) == 7
    whole = {row["path"]: row["label"] for row in predict(model, folder, device="cpu").rows}
    assert {row["path"]: row["label"] for row in read_rows(out)} == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f".rows{suffix}.foveal", "images", f"rows{suffix}"])


def test_a_finished_output_is_left_alone_until_there_are_new_images(folder, model, tmp_path):
    out = tmp_path / "rows.csv"
    predict(model, folder, out=out, device="cpu")
    before, at = out.read_bytes(), out.stat().st_mtime_ns
    assert predict(model, folder, out=out, device="cpu").predicted == 0
    assert out.read_bytes() == before and out.stat().st_mtime_ns == at
    shutil.copy(folder / "0.png", folder / "new.png")
    summary = predict(model, folder, out=out, device="cpu")
    assert (summary.predicted, summary.skipped) == (1, 7)
    assert out.read_bytes().startswith(before) and len(list(read_rows(out))) == 8


def test_failed_images_are_tried_again_when_their_file_has_changed_or_on_request(folder, model, tmp_path):
    out, missing, seen = tmp_path / "rows.parquet", folder / "missing.png", []

    def call(**options):
        seen.clear()
        given = [folder, missing]
        return predict(
            model,
            given,
            out=out,
            device="cpu",
            **options,
            on_progress=lambda done, total, rows: seen.extend(r["path"] for r in rows),
        )

    good = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(b"")
    old = time.time() - 60
    os.utime(folder / "3.png", (old, old))
    time.sleep(0.05)  # a file that changed during reading may be complete now
    first = call()
    assert len(first.failed) == 2 and (first.predicted, first.skipped) == (6, 0)
    again = call()
    assert again.failed == first.failed and (again.predicted, again.skipped) == (0, 8) and not seen
    again = call(retry=True)
    assert again.failed == first.failed and (again.predicted, again.skipped) == (0, 6) and len(seen) == 2
    (folder / "3.png").write_bytes(good)
    assert call().failed == first.failed[1:] and seen == [str(folder / "3.png")]
    missing.write_bytes(good)
    assert call().failed == () and seen == [str(missing)]
    missing.unlink()
    rows = list(read_rows(out))
    assert len(rows) == len({row["path"] for row in rows}) == 8 and not any(row["error"] for row in rows)


def test_predictions_of_another_model_or_other_locations_are_not_mixed_in(folder, model, tmp_path):
    out = tmp_path / "rows.jsonl"
    predict(model, folder / "0.png", out=out, device="cpu")
    with pytest.raises(ConfigError, match=r"other settings \(locations\); .* replace it by `overwrite`"):
        predict(model, folder, out=out, locations=(1,), device="cpu")
    torch.manual_seed(1)
    other = TNet(num_classes=4, backbone="test_efficientnet", base_size=32, locations=(2, 1))
    with pytest.raises(ConfigError, match=r"was written with other settings \(model"):
        predict(other, folder, out=out, device="cpu")
    assert predict(other, folder, out=out, device="cpu", resume=False).predicted == 7
    assert len(list(read_rows(out))) == 7


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "mine.csv").write_text("name,grade\nAda,1\n")
    with pytest.raises(ConfigError, match=r"mine\.csv: exists"):
        Output(tmp_path / "mine.csv", {})
    assert (tmp_path / "mine.csv").read_text() == "name,grade\nAda,1\n"


def test_replacing_keeps_the_old_output_until_the_new_one_is_whole(tmp_path):
    with Output(tmp_path / "rows.jsonl", {"n": 1}) as first:
        first.add(some_rows(2))
        first.finish()
    with Output(tmp_path / "rows.jsonl", {"n": 2}, resume=False) as second:
        second.add(some_rows(1))
    with Output(tmp_path / "rows.jsonl", {"n": 2}) as second:
        assert len(list(read_rows(tmp_path / "rows.jsonl"))) == 2 and len(second.waiting) == 1
        second.finish()
    assert len(list(read_rows(tmp_path / "rows.jsonl"))) == 1


@pytest.mark.parametrize(("name", "says"), [("rows.xlsx", "suffixes"), ("nowhere/rows.csv", "no folder")])
def test_outputs_that_cannot_be(tmp_path, name, says):
    with pytest.raises(ConfigError, match=says):
        Output(tmp_path / name, {})


def test_a_damaged_output_is_told(tmp_path):
    with Output(tmp_path / "rows.parquet", {}) as output:
        output.add(some_rows(1))
        output.finish()
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(
        StorageError, match="was changed by another program; put the file back as it was and repeat the command, choose"
    ):
        Output(tmp_path / "rows.parquet", {})


def test_predictions_of_networks_that_differ_in_activations_only_are_not_mixed(folder, tmp_path):
    def network(activation):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), activation, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )

    first, second = network(torch.nn.ReLU()), network(torch.nn.GELU())
    out = tmp_path / "rows.jsonl"
    predict(first, folder / "0.png", out=out, device="cpu")
    with pytest.raises(ConfigError, match=r"was written with other settings \(model\)"):
        predict(second, folder, out=out, device="cpu")
    assert predict(network(torch.nn.ReLU()), folder, out=out, device="cpu").predicted == 6


def test_the_fingerprint_is_of_everything_that_changes_predictions(tmp_path):
    def tnet(**options):
        torch.manual_seed(0)
        return create_classifier("tnet", backbone="test_efficientnet", num_classes=3, base_size=32, **options)

    model = tnet()
    before = fingerprint(model)
    assert before == fingerprint(tnet())
    assert fingerprint(tnet(locations=(1,))) != before  # another configuration
    for name, value in {"value_range": (0.0, 2.0), "image_size": 64, "shorter_side": 64}.items():
        setattr(model, name, value)
        assert fingerprint(model) != before
        setattr(model, name, None)
    assert fingerprint(model) == before
    model.mean += 0.1
    assert fingerprint(model) != before
    save_model(tmp_path, tnet(), ModelInfo({"name": "tnet", "backbone": "test_efficientnet", "base_size": 32}))
    assert fingerprint(load(tmp_path)) == fingerprint(load(tmp_path))


def test_the_fingerprint_is_of_weights_and_classes(model):
    before = fingerprint(model)
    assert before == fingerprint(model)
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
        changed = fingerprint(model)
        model.classifier.bias[0] -= 1e-6
    assert changed != before


def test_an_output_whose_last_step_was_interrupted_is_finished_by_repeating(folder, model, tmp_path, monkeypatch):
    from foveal.prediction.output import Output

    out = tmp_path / "rows.csv"
    with monkeypatch.context() as patch:
        patch.setattr(Output, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict(model, folder, out=out, device="cpu")
    assert not out.exists()
    again = predict(model, folder, out=out, device="cpu")
    assert again.predicted == 0 and len(out.read_text().splitlines()) == again.images + 1


def test_parquet_without_pyarrow_is_one_sentence(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.importing.find_spec", lambda name: None)
    sentence = r"parquet: Parquet needs pyarrow; run pip install 'foveal\[parquet\]'"
    with pytest.raises(ConfigError, match=sentence):
        predict(model, folder, device="cpu", out=tmp_path / "rows.parquet")
    assert not list(tmp_path.glob("*rows*"))
    (tmp_path / "table.parquet").touch()
    with pytest.raises(ConfigError, match=sentence):
        get_data("manifest", file=str(tmp_path / "table.parquet"))
