"""The errors of HTTP itself, with their status and headers; those of commands get theirs in `ctl.web.api.statuses`."""

from __future__ import annotations

from ctl.errors import Code, XlbError


class HttpError(XlbError):
    """A request that is refused before any command runs. headers: of the answer."""

    kind = "refused"

    def __init__(self, status: int, message: str, code: str, **headers: str) -> None:
        super().__init__(message, code)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def unknown_path(path: str) -> HttpError:
    """404."""
    return HttpError(404, f'there is no "{path[:80]}"; GET /api/v1/openapi.json lists every path', Code.UNKNOWN_PATH)


def wrong_method(method: str, allowed: str) -> HttpError:
    """405. allowed: the methods that the path has, as the header Allow."""
    return HttpError(405, f"this path has no {method[:16]}; it has {allowed}", Code.UNKNOWN_PATH, allow=allowed)


def too_long(limit: int) -> HttpError:
    """413. The rest of the body is thrown away as it comes: a connection that is closed now would take the answer with it."""
    return HttpError(413, f"the body is longer than the {limit} bytes that this path reads", Code.REQUEST_TOO_LONG)


def malformed(message: str, status: int = 400) -> HttpError:
    """A request that is none of this API."""
    return HttpError(status, message, Code.MALFORMED_REQUEST)
