"""Arguments of a control command from what a request names. Pure; values are checked by xlbd, as those of `xlbctl` are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ctl.errors import Code, InvalidInput
from ctl.web.api.routes import Arguments, Given, Parameter, Route

RESERVED = ("if_version", "on_behalf")
FLAGS = {"1": True, "true": True, "": True, "0": False, "false": False}


def of(route: Route, given: Given) -> Arguments:
    """Raises InvalidInput."""
    named = {route.names.get(name, name): value for name, value in given.path.items()}
    for name in given.body:
        if name in RESERVED or name in named:
            raise InvalidInput("is not part of the body: the path or a header has it", name[:64], Code.UNKNOWN_ARGUMENT)
    if route.arguments is not None:
        return route.arguments(given, named)
    return named | dict(given.query) | dict(given.body)


def read_query(parameters: Sequence[Parameter], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The parameters of a query by name, converted. Raises InvalidInput."""
    known = {each.name: each for each in parameters}
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name not in known:
            names = ", ".join(known) or "none"
            raise InvalidInput(f"no such parameter; this path has {names}", name[:64], Code.UNKNOWN_ARGUMENT)
        if name in values:
            raise InvalidInput("is given twice", name)
        values[name] = _converted(known[name], text)
    for each in parameters:
        if each.required and each.name not in values:
            raise InvalidInput(f"is missing: {each.meaning}", each.name, Code.MISSING_ARGUMENT)
    return values


def _converted(parameter: Parameter, text: str) -> Any:
    if parameter.kind is int:
        if not (text.isascii() and text.isdigit() and len(text) <= 18 and parameter.low <= int(text) <= parameter.high):
            raise InvalidInput(
                f'expected an integer from {parameter.low} to {parameter.high}, got "{text[:40]}"', parameter.name
            )
        return int(text)
    if parameter.kind is bool:
        if text not in FLAGS:
            raise InvalidInput(f'expected 1 or 0, got "{text[:40]}"', parameter.name)
        return FLAGS[text]
    return text


def endpoint(given: Given, named: Arguments) -> Arguments:
    """farm, and address and port of a backend in the path, with query and body."""
    return {"farm": named["farm"], **split_endpoint(named["backend"]), **given.query, **given.body}


def split_endpoint(text: str) -> dict[str, Any]:
    """address and port of "10.0.0.1:80" or "[2001:db8::1]:80"; the port may be missing. Raises InvalidInput."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (text.count(":") > 1 and not host.endswith("]")):
        return {"address": text.strip("[]")}
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise InvalidInput(f'expected ADDRESS:PORT like "10.0.0.1:80" or "[2001:db8::1]:80", got "{text[:80]}"', "backend")
    return {"address": host.strip("[]"), "port": int(port)}


def address(given: Given, named: Arguments) -> Arguments:
    """A VIP in the path, with or without its prefix length."""
    return {"address": named["address"].partition("/")[0], **given.query, **given.body}


def prefixes(given: Given, named: Arguments) -> Arguments:
    """The prefixes of a list as strings, packed as they travel."""
    from ctl.config import prefixes as lists

    texts = given.body.get("prefixes")
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise InvalidInput('expected a list of strings like ["10.0.0.0/8"]', "prefixes", Code.MISSING_ARGUMENT)
    _only(given.body, "prefixes")
    return named | lists.packed(lists.parse_texts(str(named["name"]), texts, "prefixes"))


def document(given: Given, named: Arguments) -> Arguments:
    """A farms file, as a document or as TOML, and the rest of the body."""
    from ctl.config import farms_file

    rest = {name: value for name, value in given.body.items() if name not in ("document", "toml")}
    toml, found = given.body.get("toml"), given.body.get("document")
    if (toml is None) == (found is None):
        raise InvalidInput("expected document (an object) or toml (a string), one of them", "document", Code.MISSING_ARGUMENT)
    if toml is not None and not isinstance(toml, str):
        raise InvalidInput("expected the text of a farms file", "toml")
    if found is not None and not isinstance(found, dict):
        raise InvalidInput("expected an object", "document")
    return named | rest | {"document": found if toml is None else dict(farms_file.parse_text(toml, "toml"))}


def applied(given: Given, named: Arguments) -> Arguments:
    """As `document`, for putting it in force: an empty one needs `force`, as with `xlbctl apply`."""
    made = document(given, named)
    if not (made["document"].get("vip") or made["document"].get("farm") or made.get("force") or made.get("dry_run")):
        raise InvalidInput("is empty: every VIP and farm would be removed; if that is meant, add force", "document")
    return made


def impact(given: Given, named: Arguments) -> Arguments:
    """Of a change, or of a document."""
    if "change" in given.body:
        return dict(given.body)
    return document(given, named)


def _only(body: Mapping[str, Any], *names: str) -> None:
    for each in body:
        if each not in names:
            raise InvalidInput(f"no such setting; expected {', '.join(names)}", each[:64], Code.UNKNOWN_ARGUMENT)
