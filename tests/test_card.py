"""Model cards, and the Hub: a local server with its interface, and nothing beyond this machine."""

import base64
import json
import pickle
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

import foveal
from foveal.card import BEGIN, END, facts, push, write_model_card
from foveal.cli import main
from foveal.errors import ConfigError, RunError, StorageError
from foveal.models import create_classifier
from foveal.runs import ModelInfo, Run, load, save_model
from tests.tiny import failure

INFO = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2]}
COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """The part of the Hub's interface that is used: repositories with files, commits, and tokens."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        if "Bearer right" not in self.headers.get("Authorization", ""):
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(sent)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            self.server.repos.setdefault(name, {})
            self.answer({"url": f"{self.server.url}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(sent)["files"]]
            self.answer({"files": files})
        else:
            (repo,) = re.findall("^/api/models/(.+)/commit/main$", self.path)
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    self.server.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}"}
            )

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        repo, files = next(
            ((name, files) for name, files in self.server.repos.items() if f"/{name}/" in f"{path}/"), (None, None)
        )
        if files is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif path.startswith(f"/api/models/{repo}/tree/"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "1" * 40} for name, data in files.items()]
            self.answer(tree)
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False})
        else:
            data = files[re.findall("/resolve/[^/]+/(.+)$", path)[0]]
            self.answer(data, ETag=f'"{hash(data)}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_classifier(
        INFO["name"], num_classes=2, **{key: value for key, value in INFO.items() if key != "name"}
    )


POINT = {"kind": "learned", "locations": [], "macs": 10**6, "images": 200, "accuracy": 0.5, "interval": [0.43, 0.57]}
EVALUATION = {
    "model": "/home/me/runs/x",
    "command": "foveal evaluate /home/me/runs/x",
    "data": "folder",
    "split": "test",
    "limit": None,
    "points": [
        POINT,
        POINT | {"locations": [2], "macs": 3 * 10**6, "accuracy": 0.9, "interval": [0.85, 0.93]},
        POINT | {"kind": "random", "accuracy": 0.6},
    ],
    "errors": [{"image": "/home/me/a.png", "error": "/home/me/a.png: is empty"}],
}


@pytest.fixture
def run(model, tmp_path):
    folder = tmp_path / "concrete"
    save_model(folder, model, ModelInfo(INFO, ("crack", "no_crack")))
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "folder", "root": "/home/me/p", "val": 0.1}}))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "tradeoff.png").write_bytes(b"a picture")
    (folder / "last.ckpt").write_bytes(pickle.dumps("/home/me"))
    return Run(folder)


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_tells_what_the_run_knows_and_lists_what_it_lacks(run, model):
    file, lacking = write_model_card(run)
    assert [line.partition(":")[0] for line in lacking] == ["licence", "description of the data"]
    text = file.read_text()
    assert "license" not in metadata(text) and "without a licence nobody may use" in text
    _, lacking = write_model_card(run, licence="cc-by-4.0", data_description="Walls | floors, by us.")
    assert lacking == []
    text = file.read_text()
    told = metadata(text)
    assert told["license"] == "cc-by-4.0" and told["library_name"] == "foveal"
    assert told["pipeline_tag"] == "image-classification" and {"foveal", "tnet"} <= set(told["tags"])
    (result,) = told["model-index"][0]["results"]
    values = {one["name"]: one["value"] for one in result["metrics"]}
    assert values == {"accuracy, locations 0": 0.5, "accuracy, locations 2": 0.9}
    assert result["dataset"] == {"name": "folder", "type": "folder", "split": "test"}
    assert (
        "| locations 2 | 90.0 | 85.0 to 93.0 | 3.00 |" in text
        and "| locations 0 | 50.0 | 43.0 to 57.0 | 1.00 |" in text
    )
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    assert f"{parameters:,} parameters" in text and "2 looks in the grid of the first look" in text
    assert (
        "crack, no\\_crack" in text
        and "Walls | floors, by us." in text
        and "![accuracy and cost](tradeoff.png)" in text
    )
    assert "/home" not in text and text.count("```") == 2
    # The example is five lines of Python that can be compiled.
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line]) == 5
    compile(code, "card", "exec")
    assert "/home" not in json.dumps(facts(run)) and facts(run)["data"] == {"name": "folder", "val": 0.1}


def test_text_of_ones_own_and_the_licence_are_kept(run):
    file, _ = write_model_card(run, licence="mit", data_description="Walls.", title="Cracks")
    text = file.read_text()
    extra = text.replace(BEGIN, f"Written by me.\n{BEGIN}").replace(END, f"{END}\nAnd more.")
    extra = extra.replace("library_name: foveal\n", "library_name: foveal\nlanguage: en\n", 1)
    file.write_text(extra)
    (run.path / "evaluation.json").unlink()
    _, lacking = write_model_card(run)
    again = file.read_text()
    assert metadata(again)["license"] == "mit" and metadata(again)["language"] == "en" and "# Cracks" in again
    assert "Written by me.\n" + BEGIN in again and f"{END}\nAnd more." in again and "Not evaluated yet." in again
    assert [line.partition(":")[0] for line in lacking] == ["evaluation"]
    write_model_card(run)
    assert file.read_text() == again
    # A file without marks is kept before the card.
    file.write_text("---\nlicense: mit\n---\nMy own page.\n")
    write_model_card(run)
    assert "My own page.\n\n" + BEGIN in file.read_text()
    file.write_text("---\nlicense: [\n---\n")
    with pytest.raises(ConfigError, match=r"README\.md: its metadata cannot be read"):
        write_model_card(run)


def test_each_thing_that_is_missing_is_listed(model, tmp_path):
    save_model(tmp_path, model, ModelInfo(INFO, ()))
    card = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(card | {"imports": ["/home/me/mine.py"]}))
    partial = {**EVALUATION, "split": "val", "limit": 50}
    (tmp_path / "evaluation.json").write_text(json.dumps(partial))
    _, lacking = write_model_card(Run(tmp_path))
    assert [line.partition(":")[0] for line in lacking] == [
        "licence",
        "description of the data",
        "evaluation on test images",
        "evaluation on all images",
        "names of the classes",
        "code",
        "picture",
    ]
    assert "on val images" in lacking[2] and "on 50 of them" in lacking[3]
    assert "mine.py" in lacking[5] and "/home" not in lacking[5]
    (tmp_path / "model.safetensors").unlink()
    assert write_model_card(Run(tmp_path))[1][0].startswith("weights: training has not finished")


def test_what_is_pushed_is_what_is_loaded(hub, run, model, tmp_path, capsys):
    with pytest.raises(ConfigError, match="cannot be published without licence: who may use"):
        push(run, "owner/cracks")
    assert not hub.repos
    assert push(run, "owner/cracks", licence="mit") == f"{hub.url}/owner/cracks"
    files = hub.repos["owner/cracks"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "tradeoff.png"}
    assert not any(b"/home" in content for content in files.values())
    assert 'foveal.load("hf-hub:owner/cracks")' in files["README.md"].decode()
    # Files that could run code are neither downloaded nor read.
    files["evil.py"] = files["pytorch_model.bin"] = pickle.dumps(print)
    hub.asked.clear()
    loaded = foveal.load("hf-hub:owner/cracks")
    assert not any("evil" in path or "pytorch_model" in path for path in hub.asked)
    images = torch.rand(1, 3, 80, 60)
    assert torch.equal(loaded(images).logits, model.eval()(images).logits)
    assert loaded.class_names == ("crack", "no_crack") and loaded.locations == (2,)
    # A model with the weights of its run has its card; others have one of their own.
    assert load(run.path).push_to_hub("owner/again", licence="mit").endswith("owner/again")
    assert b"| locations 2 | 90.0 |" in hub.repos["owner/again"]["README.md"]
    with torch.no_grad():
        loaded.classifier.bias += 1
    loaded.push_to_hub("owner/other", licence="mit")
    assert b"Not evaluated yet" in hub.repos["owner/other"]["README.md"]
    other = foveal.load("hf-hub:owner/other@main")
    assert torch.equal(other(images).logits, loaded(images).logits)


def test_the_commands(hub, run, tmp_path, capsys):
    (tmp_path / "looked.png").write_bytes(b"looks")
    assert main(["card", str(run.path), "--picture", str(tmp_path / "looked.png")]) == 0
    told = capsys.readouterr().out
    assert "- licence: who may use the weights, and for what; give --licence, such as apache-2.0" in told
    assert "give --data-description" in told and f"The card is in {run.path / 'README.md'}" in told
    (tmp_path / "a.txt").touch()
    for name, problem in (("none.png", "there is no such file"), ("a.txt", "is no picture")):
        code, said = failure(capsys, "card", run.path, "--picture", tmp_path / name)
        assert code == 2 and f"{name}: {problem}" in said
    code, said = failure(capsys, "push", run.path, "owner/name")
    assert code == 2 and "give --licence" in said
    assert main(["push", str(run.path), "owner/name", "--licence", "mit"]) == 0
    assert f"The model is at {hub.url}/owner/name" in capsys.readouterr().out
    assert {"looks.png", "tradeoff.png"} <= set(hub.repos["owner/name"])
    assert main(["cost", "hf-hub:owner/name", "--image-size", "64", "--json"]) == 0


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:../x", "hf-hub:a/b@../../x"])
def test_names_that_are_no_repository(hub, name):
    with pytest.raises(ConfigError, match="is no repository of the Hugging Face Hub; write hf-hub:owner/name"):
        load(name)
    assert not hub.asked


def test_what_the_hub_lacks_or_refuses_is_one_sentence(hub, run, monkeypatch):
    with pytest.raises(RunError, match=r"^hf-hub:owner/none: no such repository.*; check the name"):
        load("hf-hub:owner/none")
    hub.repos["owner/empty"] = {"README.md": b"nothing"}
    with pytest.raises(RunError, match="so it is no model of foveal"):
        load("hf-hub:owner/empty")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(StorageError, match=r"^owner/x: cannot be pushed \(not logged in.*hf auth login"):
        push(run, "owner/x", licence="mit")
    assert "owner/x" not in hub.repos


def test_without_the_hub_the_answer_comes_at_once(hub, run, monkeypatch):
    push(run, "owner/cracks", licence="mit")
    load("hf-hub:owner/cracks")
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)  # retries wait
        with pytest.raises(RunError, match=r"^hf-hub:owner/other: the Hugging Face Hub cannot be reached; connect, or"):
            load("hf-hub:owner/other")
        with pytest.raises(StorageError, match="cannot be reached, nothing was pushed"):
            push(run, "owner/cracks", licence="mit")
        assert load("hf-hub:owner/cracks").class_names == ("crack", "no_crack")  # from the cache
        assert not waited
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert load("hf-hub:owner/cracks").class_names and not hub.asked


def test_models_without_a_name_cannot_be_pushed(hub):
    with pytest.raises(ConfigError, match="Linear: has no name by which it can be made again"):
        push(torch.nn.Linear(2, 2), "owner/x")
