"""A forked process that runs tasks and reports exceptions, crashes, hangs and memory.

Example:
    >>> worker = Worker(lambda number: 12 // number)
    >>> worker.ask(3, 10).value, worker.ask(0, 10).trouble.splitlines()[0]
    (4, 'ZeroDivisionError: integer division or modulo by zero')
    >>> worker.stop()
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from foveal.host import end_with_parent

GUARD = 8 << 30  # limit of address space beyond that of the parent, in bytes, to protect a shared machine


@dataclass(frozen=True)
class Answer:
    """Result of a task.

    Attributes:
        value: return value of the function; None if it failed.
        kind: "done", "exception", "crash" or "hang".
        trouble: text of the exception, or the exit code.
        seconds: wall time.
        mebibytes: largest resident memory during the task, without children; 0 if the process died.
    """

    value: Any = None
    kind: str = "done"
    trouble: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0


class Worker:
    """Run tasks in a fork of this process, which is restarted after a crash or a hang.

    Args:
        function: maps a task to a value that can be pickled.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._process: Any = None
        self._connection: Any = None

    def ask(self, task: Any, limit: float) -> Answer:
        """Run one task with a time limit of ``limit`` seconds."""
        if self._process is None:
            self._start()
        start = time.perf_counter()
        self._connection.send(task)
        try:
            if self._connection.poll(limit):
                return self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            code = self._process.exitcode
            self._process = None
            return Answer(None, "crash", f"exit code {code}", time.perf_counter() - start)
        self.stop()
        return Answer(None, "hang", f"no answer in {limit:g} s", time.perf_counter() - start)

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, other = context.Pipe()
        gc.freeze()
        self._process = context.Process(target=_serve, args=(self._function, other, self._connection), daemon=False)
        self._process.start()
        other.close()

    def stop(self) -> None:
        """End the process and its children."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.join()
            self._process = None
            self._connection.close()


def _serve(function: Callable[[Any], Any], connection: Connection, parents: Connection) -> None:
    os.setsid()  # a new process group, so that children can be killed with the worker
    end_with_parent()
    parents.close()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GUARD, size + GUARD))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak of resident memory
        start = time.perf_counter()
        try:
            answer = Answer(function(task))
        except Exception as error:
            text = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))[-1500:]}"
            answer = Answer(None, "exception", text)
        connection.send(Answer(answer.value, answer.kind, answer.trouble, time.perf_counter() - start, _peak()))


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
