"""The ASGI application: it finds out who calls what, then decodes, acts and encodes."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.cluster.api_server import access, discovery, tables
from tests.cluster.api_server.access import Access, Call, User
from tests.cluster.api_server.errors import ApiError, Object, forbidden, no_such_path
from tests.cluster.api_server.faults import Fault, Faults
from tests.cluster.api_server.handlers import Answer, Handlers
from tests.cluster.api_server.requests import Request, Target, encode
from tests.cluster.api_server.watches import Hub, watch

JSON = "application/json"


class Application:
    """Serves what `handlers` answer to those whom `access` lets in, with the faults that are ordered."""

    def __init__(self, handlers: Handlers, allowed: Access, faults: Faults, hub: Hub) -> None:
        self._handlers = handlers
        self._access = allowed
        self._faults = faults
        self._hub = hub

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        try:
            request = await Request.read(scope, receive)
            await self._answer(request, receive, send)
        except ApiError as error:
            await _send(send, Answer(error.status(), error.code))

    async def _answer(self, request: Request, receive: Any, send: Any) -> None:
        if request.path in ("/healthz", "/livez", "/readyz"):
            await _send(send, Answer("ok"), content_type="text/plain")
            return
        token, user = self._access.identify(request.headers.get("authorization", ""))
        if found := self._about_itself(request):
            await _send(send, Answer(found[0]), content_type=found[1])
            return
        target = Target.of_path(request.path)
        call = target.call(request)
        fault = self._faults.next(call)
        if fault is not None and await self._befall(fault, call, token, send):
            return
        try:
            answer = self._act(request, target, call, user)
        except ApiError as error:
            answer = Answer(error.status(), error.code)
        self._access.note(token, call._replace(code=answer.code))
        if fault is not None and fault.is_after:
            await self._lose(fault, call, send)
        elif answer.watch is not None:
            await self._stream(answer, receive, send)
        else:
            await _send(send, answer)

    def _act(self, request: Request, target: Target, call: Call, user: User) -> Answer:
        if not self._access.may(user, call):
            raise forbidden(call.resource, call.name, access.refusal(user, call), call.group)
        return self._handlers.handle(request, target, call, user)

    async def _befall(self, fault: Fault, call: Call, token: str, send: Any) -> bool:
        """Whether the request ends here."""
        if fault.latency_seconds:
            try:
                await asyncio.sleep(fault.latency_seconds)
            except asyncio.CancelledError:
                return True  # the server stops: nobody waits for the answer any more
        if fault.is_after or not (fault.closes or fault.code):
            return False
        self._access.note(token, call._replace(code=fault.code or 0))
        await self._lose(fault, call, send)
        return True

    async def _lose(self, fault: Fault, call: Call, send: Any) -> None:
        error = fault.error(call)
        if fault.closes or error is None:
            send.__self__.transport.abort()  # uvicorn's cycle: no answer, the connection is cut
            return
        headers = {} if fault.retry_after_seconds is None else {"Retry-After": str(fault.retry_after_seconds)}
        await _send(send, Answer(error.status(), error.code, headers=headers))

    async def _stream(self, answer: Answer, receive: Any, send: Any) -> None:
        """A watch, until it ends or the client goes."""
        assert answer.watch is not None
        headers = [(b"content-type", JSON.encode()), (b"cache-control", b"no-cache, private")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        gone = asyncio.create_task(_gone(receive))
        gone.add_done_callback(lambda _: self._hub.wake())
        try:
            async for event in watch(self._handlers.store, self._hub, answer.watch, gone.done):
                await send({"type": "http.response.body", "body": encode(event), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()

    def _about_itself(self, request: Request) -> tuple[Object, str] | None:
        """Discovery, which everybody with a token may read."""
        if request.method != "GET":
            return None
        parts = [part for part in request.path.split("/") if part]
        if parts == ["version"]:
            return discovery.VERSION, JSON
        if parts[:2] == ["openapi", "v3"]:
            if len(parts) == 2:
                return discovery.openapi_paths(), JSON
            return discovery.openapi("" if parts[2] == "api" else parts[3], parts[-1]), JSON
        if parts in (["api"], ["apis"]):
            return self._groups(request, is_core=parts == ["api"])
        if parts[:1] == ["api"] and len(parts) == 2:
            return discovery.resources_of("", parts[1]), JSON
        if parts[:1] == ["apis"] and len(parts) == 2:
            return discovery.group_of(parts[1]), JSON
        if parts[:1] == ["apis"] and len(parts) == 3:
            return discovery.resources_of(parts[1], parts[2]), JSON
        if parts[:1] not in (["api"], ["apis"]):
            raise no_such_path()
        return None

    def _groups(self, request: Request, *, is_core: bool) -> tuple[Object, str]:
        if "as=APIGroupDiscoveryList" in request.accept and "v=v2" in request.accept:
            return discovery.aggregated(is_core=is_core), discovery.AGGREGATED
        if is_core:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}, JSON
        return discovery.groups(), JSON


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Any, answer: Answer, content_type: str = "") -> None:
    is_table = isinstance(answer.body, dict) and answer.body.get("kind") == "Table"
    content_type = content_type or (tables.MIME if is_table else JSON)
    body = answer.body.encode() if isinstance(answer.body, str) else encode(answer.body)
    headers = {"Content-Type": content_type, "Content-Length": str(len(body)), **answer.headers}
    encoded = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.code, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
