"""Writing a part in a format and a precision.

Example:
    >>> import tempfile
    >>> part = Part(nn.Sequential(nn.Flatten()), {"look": torch.rand(2, 3, 4, 4)}, ("seen",))
    >>> file = write(part, Path(tempfile.mkdtemp(), "part.pt2"), "torch", "fp32")[0]
    >>> file.name
    'part.pt2'
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.errors import ConfigError, RunError
from foveal.glimpse.base import Part

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
NEEDS = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""Packages that writing a format needs."""

OPSET = 18
"""Version of ONNX' operators: the first of torch's exporter, which every runtime of today reads."""


def write(
    part: Part, file: Path, format: str, precision: str, calibration: Sequence[dict[str, np.ndarray]] = ()
) -> list[Path]:
    """Write a part.

    Args:
        part: the part.
        file: the file, with a suffix of `SUFFIXES`.
        format, precision: see `foveal.export.export`.
        calibration: inputs, for int8.

    Returns:
        The files, the one to load first.

    Raises:
        ConfigError: a package is missing.
        RunError: the network has operations that the format does not know.
    """
    needed = [*NEEDS[format], *(["nncf", "openvino"] if precision == "int8" else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        extra = "int8" if precision == "int8" else format
        raise ConfigError(f"`format` {format}: needs {', '.join(missing)}; run pip install 'foveal[{extra}]'")
    network: nn.Module = _Given(part.network)
    if format == "torch":
        if precision == "fp16":
            network = _Half(network)
        program = _program(network, part, file)
        with _quiet():
            torch.export.save(program, file)
        return [file]
    graph = _onnx(network, part, file)
    if format == "onnx":
        import onnx

        if precision == "int8":
            graph = _quantised(graph, calibration)
        elif precision == "fp16":
            graph = _onnx_halved(graph)
        onnx.save(graph, file)
        return [file]
    import openvino

    # Under the name of the part, because the converter takes a file and not a graph.
    source = file.with_suffix(".onnx")
    try:
        import onnx

        onnx.save(graph, source)
        model = openvino.convert_model(source)
    finally:
        source.unlink(missing_ok=True)
    if precision == "int8":
        model = _quantised(model, calibration)
    openvino.save_model(model, file, compress_to_fp16=precision == "fp16")
    return [file, file.with_suffix(".bin")]


class _Given(nn.Module):
    """A network with one signature for all, because `torch.export` describes shapes in the form of the arguments."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self.network(*given)


class _Half(nn.Module):
    """A network in float16, with inputs and outputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()  # other parts, and the check of the result, need the original

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(seen.float() for seen in self.network(*(one.half() for one in given)))


def _program(network: nn.Module, part: Part, file: Path) -> Any:
    """The program of `torch.export`, with free first dimensions."""
    dims = {i: torch.export.Dim(("batch", "looks")[i], min=1, max=1 << 16) for i in range(part.free)}
    try:
        with _quiet():
            return torch.export.export(
                network.eval(), tuple(part.inputs.values()), dynamic_shapes=(tuple(dims for _ in part.inputs),)
            )
    except Exception as error:  # networks fail in many ways
        raise RunError(_cannot(file, "torch.export", error)) from error


def _onnx(network: nn.Module, part: Part, file: Path) -> Any:
    """The network in ONNX."""
    program = _program(network, part, file)
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
            )
    except Exception as error:
        raise RunError(_cannot(file, "ONNX", error)) from error
    assert made is not None
    return made.model_proto


def _cannot(file: Path, format: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160]
    return f"{file.stem}: this network cannot be written as {format} ({reason}); use another backbone, or torch itself"


def _onnx_halved(graph: Any) -> Any:
    """A graph with weights in float16, and inputs and outputs in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        return convert_float_to_float16(graph, keep_io_types=True)


def _quantised(model: Any, calibration: Sequence[dict[str, np.ndarray]]) -> Any:
    """A model of ONNX or OpenVINO whose convolutions and matrix products are int8.

    With NNCF's fast correction of biases, depthwise convolutions in int8 cost a MobileNetV2 much of its accuracy. The
    exact correction is used instead, which NNCF cannot do on these graphs of ONNX; there, depthwise convolutions stay
    in float.
    """
    # NNCF prints bars of progress, for which it has no option; and it imports compilers, which look for a GPU.
    with _quiet(), redirect_stdout(io.StringIO()):
        import nncf

        given = {"subset_size": max(1, len(calibration)), "preset": nncf.QuantizationPreset.MIXED}
        if hasattr(model, "graph"):
            names = [node.name for node in model.graph.node if _is_depthwise(node)]
            given["ignored_scope"] = nncf.IgnoredScope(names=names)
        else:
            given["fast_bias_correction"] = False
        return nncf.quantize(model, nncf.Dataset(list(calibration)), **given)


def _is_depthwise(node: Any) -> bool:
    """Whether a node of ONNX is a convolution with several groups."""
    return node.op_type == "Conv" and any(one.name == "group" and one.i > 1 for one in node.attribute)


@contextmanager
def _quiet() -> Any:
    """Without the warnings and progress of exporters."""
    names = ("torch.onnx", "torch.export", "torch.utils.cpp_extension", "nncf", "onnx_ir", "onnxscript")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
