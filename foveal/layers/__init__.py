"""Attention layers and small blocks: plain modules for any network.

Example:
    >>> from foveal.layers import attention_maps
    >>> import timm
    >>> with attention_maps(timm.create_model("test_resnet")) as maps:
    ...     pass
    >>> maps
    {}
"""

from foveal.layers.augment import augment_convs, share_radius
from foveal.layers.explicit import ExplicitAttention
from foveal.layers.maps import Attends, attention_maps, captions

__all__ = ["Attends", "attention_maps", "captions", "ExplicitAttention", "augment_convs", "share_radius"]
