"""Flags of a small run of the recipe demo, and a helper for commands that fail."""

from foveal.cli import main

TINY = [
    "--model.backbone",
    "plain_convnet_32",
    "--model.locations",
    "2",
    "--data.canvas",
    "128",
    "--data.digit",
    "12,16",
    "--data.distractors",
    "2",
    "--data.train",
    "32",
    "--data.val",
    "8",
    "--data.test",
    "8",
    "--batch-size",
    "8",
    "--device",
    "cpu",
    "--quiet",
]


def failure(capsys, *argv):
    """Exit code and message of a command that fails."""
    code = main([*map(str, argv)])
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "Traceback" not in said, said
    return code, said
