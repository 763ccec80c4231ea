"""API tokens: 256 random bits as a string, of which only the digest is stored."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "xlb_"
BYTES = 32


def make() -> tuple[str, str]:
    """A new token and its digest."""
    token = PREFIX + secrets.token_urlsafe(BYTES)
    return token, digest(token)


def digest(token: str) -> str:
    """SHA-256 in hexadecimal. No salt and no cost: 256 random bits cannot be guessed."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
