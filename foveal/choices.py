"""Names that options of the command take, in tables that cost nothing to import.

The command's help shows them, and the code that is given a name checks it against the same table.

Example:
    >>> SPLITS
    ('train', 'val', 'test')
"""

SPLITS = ("train", "val", "test")
"""Parts of a data set."""

POLICY_NAMES = ("greedy", "sampled", "random", "centre", "exhaustive")
"""Ways of choosing cells, see `foveal.policies`."""

SACCADER_POLICY_NAMES = ("ordered_logits", "sobel_mean", "sobel_var", "random_released", "centre_released")
"""Further ways, which only `foveal.glimpse.saccader.Saccader` knows."""

PRECISIONS = {
    "32": None,
    "32-true": None,
    "bf16": "bfloat16",
    "bf16-mixed": "bfloat16",
    "16": "float16",
    "16-mixed": "float16",
}
"""Precisions of a prediction, and the type of torch that matrix products and convolutions are done in, if it is
another."""

METRIC_NAMES = (
    "accuracy",
    "top5",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "average_precision",
    "nll",
    "ece",
)
"""Metrics of classification, see `foveal.metrics`."""

FORMATS = (".parquet", ".csv", ".jsonl")
"""Suffixes of files of predictions."""

FEATURE_FORMATS = ("h5", "zarr")
"""Formats of files of features, see `foveal.embedding`."""

MEASURES = ("none", "quick", "full")
"""How thoroughly an evaluation takes times, see `foveal.evaluation.measure_locations`."""

EXPORT_FORMATS = ("torch", "onnx", "openvino")
"""Formats of exported models, and the engines that run them, see `foveal.export` and `foveal.runtime`."""

EXPORT_PRECISIONS = ("fp32", "fp16", "int8")
"""Precisions of the weights of exported models."""
