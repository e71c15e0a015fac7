"""Several nodes: ranks before Lightning starts, and two nodes on one machine that do what one process does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image

from foveal.errors import ConfigError
from foveal.host import global_rank, speaker
from foveal.recipes.fit_config import fit_config
from foveal.training import Training
from foveal.training.nodes import check_launch
from foveal.training.trainer import _hardware
from tests.training.processes import LAUNCHERS, by_torchrun, free_port, run_together
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
    strategy = _hardware(training)["strategy"]
    assert _hardware(training)["num_nodes"] == 3 and isinstance(strategy, DDPStrategy)
    assert strategy._timeout == timedelta(seconds=training.timeout)
    assert _hardware(Training(epochs=1))["strategy"] == "auto"
    with pytest.raises(ConfigError, match=r"^batch_size: 12 images cannot be split equally between 8 devices"):
        Training(epochs=1, batch_size=12, nodes=4, devices=2, device="cpu").check()
    with pytest.raises(ConfigError, match=r"^nodes: is 0; set it above 0"):
        Training(epochs=1, nodes=0, device="cpu").check()


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_JOB_NAME": "foveal", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}
BY_HAND = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500", "NODE_RANK": "1"}


@pytest.fixture
def launched(monkeypatch):
    """A function that sets the variables of a launcher, and no others."""

    def launch(variables):
        for name in (*LAUNCHERS, *TORCHRUN, *SRUN, *BY_HAND, "SLURM_PROCID", "SLURM_LOCALID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("variables", "nodes", "devices"),
    [({}, 1, 1), ({}, 1, 4), (TORCHRUN, 2, 2), (SRUN, 2, 2), (SRUN, 1, 1), (BY_HAND, 2, 4)],
)
def test_launchers_that_fit(launched, variables, nodes, devices):
    launched(variables)
    check_launch(nodes, devices)


@pytest.mark.parametrize(
    ("variables", "nodes", "devices", "sentence"),
    [
        ({}, 2, 1, "`nodes` 2 .* are 2 processes, and this one does not know .* MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        ({**BY_HAND, "NODE_RANK": "2"}, 2, 1, "NODE_RANK is '2', and `nodes` is 2; set it from 0 to 1"),
        (
            TORCHRUN,
            1,
            1,
            "is one process, and torchrun has started 4, 2 on this node; .* use `nodes` 2 and `devices` 2",
        ),
        (TORCHRUN, 1, 4, "torchrun has started 4, 2 on this node; .* --nnodes 1 --nproc-per-node 4, or"),
        (SRUN, 2, 4, "are 8 processes, and Slurm has started 4; give srun the options --nodes 2 --ntasks-per-node 4"),
        ({**SRUN, "SLURM_NTASKS": "1"}, 2, 2, "and Slurm has started 1; give srun"),
        ({**SRUN, "SLURM_NTASKS": "1"}, 1, 2, "are 2 processes, and Slurm has started 1; give srun"),
    ],
)
def test_launchers_that_do_not_fit_are_told(launched, variables, nodes, devices, sentence):
    launched(variables)
    with pytest.raises(ConfigError, match=rf"^nodes: [^\n]*{sentence}[^\n]*$"):
        check_launch(nodes, devices)


def test_one_process_of_a_node_speaks(launched):
    said = []
    for variables in by_torchrun(2, 2):
        launched(variables)
        said.append(speaker(4))
    assert said[0] == "" and said[2].endswith(": ") and said[1] is said[3] is None


CHANGES = {
    "model": NORM_FREE,
    "precision": "64",
    "batch_size": 8,
    "accumulate": 1,
    "data": {"name": "tiny_images", "bad": (1, 5, 6)},
    "sampling": "balanced",
    "freeze": ["backbone.first"],
}


TWO_BY_TWO = ("--nodes", "2", "--devices", "2")


def same_weights(run: Path, other: Path) -> None:
    states = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, other)]
    assert states[0]["global_step"] == states[1]["global_step"]
    for part in ("state_dict", "average"):
        for name, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][name], value, rtol=0, atol=1e-10, msg=name)
    bad = [sorted((folder / "bad_images.csv").read_text().splitlines()) for folder in (run, other)]
    assert bad[0] == bad[1] and len(bad[0]) > 1


def test_two_nodes_lose_one_and_resume_with_other_numbers(tmp_path):
    """Two nodes of two processes, of which one is killed; then one process, stopped by a signal; then two nodes of one.
    The weights are those of one process.
    """
    changes = {**CHANGES, "epochs": 4}
    one = fit_config(config(**changes), tmp_path / "one", quiet=True).path
    run = tmp_path / "run"
    ended = run_together(tmp_path, by_torchrun(2, 2), changes, TWO_BY_TWO, [{}, {}, {}, {"kill_at": 3}])
    assert [end.code for end in ended] == [1, 1, 1, -9], ended
    said = [[line for line in end.text.splitlines() if line.startswith("foveal: ")] for end in ended]
    assert [len(lines) for lines in said] == [1, 0, 1, 0]
    assert f"{run}: another process of the run has ended" in said[0][0]
    assert f"is safe in {run}/last.ckpt, of step 3; go on with: foveal fit --resume --out {run} on every" in said[0][0]
    (stopped,) = run_together(tmp_path, [{}], changes, ("--resume",), [{"interrupt_at": 5}])
    assert stopped.code == 130 and "nodes: 2 -> 1" in stopped.text
    ended = run_together(tmp_path, by_torchrun(2, 1), changes, ("--resume", "--nodes", "2"))
    assert [end.code for end in ended] == [0, 0], ended
    assert ended[1].text == "" or "foveal" not in ended[1].text
    same_weights(one, run)


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_lost(tmp_path):
    flags = ("--nodes", "2", "--timeout", "5")
    ended = run_together(tmp_path, by_torchrun(2, 1), CHANGES | {"epochs": 4}, flags, [{}, {"stop_at": 3}], wait=60)
    assert ended[0].code == 1 and "did not answer for 5 seconds (--timeout); the run is safe" in ended[0].text
    (tmp_path / "run" / "last.ckpt").unlink()
    ended = run_together(tmp_path, by_torchrun(2, 1)[:1], CHANGES | {"epochs": 4}, (*flags, "--overwrite"), wait=60)
    assert ended[0].code == 1 and "nothing was saved before" in ended[0].text  # the other one never comes


@pytest.mark.slow
def test_a_run_that_is_there_ends_all_processes(tmp_path):
    fit_config(config(**CHANGES, epochs=1), tmp_path / "run", quiet=True)
    ended = run_together(tmp_path, by_torchrun(2, 2), CHANGES | {"epochs": 1}, TWO_BY_TWO)
    assert [end.code for end in ended] == [1] * 4
    assert [end.text.count("a run is there already") for end in ended] == [1, 0, 1, 0]


def on_two_nodes(out: Path, changes: dict, how: dict) -> list[int]:
    """Exit codes of the processes of two nodes, started by Lightning's variables."""
    command = [
        sys.executable,
        "-m",
        "tests.training.tiny",
        str(out),
        json.dumps({**changes, "nodes": 2}),
        json.dumps(how),
    ]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}
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
    same_weights(one, tmp_path / "two")


