"""Which host names a request may name: a page of another name that resolves to this node (DNS rebinding) gets no answer.

Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
ALWAYS = ("localhost",)


class Hosts:
    """The names of this node. An IP address is one always: only names can be made to mean another machine."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(each.lower().rstrip(".") for each in (*ALWAYS, *names))

    def problem(self, header: str) -> str:
        """Why a request with this Host header is refused, as a message; empty: it is not."""
        name = host_name(header)
        if name is None:
            return "the Host header is missing or is no host"
        if name in self._names or _is_address(name) or self._matches_wildcard(name):
            return ""
        return (
            f'"{name[:80]}" is no name of this node: use its address or host name, or a certificate (web.tls_certificate)'
            " that has the name"
        )

    def _matches_wildcard(self, name: str) -> bool:
        return f"*.{name.partition('.')[2]}" in self._names


def host_name(header: str) -> str | None:
    """The host of a Host header in lower case, without port and brackets; None: it is none."""
    match = _HOST.fullmatch(header)
    return match[1].strip("[]").lower().rstrip(".") if match else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
