"""How messages leave: by HTTP, to the address that was configured and no other."""

from __future__ import annotations

import http.client
import urllib.request
from typing import Any

UNREACHABLE = (OSError, ValueError, http.client.HTTPException)
"""What a receiver that is away, or speaks something else than HTTP, raises."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like others: followed, a message would end as a GET of a login page that says 200, and
    its token would go along.
    """

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def send(request: urllib.request.Request, *, timeout_seconds: float) -> None:
    """Send a request; raises HTTPError for an answer other than 2xx, and what is UNREACHABLE."""
    with _OPENER.open(request, timeout=timeout_seconds) as response:
        response.read(65_536)
