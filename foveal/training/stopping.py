"""Signals that stop a run.

Ctrl-C, SIGTERM and SIGHUP stop the run after the current update. It is saved, and the command to resume it is printed.
Before the first update there is nothing to save, and the run ends immediately. Further signals are ignored, because
`timeout` and Slurm send a signal twice or to every process of a group. Only a Ctrl-C at least a second after the first
signal ends the run without saving.

Example:
    >>> import os
    >>> try:
    ...     with StopSignals() as signals:
    ...         os.kill(os.getpid(), signal.SIGTERM)
    ... except Interrupted:
    ...     print("before the first update")
    before the first update
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from foveal.host import STOP_SIGNALS
from foveal.training.learner import Learner

AGAIN = 1.0
"""Seconds after the first signal from which on Ctrl-C ends the run without saving."""


class Interrupted(Exception):
    """A signal stopped the run. It was saved."""


class Stopped(KeyboardInterrupt):
    """Raised by `fit` after a signal. The exit code is 128 + ``number``, which is 130 for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StopSignals:
    """Handles signals within a context, in the main thread, and restores the handlers afterwards.

    Args:
        at_once: raise `Interrupted` for a signal before `wait_for` is called. False in worker processes, for which the
            others wait.

    Attributes:
        number: number of the first signal.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.at_once = at_once
        self.number: int = signal.SIGINT
        self._since: float | None = None
        self._learner: Learner | None = None
        self._before: dict[int, Any] = {}

    def wait_for(self, learner: Learner) -> None:
        """From now on, request the learner to stop instead; also for an earlier signal."""
        self._learner = learner
        learner.stop_requested |= self._since is not None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                before = signal.getsignal(number)
                if number != signal.SIGINT and before == signal.SIG_IGN:  # nohup
                    continue
                self._before[number] = before
                signal.signal(number, self._take)
            if not self.at_once and hasattr(signal, "pthread_sigmask"):  # started by `deaf_children`, which blocks them
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since, self.number = now, number
            if self._learner is not None:
                self._learner.stop_requested = True
            elif self.at_once:
                raise Interrupted
        elif number == signal.SIGINT and now - self._since >= AGAIN:
            raise SystemExit(130)
