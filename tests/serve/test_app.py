"""The application: answers, streams, refusals, headers."""

import io
import json
import re
import shlex
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from foveal.prediction import predict
from foveal.serve import Limits, Service, make_app


def picture(size=(64, 48), kind="PNG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@contextmanager
def served(model, folder=None, token=None, address="http://localhost:8000", **limits):
    """A client of a new service, with its lifespan."""
    service = Service(model, images=folder, limits=Limits(**limits), device="cpu")
    with TestClient(make_app(service, token=token), base_url=address, raise_server_exceptions=False) as client:
        client.service = service
        yield client


def block(service):
    """Let the thread that classifies wait for an event; returns it, and the batches."""
    gate, batches, run = threading.Event(), [], service._batcher.run

    def wait(key, images):
        batches.append(len(images))
        assert gate.wait(20)
        return run(key, images)

    service._batcher.run = wait
    return gate, batches


def at_once(tasks):
    """Results of functions that run at the same time."""
    results = [None] * len(tasks)

    def call(i):
        results[i] = tasks[i]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def is_refusal(answer, *statuses):
    """Whether an answer is one sentence, with one of the statuses."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    detail = answer.json()["detail"]
    assert answer.json() == {"detail": detail} and isinstance(detail, str) and "\n" not in detail and len(detail) < 400
    return detail


def events(text):
    return [(kind, json.loads(data)) for kind, data in re.findall(r"^event: (\w+)\ndata: (.*)$", text, re.MULTILINE)]


# ---- answers


def same(row, other, tolerance=1e-5):
    """Whether two rows agree up to rounding errors, apart from times."""
    assert row["label"] == other["label"] and row["locations"] == other["locations"] and row["macs"] == other["macs"]
    assert row["probability"] == pytest.approx(other["probability"], abs=tolerance)
    assert [one["label"] for one in row["top_k"]] == [one["label"] for one in other["top_k"]]
    for look, wanted in zip(row["glimpses"], other["glimpses"], strict=True):
        assert look["box"] == wanted["box"] and look["level"] == wanted["level"]
        assert look["probability"] == pytest.approx(wanted["probability"], abs=tolerance)


def test_an_answer_is_the_row_of_predict(client, folder, model):
    (row,) = predict(model, [folder / "a.png"], locations=(2,), device="cpu").rows
    answer = client.post("/v1/classify", data={"path": "a.png", "locations": "2"})
    assert answer.status_code == 200
    same(answer.json(), row)
    assert answer.json()["path"] == "a.png" and set(row) - {"error", "mpp"} <= set(answer.json())
    added = sum(look["contribution"] for look in answer.json()["glimpses"])
    logits = np.log([one["probability"] for one in answer.json()["top_k"]])
    assert np.isfinite(added) and len(logits) == 4


def test_an_upload_is_answered_as_the_file_is(client, folder):
    by_path = client.post("/v1/classify", data={"path": "deep/c.png"}).json()
    sent = {"image": ("../x/ünï <b>.png", (folder / "deep/c.png").read_bytes())}
    by_upload = client.post("/v1/classify", files=sent)
    assert by_upload.status_code == 200
    same(by_upload.json(), by_path)
    assert by_upload.json()["path"].endswith("ünï <b>.png")


def test_requests_that_come_together_are_a_batch_with_equal_answers(model, folder):
    asked = [("a.png", "2", 5), ("b.png", "2", 1), ("deep/c.png", "2", 5), ("a.png", "1", 5)]
    with served(model, folder, wait=0.0, batch_size=4) as client:
        forms = [{"path": path, "locations": k, "top_k": top} for path, k, top in asked]
        alone = [client.post("/v1/classify", data=form).json() for form in forms]
        gate, batches = block(client.service)
        first = threading.Thread(target=client.post, args=("/v1/classify",), kwargs={"data": forms[0]})
        first.start()
        until(lambda: batches == [1])

        def open_gate():
            until(lambda: len(client.service._batcher._ready) == 4)
            gate.set()

        *together, _ = at_once(
            [*(lambda form=form: client.post("/v1/classify", data=form) for form in forms), open_gate]
        )
        first.join()
    assert sorted(batches) == [1, 1, 3]
    for answer, other, (_, _, top) in zip(together, alone, asked, strict=True):
        same(answer.json(), other)
        assert len(answer.json()["top_k"]) == min(top, 4)


def test_looking_stops_when_sure(client):
    sure = client.post("/v1/classify", data={"path": "a.png", "stop_at": 0.01}).json()
    never = client.post("/v1/classify", data={"path": "a.png", "stop_at": 1.0}).json()
    plain = client.post("/v1/classify", data={"path": "a.png"}).json()
    assert (sure["locations"], never["locations"]) == (0, 3) and sure["macs"] < never["macs"]
    same(never, plain)


def test_a_budget_that_the_run_stores_is_used(model, folder):
    from foveal.prediction import Exit

    with served(model, folder) as client:
        detail = is_refusal(client.post("/v1/classify", data={"path": "a.png", "budget": "2locations"}), 422)
        assert "stores none" in detail
        client.service.budgets = (Exit("2locations", 0.01, (3,), 1, 2.0, "locations", 8),)
        answer = client.post("/v1/classify", data={"path": "a.png", "budget": "2 locations"})
        assert answer.json()["locations"] == 0
        both = client.post("/v1/classify", data={"path": "a.png", "budget": "2locations", "locations": "1"})
        assert "stored for `locations` 3 only" in is_refusal(both, 422)


def test_a_stream_tells_the_looks_in_order_and_then_the_answer(client):
    answer = client.post("/v1/classify", data={"path": "b.png", "top_k": 2}).json()
    told = client.post("/v1/classify/stream", data={"path": "b.png", "top_k": 2})
    assert told.headers["content-type"].startswith("text/event-stream")
    *looks, (kind, last) = events(told.text)
    assert kind == "answer" and [name for name, _ in looks] == ["look"] * 3
    same(last, answer)
    assert [turn["turn"] for _, turn in looks] == [0, 1, 2] and looks[0][1]["looks"] == []
    boxes = [look["box"] for _, turn in looks for look in turn["looks"]]
    assert boxes == [look["box"] for look in answer["glimpses"][1:-1]]
    assert all(len(turn["top_k"]) == 2 for _, turn in looks)


def test_a_stream_of_a_bad_image_has_a_status(client):
    is_refusal(client.post("/v1/classify/stream", data={"path": "broken.png"}), 422)


def test_a_client_that_goes_away_stops_the_model(service):
    turns = []

    def on_turn(turn):
        turns.append(turn.turn)
        return len(turns) < 2

    row = service.walk(service.find("a.png"), service.settings("3"), 5, on_turn).result(20)
    assert turns == [0, 1] and row["locations"] == 1


# ---- refusals

VRT = '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
VRT += "<SourceFilename>/etc/hostname</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
BAD = {
    "empty": b"",
    "text": b"hello",
    "cut short": picture()[:200],
    "zeros after the header": picture()[:60] + bytes(3000),
    "a VRT": VRT.encode(),
    "an SVG": SVG.encode(),
    "a PDF": b"%PDF-1.7\n",
    "a header of a JPEG": b"\xff\xd8\xff\xe0" + bytes(40),
    "a TIFF that ends": b"II*\0\x08\0\0\0",
    "a TIFF with a loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "a PNG that claims 60,000 x 60,000": picture()[:16] + b"\0\0\xea\x60\0\0\xea\x60" + picture()[24:],
    "a gzip": b"\x1f\x8b\x08\0" + bytes(50),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_upload_costs_its_request_only(case, client, service, folder):
    good, bad = at_once(
        [
            lambda: client.post("/v1/classify", data={"path": "a.png"}),
            lambda: client.post("/v1/classify", files={"image": ("bad.tif", BAD[case])}),
        ]
    )
    detail = is_refusal(bad, 413, 415, 422)
    assert "bad.tif" in detail and str(service.uploads.folder) not in detail and "/tmp" not in detail
    assert good.status_code == 200
    assert not list(service.uploads.folder.iterdir())


def test_a_damaged_file_of_the_folder_is_named_without_its_place(client, folder):
    for answer in (
        client.post("/v1/classify", data={"path": "broken.png"}),
        client.get("/v1/tile/7/0/0", params={"path": "broken.png"}),
        client.get("/v1/look", params={"path": "broken.png", "box": "0,0,9,9"}),
    ):
        detail = is_refusal(answer, 422)
        assert detail.startswith("broken.png: ") and str(folder) not in detail


FORMS = {
    "nothing": ({}, 400),
    "both": ({"path": "a.png", "image": "x"}, 422),
    "locations in words": ({"path": "a.png", "locations": "two"}, 422),
    "too many locations": ({"path": "a.png", "locations": "99"}, 422),
    "a digit of another script": ({"path": "a.png", "locations": "٣"}, 422),
    "no top_k": ({"path": "a.png", "top_k": "0"}, 422),
    "many top_k": ({"path": "a.png", "top_k": "1e9"}, 422),
    "never sure": ({"path": "a.png", "stop_at": "nan"}, 422),
    "sure twice": ({"path": "a.png", "stop_at": "0.5", "budget": "1GMAC"}, 422),
    "a budget in words": ({"path": "a.png", "budget": "cheap"}, 422),
    "a long path": ({"path": "a" * 5000}, 422),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_wrong_form_is_refused_in_a_sentence(case, client):
    form, status = FORMS[case]
    is_refusal(client.post("/v1/classify", data=form), status)
    is_refusal(client.post("/v1/classify/stream", data=form), status)


@pytest.mark.parametrize(
    "box", ["", "1,2,3", "0,0,0,5", "5,5,1,1", "0,0,nan,1", "0,0,inf,1", "a,b,c,d", "0,0,1e300,1e300"]
)
def test_a_wrong_box_is_refused(box, client):
    is_refusal(client.get("/v1/look", params={"path": "a.png", "box": box}), 422)


def test_bytes_and_pixels_have_limits(model):
    with served(model, upload_bytes=20_000, upload_pixels=2_000) as client:
        assert client.post("/v1/classify", files={"image": picture((40, 50))}).status_code == 200
        assert "pixels" in is_refusal(client.post("/v1/classify", files={"image": picture((41, 50))}), 413)
        is_refusal(client.post("/v1/classify", files={"image": bytes(30_000)}), 413)

        def chunks():
            yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
            for _ in range(100):
                yield bytes(1000)

        unsized = client.post(
            "/v1/classify", content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"}
        )
        is_refusal(unsized, 413)


def test_a_full_queue_refuses_and_loses_no_accepted_request(model, folder):
    with served(model, folder, queue=3, batch_size=1, wait=0.0) as client:
        gate, batches = block(client.service)
        answers = []
        ask = lambda: answers.append(client.post("/v1/classify", data={"path": "a.png"}))  # noqa: E731
        accepted = [threading.Thread(target=ask) for _ in range(3)]
        for thread in accepted:
            thread.start()
        until(lambda: "foveal_accepted 3.0" in client.get("/metrics").text)
        refused = client.post("/v1/classify", files={"image": picture()})
        is_refusal(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200 and client.get("/v1/images").status_code == 200
        gate.set()
        for thread in accepted:
            thread.join(20)
        assert [answer.status_code for answer in answers] == [200] * 3
        assert client.post("/v1/classify", data={"path": "a.png"}).status_code == 200
        assert sum(batches) == 4


def test_a_request_that_takes_too_long_is_refused_and_the_next_is_answered(model, folder):
    with served(model, folder, seconds=0.2, wait=0.0) as client:
        gate, _ = block(client.service)
        late = client.post("/v1/classify", data={"path": "a.png"})
        assert "0.2 s" in is_refusal(late, 503) and int(late.headers["retry-after"]) >= 1
        assert "foveal_accepted 0.0" in client.get("/metrics").text
        gate.set()
        client.service.limits = Limits()
        until(lambda: client.post("/v1/classify", data={"path": "a.png"}).status_code == 200)


def test_accepted_requests_are_answered_when_the_service_ends(model, folder):
    with served(model, folder, batch_size=1, wait=0.0) as client:
        gate, _ = block(client.service)
        futures = [client.service.classify(client.service.find("a.png"), client.service.settings()) for _ in range(4)]
        threading.Timer(0.1, gate.set).start()
    assert all(future.result(0)["error"] is None for future in futures)


def test_an_error_of_the_program_tells_nothing(model, folder, caplog):
    with served(model, folder) as client:
        client.service._batcher.run = lambda key, images: 1 / 0
        answer = client.post("/v1/classify", data={"path": "a.png"})
        assert is_refusal(answer, 500) == "the service failed; its log has the reason"


# ---- who may ask


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000", "localhost."]
)
def test_hosts_of_this_machine_are_answered(host, client):
    assert client.get("/v1/model", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"]
)
def test_other_hosts_are_not_answered(host, client):
    for path in ("/", "/v1/model", "/healthz", "/static/viewer.js"):
        is_refusal(client.get(path, headers={"host": host}), 403)


def test_pages_of_other_sites_cannot_ask(client):
    form = {"path": "a.png"}
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
    ):
        answer = client.post("/v1/classify", data=form, headers=headers)
        is_refusal(answer, 403)
        assert not any(name.startswith("access-control") for name in answer.headers)
    own = client.post(
        "/v1/classify", data=form, headers={"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}
    )
    assert own.status_code == 200 and not any(name.startswith("access-control") for name in own.headers)
    link = client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    assert link.status_code == 200


def test_a_token_is_asked_for(model, folder):
    with served(model, folder, token="s3cret", address="http://scans.example:8000") as client:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer "},
            {"authorization": "Basic s3cret"},
            {"authorization": "Bearer s3cret\xff".encode("latin-1")},
            {"cookie": "foveal_8000=s3cret"},
            {"cookie": "foveal_8000=\xff".encode("latin-1")},
        ):
            answer = client.get("/v1/images", headers=headers)
            is_refusal(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            is_refusal(client.post("/v1/classify", data={"path": "a.png"}, headers=headers), 401)
            is_refusal(client.get("/", headers=headers), 401)
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/images", headers={"authorization": "Bearer s3cret"}).status_code == 200


def test_a_page_is_opened_with_its_token_once(model, folder):
    with served(model, folder, token="s3cret", address="http://scans.example:8000") as client:
        is_refusal(client.get("/?token=wrong"), 401)
        first = client.get("/?token=s3cret&x=1", follow_redirects=False)
        assert first.status_code == 303 and first.headers["location"] == "/?x=1"
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "s3cret" not in cookie
        assert client.get("/").status_code == 200 and client.get("/v1/images").status_code == 200
        away = client.get("http://scans.example:8000//evil.example/?token=s3cret", follow_redirects=False)
        assert away.headers["location"].startswith("/evil.example")  # not another host
        for odd in ("%E2%82%AC", "a%0d%0aX-Y:%20b", "%09/evil.example"):
            away = client.get(f"http://scans.example:8000/{odd}?token=s3cret", follow_redirects=False)
            where = away.headers["location"]
            assert away.status_code == 303 and where.isascii() and where.isprintable() and " " not in where
            assert "x-y" not in away.headers


def test_head_is_answered_as_get_without_a_body(client):
    for path in ("/", "/healthz", "/v1/model", "/nowhere", "/v1/tile/0/0/0?path=a.png"):
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code
        assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("box", ["0,0,1e-300,1e-300", "0,0,1,0.001", "nan,0,1,1", "1,1,0,0", "0,0,1e9,1", "0,0,1"])
def test_a_box_that_is_none_is_refused(client, box):
    is_refusal(client.get("/v1/look", params={"path": "a.png", "box": box}), 422)


def test_a_vrt_cannot_show_a_file_outside_of_the_folder(model, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "root").mkdir()
    with rasterio.open(tmp_path / "secret.tif", "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8") as to:
        to.write(np.full((3, 64, 64), 200, np.uint8))
    band = (
        "<VRTRasterBand dataType='Byte' band='{}'><SimpleSource><SourceFilename relativeToVRT='0'>{}</SourceFilename>"
        "<SourceBand>{}</SourceBand></SimpleSource></VRTRasterBand>"
    )
    bands = "".join(band.format(i, tmp_path / "secret.tif", i) for i in (1, 2, 3))
    text = f"<VRTDataset rasterXSize='64' rasterYSize='64'>{bands}</VRTDataset>"
    for name, content in (("a.vrt", text), ("b.ntf", text), ("c.ntf", "junk " + text), ("d.jp2", text)):
        (tmp_path / "root" / name).write_text(content)
    with served(model, tmp_path / "root") as client:
        for name in client.get("/v1/images").json()["images"]:
            for url in ("/v1/image", "/v1/tile/6/0/0", "/v1/look", "/v1/report"):
                is_refusal(client.get(url, params={"path": name} | ({"box": "0,0,9,9"} if "look" in url else {})), 422)
            is_refusal(client.post("/v1/classify", data={"path": name}), 422)


# ---- headers and pages


def test_every_response_has_the_security_headers(client):
    for answer in (
        client.get("/"),
        client.get("/nowhere"),
        client.get("/docs"),
        client.get("/static/viewer.js"),
        client.get("/v1/tile/0/0/0", params={"path": "a.png"}),
        client.post("/v1/classify"),
        client.get("/", headers={"host": "evil.example"}),
    ):
        rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert rules["default-src"] == "'none'" and rules["script-src"] == rules["style-src"] == "'self'"
        assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_pages_have_no_inline_script_or_style_and_load_from_here_only(client):
    for page in ("/", "/docs"):
        text = client.get(page).text
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", text)
        for address in re.findall(r"(?:src|href)=\"([^\"]+)", text):
            assert address.startswith("/") and not address.startswith("//")
            assert client.get(address).status_code == 200


def test_files_of_the_page_are_cached_by_their_content(client):
    first = client.get("/static/viewer.js")
    again = client.get("/static/viewer.js", headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert client.get("/static/..%2f..%2f__init__.py").status_code == 404


def test_tiles_are_cached_until_the_file_changes(client):
    first = client.get("/v1/tile/7/0/0", params={"path": "a.png"})
    assert first.headers["content-type"] == "image/jpeg" and "private" in first.headers["cache-control"]
    again = client.get("/v1/tile/7/0/0", params={"path": "a.png"}, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    is_refusal(client.get("/v1/tile/8/0/0", params={"path": "a.png"}), 404)


def test_images_are_listed_searched_and_cut_into_parts(client):
    everything = client.get("/v1/images").json()
    assert everything["total"] == 6 and "d <i>&.png" in everything["images"]
    assert client.get("/v1/images", params={"search": "DEEP/"}).json() == {"images": ["deep/c.png"], "total": 1}
    part = client.get("/v1/images", params={"offset": 1, "limit": 2}).json()
    assert part == {"images": everything["images"][1:3], "total": 6}


def test_without_a_folder_images_are_uploaded(model):
    with served(model) as client:
        assert client.get("/v1/images").json() == {"images": [], "total": 0}
        assert "--images" in is_refusal(client.post("/v1/classify", data={"path": "a.png"}), 404)
        assert client.post("/v1/classify", files={"image": picture(kind="WEBP")}).status_code == 200


def test_the_page_of_explain_is_a_download_without_places(client, folder):
    answer = client.get("/v1/report", params={"path": "a.png", "locations": "2"})
    assert answer.status_code == 200 and answer.headers["content-disposition"].startswith("attachment")
    assert str(folder) not in answer.text and "a.png" in answer.text and answer.text.count('class="look"') == 3


def test_metrics_are_those_of_prometheus(model, folder):
    from prometheus_client.parser import text_string_to_metric_families

    with served(model, folder) as client:
        for _ in range(3):
            client.post("/v1/classify", data={"path": "a.png"})
        client.post("/v1/classify", data={"path": "nowhere.png"})
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
        }
    assert found["foveal_images_total",] == 3 and found["foveal_batch_images_count",] == 3
    assert found["foveal_responses_total", "/v1/classify", "200"] == 3
    assert found["foveal_responses_total", "/v1/classify", "404"] == 1


def test_the_schema_lists_the_routes_and_all_that_it_names(client):
    schema = client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    named = set(re.findall(r"#/components/schemas/([\w-]+)", json.dumps(schema)))
    assert named and named <= set(schema["components"]["schemas"])
    routes = {f"{method.upper()} {path}" for path, found in schema["paths"].items() for method in found}
    assert {"POST /v1/classify", "POST /v1/classify/stream", "GET /v1/model", "GET /healthz", "GET /metrics"} <= routes
    page = client.get("/docs").text
    assert all(path in page for path in schema["paths"])


@pytest.mark.parametrize(
    ("method", "path", "form", "name"),
    [
        ("POST", "/v1/classify", {"path": "a.png"}, "Answer"),
        ("GET", "/v1/model", None, "Model"),
        ("GET", "/v1/image?path=a.png", None, "ImageDescription"),
        ("GET", "/v1/image?path=x", None, "Problem"),
    ],
)
def test_answers_fit_the_schema(method, path, form, name, client):
    jsonschema = pytest.importorskip("jsonschema_rs")
    schema = client.get("/openapi.json").json()
    whole = {"$ref": f"#/components/schemas/{name}", "components": schema["components"]}
    jsonschema.validator_for(whole).validate(client.request(method, path, data=form).json())


# ---- the guide

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serve.md"


def test_the_requests_of_the_guide_are_answered(client, folder):
    lines = re.findall(r"^curl (.+)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)
        form = dict(word.split("=", 1) for flag, word in pairwise(words) if flag == "-F")
        file = {"image": (folder / "a.png").read_bytes()} if form.pop("image", None) else None
        form = {name: "a.png" if name == "path" else value for name, value in form.items()}
        place = urlsplit(words[-1]).path
        answer = client.post(place, data=form, files=file) if form or file else client.get(place)
        assert answer.status_code == 200, line


def test_the_guide_names_each_field_and_status(client):
    schema, text = client.get("/openapi.json").json(), GUIDE.read_text(encoding="utf-8")
    post = schema["paths"]["/v1/classify"]["post"]
    name = post["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
    assert all(f"`{field}`" in text for field in schema["components"]["schemas"][name]["properties"])
    assert all(re.search(rf"^\|.*\b{status}\b", text, re.MULTILINE) for status in post["responses"] if status != "200")
