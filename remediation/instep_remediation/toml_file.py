"""Reads one TOML file into one model: what is wrong is said with the file, the key, the value and what is allowed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from instep_remediation.errors import PolicyError

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path, model: type[Model]) -> Model:
    """Return the file as `model`; raises PolicyError with one sentence."""
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise PolicyError(f"Cannot read {path} ({error.strerror}): name a file that exists.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path} is not TOML: {error}.") from error
    return checked(data, model, place=str(path))


def checked(data: dict[str, Any], model: type[Model], *, place: str) -> Model:
    """Return values as `model`; raises PolicyError that names the place and the first thing that is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise PolicyError(f"{place}: {first_error(error, model)}") from error


def first_error(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first thing that is wrong, as one sentence."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(_keys(model, first["loc"][:-1])))
        return f"there is no key {key!r}; keys here are {known}."
    return f"{key} = {first['input']!r} is not allowed: {first['msg']}."


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    for part in path:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return {"listed in the reference"}
        model = inner
    return set(model.model_fields)
