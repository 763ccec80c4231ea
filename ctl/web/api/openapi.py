"""The OpenAPI document (https://spec.openapis.org/oas/v3.1.0), made of the table of routes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ctl.errors import Code
from ctl.version import package_version
from ctl.web.access.requests import COOKIE, CSRF_HEADER
from ctl.web.api.routes import PREFIX, Parameter, Route
from ctl.web.api.schemas import BODIES

KINDS = {str: "string", int: "integer", bool: "boolean"}
ERRORS = {
    "400": "The request is not HTTP or JSON as this API reads it.",
    "401": "The request has no session and no token, or it has ended.",
    "403": "The role does not allow it, or the CSRF token is missing.",
    "404": "There is no such thing.",
    "409": "Refused: something is in use, exists already, or the node cannot do it now.",
    "412": "The configuration is another one than If-Match names.",
    "413": "The body is too long.",
    "415": "The body has another type than this path reads.",
    "422": "The input is invalid; `key` names what is at fault.",
    "429": "Too many logins failed; see Retry-After.",
    "502": "A bug in xlbd; its log has the details.",
    "503": "xlbd does not run or is busy; see Retry-After.",
}


def make(routes: Iterable[Route]) -> dict[str, Any]:
    """The document."""
    paths: dict[str, Any] = {}
    for each in routes:
        paths.setdefault(each.path, {})[each.method.lower()] = operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "xlb",
            "version": package_version(),
            "description": "HTTP API of a node of the xlb load balancer. In a pair either node takes changes.",
        },
        "servers": [{"url": PREFIX}],
        "security": [{"session": []}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**BODIES, "Error": _error()},
            "responses": {
                status: {"description": meaning, "content": _json({"$ref": "#/components/schemas/Error"})}
                for status, meaning in ERRORS.items()
            },
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "token": {"type": "http", "scheme": "bearer", "description": "Made by `xlbctl token add`."},
            },
        },
    }


def operation(route: Route) -> dict[str, Any]:
    """One method of a path."""
    made: dict[str, Any] = {
        "operationId": _identifier(route),
        "summary": route.summary,
        "tags": [route.path.split("/")[1].removesuffix(".json")],
        "parameters": _parameters(route),
        "responses": _responses(route),
        "x-xlb-role": None if route.open else route.needs.value,
    }
    if route.command:
        made["x-xlb-command"] = route.command
    if route.open:
        made["security"] = []
    if route.body == "text":
        made["requestBody"] = {"required": True, "content": {"text/plain": {"schema": {"type": "string"}}}}
    elif route.body:
        reference = {"$ref": f"#/components/schemas/{route.body}"}
        made["requestBody"] = {"required": "required" in BODIES[route.body], "content": _json(reference)}
    return made


def _identifier(route: Route) -> str:
    words = [route.method.lower(), *(each.strip("{}") for each in route.path.strip("/").split("/"))]
    return "_".join(word.replace(".", "_") for word in words)


def _parameters(route: Route) -> list[dict[str, Any]]:
    made = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.parameters]
    made += [_query(each) for each in route.query]
    if route.method != "GET" and not route.open:
        csrf = "Of GET /session; not needed with a token."
        made.append({"name": CSRF_HEADER, "in": "header", "description": csrf, "schema": {"type": "string"}})
    if route.change:
        text = 'ETag of the configuration that is changed, like "3-17"; * or none: whatever it is.'
        made.append({"name": "If-Match", "in": "header", "description": text, "schema": {"type": "string"}})
    return made


def _query(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": KINDS[parameter.kind]}
    if parameter.kind is int:
        schema |= {"minimum": parameter.low, "maximum": parameter.high}
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.meaning,
        "schema": schema,
    }


def _responses(route: Route) -> dict[str, Any]:
    wrapped: dict[str, Any] = {"type": "object", "properties": {"result": {}}, "required": ["result"]}
    if route.method == "GET":
        wrapped["properties"]["version"] = {"type": "string"}
    else:
        wrapped["properties"]["note"] = {"type": "string"}
    good: dict[str, Any] = {"description": route.summary, "content": _json(wrapped)}
    if route.versioned:
        good["headers"] = {"ETag": {"description": "Version of the configuration.", "schema": {"type": "string"}}}
    statuses = {"400", "422", "502", "503"} | (set() if route.open else {"401", "403"})
    statuses |= {"404"} if route.parameters or route.query else set()
    statuses |= {"413", "415"} if route.body else set()
    statuses |= {"409"} if route.method != "GET" else set()
    statuses |= {"412"} if route.change else set()
    statuses |= {"401", "403", "429"} if route.body in ("Login", "OwnPassword") else set()
    references = {each: {"$ref": f"#/components/responses/{each}"} for each in sorted(statuses)}
    return {"202" if route.own == "creation.start" else "200": good} | references


def _error() -> dict[str, Any]:
    fields = {
        "kind": {"type": "string", "enum": ["invalid", "refused", "internal"]},
        "code": {"type": "string", "description": f"For programs: {', '.join(Code)}, and those of later versions."},
        "message": {"type": "string", "description": "For people; it may change."},
        "key": {"type": "string", "description": "What of the input is at fault; may be empty."},
    }
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
