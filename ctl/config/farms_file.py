"""The declarative farms file: converts TOML to model values and back.

    [[vip]]
    address = "10.77.0.100/24"
    device = "eth0"

    [[farm]]
    name = "web"
    vip = "10.77.0.100"
    port = 80                      # or several: "443,8000-8010", or "all"

    [farm.health]
    kind = "http"

    [[farm.backend]]
    address = "10.77.0.11"
    port = 8080

docs/farms-file.md lists every setting. Decides the structure and the places in error messages; names and types are those of
ctl/config/fields.py. Must not know files or ids (0: not assigned yet; `changes.replace_from_document` assigns them).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeGuard

from ctl.config.fields import (
    BACKEND_FIELDS,
    FARM_FIELDS,
    HEALTH_FIELDS,
    VIP_FIELDS,
    Fields,
    backend_fields,
    farm_fields,
    health_fields,
    read_backend,
    read_farm,
    read_health,
    read_vip,
    vip_fields,
)
from ctl.config.model import Backend, CheckKind, Config, Farm, HealthCheck, PrefixList, Protocol, Vip
from ctl.config.prefixes import packed, parse_texts, texts, unpack
from ctl.config.validation import check_farm, check_listener, check_name, check_vip, check_vip_of_farm
from ctl.errors import InvalidInput

PREFIXES_FIELDS = ("name", "prefixes", "file", "v4", "v6")


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a farms file; every id is 0.

    prefixes: None if the file names no prefix list: those that exist stay then.
    unchecked: the checks of the farms for which the file names no kind of check, as a farm without a check keeps them.
    """

    vips: tuple[Vip, ...]
    farms: tuple[Farm, ...]
    unchecked: Mapping[str, HealthCheck] = field(default_factory=lambda: MappingProxyType({}))
    prefixes: tuple[PrefixList, ...] | None = None


