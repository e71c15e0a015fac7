"""Many clients, and generated requests, against a service in another process."""

import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serve.running import start, stop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(run, folder):
    process, found = start(run, "--images", folder, "--batch-size", "8")
    yield found
    stop(process)


def test_fifty_clients_get_each_answer_once(address):
    import httpx

    names = ("a.png", "b.png", "deep/c.png")
    answers = Counter()

    def work(client):
        with httpx.Client(timeout=120) as session:
            for i in range(10):
                name = names[(client + i) % 3]
                answer = session.post(f"{address}/v1/classify", data={"path": name, "top_k": 1 + client % 4})
                found = answer.json()
                fits = found.get("path") == name and len(found.get("top_k", ())) == 1 + client % 4
                answers[answer.status_code, fits] += 1

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(work, range(50)))
    assert answers == {(200, True): 500}
    with httpx.Client() as session:
        assert "foveal_images_total 500.0" in session.get(f"{address}/metrics").text


def test_generated_requests_are_answered_as_the_schema_says(address, tmp_path):
    tool = shutil.which("schemathesis") or Path(sys.executable).with_name("schemathesis")
    if not Path(tool).exists():
        pytest.skip("no schemathesis")
    # Whether a form is right depends on the image, so a form that fits the schema may be refused.
    flags = "--exclude-checks positive_data_acceptance --max-examples 30 --seed 1 --no-color"
    done = subprocess.run(
        [tool, "run", f"{address}/openapi.json", *flags.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
