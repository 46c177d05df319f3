"""The browser demo: draw pictures, edit them, and see what the tokenizer keeps of one.

`build` makes the page of a pipeline, `launch` serves a page and those of other models, `serve` does both for `maskimg
demo`.
"""

import contextlib
import dataclasses
import html
import importlib.util
import ipaddress
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse
from gradio import route_utils, routes
from gradio.route_utils import FnIndexInferError
from starlette.middleware import Middleware

from maskimg.hardware import pick_device, pick_dtype
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import runs, style
from maskimg_apps.demo.serving.inputs import guard_inputs
from maskimg_apps.demo.serving.models import Models
from maskimg_apps.demo.serving.pages import Pages, choose_model
from maskimg_apps.demo.serving.proxies import EVERYWHERE, LOOPBACK, around_proxies, require_usable_proxies
from maskimg_apps.demo.serving.streams import QuietStreams
from maskimg_apps.demo.serving.visitors import MOST_REMEMBERED, forget_pages, forget_runs
from maskimg_apps.demo.stage import wire_sends
from maskimg_apps.demo.tabs.about import info_tab, keep_recipes
from maskimg_apps.demo.tabs.generate import generate_tab
from maskimg_apps.demo.tabs.inpaint import inpaint_tab
from maskimg_apps.demo.tabs.outpaint import outpaint_tab
from maskimg_apps.demo.tabs.reconstruct import reconstruct_tab
from maskimg_apps.demo.tabs.train import train_tab
from maskimg_apps.demo.tabs.translate import translate_tab
from maskimg_apps.demo.tabs.vary import vary_tab
from maskimg_apps.demo.trainer import Trainer

TRAIN, OPEN = "maskimg train FOLDER --out DIR", "maskimg demo --model DIR"
MAX_FILE, THREADS = "16mb", 8


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a page is served, and who may open it.

    Attributes:
        port: of `serve` the first to try, of `launch` the one to take; see `free_port`.
        share: also at a public address of Gradio's.
        login: the name and the password that visitors must give; see `read_login`.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    login: tuple[str, str] | None = None

    @property
    def reaches_others(self) -> bool:
        """Whether other machines can open the page."""
        return self.share or not _is_loopback(self.host)


