"""The OpenAPI document: its structure, that it has every control command, and that it takes what xlbd takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ctl.config.fields import BACKEND_FIELDS, FARM_FIELDS, HEALTH_FIELDS, VIP_FIELDS
from ctl.web.api import openapi
from ctl.web.api.schemas import BODIES
from ctl.web.api.table import EXCEPTIONS, ROUTES
from tests.fakes.daemon import running_daemon

DOCUMENT = openapi.make(ROUTES)
TYPES = {"string", "integer", "boolean", "object", "array", "number", "null"}
KEYWORDS = {
    *("type", "description", "enum", "minimum", "maximum", "pattern", "default", "format", "items", "properties", "required"),
    *("additionalProperties", "$ref"),
}
"""Of the JSON schemas that the document may have."""


def resolved(reference: str) -> Any:
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def check_schema(schema: Any, place: str) -> None:
    """A schema of the subset that is used here, all of whose keywords mean something."""
    assert isinstance(schema, dict) and schema.keys() <= KEYWORDS, place
    if "$ref" in schema:
        resolved(schema["$ref"])
    kinds = schema.get("type", [])
    assert set([kinds] if isinstance(kinds, str) else kinds) <= TYPES, place
    assert set(schema.get("required", ())) <= schema.get("properties", {}).keys(), place
    if "pattern" in schema:
        re.compile(schema["pattern"])
        assert "default" not in schema or re.search(schema["pattern"], schema["default"]), place
    if "enum" in schema:
        assert len(schema["enum"]) == len(set(schema["enum"])) > 0, place
        assert schema.get("default", schema["enum"][0]) in schema["enum"], place
    if "minimum" in schema:
        assert schema["minimum"] <= schema.get("default", schema["minimum"]) <= schema["maximum"], place
    for name, each in schema.get("properties", {}).items():
        check_schema(each, f"{place}.{name}")
    if "items" in schema:
        check_schema(schema["items"], f"{place}[]")


def test_the_document_has_the_parts_that_openapi_demands() -> None:
    assert DOCUMENT["openapi"] == "3.1.0" and {"title", "version"} <= DOCUMENT["info"].keys()
    for name, schema in DOCUMENT["components"]["schemas"].items():
        check_schema(schema, name)
    for name, response in DOCUMENT["components"]["responses"].items():
        assert response["description"] and re.fullmatch(r"[45]\d\d", name)
    for requirement in DOCUMENT["security"]:
        assert requirement.keys() <= DOCUMENT["components"]["securitySchemes"].keys()


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_the_operations_of_a_path(path: str) -> None:
    assert path.startswith("/")
    for method, operation in DOCUMENT["paths"][path].items():
        assert method in ("get", "put", "post", "patch", "delete")
        parameters = operation["parameters"]
        named = [each["name"] for each in parameters if each["in"] == "path"]
        assert named == re.findall(r"{(\w+)}", path)
        assert all(each["required"] for each in parameters if each["in"] == "path")
        assert len({(each["in"], each["name"].lower()) for each in parameters}) == len(parameters)
        for each in parameters:
            check_schema(each["schema"], f"{method} {path} {each['name']}")
        for status, response in operation["responses"].items():
            if "$ref" in response:
                assert resolved(response["$ref"]) and response["$ref"].endswith(status)
            else:
                assert response["description"]
                check_schema(response["content"]["application/json"]["schema"], f"{method} {path} {status}")
        for content in operation.get("requestBody", {}).get("content", {}).values():
            check_schema(content["schema"], f"{method} {path}")


def test_names_of_operations_are_unique() -> None:
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


def test_every_route_takes_a_body_that_is_described() -> None:
    assert {route.body for route in ROUTES} - {"", "text"} == BODIES.keys()


def test_every_control_command_has_a_path_or_a_reason_why_not(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        commands = set(daemon.node.parts.dispatcher.commands)
    routed = {route.command for route in ROUTES if route.command}
    assert commands - routed == EXCEPTIONS.keys() & (commands - routed)
    assert routed <= commands
    assert all(len(reason) > 10 for reason in EXCEPTIONS.values())


def test_bodies_of_farms_have_the_settings_that_the_files_have() -> None:
    assert set(BODIES["NewFarm"]["properties"]) == set(FARM_FIELDS)
    assert set(BODIES["NewFarm"]["properties"]["health"]["properties"]) == set(HEALTH_FIELDS)
    assert set(BODIES["NewBackend"]["properties"]) == set(BACKEND_FIELDS)
    assert set(BODIES["NewVip"]["properties"]) == {*VIP_FIELDS, "force"}


def test_only_what_changes_something_needs_more_than_a_get() -> None:
    for route in ROUTES:
        assert not (route.method == "GET" and (route.change or route.body)), route.path
        assert route.method != "GET" or not route.command.endswith((".add", ".set", ".delete", ".flush", ".apply")), route.path
