"""Whether a request may be made at all: its origin, and what of its headers proves who asks. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from ctl.errors import Code
from ctl.web.serving.problems import HttpError

COOKIE = "__Host-xlb"
CSRF_HEADER = "x-csrf-token"
SAFE = ("GET", "HEAD")
MAX_ID = 128


def check_origin(method: str, headers: Mapping[str, str]) -> None:
    """A page of another origin must not make this browser act. Raises HttpError (403)."""
    if method in SAFE:
        return
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and origin.lower() != f"https://{host.lower()}":
        raise HttpError(403, f'the request comes from a page of "{origin[:80]}"; use the page of this node', Code.NOT_PERMITTED)
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HttpError(403, "the request comes from a page of another site; use the page of this node", Code.NOT_PERMITTED)


def check_csrf(method: str, headers: Mapping[str, str], expected: str) -> None:
    """A request with a cookie names the token that only the page can read. Raises HttpError (403)."""
    if method in SAFE:
        return
    if not hmac.compare_digest(headers.get(CSRF_HEADER, "").encode(), expected.encode()):
        raise HttpError(
            403, "the header X-CSRF-Token is missing or wrong; GET /api/v1/session has it as csrf", Code.NOT_PERMITTED
        )


def session_id(headers: Mapping[str, str]) -> str:
    """Of the cookie; empty: there is none."""
    for each in headers.get("cookie", "").split(";"):
        name, _, value = each.strip().partition("=")
        if name == COOKIE:
            return value.strip()[:MAX_ID]
    return ""


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of the header Authorization; None: no such header. Raises HttpError (401) for another scheme."""
    given = headers.get("authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    if scheme.lower() != "bearer":
        raise not_logged_in('the header Authorization is not "Bearer xlb_…"')
    return token.strip()


def cookie(value: str, lasts_s: float) -> str:
    """The header Set-Cookie; an empty value removes the cookie."""
    age = round(lasts_s) if value else 0
    return f"{COOKIE}={value}; Path=/; Max-Age={age}; Secure; HttpOnly; SameSite=Strict"


def not_logged_in(why: str) -> HttpError:
    """401."""
    return HttpError(
        401,
        f"{why}; log in with POST /api/v1/session, or send a token of 'xlbctl token add'",
        Code.NOT_LOGGED_IN,
        www_authenticate='Bearer realm="xlb"',
    )