def parse_text(text: str, source: str) -> Mapping[str, object]:
    """Parse TOML to the document that `config.apply` takes. Raises InvalidInput naming `source`, line and column."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"is not valid TOML: {error}", source) from None


def parse(document: Mapping[str, object]) -> Document:
    """Check and convert a document. Raises InvalidInput whose key is the place, e.g. `farm "web".backend[2].port`.

    Places count from 0.
    """
    top = Fields(document, "", ("vip", "farm", "prefixes"))
    lists: dict[str, PrefixList] = {}
    for place, table in top.sections("prefixes"):
        made = _parse_prefixes(Fields(table, place, PREFIXES_FIELDS))
        if made.name in lists:
            raise InvalidInput("this name is listed twice", f"{place}.name")
        lists[made.name] = made
    vips: dict[str, Vip] = {}
    for place, table in top.sections("vip"):
        vip = read_vip(Fields(table, place, VIP_FIELDS))
        check_vip(vip, place)
        if vip.address in vips:
            raise InvalidInput(f"{vip.address} is listed twice", f"{place}.address")
        vips[vip.address] = vip
    farms: dict[str, Farm] = {}
    unchecked: dict[str, HealthCheck] = {}
    listeners: dict[tuple[str, str], list[Farm]] = {}
    for place, table in top.sections("farm"):
        name = table.get("name")
        place = f'farm "{name[:64]}"' if isinstance(name, str) else place
        farm, check = _parse_farm(table, place)
        if farm.name in farms:
            raise InvalidInput("this name is listed twice", f"{place}.name")
        check_vip_of_farm(vips, farm, place)
        for address in farm.vips:
            others = listeners.setdefault((address, farm.protocol), [])
            check_listener(others, farm, place)
            others.append(farm)
        farms[farm.name] = farm
        if check is not None:
            unchecked[farm.name] = check
    return Document(
        tuple(vips.values()), tuple(farms.values()), unchecked, tuple(lists.values()) if "prefixes" in document else None
    )


def _parse_prefixes(fields: Fields) -> PrefixList:
    """A prefix list, as strings or packed (see `to_document`)."""
    name = fields.text("name")
    check_name(name, fields.key("name"))
    if "prefixes" in fields:
        return parse_texts(name, fields.texts("prefixes"), fields.key("prefixes"))
    if "file" in fields:
        raise InvalidInput("xlbctl replaces the file by its prefixes; a document for xlbd has none", fields.key("file"))
    return unpack(name, fields.text("v4", ""), fields.text("v6", ""), fields.key("prefixes"))


def _parse_farm(table: Mapping[str, object], place: str) -> tuple[Farm, HealthCheck | None]:
    """The farm, and its entry of `Document.unchecked`."""
    fields = Fields(table, place, (*FARM_FIELDS, "backend"))
    farm = read_farm(fields)
    backends = tuple(read_backend(Fields(each, spot, BACKEND_FIELDS), farm) for spot, each in fields.sections("backend"))
    farm = replace(farm, backends=backends)
    check_farm(farm, place)
    return farm, None if "kind" in fields.section("health", HEALTH_FIELDS) else read_health(fields, None, CheckKind.NONE)


_FARM_DEFAULTS = farm_fields(Farm(0, "", "", 0, 0))
_HEALTH_DEFAULTS = health_fields(HealthCheck())
_BACKEND_DEFAULTS = MappingProxyType({**backend_fields(Backend(0, "", 0)), "weight": None})


def to_document(config: Config) -> dict[str, object]:
    """The document that describes `config`; defaults are left out. `parse(to_document(c))` is c without ids.

    Prefix lists are packed, so that it stays short; `readable` unpacks them.
    """
    return {
        "vip": [_unlike(vip_fields(vip), {"guard": True}) for vip in config.vips.values()],
        "prefixes": [{"name": each.name} | packed(each) for each in config.prefixes.values()],
        "farm": [_farm_table(farm) for farm in config.farms.values()],
    }


def readable(document: Mapping[str, object]) -> dict[str, object]:
    """A document of `to_document` with its prefix lists as strings."""
    lists = document.get("prefixes")
    if not isinstance(lists, Sequence):
        return dict(document)
    shown = [{"name": each["name"], "prefixes": list(texts(unpack(each["name"], each["v4"], each["v6"])))} for each in lists]
    return {**document, "prefixes": shown}


def _unlike(values: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value != defaults.get(name)}


def _farm_table(farm: Farm) -> dict[str, object]:
    table = _unlike({**farm_fields(farm), "health": None}, _FARM_DEFAULTS | {"health": None})
    health = _unlike(health_fields(farm.health), _HEALTH_DEFAULTS)
    if farm.protocol is Protocol.TCP:  # versions have different defaults
        health = {"kind": farm.health.kind.value} | health
    if health:
        table["health"] = health
    if farm.backends:
        table["backend"] = [_unlike(backend_fields(backend), _BACKEND_DEFAULTS) for backend in farm.backends]
    return table


def to_text(document: Mapping[str, object]) -> str:
    """A document as TOML, in the structure shown above."""
    lines: list[str] = []
    _write_table(readable(document), "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _write_table(table: Mapping[str, object], path: str, lines: list[str]) -> None:
    """TOML requires a table's plain values before its sub-tables."""
    for name, value in table.items():
        if not _is_nested(value):
            lines.append(f"{name} = {_scalar(value)}")
    for name, value in table.items():
        below = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            lines += ["", f"[{below}]"]
            _write_table(value, below, lines)
        elif _is_nested(value):
            assert isinstance(value, Sequence)
            for each in value:
                lines += ["", f"[[{below}]]"]
                _write_table(each, below, lines)


def _is_nested(value: object) -> bool:
    """Whether it is a table or a list of tables; other lists are plain values."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(isinstance(each, Mapping) for each in value)
    return isinstance(value, Mapping)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _scalar(value: object) -> str:
    if _is_list(value):
        return "[" + "".join(f"\n    {_scalar(each)}," for each in value) + "\n]"
    return _string_or_number(value)


def _string_or_number(value: object) -> str:
    """JSON and TOML write these types equally, except that TOML requires an escaped DEL (TOML 1.0.0, section String)."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
