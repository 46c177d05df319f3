"""What a stranger may try on the page: files of the server, other machines through it, values that make no sense."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from tiny import tiny_pipeline

from maskimg.pipeline import Pipeline
from maskimg_apps.demo import app

# Gradio's own statistics, every few calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

SECRET = "the contents of a file that nobody may read"
CLOSED = (
    "config", "gradio_api/info", "gradio_api/openapi.json", "gradio_api/queue/status", "gradio_api/file=/etc/hostname",
    "monitoring",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module", params=["open", "with a password"])
def door(request, pipeline, tmp_path_factory) -> Iterator[httpx.Client]:
    """A client of the page that has said the password, where there is one."""
    login = ("ann", "secret") if request.param == "with a password" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = app.build(pipeline)
        address = app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0), login=login))
        with httpx.Client(base_url=address, timeout=60) as client:
            if login:
                for path in CLOSED:
                    assert client.get(path).status_code == 401, path
                for path in ("gradio_api/upload", "gradio_api/component_server", "gradio_api/call/v2/generate"):
                    assert client.post(path).status_code == 401, path
                wrong = client.post("login", data={"username": "ann", "password": "guess"})
                assert wrong.status_code == 400
                client.post("login", data={"username": "ann", "password": "secret"}).raise_for_status()
            yield client
        page.close(verbose=False)


@pytest.fixture
def hidden(tmp_path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


def test_nothing_outside_the_uploads_can_be_read(door, hidden, monkeypatch):
    monkeypatch.chdir(hidden.parent)
    up = "../" * 12
    places = [
        str(hidden), hidden.name, f"./{hidden.name}", f"/{up}{hidden}", f"{up}{hidden}", f"//{hidden}",
        f"file://{hidden}", str(Path(__file__).resolve()), "/etc/hostname", "/proc/self/environ", "~/.bashrc",
        f"{os.environ['GRADIO_TEMP_DIR']}/{up}{hidden}", f"{hidden}\0.png", "C:\\Windows\\win.ini",
    ]  # fmt: skip
    for place in places:
        for asked in (quote(place, safe="/"), quote(place, safe=""), quote(quote(place, safe=""), safe="")):
            answer = door.get(f"gradio_api/file={asked}")
            assert answer.status_code in (400, 403, 404), (place, answer.status_code)
            assert SECRET not in answer.text and "maskimg_apps" not in answer.text
    for path in ("static/", "assets/", "gradio_api/stream/"):
        assert SECRET not in door.get(f"{path}{quote(up + str(hidden), safe='')}").text


def test_the_page_fetches_nothing_from_other_machines(door):
    """The cloud's own address for its secrets, a machine inside, this machine."""
    for place in ("http://169.254.169.254/latest/meta-data", "https://10.0.0.1/", f"{door.base_url}config"):
        answer = door.get(f"gradio_api/file={place}", follow_redirects=False)
        assert answer.status_code in (400, 403, 404)
        assert "components" not in answer.text


@pytest.mark.parametrize("name", ["reconstruct", "read_recipe"])
def test_a_call_cannot_name_a_file_that_was_not_uploaded(door, hidden, name):
    picture = hidden.with_name("secret.png")
    Image.new("RGB", (16, 16)).save(picture)
    for path in (str(hidden), str(picture), "/etc/hostname"):
        # Without the mark of a file, Gradio does not ask where it lies.
        for marked in ({"meta": {"_type": "gradio.FileData"}}, {}, {"meta": {}}, {"meta": {"_type": "other"}}):
            told = answered(door, name, {"image": {"path": path} | marked})
            assert told.startswith("error") and "upload" in told, told
            assert SECRET not in told and "PSNR" not in told and path not in told


def test_an_uploads_name_leads_nowhere(door):
    file = ("../../../evil.png", b"x")
    (path,) = door.post("gradio_api/upload", files={"files": file}).json()
    assert Path(path).name == "evil.png"
    assert Path(path).is_relative_to(os.environ["GRADIO_TEMP_DIR"])


@pytest.mark.parametrize(
    "values",
    [
        {"images": "many"}, {"images": -1}, {"images": 10**9}, {"images": None}, {"images": [1, 2]},
        {"steps": 2**70}, {"steps": 0.5}, {"guidance": math.inf}, {"guidance": math.nan}, {"seed": -1},
        {"seed": 2**70}, {"seed": "x" * 10**6}, {"order": "no such order"}, {"label_class": "no such class"},
        {"label_class": {"a": 1}}, {"schedule": "__import__('os')"}, {"no_such_value": 1},
    ],
    ids=lambda values: str(values)[:40],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_and_harm_nothing(door, values):
    told = answered(door, "generate", {"images": 1, "steps": 1, "random_seed": False} | values)
    assert told.startswith(("error", "HTTP 4")), told
    assert "Traceback" not in told and "site-packages" not in told
    assert answered(door, "generate", {"images": 1, "steps": 1, "seed": 3, "random_seed": False}).startswith("complete")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("call/v2/nothing", {}, "there is no call '/nothing': /gradio_api/info lists the calls"),
        ("call/v2/generate", {"no_such_value": 1}, "no_such_value"),
        ("call/nothing", {"data": []}, None),
        ("call/generate", {"data": [1]}, None),
        ("call/generate", {}, None),
        ("call/v2/generate", [], None),
    ],
)
def test_a_call_that_there_is_none_of_is_the_callers_fault(door, path, body, words):
    answer = door.post(f"gradio_api/{path}", json=body)
    assert 400 <= answer.status_code < 500 or answer.status_code == 200, answer.text
    assert words is None or words in answer.text


def test_the_calls_are_described_as_openapi_says(door):
    described = door.get("gradio_api/openapi.json").json()
    assert described["openapi"].startswith("3.")
    for name in ("generate", "inpaint", "outpaint", "vary", "reconstruct"):
        assert any(path.endswith(f"/{name}") for path in described["paths"]), name


def answered(door: httpx.Client, name: str, values: dict) -> str:
    """The last event of a call, as its kind and data."""
    asked = door.post(
        f"gradio_api/call/v2/{name}", content=json.dumps(values), headers={"Content-Type": "application/json"}
    )
    if asked.status_code != 200:
        return f"HTTP {asked.status_code} {asked.text}"
    text = door.get(f"gradio_api/call/v2/{name}/{asked.json()['event_id']}").text
    kind, _, data = text.rpartition("event: ")[2].partition("\n")
    return f"{kind} {data}"
