"""Brings the dashboards into a running Grafana through its HTTP API: a folder, and one dashboard for each uid in it.

What is there already and the same is left alone, so that publishing twice makes no second version. An update names the
version that it was made from, so that a change made at the same moment is not lost unseen.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_api.grafana_api import (  # type: ignore[import-untyped]
    GrafanaClientError,
    GrafanaException,
    GrafanaServerError,
)
from grafana_api.grafana_face import GrafanaFace  # type: ignore[import-untyped]

from instep_dashboards.errors import DashboardsError, Misused, Refused

ANSWER_SECONDS_MAX = 10.0
MESSAGE_DEFAULT = "instep dashboards publish"
OWN_TO_GRAFANA = ("id", "version")
"""Fields that Grafana sets; the rest is ours."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one thing, or would become of it."""

    what: str
    outcome: str
    """`created`, `updated` or `unchanged`."""


class Grafana:
    """One Grafana. Every refusal becomes one sentence."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._face = _face(url, token)

    def folders(self) -> list[dict[str, Any]]:
        """Return the folders that the token may see."""
        found: list[dict[str, Any]] = self._ask("list folders", self._face.folder.get_all_folders)
        return found

    def make_folder(self, title: str, uid: str) -> str:
        """Make a folder and return its uid."""
        made = self._ask(f"make folder {title!r}", lambda: self._face.folder.create_folder(title, uid))
        return str(made["uid"])

    def dashboard(self, uid: str) -> dict[str, Any] | None:
        """Return a dashboard with its `meta`, or None when there is none."""
        try:
            found: dict[str, Any] = self._ask(
                f"read dashboard {uid!r}", lambda: self._face.dashboard.get_dashboard(uid), may_miss=True
            )
        except _Missing:
            return None
        return found

    def save(self, body: Mapping[str, Any]) -> None:
        """Create or update one dashboard."""
        title = body["dashboard"]["title"]
        self._ask(f"save dashboard {title!r}", lambda: self._face.dashboard.update_dashboard(body))

    def _ask(self, what: str, ask: Callable[[], Any], *, may_miss: bool = False) -> Any:
        """Ask, and turn every way in which it can fail into a sentence."""
        try:
            return ask()
        except GrafanaClientError as error:
            if error.status_code == 404 and may_miss and _is_grafanas(error.response):
                raise _Missing from error
            raise Refused(_refusal(self.url, what, error)) from error
        except GrafanaServerError as error:
            raise DashboardsError(
                f"Grafana at {self.url} failed to {what} ({error.status_code}: {_said(error)}): look into its log and "
                "publish again."
            ) from error
        except GrafanaException as error:
            raise DashboardsError(f"Grafana at {self.url} failed to {what}: {error.message}.") from error
        except ValueError as error:
            raise DashboardsError(
                f"What answers at {self.url} does not speak as Grafana does (no JSON): give the address at which "
                "Grafana's own page stands, with its path."
            ) from error
        except OSError as error:
            raise DashboardsError(
                f"Cannot reach Grafana at {self.url} ({_reason(error)}): start it, or give its address with --url."
            ) from error


class _Missing(Exception):
    """There is no such thing; never leaves this module."""


def publish(
    grafana: Grafana,
    boards: Sequence[Mapping[str, Any]],
    *,
    folder: str,
    message: str = MESSAGE_DEFAULT,
    is_overwriting: bool = False,
    is_dry: bool = False,
) -> Iterator[Done]:
    """Yield what was done for the folder and each dashboard; a dry run asks only. Raise DashboardsError."""
    folder_uid, outcome = _find_folder(grafana, folder, is_dry=is_dry)
    yield Done(f"folder {folder!r}", outcome)
    for board in boards:
        there = grafana.dashboard(board["uid"])
        outcome = "created" if there is None else "updated"
        if there is not None and _is_same(there, board, folder_uid):
            outcome = "unchanged"
        elif not is_dry:
            grafana.save(_body(board, there, folder_uid, message=message, is_overwriting=is_overwriting))
        yield Done(f"dashboard {board['title']!r}", outcome)


def _find_folder(grafana: Grafana, title: str, *, is_dry: bool) -> tuple[str, str]:
    """Return the uid of the folder of that title, made when there is none, and what was done."""
    found = [folder for folder in grafana.folders() if folder["title"] == title]
    if found:
        return str(found[0]["uid"]), "unchanged"
    uid = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "instep"
    return (uid if is_dry else grafana.make_folder(title, uid)), "created"


def _is_same(there: Mapping[str, Any], board: Mapping[str, Any], folder_uid: str) -> bool:
    kept = {name: value for name, value in there["dashboard"].items() if name not in OWN_TO_GRAFANA}
    ours = {name: value for name, value in board.items() if name not in OWN_TO_GRAFANA}
    return kept == ours and there.get("meta", {}).get("folderUid", "") == folder_uid


def _body(
    board: Mapping[str, Any], there: Mapping[str, Any] | None, folder_uid: str, *, message: str, is_overwriting: bool
) -> dict[str, Any]:
    """Return the request's body; the version says which state it was made from."""
    fields = {name: value for name, value in board.items() if name not in OWN_TO_GRAFANA}
    known = {"id": None} if there is None else {name: there["dashboard"].get(name) for name in OWN_TO_GRAFANA}
    return {
        "dashboard": {**fields, **known},
        "folderUid": folder_uid,
        "message": message,
        "overwrite": is_overwriting,
    }


