"""Engines: what runs the parts of an exported model.

``onnx`` is ONNX Runtime, ``openvino`` is OpenVINO, which also reads parts in ONNX, and ``torch`` is torch. Each is
imported when it is used.

Example:
    >>> double = Callables({"double": (lambda x: {"y": 2 * x}, {"y": [3]})})
    >>> double("double", x=np.ones((2, 3), np.float32))["y"].tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    >>> double("double", x=np.ones((0, 3), np.float32))["y"].shape
    (0, 3)
"""

from __future__ import annotations

import json
import re
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from foveal.errors import ConfigError, RunError

Arrays = dict[str, np.ndarray]
Run = Callable[..., Arrays]

ENGINES = {"torch": ("torch",), "onnx": ("onnx",), "openvino": ("openvino", "onnx")}
"""Formats that each engine runs. The engine of a format has its name, unless another is asked for."""

MOST_AT_ONCE = 256
"""Largest batch that is given to a part; larger ones are split."""


class Engine(ABC):
    """The parts of a model, by name. Threads may share it."""

    def __call__(self, part: str, **inputs: np.ndarray) -> Arrays:
        """Run a part: arrays (N, ...) by the names of inputs, to arrays (N, ...) by the names of outputs."""
        count = len(next(iter(inputs.values())))
        if not count:
            return {name: np.zeros((0, *shape), np.float32) for name, shape in self.outputs(part).items()}
        if count <= MOST_AT_ONCE:
            return self.run(part, inputs)
        cuts = [slice(i, i + MOST_AT_ONCE) for i in range(0, count, MOST_AT_ONCE)]
        each = [self.run(part, {name: value[cut] for name, value in inputs.items()}) for cut in cuts]
        return {name: np.concatenate([one[name] for one in each]) for name in each[0]}

    @abstractmethod
    def run(self, part: str, inputs: Arrays) -> Arrays:
        """Run a part on a batch that is not empty."""

    @abstractmethod
    def outputs(self, part: str) -> Mapping[str, list[int]]:
        """Shape of each output of a part, without the batch."""


class Callables(Engine):
    """Parts that are functions, with the shapes of their outputs. For tests, and for counting calls."""

    def __init__(self, parts: Mapping[str, tuple[Run, Mapping[str, list[int]]]]) -> None:
        self.parts = parts

    def run(self, part: str, inputs: Arrays) -> Arrays:
        return self.parts[part][0](**inputs)

    def outputs(self, part: str) -> Mapping[str, list[int]]:
        return self.parts[part][1]


class Files(Engine):
    """Parts in the files of an exported model.

    Args:
        folder: the folder.
        card: its card, see `foveal.runtime.card`.
        name: one of `ENGINES`; that of the format if None.
        threads: processors to use; all if None.

    Raises:
        ConfigError: the engine is unknown, does not run this format, or is not installed.
        RunError: a file cannot be loaded.
    """

    def __init__(
        self, folder: Path, card: Mapping[str, Any], name: str | None = None, threads: int | None = None
    ) -> None:
        self.name = name or card["format"]
        self._card, self._folder = card, folder
        if self.name not in ENGINES:
            raise ConfigError(f"`engine` {self.name}: is not known; use one of {', '.join(ENGINES)}")
        if card["format"] not in ENGINES[self.name]:
            fits = [name for name, formats in ENGINES.items() if card["format"] in formats]
            raise ConfigError(
                f"`engine` {self.name}: does not run {folder}, which holds the format {card['format']}; use "
                f"{' or '.join(fits)}, or export the model as {self.name}"
            )
        load = {"torch": _load_torch, "onnx": _load_onnx, "openvino": _load_openvino}[self.name]
        package = {"onnx": "onnxruntime"}.get(self.name, self.name)
        if find_spec(package) is None:
            raise ConfigError(f"`engine` {self.name}: needs {package}; run pip install {package}")
        self._run: dict[str, Run] = {}
        for part, described in card["parts"].items():
            file = folder / next(iter(described["files"]))
            try:
                self._run[part] = load(file, described, card["precision"], threads)
            except (ConfigError, RunError):
                raise
            except Exception as error:  # engines raise many types of exceptions
                reason = " ".join(str(error).split())[:160]
                raise RunError(f"{file}: {package} cannot load it ({reason}); export the model again") from error

    def run(self, part: str, inputs: Arrays) -> Arrays:
        try:
            return self._run[part](**inputs)
        except MemoryError:
            raise
        except Exception as error:  # see above
            reason = " ".join(str(error).split())[:160]
            raise RunError(
                f"{self._folder}: {self.name} cannot run the part {part} ({reason}); export the model again"
            ) from error

    def outputs(self, part: str) -> Mapping[str, list[int]]:
        return self._card["parts"][part]["outputs"]


