"""Several nodes: ranks before Lightning starts, and two nodes on one machine that do what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foveal.errors import ConfigError
from foveal.recipes.fit_config import fit_config
from foveal.training import Training
from foveal.training.fitting import global_rank
from foveal.training.trainer import _hardware
from tests.training.tiny import NORM_FREE, config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("environment", "processes", "first"),
    [
        ({}, 4, True),
        ({"LOCAL_RANK": "1"}, 4, False),  # started by Lightning
        ({"NODE_RANK": "1"}, 4, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, 4, True),
        ({"NODE_RANK": "1"}, 1, True),  # another run of one process
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, 4, False),  # torchrun
        ({"RANK": "0", "LOCAL_RANK": "0"}, 4, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, 4, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 4, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, 1, True),  # four runs of one process, started by one srun
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "LOCAL_RANK": "1"}, 2, False),
    ],
)
def test_one_process_of_a_run_writes(monkeypatch, environment, processes, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (global_rank(processes) == 0) is first


def test_the_batch_is_divided_between_all_devices():
    training = Training(epochs=1, batch_size=12, nodes=3, devices=2, device="cpu")
    training.check()
    assert training.processes == 6
    assert _hardware(training)["num_nodes"] == 3 and "ddp" in _hardware(training)["strategy"]
    assert _hardware(Training(epochs=1))["strategy"] == "auto"
    with pytest.raises(ConfigError, match=r"^batch_size: 12 images cannot be split equally between 8 devices"):
        Training(epochs=1, batch_size=12, nodes=4, devices=2, device="cpu").check()
    with pytest.raises(ConfigError, match=r"^nodes: is 0; set it above 0"):
        Training(epochs=1, nodes=0, device="cpu").check()


CHANGES = {
    "model": NORM_FREE,
    "precision": "64",
    "batch_size": 8,
    "accumulate": 1,
    "data": {"name": "tiny_images", "bad": (1, 5, 6)},
    "sampling": "balanced",
    "freeze": ["backbone.first"],
}


def on_two_nodes(out: Path, changes: dict, how: dict) -> list[int]:
    """Exit codes of the processes of two nodes, which this machine plays."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "tests.training.tiny",
        str(out),
        json.dumps({**changes, "nodes": 2}),
        json.dumps(how),
    ]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **known, "NODE_RANK": str(node)}) for node in range(2)
    ]
    try:
        return [node.wait(timeout=240) for node in nodes]
    finally:
        for node in nodes:
            node.kill()


@pytest.mark.slow
def test_two_nodes_are_one_process(tmp_path):
    """One is stopped by a signal in between, which stops both, and the run is resumed."""
    one = fit_config(config(**CHANGES, epochs=3), tmp_path / "one", quiet=True).path
    stopped = on_two_nodes(tmp_path / "two", {**CHANGES, "epochs": 3}, {"interrupt_at": 3, "signal": "SIGTERM"})
    assert stopped[0] == 130 and stopped[1] == 0
    assert on_two_nodes(tmp_path / "two", {**CHANGES, "epochs": 3}, {"resume": True}) == [0, 0]
    states = [torch.load(run / "last.ckpt", weights_only=True) for run in (one, tmp_path / "two")]
    assert states[0]["global_step"] == states[1]["global_step"] == 6
    for part in ("state_dict", "average"):
        for name, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][name], value, rtol=0, atol=1e-10, msg=name)
    bad = [sorted((run / "bad_images.csv").read_text().splitlines()) for run in (one, tmp_path / "two")]
    assert bad[0] == bad[1] and len(bad[0]) > 1
