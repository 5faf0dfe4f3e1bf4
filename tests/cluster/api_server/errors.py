"""What the API refuses, as Kubernetes' `Status` objects: code, reason and the details that clients decide by."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


class ApiError(Exception):
    """A request that is answered with a failure `Status`."""

    def __init__(self, code: int, reason: str, message: str, *, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}

    def status(self) -> Object:
        """The body of the answer."""
        status: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        status |= {"message": self.message, "reason": self.reason}
        if self.details:
            status["details"] = self.details
        return status | {"code": self.code}


def _about(resource: str, name: str, group: str = "") -> Object:
    return {"name": name, **({"group": group} if group else {}), "kind": resource}


def _qualified(resource: str, group: str) -> str:
    return f"{resource}.{group}" if group else resource


def not_found(resource: str, name: str, group: str = "") -> ApiError:
    """There is no such object."""
    message = f'{_qualified(resource, group)} "{name}" not found'
    return ApiError(404, "NotFound", message, details=_about(resource, name, group))


def no_such_path() -> ApiError:
    """There is no such resource; a client sees that its server does not know the API at all."""
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def already_exists(resource: str, name: str, group: str = "") -> ApiError:
    """The name is taken."""
    message = f'{_qualified(resource, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details=_about(resource, name, group))


def conflict(resource: str, name: str, why: str = "", group: str = "") -> ApiError:
    """The object is not the one that the client had in mind."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {_qualified(resource, group)} "{name}": {why}'
    return ApiError(409, "Conflict", message, details=_about(resource, name, group))


def invalid(kind: str, name: str, causes: list[tuple[str, str, str]], group: str = "") -> ApiError:
    """The object breaks a rule. A cause is (reason, field, message)."""
    words = [f"{field}: {message}" for _, field, message in causes]
    said = words[0] if len(words) == 1 else "[" + ", ".join(words) + "]"
    details = _about(kind, name, group)
    details["causes"] = [{"reason": reason, "message": message, "field": field} for reason, field, message in causes]
    return ApiError(422, "Invalid", f'{_qualified(kind, group)} "{name}" is invalid: {said}', details=details)


def bad_request(message: str) -> ApiError:
    """The request cannot be understood."""
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    """No token, or one that nobody gave out."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(resource: str, name: str, why: str, group: str = "") -> ApiError:
    """The caller may not do that."""
    about = f'{_qualified(resource, group)} "{name}"' if name else _qualified(resource, group)
    return ApiError(403, "Forbidden", f"{about} is forbidden: {why}", details=_about(resource, name, group))


def unsupported_media_type(accepted: tuple[str, ...]) -> ApiError:
    """The body is of a type that is not read here."""
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    return ApiError(415, "UnsupportedMediaType", message)


def method_not_allowed() -> ApiError:
    """The resource is there and cannot do that."""
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def expired(asked: int, oldest: int) -> ApiError:
    """The history that the client needs has been compacted away."""
    return ApiError(410, "Expired", f"too old resource version: {asked} ({oldest})")


def from_the_future(asked: int, current: int) -> ApiError:
    """The client has seen a later state than the server."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Too large resource version: {asked}, current: {current}"
    return ApiError(504, "Timeout", f"Timeout: {message}", details={"causes": [cause], "retryAfterSeconds": 1})


def refused_by_budget(message: str) -> ApiError:
    """A disruption budget refuses. There is no Retry-After: the caller needs a back-off of its own."""
    details = {"causes": [{"reason": "DisruptionBudget", "message": message}]}
    refusal = "Cannot evict pod as it would violate the pod's disruption budget."
    return ApiError(429, "TooManyRequests", refusal, details=details)
