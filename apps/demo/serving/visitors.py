"""What the server keeps of its visitors: little, and of the newest only.

Gradio would keep half a megabyte of each, a description of the whole page with all that it shows, and statistics of
every run. Each call of a program is a visitor of its own, so 200 of them cost 100 MB.
"""

from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.routes import App
from gradio.state_holder import SessionState, StateHolder
from gradio.utils import LRUCache

MOST_REMEMBERED = 200  # with the values of their `gr.State`
MOST_UNHEARD = 500  # whose answers may wait to be fetched


class Visitor(SessionState):
    """A session without the description of the page, which only Gradio's deep links need, and the page has none."""

    def __init__(self, page: gr.Blocks):
        super().__init__(SimpleNamespace(default_config=page.default_config, blocks={}))  # pyright: ignore[reportArgumentType]

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class Visitors(StateHolder):
    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Visitor(self.blocks)
        return super().__getitem__(session_id)


def forget_runs(page: gr.Blocks) -> None:
    """Keep no statistics of runs, and few of the answers that nobody fetches. Before the page is served."""
    queue = page._queue
    queue.ANALYTICS_MAX_EVENTS = 0
    queue.pending_messages_per_session = LRUCache(MOST_UNHEARD)
    queue.pending_event_ids_session = LRUCache(MOST_UNHEARD)


def forget_pages(app: App) -> None:
    """Keep no description of the page for each visitor. Before the app has any."""
    app.state_holder = Visitors()
    app.state_holder.set_blocks(app.get_blocks())
