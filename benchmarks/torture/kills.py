"""Commands that are killed, signalled, or run out of disk space, and are then repeated.

A trial runs a command in a fork of this process, which has imported the slow modules. File operations of the command
are counted in Python: opening for writing, writing, renaming, removing, making folders. At one of them the trial kills
itself, or the operation fails as on a full disk. Then the command is repeated in another fork, and the result is
compared with that of an undisturbed command.

Example:
    >>> _without_times({"accuracy": 0.5, "seconds": [1.2]})
    {'accuracy': 0.5}
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FIT = [
    "fit",
    "--data",
    "digits",
    "--data.canvas",
    "96",
    "--data.digit",
    "16,20",
    "--data.distractors",
    "1",
    "--data.train",
    "12",
    "--data.val",
    "6",
    "--data.test",
    "6",
    "--model",
    "tnet",
    "--model.backbone",
    "test_efficientnet",
    "--model.base_size",
    "16",
    "--model.locations",
    "[1]",
    "--batch-size",
    "4",
    "--steps",
    "4",
    "--save-every",
    "1",
    "--device",
    "cpu",
    "--quiet",
]
LIMIT_S = 240  # generous, because the machine may be shared


class Operations:
    """Count operations on the files below a folder, and call a function before each.

    Args:
        folder: the folder.
        each: function of the number of the operation and its name.
    """

    def __init__(self, folder: str | Path, each: Callable[[int, str], None]) -> None:
        self._folder, self._each, self.count = os.path.realpath(folder), each, 0
        sys.addaudithook(self._hook)
        opened = builtins.open

        def watched(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            found = opened(file, mode, *args, **options)
            return _Watched(found, self) if set(mode) & set("wax+") and self._is_below(file) else found

        builtins.open = io.open = watched  # type: ignore[assignment]

    def happen(self, what: str) -> None:
        self.count += 1
        self._each(self.count, what)

    def _is_below(self, file: Any) -> bool:
        return isinstance(file, str | bytes | os.PathLike) and os.path.realpath(os.fsdecode(file)).startswith(
            self._folder
        )

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            _, mode, flags = args
            changing = bool(set(mode or "") & set("wax+")) or bool(
                (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if changing and self._is_below(args[0]):
                self.happen("open")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate") and self._is_below(
            args[0]
        ):
            self.happen(event)


class _Watched:
    """A file whose writes are counted as operations."""

    def __init__(self, file: Any, operations: Operations) -> None:
        self._file, self._operations = file, operations

    def write(self, data: Any) -> Any:
        self._operations.happen("write")
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Any:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)


# ---------------------------------------------------------------------------------------------------------- one command


def start(argv: Sequence[str], folder: Path, how: str = "", at: int = 0) -> multiprocessing.Process:
    """Run a command in a fork with its own process group.

    Args:
        argv: arguments of ``foveal``.
        folder: output folder of the command; the files ``.said`` and ``.count`` are written beside it.
        how: "kill" or "full" disturb operation ``at``, "count" counts operations, "size" limits the size of files to
            ``at`` bytes, "" does nothing.
        at: number of an operation or of bytes, see ``how``.
    """

    def child() -> None:
        os.setpgid(0, 0)
        said = folder.with_name(f"{folder.name}.said")
        where = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(where, 1)
        os.dup2(where, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        random.seed(0)

        def each(number: int, what: str) -> None:
            if number == at and how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if number >= at and how == "full" and what in ("open", "write", "os.mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        operations = Operations(folder, each) if how in ("kill", "full", "count") else None
        if how == "size":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
        from foveal.cli import main

        try:
            code = main(argv)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        if operations is not None and how == "count":
            folder.with_name(f"{folder.name}.count").write_text(str(operations.count))
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process  # type: ignore[return-value]


def wait(process: multiprocessing.Process) -> int | None:
    """Wait for a process; return its exit code, negative for a signal, or None if it exceeds `LIMIT_S`."""
    process.join(LIMIT_S)
    if process.exitcode is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return None
    return process.exitcode


def said(folder: Path) -> str:
    file = folder.with_name(f"{folder.name}.said")
    return file.read_text(errors="replace").strip() if file.exists() else ""


# ------------------------------------------------------------------------------------------------------------- the jobs


class Job:
    """A command, its repetition, and its result.

    Args:
        name: name in the table.
        command: maps the output folder to the arguments.
        repeat: maps the output folder to the arguments of the repetition.
        result: maps the output folder to a comparable result; raises an exception if files are missing.
        prepare: function that fills a new output folder, or None.
        code: expected exit code; 1 if an image is bad.
    """

    def __init__(self, name: str, command: Any, repeat: Any, result: Any, prepare: Any = None, code: int = 0) -> None:
        self.name, self.command, self.repeat, self.result, self.prepare, self.code = (
            name,
            command,
            repeat,
            result,
            prepare,
            code,
        )
        self.expected: Any = None
        self.operations = 0

    def fresh(self, folder: Path) -> None:
        for old in (folder, *folder.parent.glob(f"{folder.name}.*")):
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
        folder.mkdir(parents=True)
        if self.prepare:
            self.prepare(folder)

    def undisturbed(self, folder: Path) -> None:
        """Run the command without disturbance; keep the result and the number of operations."""
        self.fresh(folder)
        code = wait(start(self.command(folder), folder, "count"))
        if code != self.code:
            raise RuntimeError(f"{self.name} does not work at all: {said(folder)}")
        self.operations = int(folder.with_name(f"{folder.name}.count").read_text())
        self.expected = self.result(folder)

    def again(self, folder: Path, how: str = "", at: int = 0) -> int | None:
        """Repeat the command, with a disturbance as in `start`; return the exit code.

        A training that was killed before its first checkpoint has nothing to resume: the options are then those that
        the message of the command names.
        """
        code = wait(start(self.repeat(folder), folder, how, at))
        if code == 1 and "no last.ckpt" in said(folder):
            added = ["--overwrite"] if "--overwrite" in said(folder) else []
            code = wait(start([*self.command(folder), *added], folder, how, at))
        return code

    def repeated(self, folder: Path) -> str | None:
        """Repeat the command without disturbance; return a description of what is wrong, or None."""
        code = self.again(folder)
        if code != self.code:
            return f"repeating it ends with {code}: {said(folder)[-300:]}"
        try:
            found = self.result(folder)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None if found == self.expected else "the result is another one"


def jobs(run: Path, images: Path) -> list[Job]:
    """Jobs: training, prediction in three formats, and evaluation at a mean cost.

    Args:
        run: run folder that prediction and evaluation read.
        images: folder of images to predict.
    """

    def weights(folder: Path) -> Any:
        summary = json.loads((folder / "run" / "summary.json").read_text())
        return (folder / "run" / "model.safetensors").read_bytes(), summary.get("steps")

    def rows(suffix: str) -> Any:
        def read(folder: Path) -> Any:
            from foveal.prediction.output import read_rows

            found = list(read_rows(folder / f"rows{suffix}"))
            count = Counter(row["path"] for row in found)
            if set(count.values()) != {1}:
                raise ValueError(f"rows that are there several times: {[p for p, n in count.items() if n > 1][:3]}")
            return [{key: value for key, value in row.items() if key != "seconds"} for row in found]

        return read

    def copied(folder: Path) -> None:
        shutil.copytree(run, folder / "run")

    def exits(folder: Path) -> Any:
        return [
            _without_times(json.loads((folder / "run" / name).read_text()))
            for name in ("exits.json", "early_exit.json")
        ]

    found = [
        Job(
            "fit",
            lambda folder: [*FIT, "--out", str(folder / "run")],
            lambda folder: [*FIT, "--out", str(folder / "run"), "--resume"],
            weights,
        )
    ]
    for suffix in (".csv", ".jsonl", ".parquet"):
        predict = lambda folder, suffix=suffix: [  # noqa: E731
            "predict",
            str(run),
            str(images),
            "--out",
            str(folder / f"rows{suffix}"),
            "--batch-size",
            "2",
            "--device",
            "cpu",
            "--quiet",
        ]
        found.append(Job(f"predict {suffix}", predict, predict, rows(suffix), code=1))
    evaluate = lambda folder: [  # noqa: E731
        "evaluate",
        str(folder / "run"),
        "--budget",
        BUDGET,
        "--device",
        "cpu",
        "--quiet",
    ]
    found.append(Job("evaluate --budget", evaluate, evaluate, exits, copied))
    return found


def _without_times(found: Any) -> Any:
    """Remove entries of time, speed and command from a result."""
    if isinstance(found, dict):
        return {
            key: _without_times(value)
            for key, value in found.items()
            if not re.search("second|time|milli|command|speed", key)
        }
    return [_without_times(value) for value in found] if isinstance(found, list) else found


BUDGET = "0.1GMAC"
SLOW = (
    "lightning",
    "timm",
    "torchvision",
    "sklearn.datasets",
    "pyarrow.parquet",
    "matplotlib.figure",
    "safetensors.torch",
    "foveal.training.fitting",
    "foveal.evaluation",
    "foveal.prediction",
    "foveal.recipes.configure",
)
"""Modules that take long to import."""

# ----------------------------------------------------------------------------------------------------------- the trials


def killed(job: Job, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Kill the command at ``count`` of its operations, at most at each of them, and repeat it."""
    found = []
    places = range(1, job.operations + 1)
    for at in sorted(random.Random(f"{seed} {job.name}").sample(places, min(count, len(places)))):
        job.fresh(folder)
        code = wait(start(job.command(folder), folder, "kill", at))
        found.append({"at": at, "kills": int(code == -signal.SIGKILL), "wrong": _after_kill(job, folder, code)})
    return found


