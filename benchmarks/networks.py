"""Which networks of timm accept images of another size, as dense networks and as backbones of TNet?

    python benchmarks/networks.py [--out benchmarks/results/networks.json] [--only swin_transformer ...]

One small network of each family (several for families with different kinds) is created on the meta device, for its
default size and for another, with the options of a user: ``image_size`` and ``base_size`` of TNet.
"""

from __future__ import annotations

import argparse

import timm
import torch

import foveal.backbones  # noqa: F401  (registers ours)
from foveal.errors import ConfigError
from foveal.glimpse.tnet import TNet
from foveal.models import create_classifier

OTHER = 192
"""Side of the images that are not of a network's own size: a multiple of 64, as most networks want."""

MEMBERS = {
    "beit": ("beit_base_patch16_224",),
    "byoanet": ("eca_halonext26ts", "lambda_resnet26t", "botnet26t_256", "sebotnet33ts_256"),
    "byobnet": ("test_byobnet", "mobileone_s0"),
    "cait": ("cait_xxs24_224",),
    "coat": ("coat_tiny", "coat_lite_tiny"),
    "convit": ("convit_tiny",),
    "cpubone": ("cpubone_nano",),
    "crossvit": ("crossvit_tiny_240",),
    "cspnet": ("cs3darknet_focus_s",),
    "davit": ("davit_tiny",),
    "deit": ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
    "dpn": ("dpn68",),
    "edgenext": ("edgenext_xx_small",),
    "efficientformer_v2": ("efficientformerv2_s0",),
    "efficientnet": ("test_efficientnet",),
    "eva": ("eva02_tiny_patch14_224", "vit_tiny_patch16_dinov3_qkvb"),
    "gcvit": ("gcvit_xxtiny",),
    "ghostnet": ("ghostnet_050",),
    "hiera": ("hiera_tiny_224",),
    "hrnet": ("hrnet_w18_small",),
    "inception_next": ("inception_next_atto",),
    "levit": ("levit_128s", "levit_conv_128s"),
    "mambaout": ("test_mambaout",),
    "maxxvit": ("test_coatnet", "test_maxvit", "maxvit_tiny_tf_224", "coatnet_nano_rw_224"),
    "mlp_mixer": ("mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224"),
    "mobilenetv3": ("mobilenetv3_small_050",),
    "mobilevit": ("mobilevit_xxs", "mobilevitv2_050"),
    "mvitv2": ("mvitv2_tiny",),
    "nfnet": ("test_nfnet",),
    "pit": ("pit_ti_224", "pit_ti_distilled_224"),
    "pvt_v2": ("pvt_v2_b0",),
    "qwen3_vit": ("qwen3_vit_88m",),
    "regnet": ("regnetx_002",),
    "resnet": ("test_resnet",),
    "senet": ("legacy_seresnet18",),
    "starnet": ("starnet_s050",),
    "swiftformer": ("swiftformer_xs",),
    "swin_transformer": ("swin_tiny_patch4_window7_224",),
    "swin_transformer_v2": ("swinv2_tiny_window8_256",),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224",),
    "tiny_vit": ("tiny_vit_5m_224",),
    "twins": ("twins_svt_small", "twins_pcpvt_small"),
    "vision_transformer": ("test_vit", "vit_tiny_patch16_224"),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224",),
    "vision_transformer_relpos": ("test_vit_relpos",),
    "vitamin": ("vitamin_small_224",),
    "volo": ("volo_d1_224",),
    "vovnet": ("ese_vovnet19b_slim_dw",),
    "xcit": ("xcit_nano_12_p8_224", "xcit_nano_12_p16_224"),
}
"""Family to the networks that stand for it; the first that timm lists where nothing stands here."""


def members(family: str) -> list[str]:
    """Networks that represent a module of timm."""
    return [name for name in MEMBERS.get(family, ()) if timm.is_model(name)] or timm.list_models(module=family)[:1]


def own_size(name: str) -> int:
    card = timm.get_pretrained_cfg(name)
    return card.input_size[-1] if card is not None else 224


def dense(name: str, size: int) -> str | None:
    """Error message of a dense network for images of a size, or None."""
    try:
        with torch.device("meta"):
            model = create_classifier(name, num_classes=3, image_size=size).eval()
            logits = model.network(torch.zeros(2, 3, size, size))
    except ConfigError as error:
        return str(error)
    assert tuple(logits.shape) == (2, 3), f"{name}: logits are {tuple(logits.shape)}"
    return None


def backbone(name: str, size: int) -> str | None:
    """Error message of TNet with this backbone for looks of a size, or None."""
    try:
        with torch.device("meta"):
            TNet(num_classes=3, backbone=name, base_size=size, locations=(2,))
    except ConfigError as error:
        return str(error)
    return None


def row(family: str, name: str) -> dict:
    own = own_size(name)
    sizes = {"own": own, "other": OTHER if own != OTHER else 2 * OTHER}
    ways = {"dense": dense, "tnet": backbone}
    return {"family": family, "name": name, "size": own} | {
        f"{way}_{key}": attempt(name, size) for way, attempt in ways.items() for key, size in sizes.items()
    }


def main() -> None:
    from harness import write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="of timm.list_modules() (default: all)")
    args = parser.parse_args()
    rows = []
    for family in args.only or timm.list_modules():
        for name in members(family):
            rows.append(row(family, name))
            told = [f"{key}: {value or 'yes'}" for key, value in rows[-1].items() if key.startswith(("dense", "tnet"))]
            print(f"{family} {name}", *told, sep="\n  ", flush=True)
    for way in ("dense", "tnet"):
        counts = [sum(r[f"{way}_{key}"] is None for r in rows) for key in ("own", "other")]
        print(f"{way}: {counts[0]} of {len(rows)} at their own size, {counts[1]} at another")
    write(args.out, rows)


if __name__ == "__main__":
    main()
