"""What the demo keeps of its visitors stays small, and the streams of those who have left end quietly."""

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Iterator

import gradio as gr
import httpx
import pytest
from starlette.exceptions import HTTPException
from tiny import tiny_pipeline

from maskimg.pipeline import Pipeline
from maskimg_apps.demo import app
from maskimg_apps.demo.serving import visitors
from maskimg_apps.demo.serving.models import Models
from maskimg_apps.demo.serving.streams import QuietStreams

FEW = 6


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[str, list[gr.Blocks]]]:
    """A server's address and the pages that it made: the first, and those of other models that were asked for."""
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline(labels=False).save_pretrained(folder / "other")
    models = Models(lambda name: Pipeline.from_pretrained(name, device="cpu", dtype="fp32"), folder=folder)
    pages = [app.build(tiny_pipeline())]

    def make(name: str) -> gr.Blocks:
        pages.append(app.build(models.held(name), models=models, name=name))
        return pages[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(visitors, "MOST_UNHEARD", FEW)
        yield app.launch(pages[0], app.Address(port=app.free_port("127.0.0.1", 0)), models=models, make=make), pages
        pages[0].close(verbose=False)


@pytest.fixture
def pages(site) -> list[gr.Blocks]:
    return site[1]


@pytest.fixture
def client(site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site[0], timeout=120) as client:
        yield client


@pytest.fixture
def faults() -> Iterator[list[str]]:
    """What the server logs."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def ask(client: httpx.Client, where: str = "") -> str:
    """A call whose answer is not fetched -> its event."""
    answer = client.post(f"{where}gradio_api/call/v2/model_info", json={})
    answer.raise_for_status()
    return answer.json()["event_id"]


def wait_until(true) -> None:
    end = time.monotonic() + 100
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


# ----------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("where", ["", "model/other/"])
def test_a_visitor_leaves_little_behind(client, pages, where):
    """The story: each call of a program left a description of the page of 1,500 objects, half a megabyte."""

    def visit(times: int) -> int:
        for _ in range(times):
            assert "event: complete" in client.get(f"{where}gradio_api/call/v2/model_info/{ask(client, where)}").text
        gc.collect()
        return len(gc.get_objects())

    before = visit(3)  # what is made once is there
    page = pages[-1] if where else pages[0]
    assert len(page.state_holder.session_data) == 3
    assert visit(10) - before < 10 * 300


def test_answers_that_nobody_fetches_are_few(client, pages):
    queue = pages[0]._queue
    for _ in range(2 * FEW):
        event = ask(client)
        wait_until(lambda: event not in queue.event_ids_to_events)  # noqa: B023
    assert len(queue.pending_messages_per_session) == len(queue.pending_event_ids_session) == FEW
    assert "event: complete" in client.get(f"gradio_api/call/v2/model_info/{event}").text


def test_no_statistics_are_kept(client, pages):
    client.get(f"gradio_api/call/v2/model_info/{ask(client)}")
    assert not pages[0]._queue.event_analytics


def test_what_a_visitor_set_is_still_known_to_the_next_call(pages):
    """Only the description of the page is forgotten: its `gr.State`, and components that were changed, are not."""
    session = pages[0].state_holder["a visitor"]
    state = next(block for block in pages[0].blocks.values() if isinstance(block, gr.State))
    button = next(block for block in pages[0].blocks.values() if isinstance(block, gr.Button))
    session[state._id], session[button._id] = {"seed": 5}, gr.Button("another word", render=False)
    again = pages[0].state_holder["a visitor"]
    assert again[state._id] == {"seed": 5} and again[button._id].value == "another word"
    assert pages[0].state_holder["somebody else"][button._id].value == button.value


# ----------------------------------------------------------------------------- streams


@pytest.mark.parametrize("path", ["gradio_api/queue/data?session_hash=nobody", "gradio_api/call/v2/generate/nobody"])
def test_the_stream_of_an_unknown_session_says_so_and_ends(client, faults, path):
    answer = client.get(path)  # raises where the answer is cut off
    assert "404: Not Found" in answer.text
    assert faults == []


def test_two_listeners_of_one_session_may_leave_in_mid_stream(client, pages, faults, monkeypatch):
    paused, go_on, steps = threading.Event(), threading.Event(), Pipeline.steps

    def wait(*arguments, **options) -> Iterator:
        for step in steps(*arguments, **options):
            yield step
            paused.set()
            go_on.wait(100)

    monkeypatch.setattr(Pipeline, "steps", wait)
    page = pages[0]
    number, run = next((number, run) for number, run in page.fns.items() if run.name == "write")
    data = [None if isinstance(block, gr.State) else getattr(block, "value", None) for block in run.inputs]
    data[0] = {"number": 1, "kept": 0}  # what the page's script counts
    asked = {"data": data, "fn_index": number, "session_hash": "two", "trigger_id": None, "event_data": None}
    client.post("gradio_api/queue/join", json=asked).raise_for_status()
    with contextlib.ExitStack() as open_streams:
        for _ in range(2):
            stream = client.stream("GET", "gradio_api/queue/data", params={"session_hash": "two"})
            assert open_streams.enter_context(stream).status_code == 200
        wait_until(lambda: paused.is_set() and page._queue.pending_messages_per_session["two"].empty())
    wait_until(lambda: "two" not in page._queue.pending_messages_per_session)
    ask(client)
    go_on.set()
    wait_until(lambda: not any(page._queue.active_jobs))
    assert faults == []


@pytest.mark.parametrize("kind", ["another fault", "not a stream", "before the answer"])
def test_other_faults_are_not_hidden(kind):
    content = b"text/plain" if kind == "not a stream" else b"text/event-stream"
    cause = ValueError("a fault") if kind == "another fault" else HTTPException(404)

    async def app(scope, receive, send) -> None:
        if kind != "before the answer":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content)]})
        raise RuntimeError("the answer has begun") from cause

    async def send(message) -> None:
        pass

    with pytest.raises(RuntimeError, match="the answer has begun"):
        asyncio.run(QuietStreams(app)({"type": "http"}, send, send))  # pyright: ignore[reportArgumentType]
