"""A page for each model, all at one address: that of the first at the root, the others at /model/NAME/.

Each is a whole page with controls and calls of its own, made when it is first asked for.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from maskimg_apps.demo import answers
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.models import Models
from maskimg_apps.demo.serving.visitors import forget_pages
from vqgan.files import ModelError


class Pages:
    """Answers below /model; what is loaded, and the login, are shared with the first page.

    Args:
        build: the name of a model -> its page.
        front: the app of the first page.
        options: of `gr.mount_gradio_app`.
    """

    def __init__(self, models: Models, build: Callable[[str], gr.Blocks], front: App, options: dict[str, Any]):
        self.models, self.build, self.front, self.options = models, build, front, options
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.made: dict[str, tuple[int, gr.Blocks]] = {}
        self.lock = asyncio.Lock()
        self.running = contextlib.AsyncExitStack()  # as long as the server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, _, rest = scope["path"].removeprefix(scope["root_path"]).strip("/").partition("/")
        if not self._let_in(scope):  # before anything is loaded for a stranger
            if rest == "login":
                await self.front({**scope, "path": "/login", "root_path": ""}, receive, send)
            else:
                refusal = PlainTextResponse("log in on the first page", 401) if rest else RedirectResponse("../../")
                await refusal(scope, receive, send)
            return
        try:
            async with self.lock:
                await self._make(name)
        except ModelError as error:
            await PlainTextResponse(str(error), 503)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _let_in(self, scope: Scope) -> bool:
        """Whether there is no login, or this visitor has logged in on one of the pages."""
        found = cookie_parser(Headers(scope=scope).get("cookie", ""))
        names = (f"access-token-{self.front.cookie_id}", f"access-token-unsecure-{self.front.cookie_id}")
        return self.front.auth is None or any(found.get(name) in self.front.tokens for name in names)

    async def _make(self, name: str) -> None:
        """Unless it is there, or there is no such model; another one where the model was written anew."""
        if name in self.made and self.made[name][0] == self.models.stamp(name):
            return
        if name not in await asyncio.to_thread(self.models.names):
            return
        self._take_down(name)
        page = await asyncio.to_thread(self.build, name)
        gr.mount_gradio_app(self.app, page, f"/{name}", **self.options)
        app: Any = self.app.routes[-1].app  # pyright: ignore[reportAttributeAccessIssue]
        app.auth, app.tokens, app.cookie_id = self.front.auth, self.front.tokens, self.front.cookie_id
        forget_pages(app)

        # What the server does for the first page when it starts.
        await self.running.enter_async_context(app.router.lifespan_context(app))
        page.run_startup_events()
        await page.run_extra_startup_events()
        self.made[name] = self.models.stamp(name), page

    def _take_down(self, name: str) -> None:
        if name in self.made:
            self.made.pop(name)[1].close(verbose=False)
            routes = self.app.router.routes
            routes[:] = [route for route in routes if not (isinstance(route, Mount) and route.path == f"/{name}")]


def choose_model(page: gr.Blocks, models: Models, current: str | None) -> gr.Dropdown:
    """The list of models, which opens the page of the one that is chosen; hidden where there is no choice."""
    chosen = gr.Dropdown(
        models.names(), value=current, label="Model", show_label=False, container=False, elem_id="model",
        min_width=180, scale=0, visible=can_choose(models, current),
    )  # fmt: skip
    chosen.preprocess = lambda payload: payload  # the list may have grown since the server made it

    def listed(number: Any) -> dict[str, Any]:
        return {"answers": number, "values": [models_listed(models, current)]}

    def choose(number: Any, name: str) -> Iterator[dict[str, Any]]:
        try:
            with kindly(), models.unplaced(name):
                models.pipeline(name)
                address = models.address(name, seen_from=current)
        except gr.Error:
            yield listed(number)
            raise
        yield {"answers": number, "values": [answers.update()], "go": address}

    answers.wire([chosen.select], choose, [chosen], [chosen], "model", show_progress="full", show_progress_on=chosen)
    answers.wire([page.load], listed, [], [chosen], "model", queue=False)
    return chosen


def models_listed(models: Models, current: str | None) -> dict[str, Any]:
    """The list as it is now, for a letter."""
    choices = [(name, name) for name in models.names()]
    return answers.update(choices=choices, value=current, visible=can_choose(models, current))


def can_choose(models: Models, current: str | None) -> bool:
    return any(name != current for name in models.names())
