"""Batches of jobs that arrive together."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from foveal.serve.batching import Batcher


@pytest.fixture
def make():
    made = []

    def start(**options):
        made.append(Batcher(**{"prepare": lambda job: job, "run": lambda key, jobs: list(jobs)} | options))
        return made[-1]

    yield start
    for batcher in made:
        batcher.close()


def gated():
    """A `run` that records its batches and waits for an event."""
    batches, gate = [], threading.Event()

    def run(key, jobs):
        batches.append((key, list(jobs)))
        assert gate.wait(10)
        return [job * 10 for job in jobs]

    return run, batches, gate


def test_jobs_that_wait_together_run_together_and_keys_are_not_mixed(make):
    run, batches, gate = gated()
    batcher = make(run=run, batch_size=3, wait=0.0, threads=1)
    first = batcher.submit(0, "a")
    while not batches:
        time.sleep(0.001)
    later = [batcher.submit(i, "b" if i == 3 else "a") for i in range(1, 6)]
    while batcher._open:
        time.sleep(0.001)
    gate.set()
    assert [future.result(10) for future in (first, *later)] == [0, 10, 20, 30, 40, 50]
    assert batches == [("a", [0]), ("a", [1, 2, 4]), ("b", [3]), ("a", [5])]


def test_a_batch_waits_for_others_up_to_the_bound_and_not_when_full(make):
    batches = []
    batcher = make(run=lambda key, jobs: batches.append(len(jobs)) or list(jobs), batch_size=2, wait=30.0, threads=1)
    assert [future.result(10) for future in [batcher.submit(i, "a") for i in range(4)]] == [0, 1, 2, 3]
    assert batches == [2, 2]  # the bound of 30 s has not passed


def test_each_job_is_answered_once_from_many_threads(make):
    batcher = make(run=lambda key, jobs: [(key, job) for job in jobs], batch_size=4, wait=0.001)
    answers = []

    def ask(client):
        for i in range(25):
            answers.append((client, i, batcher.submit((client, i), i % 3).result(10)))

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(c, i, (i % 3, (c, i))) for c in range(8) for i in range(25)]


def test_a_failing_job_does_not_fail_its_batch(make):
    def run(key, jobs):
        if "bad" in jobs:
            raise ValueError("bad")
        return list(jobs)

    batcher = make(run=run, batch_size=3, wait=5.0, threads=1)
    futures = [batcher.submit(job, "a") for job in ("one", "bad", "two")]
    assert futures[0].result(10) == "one" and futures[2].result(10) == "two"
    with pytest.raises(ValueError, match="bad"):
        futures[1].result(10)


def test_a_job_that_cannot_be_prepared_fails_alone(make):
    batcher = make(prepare=lambda job: 1 // job, wait=0.0)
    with pytest.raises(ZeroDivisionError):
        batcher.submit(0, "a").result(10)
    assert batcher.submit(1, "a").result(10) == 1


def test_a_cancelled_job_does_not_run_and_is_released(make):
    run, batches, gate = gated()
    released = []
    batcher = make(run=run, release=released.append, wait=0.0, threads=1)
    first = batcher.submit(1, "a")
    while not batches:
        time.sleep(0.001)
    second = batcher.submit(2, "a")
    while batcher._open:
        time.sleep(0.001)
    assert second.cancel()
    gate.set()
    assert first.result(10) == 10
    with pytest.raises(CancelledError):
        second.result(10)
    batcher.close()
    assert batches == [("a", [1])] and sorted(released) == [1, 2]


def test_closing_answers_what_was_accepted_and_accepts_no_more():
    run, _, gate = gated()
    batcher = Batcher(prepare=lambda job: job, run=run, batch_size=1, wait=0.0, threads=1)
    futures = [batcher.submit(i, "a") for i in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.set()
    closing.join(10)
    assert [future.result(0) for future in futures] == [0, 10, 20, 30, 40]
    with pytest.raises(RuntimeError):
        batcher.submit(6, "a")
    assert not batcher.alive
