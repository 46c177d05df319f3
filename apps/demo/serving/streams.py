"""The streams in which a run's steps are sent, and uploads, when there is nobody at the other end any more.

Gradio raises after it has begun to answer where a session is unknown, or where a second listener of one session leaves;
Starlette does where an upload breaks off. Nobody can be told then, and the server would log a fault that is none.
"""

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class QuietStreams:
    """Ends such a stream as if it were complete; it has said already what there was to say."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = False

        async def watch(message: Message) -> None:
            nonlocal streams
            if message["type"] == "http.response.start":
                streams = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientDisconnect:
            return
        except RuntimeError as error:  # Starlette's, about an error that has a handler
            if not streams or not isinstance(error.__cause__, (HTTPException, KeyError)):
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})
