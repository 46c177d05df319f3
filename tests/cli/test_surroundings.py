"""Proxies, temporary folders, homes and compilers of other people's: the page starts all the same, or says why not."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import gradio as gr
import httpx
import pytest

from maskimg.pipeline import Pipeline
from maskimg_apps.demo import app
from maskimg_apps.demo.serving import models
from maskimg_apps.demo.serving.proxies import EVERYWHERE, around_proxies, require_usable_proxies
from vqgan import files
from vqgan.files import ModelError

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
DEAD = "http://127.0.0.1:9"
SETTINGS = [
    {"http_proxy": DEAD},
    {"HTTP_PROXY": DEAD, "NO_PROXY": "example.com"},
    {"ALL_PROXY": "socks5://127.0.0.1:9"},
    {"all_proxy": "socks://127.0.0.1:9", "https_proxy": DEAD, "no_proxy": "example.com,10.0.0.0/8"},
    {"https_proxy": "nonsense://", "http_proxy": DEAD, "no_proxy": "*"},
]


@pytest.fixture
def proxies(monkeypatch):
    """`proxies(**variables)`: these proxies are set and no others."""

    def set_proxies(**variables: str) -> None:
        for name in [*NAMES, *map(str.upper, NAMES)]:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_proxies


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.Markdown("a page")
    yield blocks
    blocks.close(verbose=False)


# ----------------------------------------------------------------------------- proxies


@pytest.mark.parametrize("variables", SETTINGS, ids=str)
def test_a_page_is_served_behind_any_proxy(variables, page, proxies):
    """Gradio looks at its own address through the proxy, and said that `localhost is not accessible`."""
    proxies(**variables)
    before = dict(os.environ)
    address = app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0)))
    assert dict(os.environ) == before  # what is fetched later goes through the proxy
    with httpx.Client(trust_env=False) as client:
        assert client.get(address).status_code == 200


def test_a_client_can_be_made_where_proxies_do_not_count(proxies):
    """Gradio makes one when it is imported, and for SOCKS that failed on a package that nobody has."""
    proxies(all_proxy="socks5h://127.0.0.1:9", HTTP_PROXY="gopher://127.0.0.1:9")
    with pytest.raises((ImportError, ValueError)):
        httpx.Client()
    with around_proxies(EVERYWHERE):
        httpx.Client().close()
    with pytest.raises((ImportError, ValueError)):
        httpx.Client()


def test_only_our_own_hosts_go_around_a_proxy(proxies):
    proxies(HTTP_PROXY=DEAD, NO_PROXY="example.com")
    with around_proxies("10.1.2.3", "::1"), httpx.Client() as client:
        ways = {host: client._transport_for_url(httpx.URL(f"http://{host}/")) for host in ("10.1.2.3", "[::1]")}
        assert set(ways.values()) == {client._transport}
        assert client._transport_for_url(httpx.URL("http://huggingface.co/")) is not client._transport
        assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "example.com,10.1.2.3,::1"
    assert "no_proxy" not in os.environ and os.environ["NO_PROXY"] == "example.com"


def test_what_needs_other_machines_is_refused_where_the_proxy_cannot_be_used(proxies, monkeypatch):
    proxies(all_proxy="gopher://127.0.0.1:9")
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded first"))
    with pytest.raises(ValueError, match="--share cannot be used with the proxies that are set .*gopher"):
        app.serve(None, app.Address(share=True, login=("ann", "secret")))
    proxies(all_proxy=DEAD)
    require_usable_proxies("--share")


def test_a_model_that_a_proxy_keeps_away_is_refused_in_a_sentence(monkeypatch):
    def fetch(*_, **__):
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(ModelError, match="`owner/name` cannot be fetched through the proxy that is set .*socksio"):
        files.locate("owner/name")


# ----------------------------------------------------------------------------- refused before the work


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"at": app.Address(port=-1)}, "port must be between 0 and 65535"),
        ({"at": app.Address("127.0.0.1", 70000)}, "port must be between 0 and 65535"),
        ({"device": "abacus"}, "there is no device `abacus` here"),
        ({"dtype": "fp8"}, "dtype must be `auto`, `fp32` or `bf16`"),
        ({"folder": __file__}, "cannot be read .*name another one with --models"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(options, words, monkeypatch):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded first"))
    with pytest.raises(ValueError, match=words):
        app.serve(None, **{"at": app.Address(), **options})


def test_somebody_elses_folder_among_the_models_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    is_file = Path.is_file

    def closed(self: Path) -> bool:
        if self.parent.name == "theirs":
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", closed)
    assert models._models_in(tmp_path) == []


# ----------------------------------------------------------------------------- a quiet server


def test_clients_that_go_away_or_talk_nonsense_leave_no_traceback(page, capfd):
    with page:
        gr.Button("Draw").click(lambda: None, api_name="draw")
    address = app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0)))
    port = httpx.URL(address).port
    upload = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=xx\r\n"
        b"Content-Length: 90000\r\n\r\n--xx\r\n"
        b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc'
    )
    stream = b"GET /gradio_api/queue/data?session_hash=none HTTP/1.1\r\nHost: x\r\n\r\n"
    for told in (
        upload,
        stream,
        b"\x16\x03\x01 what\r\n\r\n",
        upload[:150],
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHo",
    ):
        for reset in (False, True):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(told)
                time.sleep(0.1)
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with httpx.Client(base_url=address, trust_env=False) as client:
        for way in ("run/nothing", "api/nothing", "call/nothing"):
            assert client.post(f"gradio_api/{way}", json={"data": []}).status_code in (200, 400, 404)
        assert client.post("gradio_api/upload", content=b"x").status_code == 400
        assert client.get("/").status_code == 200
    time.sleep(0.3)
    assert "Traceback" not in capfd.readouterr().err


# ----------------------------------------------------------------------------- everything at once


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a process there without a word")
def test_the_demo_starts_where_nothing_is_as_it_should_be_and_ends_while_it_draws(tmp_path):
    """A dead proxy, one that needs a package, somebody else's /tmp/gradio, no home, and a stray `random.py`."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "gradio").write_text("not a folder")
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong module')")
    surroundings = {
        "http_proxy": DEAD, "ALL_PROXY": "socks5://127.0.0.1:9", "no_proxy": "example.com",
        "TMPDIR": str(tmp_path / "tmp"), "HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache",
        "PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "maskimg", "demo", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=inherited | surroundings,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = next((line.split()[2] for line in process.stdout if line.startswith("maskimg demo: http")), "")
        assert address, process.communicate()[1]
        with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
            client.post("gradio_api/call/v2/generate", json={"images": 16}).raise_for_status()
            time.sleep(1)
        process.terminate()
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped" not in err and "Traceback" not in err and "terminate called" not in err
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["gradio"]
