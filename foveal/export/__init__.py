"""Export of a model: its networks as files of ONNX, OpenVINO or `torch.export`, and a card that says how to use them.

    export(model, *, format="onnx", precision="fp32", out=None, calibration=None, images=64, licence=None,
           overwrite=False) -> Path
    for_engine(model, engine) -> a model for `foveal.predict`

`foveal.load`, the commands, and `foveal.runtime` (without torch) run the result.

Example:
    >>> import tempfile, foveal
    >>> from pathlib import Path
    >>> model = foveal.create_classifier("test_resnet", num_classes=2, image_size=32)
    >>> folder = export(model, format="torch", out=Path(tempfile.mkdtemp(), "exported"))
    >>> sorted(file.name for file in folder.iterdir())
    ['export.json', 'network.pt2']
"""

from foveal.export.exporting import eager, export, for_engine

__all__ = ["eager", "export", "for_engine"]