def build(
    pipeline: Pipeline | None,
    *,
    models: Models | None = None,
    name: str | None = None,
    trainer: Trainer | None = None,
) -> gr.Blocks:
    """The page of a pipeline; without one, the same page disabled, under a banner that says how to get a model.

    Args:
        models: the models to choose from; `name` is the pipeline's among them.
        trainer: adds the tab Train; needs `models`.
    """
    with gr.Blocks(title="maskimg", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        with gr.Row(elem_classes="mk-top"):
            gr.HTML(_header(pipeline))
            chosen = choose_model(page, models, name) if models else None
        if pipeline is None:
            gr.HTML(_banner())
        controls: dict[str, dict[str, Any]] = {}
        kept = keep_recipes()
        with gr.Tabs() as switch:
            with gr.Tab("Generate", id="generate"):
                controls["generate"], drawn = generate_tab(pipeline)
            with gr.Tab("Inpaint", id="inpaint"):
                controls["inpaint"], inpainted, canvas = inpaint_tab(pipeline)
            with gr.Tab("Outpaint", id="outpaint"):
                controls["outpaint"], outpainted, upload = outpaint_tab(pipeline)
            with gr.Tab("Variations", id="vary"):
                controls["vary"], varied, other = vary_tab(pipeline)
            stages = [drawn, inpainted, outpainted, varied]
            if pipeline is not None and pipeline.source_kind:
                with gr.Tab("Translate", id="translate"):
                    controls["translate"], translated = translate_tab(pipeline)
                stages.append(translated)
            with gr.Tab("Reconstruct", id="reconstruct"):
                reconstruct_tab(pipeline)
            with gr.Tab("Info", id="info"):
                info_tab(page, kept, pipeline, controls, stages, switch)
            if trainer and models and chosen:
                with gr.Tab("Train", id="train"):
                    train_tab(page, trainer, models, chosen, name)
        if pipeline is not None:
            wire_sends(stages, {"inpaint": canvas, "vary": other}, upload, switch)
    guard_inputs(page)
    return page


def launch(
    page: gr.Blocks,
    at: Address,
    *,
    open_browser: bool = False,
    mcp: bool = False,
    models: Models | None = None,
    make: Callable[[str], gr.Blocks] | None = None,
) -> str:
    """Serve a page in the background, with everything off that a stranger could misuse -> its URL.

    Args:
        models, make: the other models, and what makes their pages; these are served at /model/NAME/.
    """
    # Gradio calls its own address, to see that it is there.
    with around_proxies(*((at.host, *LOOPBACK) if at.share else (EVERYWHERE,))):
        app, local, shared = _queued(page).launch(
            server_name=at.host,
            server_port=at.port,
            share=at.share,
            auth=at.login,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            max_threads=THREADS,
            state_session_capacity=MOST_REMEMBERED,
            strict_cors=True,
            mcp_server=mcp,
            **_closed(),
        )
    forget_pages(app)
    if models and make:
        options = _closed() | {"auth": at.login, "mcp_server": False}
        app.mount("/model", Pages(models, lambda name: _queued(make(name)), app, options))
    return shared or local


def serve(
    model: str | None,
    at: Address,
    *,
    folder: str | Path = "runs",
    device: str = "auto",
    dtype: str = "auto",
    open_browser: bool = False,
    mcp: bool = False,
) -> None:
    """Open the demo and stay until Ctrl-C.

    Args:
        model: as in `Pipeline.from_pretrained`; None is the first bundled one.
        folder: models that the page also offers; those that it trains are written there.
        mcp: also offer the page's calls as tools of a Model Context Protocol server.

    Raises:
        ValueError: others could open the page without a login, or it cannot be served there.
        ModelError: the model cannot be read.
    """
    if at.reaches_others and at.login is None:
        raise ValueError(
            "others could reach this page: give --user NAME and --password-file FILE, or leave out --host and --share"
        )
    if mcp and importlib.util.find_spec("mcp") is None:
        raise ValueError("--mcp needs another package: pip install 'gradio[mcp]'")
    for option, given in (("--share", at.share), ("--mcp", mcp)):
        if given:
            require_usable_proxies(option)
    # What cannot be served is refused before a model is loaded.
    _check_folder(Path(folder))
    free_port(at.host, at.port)
    pick_dtype(dtype, pick_device(device))
    models = Models(partial(Pipeline.from_pretrained, device=device, dtype=dtype), chosen=model, folder=Path(folder))
    if models.first:
        models.pipeline(models.first)
    # A page that others reach must not read this machine's folders.
    trainer = None if at.reaches_others else Trainer(Path(folder), device=device, dtype=dtype)

    def build_page(name: str | None) -> gr.Blocks:
        return build(models.held(name) if name else None, models=models, name=name, trainer=trainer)

    for variable in _clean_environment():
        print(f"{variable} is ignored: use the options of `maskimg demo`")
    with _ended_by_sigterm(), _left_clean(trainer), around_proxies(*(at.host, *LOOPBACK) if mcp else ()):
        free = free_port(at.host, at.port)
        if at.port and free != at.port:
            print(f"port {at.port} is taken, using {free}")
        page = build_page(models.first)
        there = dataclasses.replace(at, port=free)
        address = launch(page, there, open_browser=open_browser, mcp=mcp, models=models, make=build_page)
        if mcp:
            print(f"tools for agents: {address}gradio_api/mcp/")
        print(
            f"maskimg demo: {address}  (Ctrl-C stops it)" + ("" if models.first else f"\nno model yet: {TRAIN}"),
            flush=True,
        )
        stay(page)


def stay(page: gr.Blocks) -> None:
    """Wait while the page is served. Gradio's own way to wait swallows the signals that should end it."""
    try:
        while page.is_running:
            time.sleep(0.1)
    finally:
        page.close(verbose=False)


def free_port(host: str, first: int, tries: int = 100) -> int:
    """The first free port from `first` on; with 0 the system chooses one.

    Raises:
        ValueError: none is free, or the host is not an address of this machine.
    """
    if not 0 <= first <= 65535:
        raise ValueError(f"port must be between 0 and 65535, got {first}")
    reason: Exception | None = None
    for port in range(first, min(first + tries, 65536)):
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as door:
                door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                door.bind(address)
                return door.getsockname()[1]
        except OSError as error:
            reason = error
    raise ValueError(f"cannot listen on {host}, port {first} and up ({reason})") from reason


def _queued(page: gr.Blocks) -> gr.Blocks:
    """The page, with a queue of at most 16 visitors."""
    page.max_threads, page.state_session_capacity = THREADS, MOST_REMEMBERED
    page.queue(max_size=16, default_concurrency_limit=1)
    forget_runs(page)
    return page


def _closed() -> dict[str, Any]:
    """How every page looks, and what is turned off on it."""
    return {
        "theme": style.theme(),
        "css": style.CSS,
        "head": style.HEAD,
        "footer_links": ["api", "settings"],
        "max_file_size": MAX_FILE,
        "show_error": False,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "allowed_paths": [],
        "app_kwargs": {
            "exception_handlers": dict.fromkeys((TypeError, KeyError, FnIndexInferError), _refuse_call),
            "middleware": [Middleware(QuietStreams)],
        },
    }


# Words.


def _header(pipeline: Pipeline | None) -> str:
    if pipeline is None:
        return '<div class="mk-head"><h1>maskimg</h1></div>'
    spans = "".join(f"<span>{html.escape(fact)}</span>" for fact in runs.headline(pipeline))
    learnt = html.escape(runs.learnt_from(pipeline))
    return (
        f'<div class="mk-head"><h1>maskimg <b>{html.escape(pipeline.name)}</b></h1>{spans}</div>'
        + f'<p class="mk-hint">{learnt}</p>' * bool(learnt)
    )


def _banner() -> str:
    return (
        '<div class="mk-banner" role="alert">No model is loaded. Train one on a folder of pictures:<br>'
        f"<code>{TRAIN}</code><br>then open it:<br><code>{OPEN}</code></div>"
    )


# The door to the outside.


async def _refuse_call(request: Request, error: Exception) -> JSONResponse:
    """Answer 400 to an unknown call, or one with unknown values, where Gradio answers 500."""
    if not any(f"/gradio_api/{way}/" in request.url.path for way in ("call", "run", "api")):
        raise error
    words = f"there is no call {error}" if isinstance(error, KeyError) else str(error).partition(". ")[0]
    words = words.encode("utf-8", "backslashreplace").decode()  # half a character in a name that was sent
    return JSONResponse({"detail": f"{words}: /gradio_api/info lists the calls and their values"}, 400)


def read_login(user: str | None, password_file: str | None) -> tuple[str, str] | None:
    """The name and password of a login; None without both.

    Raises:
        ValueError: one is missing, or the file cannot be read or is empty.
    """
    if user is None and password_file is None:
        return None
    if not user or not password_file:
        raise ValueError("a login needs both --user and --password-file")
    try:
        password = Path(password_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the password file `{password_file}` cannot be read ({error})") from error
    if not password:
        raise ValueError(f"the password file `{password_file}` is empty")
    return user, password


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_folder(folder: Path) -> None:
    """Refuse a folder of models that exists and cannot be read.

    Raises:
        ValueError: with a sentence.
    """
    try:
        next(folder.expanduser().iterdir(), None)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError(
            f"the folder of models `{folder}` cannot be read ({error.strerror}): name another one with --models"
        ) from error


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the page in order: a training is stopped, uploads are removed. A command does so itself."""
    before = signal.getsignal(signal.SIGTERM)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _left_clean(trainer: Trainer | None) -> Iterator[None]:
    """Inside, uploads have a folder that nobody else may read; at the end it is removed and a training stopped."""
    uploads = tempfile.mkdtemp(prefix="maskimg-demo-")  # mode 0700
    os.environ["GRADIO_TEMP_DIR"] = uploads
    # When it is imported Gradio takes note of /tmp/gradio, which may belong to somebody else.
    routes.DEFAULT_TEMP_DIR = route_utils.DEFAULT_TEMP_DIR = uploads  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    finally:
        if trainer is not None:
            trainer.close()
        shutil.rmtree(uploads, ignore_errors=True)


def _clean_environment() -> list[str]:
    """Remove all settings of Gradio from the environment, which could open files or the page -> their names."""
    found = sorted(name for name in os.environ if name.startswith("GRADIO_"))
    for name in found:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return [name for name in found if name != "GRADIO_ANALYTICS_ENABLED"]
