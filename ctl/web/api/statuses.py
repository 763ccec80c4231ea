"""The HTTP status and body of an error. Pure."""

from __future__ import annotations

from typing import Any

from ctl.errors import Code, InvalidInput, XlbError
from ctl.web.serving.problems import HttpError

RETRY_S = 1
NO_DAEMON = (Code.DAEMON_NOT_RUNNING, Code.DAEMON_SILENT, Code.BUSY, Code.NOT_PERMITTED)
NOT_A_THING = (Code.UNKNOWN_ARGUMENT, Code.UNKNOWN_COMMAND, Code.UNKNOWN_INTERFACE)
"""Codes that begin with "unknown_" and name no resource."""


def status_of(error: XlbError, conditional: bool = False) -> int:
    """conditional: the request named the version that it changes (If-Match)."""
    if isinstance(error, HttpError):
        return error.status
    code = error.code
    if code == Code.CHANGE_OVERTAKEN and conditional:
        return 412
    if code in NO_DAEMON:
        return 503
    if code == Code.INTERNAL:
        return 502
    if code == Code.REQUEST_TOO_LONG:
        return 413
    if code.endswith(("_exists", "_in_use")):
        return 409
    if code.startswith("unknown_") and code not in NOT_A_THING:
        return 404
    return 422 if isinstance(error, InvalidInput) else 409


def headers_of(error: XlbError) -> dict[str, str]:
    """Headers of the answer besides those of every answer."""
    if isinstance(error, HttpError):
        return error.headers
    return {"retry-after": str(RETRY_S)} if error.code in NO_DAEMON else {}


def body_of(error: XlbError) -> dict[str, Any]:
    """As on the control socket."""
    return {"error": {"kind": error.kind, "code": str(error.code), "message": str(error), "key": error.key}}