def _face(url: str, token: str) -> GrafanaFace:
    """Return the client. Raise Misused for what is no address."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Misused(f"--url {url!r} is no address ({error}): give one like https://grafana.example.org.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise Misused(f"--url {url!r} is no address of a Grafana: give one such as https://grafana.example.org.")
    path = parts.path.strip("/")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return GrafanaFace(
        auth=token,
        host=host,
        port=port,
        protocol=parts.scheme,
        url_path_prefix=f"{path}/" if path else "",
        timeout=ANSWER_SECONDS_MAX,
    )


def _refusal(url: str, what: str, error: GrafanaClientError) -> str:
    """Return why Grafana said no, and what to change."""
    status = error.status_code
    mend = {
        401: "it does not know the token: make a service account with the role Editor and give its token with "
        "--token-file",
        403: "the token may not: give its service account the role Editor, or permission on the folder",
        404: "there is no such thing at this address: give the address at which Grafana's own page stands, with its "
        "path",
        409: "it is there already, where the token cannot see it: give the token permission on it, or another --folder",
    }.get(status, "")
    if status == 412:
        mend = _conflict(error.response)
    return f"Grafana at {url} refused to {what} ({status}: {_said(error)})" + (f"; {mend}." if mend else ".")


def _conflict(response: Any) -> str:
    """Return what a failed precondition means, by the status in the answer."""
    status = response.get("status", "") if isinstance(response, dict) else ""
    return {
        "version-mismatch": "somebody changed it at the same moment: publish again, or replace it with --overwrite",
        "name-exists": "another dashboard of this name is in the folder: rename or remove it, or replace it with "
        "--overwrite",
        "plugin-dashboard": "it belongs to a plugin: remove the plugin's copy first",
    }.get(status, "it was changed since it was read: publish again, or replace it with --overwrite")


def _is_grafanas(response: Any) -> bool:
    """Whether a 404 says that there is no such dashboard; another server's says nothing in this form."""
    return isinstance(response, dict) and "message" in response


def _said(error: GrafanaException) -> str:
    """Return Grafana's own words, short."""
    response = error.response
    words = response.get("message", "") if isinstance(response, dict) else str(response)
    return " ".join(str(words).split())[:200].rstrip(".") or "no reason given"


def _reason(error: BaseException | None) -> str:
    """Return the innermost reason that has words of its own, such as `Connection refused`."""
    reason = ""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif "timed out" in str(error):
            reason = f"no answer within {ANSWER_SECONDS_MAX:.0f} s"
        inner = getattr(error, "reason", None)  # urllib3 keeps the cause of its last try there
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return reason or "no connection"
