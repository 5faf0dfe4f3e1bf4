"""The hot path: a bare ASGI function for frames, since a framework's cost is per request.

`POST /ingest/v1/frames` → 200 `{"acknowledged": sequence}`; `POST /ingest/v1/dictionary` → 204. A request comes with
its principal already established (`scope["instep.principal"]`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from instep_collector.errors import JournalError, Refused
from instep_collector.intake import Intake
from instep_collector.tokens import Principal

FRAME_BYTES_MAX = 4 * 1024 * 1024
DICTIONARY_BYTES_MAX = 4 * 1024 * 1024

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_json = (b"content-type", b"application/json")


async def answer(
    send: Send, status: int, body: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = (_json,)
) -> None:
    """Send one whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, detail: str) -> None:
    """Send `{"detail": "One sentence."}`."""
    await answer(send, status, msgspec.json.encode({"detail": detail}))


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """Return a request's body; raises Refused (413) as soon as it is known to be too long."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    too_long = Refused(413, f"The body is longer than {bytes_max} bytes: send less at once.")
    if declared.isdigit() and int(declared) > bytes_max:
        raise too_long
    chunks: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The connection ended before the body did.")
        chunks.append(message.get("body", b""))
        total += len(chunks[-1])
        if total > bytes_max:
            raise too_long
        if not message.get("more_body", False):
            return b"".join(chunks)


def ingest_application(intake: Intake) -> Application:
    """Return the ASGI function for `/ingest/`."""

    async def ingest(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _dispatch(intake, scope, receive, send)
        except Refused as refused:
            await refuse(send, refused.status, refused.detail)
        except JournalError as error:
            await refuse(send, 503, str(error))

    return ingest


async def _dispatch(intake: Intake, scope: Scope, receive: Receive, send: Send) -> None:
    path, principal = scope["path"], scope["instep.principal"]
    assert isinstance(principal, Principal)
    if path not in ("/ingest/v1/frames", "/ingest/v1/dictionary"):
        raise Refused(404, "There is nothing here: frames go to /ingest/v1/frames.")
    if scope["method"] != "POST":
        raise Refused(405, f"{path} takes POST only.")
    if path == "/ingest/v1/frames":
        sequence = await intake.take_frame(await read_body(scope, receive, FRAME_BYTES_MAX), principal)
        await answer(send, 200, b'{"acknowledged":%d}' % sequence)
    else:
        await intake.take_dictionary(await read_body(scope, receive, DICTIONARY_BYTES_MAX))
        await answer(send, 204, headers=())
