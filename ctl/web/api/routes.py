"""What a route is, and how the route of a request is found. Pure; the table of them is `ctl.web.api.table`."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ctl.config.model import Role
from ctl.web.serving import problems

PREFIX = "/api/v1"
SMALL_BODY, BIG_BODY = 64 << 10, 8 << 20


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query. kind: str, int or bool ("1", "true", "0", "false")."""

    name: str
    kind: type
    meaning: str
    low: int = 0
    high: int = 0
    required: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """What a request names: parameters of the path, of the query (typed), and the body's object."""

    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Mapping[str, Any]


Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """One row. command: of the control socket, or `own`: the handler of xlb-web.

    body: name of the schema of what it takes (`ctl.web.api.schemas`); empty: no body. names: what the parameters of the path
    are called as arguments. change: it changes the configuration, so it can be conditional. versioned: what it returns is part
    of the configuration, so it has an ETag. listed: the result has a long list of this name; with an empty name it is one.
    arguments, result: convert both.
    """

    method: str
    path: str
    summary: str
    command: str = ""
    own: str = ""
    body: str = ""
    query: tuple[Parameter, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    role: Role | None = None
    change: bool = False
    versioned: bool = False
    listed: str | None = None
    limit: int = SMALL_BODY
    arguments: Callable[[Given, Arguments], Arguments] | None = None
    result: Callable[[Any], Any] | None = None
    open: bool = False  # no login

    @property
    def needs(self) -> Role:
        """The role that may use it."""
        return self.role or (Role.VIEWER if self.method == "GET" else Role.OPERATOR)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names in the path."""
        return tuple(each[1:-1] for each in self.path.split("/") if each.startswith("{"))


class Router:
    """Finds routes by method and path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._paths: dict[str, dict[str, Route]] = {}
        for each in routes:
            self._paths.setdefault(each.path, {})[each.method] = each
        self._templates = [(tuple(path.strip("/").split("/")), methods) for path, methods in self._paths.items()]

    def find(self, method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
        """The route, and the parameters of the path. raw_path: below PREFIX, still encoded, so that a name may have a slash.

        Raises HttpError (404, 405). HEAD is GET without the body.
        """
        segments = tuple(raw_path.strip("/").split("/"))
        matches = [(template, methods) for template, methods in self._templates if _matches(template, segments)]
        if not matches:
            raise problems.unknown_path(PREFIX + raw_path)
        template, methods = min(matches, key=lambda match: sum(each.startswith("{") for each in match[0]))
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            raise problems.wrong_method(method, ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])})))
        return route, {
            name[1:-1]: _decoded(value) for name, value in zip(template, segments, strict=True) if name.startswith("{")
        }


def _matches(template: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    return len(template) == len(segments) and all(
        wanted == each or (wanted.startswith("{") and each) for wanted, each in zip(template, segments, strict=True)
    )


def _decoded(segment: str) -> str:
    try:
        return urllib.parse.unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise problems.malformed("the path is not UTF-8") from None
