"""Prediction on many machines: parts of a manifest that any engine can make, and one engine, Ray. Needs the extra
``parquet``; ``remote`` for object stores, and ``ray``.

    predict_shard(model, manifest, shard, shards, out, *, root=None, retry=False, on_progress=None, **how) -> Part
    Shards(model, open_manifest(file), shards, out, **how).make(shard)     # many parts with a model that is loaded once
    predict_on_ray(model, manifest, out, *, shards=None, actors=None, address=None, ...) -> Made
    merge(parts, out=None) -> Merged                                       # checks, and joins all parts into one table

A part is a function of the rows of its shard, the model, the settings and the version. It is written under another name
and published at once, and never changed; see `foveal.distributed.shards`.

Example:
    >>> parse_shard("0/8"), shard_list([0, 1, 2, 7])
    ((0, 8), '0-2,7')
"""

from foveal.distributed.cluster import Made, predict_on_ray
from foveal.distributed.manifest import Manifest, open_manifest
from foveal.distributed.merging import SHOWN, Merged, merge, shard_list
from foveal.distributed.shards import Part, Shards, parse_shard, predict_shard

__all__ = [
    "SHOWN",
    "Made",
    "Manifest",
    "Merged",
    "Part",
    "Shards",
    "merge",
    "open_manifest",
    "parse_shard",
    "predict_on_ray",
    "predict_shard",
    "shard_list",
]