def killed_again(job: Job, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Kill the command and one to three of its repetitions at random operations, and repeat it."""
    found = []
    draw = random.Random(f"{seed} again {job.name}")
    for _ in range(count):
        job.fresh(folder)
        places = [draw.randint(1, job.operations) for _ in range(draw.randint(2, 4))]
        codes = [wait(start(job.command(folder), folder, "kill", places[0]))]
        codes += [job.again(folder, "kill", at) for at in places[1:]]
        wrong = next((code for code in codes if code not in (-signal.SIGKILL, job.code)), codes[-1])
        kills = codes.count(-signal.SIGKILL)
        found.append({"at": places, "kills": kills, "wrong": _after_kill(job, folder, wrong)})
    return found


def killed_at_a_time(job: Job, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Kill the process group of the command after a random time, and repeat it."""
    found = []
    draw = random.Random(f"{seed} time {job.name}")
    length = _length(job, folder)
    for _ in range(count):
        job.fresh(folder)
        process = start(job.command(folder), folder)
        time.sleep(draw.random() * length)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        code = wait(process)
        found.append({"kills": int(code == -signal.SIGKILL), "wrong": _after_kill(job, folder, code)})
    return found


def _after_kill(job: Job, folder: Path, code: int | None) -> str | None:
    if code not in (-signal.SIGKILL, job.code):
        return f"it ends with {code}: {said(folder)[-300:]}"
    return job.repeated(folder)


def _length(job: Job, folder: Path) -> float:
    """Wall time of the command in seconds."""
    job.fresh(folder)
    begin = time.perf_counter()
    wait(start(job.command(folder), folder))
    return time.perf_counter() - begin


def full(job: Job, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Simulate a full disk from an operation on: the command must end with an error, and can then be repeated."""
    found = []
    places = range(1, job.operations + 1)
    for at in sorted(random.Random(f"{seed} full {job.name}").sample(places, min(count, len(places)))):
        job.fresh(folder)
        found.append({"at": at, "wrong": _after_full(job, folder, "full", at)})
    for size in (0, 1 << 10, 1 << 14, 1 << 18):  # limits of the size of files also reach writes of C libraries
        job.fresh(folder)
        found.append({"bytes": size, "wrong": _after_full(job, folder, "size", size)})
    return found


def _after_full(job: Job, folder: Path, how: str, at: int) -> str | None:
    code = wait(start(job.command(folder), folder, how, at))
    text = said(folder)
    if code not in (0, 1) or "Traceback" in text:
        return f"it ends with {code}: {text[-300:]}"
    return job.repeated(folder)


def signalled(job: Job, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Send a signal to the whole process group after some time, and repeat the command."""
    found = []
    draw = random.Random(f"{seed} signal {job.name}")
    length = _length(job, folder)
    for _ in range(count):
        job.fresh(folder)
        number = draw.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        process = start(job.command(folder), folder)
        time.sleep(draw.random() * length)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, number)
        code = wait(process)
        text = said(folder)
        wrong = None
        if code is None or code not in (0, 1, 130, 143, 129) or "Traceback" in text:
            wrong = f"{number.name}: it ends with {code}: {text[-300:]}"
        found.append({"signal": number.name, "wrong": wrong or job.repeated(folder)})
    return found


def twice(job: Job, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Run the command twice at the same time: one must succeed, and repeating it must not change the result."""
    found = []
    for number in range(count):
        job.fresh(folder)
        processes = [start(job.command(folder), folder) for _ in range(2)]
        codes = [wait(process) for process in processes]
        wrong = None
        if job.code not in codes or any(code not in (0, 1, 2) for code in codes):
            wrong = f"they end with {codes}: {said(folder)[-300:]}"
        found.append({"number": number, "wrong": wrong or job.repeated(folder)})
    return found


TRIALS = {
    "killed at a file operation": killed,
    "killed several times": killed_again,
    "killed at a random time": killed_at_a_time,
    "disk full": full,
    "signal to the group": signalled,
    "two at a time": twice,
}
_SHARE = {"predict": 1 / 3, "evaluate": 1 / 10}  # predictions are three jobs; evaluation writes two files


def plan(job: Job, kills: int) -> dict[str, int]:
    """Number of trials of each kind for a job.

    Args:
        job: the job, with its number of operations.
        kills: number of trials with SIGKILL for training, and for the three formats of prediction together. They begin
            with one at each operation; the others are kills of repetitions and kills at random times, in equal parts.
    """
    share = math.ceil(kills * _SHARE.get(job.name.split()[0], 1))
    each = min(share, job.operations)
    counts = {"killed at a file operation": each, "killed several times": (share - each + 1) // 2}
    counts["killed at a random time"] = share - sum(counts.values())
    return counts | dict.fromkeys(("disk full", "signal to the group", "two at a time"), math.ceil(kills / 25))


def run(folder: Path, kills: int, seed: int = 0, names: Sequence[str] = (), say: Any = None) -> dict[str, Any]:
    """Run the trials of all jobs.

    Args:
        folder: folder of all files.
        kills: see `plan`.
        seed: seed of operations, signals and times.
        names: names of jobs; all if empty.
        say: function that is called with a line of text for each kind of trial, or None.
    """
    import torch

    for module in SLOW:
        __import__(module)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    base, images = folder / "base", folder / "images"
    first = jobs(base / "run", images)[0]
    first.undisturbed(base)
    code = wait(start(["data", str(base / "run"), "--export", str(images), "--count", "6"], folder / "export"))
    if code:
        raise RuntimeError(f"no images: {said(folder / 'export')}")
    (images / "bad.png").write_bytes(b"nonsense")
    rows: list[dict[str, Any]] = []
    waiting = [job for job in jobs(base / "run", images) if not names or job.name in names]
    for job in waiting:
        job.undisturbed(folder / "work")
    for kind, trial in TRIALS.items():
        for job in waiting:
            found = trial(job, folder / "work", plan(job, kills)[kind], seed)
            wrong = [one for one in found if one["wrong"]]
            row = {"job": job.name, "kind": kind, "operations": job.operations, "trials": len(found), "wrong": wrong}
            rows.append(row | {"kills": sum(one.get("kills", 0) for one in found)})
            if say is not None:
                say(f"{job.name}, {kind}: {len(found)} trials, {rows[-1]['kills']} kills, {len(wrong)} wrong {wrong}")
            (folder / "rows.json").write_text(json.dumps({"seed": seed, "rows": rows}))
    return {"seed": seed, "rows": rows}
