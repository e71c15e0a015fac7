"""The command: what it prints, and how it ends."""

import importlib.util
import os
import re
import signal
import socket
import threading

import pytest

from foveal.cli import main
from foveal.errors import ConfigError
from foveal.serve.server import check_token
from tests.serve.running import start, stop
from tests.tiny import failure


def test_a_port_in_use_is_one_sentence(capsys, run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = failure(capsys, "serve", run, "--port", port)
    assert code == 2 and f"--port {port}: cannot be used at 127.0.0.1 (Address already in use)" in said


@pytest.mark.parametrize(
    ("flags", "code", "part"),
    [
        (["--images", "nowhere"], 2, "--images nowhere: there is no such folder"),
        (["--host", "no.such.host.invalid"], 2, "--host no.such.host.invalid: is no address"),
        (["--host", "192.0.2.1"], 2, "--host 192.0.2.1: is no address"),
        (["--port", "70000"], 2, "--port 70000: is not a port"),
        (["--timeout", "nan"], 2, "--timeout nan: does not fit"),
        (["--wait", "-1"], 2, "--wait -1: does not fit"),
        (["--device", "cuda:77"], 2, "--device cuda:77"),
    ],
)
def test_wrong_options_are_one_sentence(capsys, run, flags, code, part):
    if "--port" not in flags:
        flags = [*flags, "--port", "0"]
    found, said = failure(capsys, "serve", run, *flags)
    assert found == code and part in said, said


def test_a_folder_that_is_no_run_is_one_sentence(capsys, tmp_path):
    code, said = failure(capsys, "serve", tmp_path, "--port", "0")
    assert code == 1 and str(tmp_path) in said


def test_a_missing_package_is_named_with_its_extra(capsys, run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "foveal.serve.server.find_spec", lambda name: None if name == "python_multipart" else find(name)
    )
    code, said = failure(capsys, "serve", run)
    assert code == 2 and "pip install 'foveal[serve]'" in said


@pytest.mark.parametrize("token", ["white space", "ümlaut", "tab\t"])
def test_a_token_that_cannot_be_sent_is_refused(token):
    with pytest.raises(ConfigError, match="FOVEAL_TOKEN"):
        check_token(token)


@pytest.mark.parametrize(("host", "asks"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_another_host_has_a_token_in_its_address(run, host, asks, monkeypatch):
    from foveal.serve import server

    told, made = [], []

    def answer(service, token, listener, on_start):
        made.append(token)
        on_start()
        service.close()

    monkeypatch.setattr(server, "_answer", answer)
    server.serve(run, host=host, port=0, device="cpu", on_start=told.append)
    assert bool(made[0]) == asks
    assert re.fullmatch(rf"http://{re.escape(host)}:\d+/" + (rf"\?token={made[0]}" if asks else ""), told[0])
    monkeypatch.setenv("FOVEAL_TOKEN", "mine")
    server.serve(run, host=host, port=0, device="cpu", on_start=told.append)
    assert made[1] == "mine" and "token" not in told[1]


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted(run, folder):
    import httpx

    process, address = start(run, "--images", folder, "--wait", "1500")
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(httpx.post(f"{address}/v1/classify", data={"path": "a.png"}, timeout=60))
        )
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    while "foveal_accepted 5.0" not in httpx.get(f"{address}/metrics").text:
        pass
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert process.wait(60) == 128 + signal.SIGTERM
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_a_killed_service_starts_again_and_clears_up(run, folder, tmp_path, monkeypatch):
    import httpx

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process, address = start(run, "--images", folder)
    port = address.rpartition(":")[2]
    httpx.post(f"{address}/v1/classify", files={"image": (folder / "a.png").read_bytes()}).raise_for_status()
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    again, address = start(run, "--images", folder, "--port", port)
    try:
        assert httpx.post(f"{address}/v1/classify", data={"path": "a.png"}).status_code == 200
        assert len(list(tmp_path.glob("foveal-serve-*"))) == 1
    finally:
        stop(again)
    assert not list(tmp_path.glob("foveal-serve-*"))


def test_help_names_the_options(capsys):
    assert main(["serve", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"--{name}" in said for name in ("images", "host", "port", "queue", "timeout"))