def _load_onnx(file: Path, part: Mapping[str, Any], precision: str, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings of its optimiser are not for users
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names, takes = list(part["outputs"]), {one.name for one in session.get_inputs()}

    def run(**inputs: np.ndarray) -> Arrays:
        given = {name: value for name, value in inputs.items() if name in takes}
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def _load_openvino(file: Path, part: Mapping[str, Any], precision: str, threads: int | None) -> Run:
    import openvino

    # Without the hint, processors that know bfloat16 use it.
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if precision == "fp32":
        hints["INFERENCE_PRECISION_HINT"] = "f32"
    if threads:
        hints["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(str(file), "CPU", hints)
    request, lock = compiled.create_infer_request(), threading.Lock()
    takes = {name for one in compiled.inputs for name in one.get_names()}

    def run(**inputs: np.ndarray) -> Arrays:
        with lock:
            request.infer({name: value for name, value in inputs.items() if name in takes})
            return {name: request.get_tensor(name).data.copy() for name in part["outputs"]}

    return run


def _load_torch(file: Path, part: Mapping[str, Any], precision: str, threads: int | None) -> Run:
    check_archive(file)
    import torch

    network = torch.export.load(file).module()
    names = list(part["inputs"])

    def run(**inputs: np.ndarray) -> Arrays:
        with torch.inference_mode():
            given = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names]
            seen = network(*given)
        return {name: value.numpy() for name, value in zip(part["outputs"], seen, strict=True)}

    return run


# ------------------------------------------------------------------------------------------------- archives of torch

_PLAIN = ("torch.ops.aten.", "torch.ops.prims.", "_operator.", "torch.sym_", "math.")
_FORBIDDEN = ("torch.ops.aten.from_file", "torch.ops.aten.save")
_STORED_TENSORS = "data/sample_inputs/"
_FILES = re.compile(
    r"\.data/(serialization_id|version)|archive_(format|version)|byteorder|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
"""Files of an archive. Others may be libraries of machine code, or pickles of earlier versions of the format."""


def check_archive(file: Path) -> None:
    """Check that an archive of `torch.export` holds operations on tensors and plain tensors alone.

    torch would unpickle some of the objects that such an archive may hold, and call any function of torch that its
    graph names.

    Raises:
        RunError: the file is no such archive, or holds something else.
    """
    remedy = "load files of this format from people that you trust, or export as onnx"
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.namelist()
            names = {name.partition("/")[2]: name for name in listed}
            texts = {name: json.loads(archive.read(full)) for name, full in names.items() if name.endswith(".json")}
            sample = [archive.read(full) for name, full in names.items() if name.startswith(_STORED_TENSORS)]
    except Exception as error:  # damaged archives raise many types of exceptions
        raise RunError(f"{file}: is damaged, or no archive of torch.export; export the model again") from error
    one_folder = len({name.partition("/")[0] for name in listed}) == 1 and len(names) == len(listed)
    if not one_folder or not all(map(_FILES.fullmatch, names)):
        raise RunError(f"{file}: holds files that foveal does not write, which may be code; {remedy}")
    if any(_strange(text) for text in texts.values()):
        raise RunError(f"{file}: holds pickled objects, or calls that are no operations on tensors; {remedy}")
    import io

    import torch

    for content in sample:
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:  # pickles of other objects raise many types of exceptions
            raise RunError(f"{file}: holds inputs that are not tensors; {remedy}") from error


def _strange(value: Any) -> bool:
    """Whether the JSON of an archive names a pickle, or a call that is not an operation on tensors."""
    if isinstance(value, list):
        return any(map(_strange, value))
    if not isinstance(value, dict):
        return False
    if "target" in value and "inputs" in value and "outputs" in value:  # a call
        target = str(value["target"])
        if not target.startswith(_PLAIN) or target.startswith(_FORBIDDEN):
            return True
    return bool(value.get("use_pickle")) or any(map(_strange, value.values()))
