"""Dense networks that ``timm`` lacks. Importing this package registers them with ``timm``.

Example:
    >>> import timm, foveal.backbones
    >>> timm.is_model("bagnet77_tnet")
    True
"""

from foveal.backbones.attention_resnet import AttentionResNet
from foveal.backbones.augmented_resnet import AAResNet, ExpAttResNet
from foveal.backbones.bagnet import BagNet, BagNetTNet
from foveal.backbones.cifar_resnet import CifarResNet
from foveal.backbones.densenet_cifar import DenseNetCifar
from foveal.backbones.residual_attention import ResidualAttentionNet
from foveal.backbones.slim_resnet import SlimResNetV2
from foveal.backbones.small import PlainConvNet
from foveal.backbones.stn_cnn import SpatialTransformerCNN
from foveal.backbones.wide_resnet import WideResNet

__all__ = [
    "AAResNet",
    "AttentionResNet",
    "BagNet",
    "BagNetTNet",
    "CifarResNet",
    "DenseNetCifar",
    "ExpAttResNet",
    "PlainConvNet",
    "ResidualAttentionNet",
    "SlimResNetV2",
    "SpatialTransformerCNN",
    "WideResNet",
]
