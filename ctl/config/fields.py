"""Converts dictionaries of the farms file and the control protocol to model values and back.

Decides names, types and defaults; a wrong or unknown name raises InvalidInput with its place and the expected value.
ctl/config/validation.py checks combinations of values. Must not know ids: values have id 0 unless a base provides one.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ctl.config.model import (
    ALL_PORTS,
    DEFAULT_CHECK,
    Backend,
    CheckKind,
    DrainThen,
    Farm,
    HealthCheck,
    Mode,
    Protocol,
    Vip,
)
from ctl.config.settings import BACKEND_SETTINGS, CHECK_SETTINGS, FARM_SETTINGS, Setting
from ctl.config.validation import KIND_DEFAULTS, KINDS_OF, canonical_address, check_bounds, suggest
from ctl.errors import Code, InvalidInput

VIP_FIELDS = ("address", "device", "guard")
FARM_FIELDS = (
    "name",
    "vip",
    "port",
    "proto",
    "mode",
    "snat_address",
    *(setting.name for setting in FARM_SETTINGS),
    "health",
)
HEALTH_FIELDS = (
    *("kind", "interval_ms", "timeout_ms", "rise", "fall", "port", "path", "status", "host", "address"),
    *(setting.name for setting in CHECK_SETTINGS),
    "command",
)
BACKEND_FIELDS = ("address", "port", *(setting.name for setting in BACKEND_SETTINGS))
ALIASES = {"protocol": "proto", "dev": "device", "drain": "draining"}

PORTS_FORM = 'a port from 1 to 65535, a range like "8000-8010", a list of them like "80,443,8000-8010", or "all"'

_Enum = TypeVar("_Enum", bound=enum.StrEnum)


class Fields:
    """Typed access to untrusted settings. `place` prefixes every key in messages; `known` are the allowed names."""

    def __init__(self, values: object, place: str, known: Collection[str]) -> None:
        self.place = place
        if not isinstance(values, Mapping):
            raise InvalidInput(f"expected a table of settings, got {_described(values)}", place)
        self._values: dict[str, object] = {}
        for given, value in values.items():
            name = str(given)
            name = name if name in known else ALIASES.get(name, name)
            if name not in known:
                raise InvalidInput(f"no such setting{suggest(name, known)}", self.key(name[:64]), Code.UNKNOWN_ARGUMENT)
            if name in self._values:
                raise InvalidInput("is given twice", self.key(name))
            self._values[name] = value

    def key(self, name: str) -> str:
        """The full name of a setting for messages."""
        return f"{self.place}.{name}" if self.place else name

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def _get(self, name: str, default: object, expected: str) -> object:
        value = self._values.get(name, default)
        if value is None:
            raise InvalidInput(f"is missing; expected {expected}", self.key(name), Code.MISSING_ARGUMENT)
        return value

    def _wrong(self, name: str, expected: str) -> InvalidInput:
        return InvalidInput(f"expected {expected}, got {_described(self._values[name])}", self.key(name))

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default, "a string")
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def integer(self, name: str, default: int | None = None, low: int | None = None, high: int | None = None) -> int:
        expected = "an integer" if low is None else f"an integer from {low} to {high}"
        value = self._get(name, default, expected)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, expected)
        if low is not None and high is not None:
            check_bounds(value, low, high, self.key(name))
        return value

    def boolean(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default, "true or false")
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def choice(self, name: str, kind: type[_Enum], default: _Enum | None = None) -> _Enum:
        expected = " or ".join(each or '""' for each in kind)
        value = self._get(name, default, expected)
        if not isinstance(value, str) or value not in set(kind):
            raise self._wrong(name, expected)
        return kind(value)

    def setting(self, setting: Setting, default: object) -> object:
        """The value of a setting of ctl/config/settings.py; its range is checked with the whole."""
        if isinstance(default, bool):
            return self.boolean(setting.name, default)
        if isinstance(default, enum.StrEnum):
            return self.choice(setting.name, type(default), default)
        if isinstance(default, int):
            value = self._get(setting.name, default, "an integer")
            if not isinstance(value, int) or isinstance(value, bool):
                raise self._wrong(setting.name, f"an integer: {setting.expected}")
            return value
        return self.text(setting.name, str(default))

    def address(self, name: str, default: str | None = None) -> str:
        """A canonical address; if the default is empty, the value may be empty."""
        value = self.text(name, default)
        return value if value == default == "" else canonical_address(value, self.key(name))

    def texts(self, name: str, default: Sequence[str] | None = None, or_one: bool = False) -> tuple[str, ...]:
        """or_one: one string is a list of it."""
        value = self._get(name, default, "a list of strings")
        if or_one and isinstance(value, str):
            return (value,)
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
            raise self._wrong(name, "a list of strings")
        return tuple(value)

    def section(self, name: str, known: Collection[str]) -> Fields:
        """The table under `name`, empty when absent."""
        return Fields(self._get(name, {}, "a table"), self.key(name), known)

    def sections(self, name: str) -> Iterator[tuple[str, Mapping[str, object]]]:
        """(place, table) of each table in the list under `name`."""
        value = self._get(name, (), "a list of tables")
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise self._wrong(name, f"a list of tables ([[{name}]])")
        for number, each in enumerate(value):
            place = f"{self.key(name)}[{number}]"
            if not isinstance(each, Mapping):
                raise InvalidInput(f"expected a table of settings, got {_described(each)}", place)
            yield place, each


def _described(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the string "{value[:64]}"'
    if isinstance(value, int | float):
        return str(value)[:64]
    return "nothing" if value is None else "a table" if isinstance(value, Mapping) else f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class BackendName:
    """Identifies a backend within its farm."""

    address: str
    port: int


def read_backend_name(fields: Fields, farm: Farm) -> BackendName:
    """Without a port, it has the first of the farm."""
    return BackendName(fields.address("address"), fields.integer("port", farm.port))


def read_vip(fields: Fields) -> Vip:
    text = fields.text("address")
    address, slash, length = text.partition("/")
    key = fields.key("address")
    if not slash or not (length.isascii() and length.isdigit() and len(length) <= 3):
        raise InvalidInput(f'expected an address with prefix length like 10.0.0.100/24, got "{text[:64]}"', key)
    return Vip(canonical_address(address, key), int(length), fields.text("device"), fields.boolean("guard", True))


def read_farm(fields: Fields, base: Farm | None = None) -> Farm:
    """A farm from its settings, without backends; with `base`, that farm with the given settings changed."""
    vips, ports = _read_vips(fields, base), _read_ports(fields, base)
    protocol = fields.choice("proto", Protocol, base.protocol if base else Protocol.TCP)
    return Farm(
        id=base.id if base else 0,
        name=fields.text("name", base.name if base else None),
        vip=vips[0],
        more_vips=vips[1:],
        port=ports[0][0],
        port_last=ports[0][1],
        more_ports=ports[1:],
        protocol=protocol,
        mode=fields.choice("mode", Mode, base.mode if base else Mode.SNAT),
        snat_address=_read_snat_address(fields, base),
        health=read_health(fields, base.health if base else None, DEFAULT_CHECK[protocol].kind),
        backends=base.backends if base else (),
        kept_size=base.kept_size if base else 0,
        **_read_settings(fields, FARM_SETTINGS, base),
    )


def _read_settings(fields: Fields, settings: Sequence[Setting], base: Farm | Backend | HealthCheck | None) -> dict[str, Any]:
    return {each.name: fields.setting(each, getattr(base, each.name) if base else each.default) for each in settings}


def _read_snat_address(fields: Fields, base: Farm | None) -> str:
    if "snat_address" not in fields:
        return base.snat_address if base else ""
    return ",".join(
        canonical_address(each.strip(), fields.key("snat_address")) for each in _parts(fields.text("snat_address", ""))
    )


def _parts(text: str) -> list[str]:
    return text.split(",") if text else []


def _read_vips(fields: Fields, base: Farm | None) -> tuple[str, ...]:
    """One address, or several as a list or separated by commas."""
    if base and "vip" not in fields:
        return base.vips
    value = fields._get("vip", None, "an address, or several separated by commas")
    given = _parts(value) if isinstance(value, str) else fields.texts("vip")
    if not given:
        raise fields._wrong("vip", "an address, or several separated by commas")
    return tuple(canonical_address(each.strip(), fields.key("vip")) for each in given)


def _read_ports(fields: Fields, base: Farm | None) -> tuple[tuple[int, int], ...]:
    """(first, last), ascending; ranges that adjoin are one. Bounds and overlaps are checked with the whole."""
    if base and "port" not in fields:
        return base.port_ranges
    value = fields._get("port", None, 'a port, a range like 8000-8010, a list of them, or "all"')
    if value == "all":
        return ALL_PORTS
    given = _parts(value) if isinstance(value, str) else value if isinstance(value, Sequence) else [fields.integer("port")]
    ranges = [_read_range(fields, each) for each in given]
    if not ranges:
        raise fields._wrong("port", PORTS_FORM)
    if any(first > last for first, last in ranges):
        return tuple(ranges)  # the check of the whole names it
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and joined[-1][1] == first - 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def _read_range(fields: Fields, value: object) -> tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    first, dash, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    numbers = [first.strip(), last.strip()] if dash else [first.strip()]
    if not all(each.isascii() and each.isdigit() and len(each) <= 9 for each in numbers):
        raise fields._wrong("port", PORTS_FORM)
    return int(numbers[0]), int(numbers[-1])


def read_health(farm: Fields, base: HealthCheck | None, kind: CheckKind) -> HealthCheck:
    """The check in a farm's settings; with `base`, that one with the given settings changed. kind: of a new one, by default.

    The default timeout of a new check is at most its interval. A change of the kind resets what only the old kind uses.
    """
    fields, start = farm.section("health", HEALTH_FIELDS), base or HealthCheck(kind)
    kind = fields.choice("kind", CheckKind, start.kind)
    if base is not None and kind is not base.kind:
        unused: dict[str, Any] = {name: default for name, default in KIND_DEFAULTS.items() if kind not in KINDS_OF[name]}
        start = replace(start, **unused)
    interval_ms, timeout_ms = fields.integer("interval_ms", start.interval_ms), start.timeout_ms
    if base is None and kind is not CheckKind.NONE:
        timeout_ms = min(timeout_ms, interval_ms)
    return HealthCheck(
        kind=kind,
        interval_ms=interval_ms,
        timeout_ms=fields.integer("timeout_ms", timeout_ms),
        rise=fields.integer("rise", start.rise),
        fall=fields.integer("fall", start.fall),
        port=fields.integer("port", start.port),
        path=fields.text("path", start.path),
        status=_read_status(fields, start.status),
        host=fields.text("host", start.host),
        address=fields.address("address", start.address or ""),
        command=fields.texts("command", start.command),
        **_read_settings(fields, CHECK_SETTINGS, start),
    )


def _read_status(fields: Fields, default: str) -> str:
    """Accepts `status = 200` and `status = "200"`."""
    value = fields._get("status", default, "an HTTP status or range")
    return str(fields.integer("status")) if isinstance(value, int) else fields.text("status", default)


def read_backend(fields: Fields, farm: Farm, base: Backend | None = None) -> Backend:
    """A backend from its settings; with `base`, that backend with the given settings changed (never address and port)."""
    name = BackendName(base.address, base.port) if base else read_backend_name(fields, farm)
    start = base or Backend(0, name.address, name.port)
    if not fields.boolean("draining", True):  # the deadline is that of the drain which ends
        start = replace(start, drain_until=0, drain_then=DrainThen.KEEP)
    return replace(start, **_read_settings(fields, BACKEND_SETTINGS, start))


def vip_fields(vip: Vip) -> dict[str, object]:
    """Every setting of a VIP by its contract name."""
    return {"address": f"{vip.address}/{vip.prefix_length}", "device": vip.device, "guard": vip.guard}


def farm_fields(farm: Farm) -> dict[str, object]:
    """Every setting of a farm by its contract name, without backends."""
    return {
        "name": farm.name,
        "vip": ",".join(farm.vips),
        "port": farm.port if farm.port_ranges == ((farm.port, farm.port),) else farm.ports,
        "proto": farm.protocol.value,
        "mode": farm.mode.value,
        "snat_address": farm.snat_address,
        **_setting_fields(farm, FARM_SETTINGS),
        "health": health_fields(farm.health),
    }


def _setting_fields(of: Farm | Backend, settings: Sequence[Setting]) -> dict[str, object]:
    values = {each.name: getattr(of, each.name) for each in settings}
    return {name: value.value if isinstance(value, enum.StrEnum) else value for name, value in values.items()}


def health_fields(check: HealthCheck) -> dict[str, object]:
    """Every setting of a health check by its contract name."""
    values = {name: getattr(check, name) for name in HEALTH_FIELDS}
    plain = {name: value.value for name, value in values.items() if isinstance(value, enum.StrEnum)}
    return values | plain | {"command": list(check.command)}


def backend_fields(backend: Backend) -> dict[str, object]:
    """Every setting of a backend by its contract name."""
    return {"address": backend.address, "port": backend.port, **_setting_fields(backend, BACKEND_SETTINGS)}
