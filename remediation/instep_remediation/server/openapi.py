"""The OpenAPI document of `/api/v1`: what the framework knows of the routes, with the token, the scopes and the errors
that the gate and the handlers add.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from instep_remediation.server.contract import Problem
from instep_remediation.server.gate import required_scope
from instep_remediation.server.problems import MEDIA_TYPE, TITLES

DESCRIPTION = (
    "Incidents, plans, nodes and jobs of one Instep server. Every change needs a reason and leaves an audit line. "
    "Errors are problems (RFC 9457)."
)
EVERYWHERE = (401, 403, 422)
BY_PATH = (404,)
CHANGES = (400, 404, 409, 412, 413)


def describe_api(app: FastAPI) -> dict[str, Any]:
    """Return the document; it is made once."""
    if app.openapi_schema:
        return app.openapi_schema
    made = get_openapi(title="Instep", version="1", description=DESCRIPTION, routes=app.routes)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {}) | {"Problem": problem}
    made["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "A token of the scope that the operation names."}
    }
    made["security"] = [{"token": []}]
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            _complete(path, method.upper(), operation)
    app.openapi_schema = made
    return made


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """Add one operation's scope and errors."""
    scope = required_scope(method, path)
    operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope}`.".strip()
    statuses = {*EVERYWHERE, *(BY_PATH if "{" in path else ()), *(CHANGES if method == "POST" else ())}
    responses = operation["responses"]
    responses.pop("422", None)
    titles = dict(reversed(TITLES.values()))
    for status in sorted(statuses):
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        responses[str(status)] = {"description": titles[status], "content": content}
