"""Do public CIFAR-10 ResNets reach their published error with the models, loader and evaluation of this package?

The weights are those of https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2), trained on images normalised with
ImageNet's mean and standard deviation. The root may already contain CIFAR-10; nothing is downloaded.

    python benchmarks/cifar_weights.py --root data/cifar10 --weights weights/cifar10-resnet --out
    benchmarks/results/cifar_weights.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness import write

import foveal
from foveal.evaluation import Strategy, score_batches
from foveal.models import as_classifier

PUBLISHED = {20: 8.27, 32: 7.37, 44: 6.90, 56: 6.61}  # test error, %
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", type=Path, required=True, help="folder of resnet20-*.th and the others")
    parser.add_argument("--depths", type=int, nargs="+", choices=sorted(PUBLISHED), default=sorted(PUBLISHED))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out")
    options = parser.parse_args()
    data = foveal.get_data("cifar10", root=options.root, download=False)
    rows: list[dict[str, Any]] = []
    for depth in options.depths:
        file = next(iter(sorted(options.weights.glob(f"resnet{depth}-*.th"))), None)
        if file is None:
            raise SystemExit(
                f"{options.weights}: there is no resnet{depth}-*.th in this folder; bring the public weights"
            )
        network = foveal.create_model(f"resnet{depth}_cifar", pretrained=file)
        model = as_classifier(network, image_size=32, mean=MEAN, std=STD).to(options.device).eval()
        loader = data.loader("test", batch_size=250, device=options.device)
        answers = score_batches(model, loader, [Strategy(())]).scores[0].answers
        images, wrong = len(answers), int((~answers.correct).sum())
        rows.append(
            {
                "depth": depth,
                "images": images,
                "wrong": wrong,
                "error": 100 * wrong / images,
                "published": PUBLISHED[depth],
            }
        )
        print(
            f"ResNet-{depth}: {wrong} of {images} wrong, {rows[-1]['error']:.2f} % (published: {PUBLISHED[depth]:.2f} "
            "%)",
            flush=True,
        )
    write(options.out, rows, device=options.device, seed=None)
    strays = [row["depth"] for row in rows if round(row["error"], 2) != row["published"]]
    if strays:
        raise SystemExit(f"ResNet-{', '.join(map(str, strays))} differ from what was published")


if __name__ == "__main__":
    main()
