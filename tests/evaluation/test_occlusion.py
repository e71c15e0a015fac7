import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from foveal.data import DataModule, ImageDataset, TensorDataset
from foveal.errors import ConfigError, DataError
from foveal.evaluation import Setting, occlude
from foveal.models import create_model
from tests.evaluation.tiny import CLASSES, Spotter

CPU = Setting(device="cpu")


def squares(count):
    """Images with one bright square of random cell and brightness."""
    rng = np.random.default_rng(0)
    images, target = torch.zeros(count, 3, 24, 24, dtype=torch.uint8), torch.arange(count) % len(CLASSES)
    for image, t, cell in zip(images, target, rng.integers(9, size=count), strict=True):
        y, x = 8 * (cell // 3), 8 * (cell % 3)
        image[:, y : y + 8, x : x + 8] = 40 * (t + 1)
    return images, target


def data(count=120):
    return DataModule(classes=CLASSES, test=TensorDataset(*squares(count), CLASSES), name="squares")


def verdicts(result):
    return {(p.kind, p.locations, p.judge): p for p in result.points}


def test_hiding_what_matters_destroys_and_hiding_at_random_does_not():
    found = verdicts(occlude(Spotter(), data(), locations=[(1,), (3,)], setting=CPU))
    assert [key[:2] for key in found] == [
        ("whole", ()),
        ("learned", (1,)),
        ("learned", (3,)),
        ("random", (1,)),
        ("random", (3,)),
    ]
    assert [p.images for p in found.values()] == [120] * 5
    assert found["whole", (), "model"].accuracy == 1 and found["whole", (), "model"].hidden == 0
    for kind in ("learned", "random"):
        assert [found[kind, (k,), "model"].hidden for k in (1, 3)] == pytest.approx([1 / 9, 1 / 3])
        assert found[kind, (3,), "model"].total_locations == 3
    # If nothing is visible, one class of six is guessed.
    assert found["learned", (1,), "model"].accuracy == pytest.approx(1 / 6)
    for k in (1, 3):  # the square is hidden in k cases of nine, of which one of six is guessed
        expected = 1 - k / 9 * 5 / 6
        assert found["random", (k,), "model"].accuracy == pytest.approx(
            expected, abs=3 * (expected * (1 - expected) / 120) ** 0.5
        )


def test_judges_see_the_same_images_at_their_own_locations():
    seen = []

    class Judge(Spotter):
        def forward(self, images, locations=None, policy="greedy", draws=None, contributions=True):
            seen.append((locations, policy))
            return super().forward(images, locations, policy, draws, contributions)

    judge = Judge()
    found = verdicts(
        occlude(Spotter(), data(30), locations=[(2,)], judges=[judge], setting=Setting(batch_size=30, device="cpu"))
    )
    assert seen == [(None, "greedy")] * 3
    for kind, locations in [("whole", ()), ("learned", (2,)), ("random", (2,))]:
        assert found[kind, locations, "model"].accuracy == found[kind, locations, "model 1"].accuracy


def tnet():
    torch.manual_seed(0)
    return create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, locations=(2,)).eval()


def test_everything_hidden_leaves_one_answer():
    model, saw = tnet(), []
    keep = model.register_forward_hook(lambda module, args, seen: saw.append(seen.logits))
    found = verdicts(
        occlude(
            model, data(30), locations=[(1,)], policies=("exhaustive",), setting=Setting(batch_size=30, device="cpu")
        )
    )
    keep.remove()
    assert found["exhaustive", (9,), "model"].hidden == 1
    judged = saw[-1]  # that of the last plan
    torch.testing.assert_close(judged, judged[:1].expand(30, -1), atol=1e-5, rtol=0)
    assert found["exhaustive", (9,), "model"].accuracy == pytest.approx(1 / 6)


def test_nothing_hidden_changes_nothing():
    from foveal.images import Occluded, TensorViews

    model, images = tnet(), squares(12)[0]
    with torch.inference_mode():
        plain, covered = model(TensorViews(images)), model(Occluded(TensorViews(images), np.full((12, 3, 4), np.nan)))
    assert torch.equal(plain.logits, covered.logits)


@pytest.fixture
def files(tmp_path):
    images, target = squares(24)
    paths = [tmp_path / f"{i}.png" for i in range(24)]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return DataModule(classes=CLASSES, test=ImageDataset(list(map(str, paths)), target, CLASSES), name="files"), paths


def test_files_give_what_memory_gives(files):
    kept = {"locations": [(1,), (2,)], "setting": Setting(device="cpu", batch_size=5)}
    assert occlude(Spotter(), files[0], **kept).points == occlude(Spotter(), data(24), **kept).points


def test_bad_images_cost_themselves_alone(files):
    (broken, *_) = files[1][3:]
    broken.write_bytes(broken.read_bytes()[:60])
    result = occlude(Spotter(), files[0], setting=Setting(device="cpu", batch_size=5))
    assert {p.images for p in result.points} == {23} and result.points[0].accuracy == 1
    assert len(result.errors) == 1 and str(broken) in result.errors[0][1]
    for path in files[1]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 24 images could be read"):
        occlude(Spotter(), files[0], setting=CPU)


def test_a_limit_draws_images_by_the_seed():
    one, same, other, every = (
        occlude(Spotter(), data(), setting=Setting(device="cpu", batch_size=16, seed=seed, limit=limit))
        for seed, limit in ((0, 50), (0, 50), (1, 50), (0, 5000))
    )
    assert {p.images for p in one.points} == {50} and {p.images for p in every.points} == {120}
    assert one.points == same.points
    assert one.points != other.points


def test_files_table_and_progress(tmp_path):
    told = []
    setting = Setting(batch_size=16, device="cpu", on_progress=lambda *step: told.append(step))
    result = occlude(
        Spotter(), data(40), locations=[(1,), (2,), (3,)], policies=("centre",), judges=[Spotter()], setting=setting
    )
    result.write(tmp_path)
    assert told == [(1, 3, "occluding"), (2, 3, "occluding"), (3, 3, "occluding")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["occlusion.json", "occlusion.png"]
    stored = json.loads((tmp_path / "occlusion.json").read_text())
    assert {"model", "judges", "split", "device", "machine", "torch", "foveal", "seed", "how"} < set(stored)
    assert len(stored["points"]) == 2 * (1 + 3 * 3) and stored["points"][2]["accuracy"] == result.points[2].accuracy
    assert Image.open(tmp_path / "occlusion.png").size[0] > 1000
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(result.table())
    lines = shown.export_text().splitlines()
    assert lines[1].split() == ["judged", "by", "locations", "hidden,", "%", "learned", "random", "centre"]
    rows = [re.split(" {2,}", line)[:2] for line in lines[3:] if line.startswith("model")]
    assert rows == [[judge, locations] for judge in ("model", "model 1") for locations in "0123"]


def test_what_does_not_fit_is_told():
    with pytest.raises(ConfigError, match="chooses nothing to hide"):
        occlude(create_model("test_resnet", num_classes=6), data(), setting=CPU)
    with pytest.raises(ConfigError, match="`policy` telepathy"):
        occlude(tnet(), data(), policies=("telepathy",), setting=CPU)
    with pytest.raises(ConfigError, match="hides nothing"):
        occlude(tnet(), data(), locations=[()], setting=CPU)
    with pytest.raises(ConfigError, match="has 6 classes, the model 3"):
        occlude(tnet(), data(), judges=[create_model("test_resnet", num_classes=3)], setting=CPU)
