"""Attention layers for any network.

Example:
    >>> from foveal.layers import attention_maps
    >>> import timm
    >>> with attention_maps(timm.create_model("test_resnet")) as maps:
    ...     pass
    >>> maps
    {}
"""

from foveal.layers.augment import NarrowedConv, augment_convs, share_radius
from foveal.layers.augmented import AttentionAugmentation
from foveal.layers.cbam import CBAM
from foveal.layers.explicit import ExplicitAttention
from foveal.layers.gather_excite import GatherExcite
from foveal.layers.maps import AttentionLayer, attention_maps, captions, stage_of
from foveal.layers.non_local import NonLocal
from foveal.layers.softmax_attention import SpatialSoftmaxAttention
from foveal.layers.spatial_transformer import SpatialTransformer

__all__ = [
    "AttentionLayer",
    "attention_maps",
    "captions",
    "stage_of",
    "AttentionAugmentation",
    "ExplicitAttention",
    "augment_convs",
    "share_radius",
    "CBAM",
    "GatherExcite",
    "NarrowedConv",
    "NonLocal",
    "SpatialSoftmaxAttention",
    "SpatialTransformer",
]