def torchrun(folder: Path, changes: dict, how: dict) -> list[tuple[int, str]]:
    """Exit codes and texts of ``torchrun`` on two nodes of two processes."""
    address = ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    script = ["-m", "tests.training.tiny", str(folder / "two"), json.dumps({**changes, "nodes": 2, "devices": 2})]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", *address]
    nodes = [
        subprocess.Popen(
            [*command, "--node-rank", str(node), *script, json.dumps(how)],
            cwd=ROOT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    try:
        return [(node.returncode, text) for node in nodes for text in [node.communicate(timeout=240)[0]]]
    finally:
        for node in nodes:
            node.kill()


@pytest.mark.slow
def test_torchrun_on_two_nodes_is_one_process(tmp_path):
    """A process of the second node is killed in between, which ends both nodes."""
    changes = {**CHANGES, "epochs": 3}
    one = fit_config(config(**changes), tmp_path / "one", quiet=True).path
    killed = torchrun(tmp_path, changes, {"kill_at": 3, "kill_rank": 3})
    assert all(code != 0 and "another process of the run has ended" in text for code, text in killed), killed
    resumed = torchrun(tmp_path, changes, {"resume": True})
    assert [code for code, _ in resumed] == [0, 0], resumed
    same_weights(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_lightning_loses_a_process_that_it_started(tmp_path, rank):
    changes = json.dumps({**CHANGES, "epochs": 3, "devices": 2})
    how = json.dumps({"kill_at": 3, "kill_rank": rank})
    command = [sys.executable, "-m", "tests.training.tiny", str(tmp_path / "run"), changes, how]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == (1 if rank else -9), done
    if rank:
        assert "another process of the run has ended" in done.stderr and "of step 3; go on with: foveal" in done.stderr
    resumed = fit_config(config(**CHANGES, epochs=3), tmp_path / "run", resume=True, quiet=True)
    assert resumed.summary["step"] == 6


@pytest.mark.slow
def test_the_command_of_the_guide(tmp_path):
    """With one process on each node. Each message comes once."""
    draws = np.random.default_rng(0)
    for name in ("crack/1", "crack/2", "crack/3", "none/1", "none/2", "none/3"):
        (tmp_path / "photographs" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{name}.png")
    guide = (ROOT / "docs" / "guides" / "slurm.md").read_text()
    (line,) = re.findall(r"^torchrun .*\\\n.*$", guide, re.MULTILINE)
    words = shlex.split(line.replace("\\\n", " ").replace("/shared/runs", str(tmp_path)))
    changed = {
        "4": "1",
        "node0": "127.0.0.1",
        "29500": free_port(),
        "/shared/photographs": str(tmp_path / "photographs"),
    }
    small = "--model.backbone test_efficientnet --model.pretrained false --model.base_size 32 --device cpu --steps 2"
    words = [changed.get(word, word) for word in words[1:]] + [
        *small.split(),
        "--batch-size",
        "4",
        "--data.val_fraction=0",
    ]
    nodes = []
    for rank in ("0", "1"):
        words[words.index("--node-rank") + 1] = rank
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        variables = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *words]
        nodes.append(subprocess.Popen(command, cwd=ROOT, env=variables, **how))
    texts = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], texts
    assert [texts[0].count(line) for line in ("model  tnet", "step 2/2", "\nnext ")] == [1, 1, 1], texts
    assert texts[1] == ""
