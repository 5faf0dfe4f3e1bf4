"""Errors of `/api` as RFC 9457 problems: one sentence in `detail`, and a `type` that programs can rely on."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from instep_remediation.errors import DecisionError, KeyReused, NotKnown, NotPossible, Outdated

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:instep:problem:"
ERRORS_MAX = 20

TITLES: dict[str, tuple[int, str]] = {
    "malformed": (400, "The body is not JSON"),
    "unauthorized": (401, "A known token is needed"),
    "forbidden": (403, "The token does not allow this"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "This path does not take this method"),
    "not-possible": (409, "It cannot be done now"),
    "outdated": (412, "It has changed meanwhile"),
    "too-large": (413, "The body is too long"),
    "invalid": (422, "A value is not allowed"),
    "key-reused": (422, "The Idempotency-Key was used for something else"),
    "internal": (500, "The server failed"),
}
"""Last part of `type` → status and title; docs/guide/api.md explains each."""

BY_STATUS = {status: name for name, (status, _) in reversed(TITLES.items())}
BY_ERROR: dict[type[DecisionError], str] = {
    NotKnown: "not-found",
    NotPossible: "not-possible",
    Outdated: "outdated",
    KeyReused: "key-reused",
}

log = logging.getLogger(__name__)


def problem(name: str, detail: str, instance: str, errors: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """Return a problem's body.

    >>> problem("not-found", "There is no plan 9.", "/api/v1/plans/9")["type"]
    'urn:instep:problem:not-found'
    """
    status, title = TITLES[name]
    body = {"type": TYPE + name, "title": title, "status": status, "detail": detail, "instance": instance}
    return body | ({"errors": errors} if errors is not None else {})


def problem_bytes(status: int, detail: str, instance: str) -> bytes:
    """Return the problem that fits a status, for those who answer without the framework."""
    return json.dumps(problem(BY_STATUS[status], detail, instance)).encode()


def is_api(request: Request) -> bool:
    """Whether a request's errors are problems; all others get `{"detail": "One sentence."}`."""
    return request.url.path.startswith("/api/")


def add_problem_handlers(app: FastAPI) -> None:
    """Have every error of `/api` answered as a problem."""

    @app.exception_handler(DecisionError)
    async def refuse_decision(request: Request, error: DecisionError) -> JSONResponse:
        return _answer(request, BY_ERROR[type(error)], str(error))

    @app.exception_handler(RequestValidationError)
    async def refuse_values(request: Request, error: RequestValidationError) -> JSONResponse:
        found = [_where(entry) for entry in error.errors()[:ERRORS_MAX]]
        first = f"{next(iter(found[0].values()))}: {found[0]['detail']}"
        if not is_api(request):
            return JSONResponse({"detail": first}, 400)
        is_json = all(entry["type"] != "json_invalid" for entry in error.errors())
        return _answer(request, "invalid" if is_json else "malformed", first, found)

    @app.exception_handler(HTTPException)
    async def refuse_request(request: Request, error: HTTPException) -> JSONResponse:
        if not is_api(request):
            return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        detail = {404: f"There is nothing at {request.url.path[:200]!r}.", 405: "Use another method here."}
        said = str(error.detail)
        said = detail.get(error.status_code, said) if said in ("Not Found", "Method Not Allowed") else said
        answer = _answer(request, BY_STATUS.get(error.status_code, "malformed"), said)
        answer.headers.update(error.headers or {})
        return answer

    for status in BY_STATUS.keys() - {500}:  # The framework's own refusals are of a class that FastAPI does not show.
        app.exception_handler(status)(refuse_request)

    @app.exception_handler(Exception)
    async def admit_failure(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed.", request.method, request.url.path, exc_info=error)
        sentence = "The server failed at this request; its log has the reason."
        return _answer(request, "internal", sentence) if is_api(request) else JSONResponse({"detail": sentence}, 500)


def _answer(request: Request, name: str, detail: str, errors: list[dict[str, str]] | None = None) -> JSONResponse:
    body = problem(name, detail, request.url.path, errors)
    return JSONResponse(body, body["status"], media_type=MEDIA_TYPE)


def _where(entry: dict[str, Any]) -> dict[str, str]:
    """Return where one value is, and what is wrong with it; the value itself is not repeated."""
    place, *path = (str(part) for part in entry["loc"])
    detail = f"{entry['msg']}."
    if place == "body":
        pointer = "#" if entry["type"] == "json_invalid" else "#" + "".join(f"/{part}" for part in path)
        return {"pointer": pointer, "detail": detail}
    return {"parameter": ".".join(path), "detail": detail}
