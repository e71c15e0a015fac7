"""Jobs that arrive together, run as batches in one thread.

A job is prepared in a pool of threads: its image is opened and its first look is read. A prepared job waits for others
with the same key until the batch is full, or until the first has waited for a given time. Each accepted job gets one
result or error, unless its future is cancelled.

Example:
    >>> batcher = Batcher(prepare=lambda text: int(text), run=lambda key, numbers: [n * key for n in numbers])
    >>> answers = [batcher.submit(text, key=10) for text in ("1", "2", "x")]
    >>> answers[0].result(), answers[1].result(), type(answers[2].exception()).__name__
    (10, 20, 'ValueError')
    >>> batcher.close()
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

_LONGER = 10  # times as long a batch waits while further jobs are being prepared

Job = TypeVar("Job")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Task(Generic[Job, Prepared, Result]):
    job: Job
    key: Hashable
    future: Future[Result] = field(default_factory=Future)
    prepared: Prepared | None = None
    since: float = 0.0  # when it was prepared


class Batcher(Generic[Job, Prepared, Result]):
    """Runs jobs as batches.

    Args:
        prepare: called for each job, in several threads at once.
        run: called in one thread with a key and the prepared jobs that have it; returns their results in order. If it
            fails for several, it is called again for each alone.
        release: called for each prepared job after it has run, or if it was cancelled.
        batch_size: most jobs per batch.
        wait: seconds that a prepared job waits for others; ten times as long while others are being prepared.
        threads: threads that prepare jobs.
        on_batch: called with the number of jobs of each batch, and the seconds that it took.
    """

    def __init__(
        self,
        prepare: Callable[[Job], Prepared],
        run: Callable[[Any, list[Prepared]], Sequence[Result]],
        release: Callable[[Prepared], None] = lambda prepared: None,
        *,
        batch_size: int = 8,
        wait: float = 0.005,
        threads: int | None = None,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.prepare, self.run, self.release, self.on_batch = prepare, run, release, on_batch
        self.batch_size, self.wait = batch_size, wait
        self._ready: deque[_Task[Job, Prepared, Result]] = deque()
        self._changed = threading.Condition()
        self._open = 0  # jobs that are not prepared yet
        self._closed = False
        self._pool = ThreadPoolExecutor(threads or min(batch_size, 2 * (os.cpu_count() or 1)), "foveal-open")
        self._worker = threading.Thread(target=self._work, name="foveal-classify", daemon=True)
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that runs batches does so."""
        return self._worker.is_alive() and not self._closed

    def submit(self, job: Job, key: Hashable) -> Future[Result]:
        """Accept a job. Jobs with equal keys may run in one batch.

        Raises:
            RuntimeError: the batcher is closed.
        """
        task: _Task[Job, Prepared, Result] = _Task(job, key)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._open += 1
        self._pool.submit(self._prepare, task)
        return task.future

    def close(self) -> None:
        """Run all accepted jobs, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._pool.shutdown()
        self._worker.join()

    def _prepare(self, task: _Task[Job, Prepared, Result]) -> None:
        try:
            if not task.future.cancelled():
                task.prepared = self.prepare(task.job)
        except BaseException as error:
            _fail(task.future, error)
        with self._changed:
            self._open -= 1
            if task.prepared is not None:
                task.since = time.monotonic()
                self._ready.append(task)
            self._changed.notify()

    def _work(self) -> None:
        while batch := self._next_batch():
            running = [task for task in batch if task.future.set_running_or_notify_cancel()]
            start = time.monotonic()
            try:
                if running:
                    self._run(running)
                    self.on_batch(len(running), time.monotonic() - start)
            finally:
                for task in batch:
                    if task.prepared is not None:
                        self.release(task.prepared)
                        task.prepared = None

    def _next_batch(self) -> list[_Task[Job, Prepared, Result]]:
        """The next jobs with equal keys; none after the last."""
        with self._changed:
            while not self._ready:
                if self._closed and not self._open:
                    return []
                self._changed.wait()
            first = self._ready[0]
            while sum(task.key == first.key for task in self._ready) < self.batch_size:
                bound = self.wait * (_LONGER if self._open else 1)
                left = first.since + bound - time.monotonic()
                if left <= 0 or (self._closed and not self._open):
                    break
                self._changed.wait(left)
            batch = [task for task in self._ready if task.key == first.key][: self.batch_size]
            for task in batch:
                self._ready.remove(task)
            return batch

    def _run(self, tasks: list[_Task[Job, Prepared, Result]]) -> None:
        try:
            results = self.run(tasks[0].key, [task.prepared for task in tasks if task.prepared is not None])
            for task, result in zip(tasks, results, strict=True):
                task.future.set_result(result)
        except BaseException as error:
            if len(tasks) == 1:
                _fail(tasks[0].future, error)
            else:
                for task in tasks:
                    self._run([task])


def _fail(future: Future[Any], error: BaseException) -> None:
    with suppress(Exception):  # it was cancelled in this moment
        future.set_exception(error)
