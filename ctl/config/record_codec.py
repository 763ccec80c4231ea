"""The configuration as lines of JSON: the format of farms.jsonl and of the replicated configuration.

A header, one line per VIP, farm and account, several per prefix list, and a trailer with the digest of all lines, so that a
truncated or damaged record is never read as a shorter configuration. Decides the format and its version. Must not know files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from ctl.config.accounts import check_accounts
from ctl.config.model import (
    AllDown,
    Backend,
    CheckKind,
    CheckVia,
    Config,
    DrainThen,
    Farm,
    HealthCheck,
    Mode,
    OnBackend,
    OnNoBackend,
    PrefixList,
    Protocol,
    Provenance,
    QueryType,
    ResponseCode,
    Role,
    Scheduler,
    Token,
    User,
    Vip,
)
from ctl.config.prefixes import packed, pieces, unpack
from ctl.config.settings import TABLE_SIZES
from ctl.config.validation import check_config
from ctl.errors import Code, InvalidInput, XlbError

FORMAT_VERSION = 1
MAX_BYTES = 256 << 20
"""More than the limits of a configuration need; a longer record is damaged or hostile."""
MAX_HEADER_BYTES = 1 << 20
"""More than the first line needs: the sizes of 4096 lookup tables are 160 KB."""
MAX_STRING = 4000
"""Characters of a string in the provenance of a record."""

_TYPES: Mapping[str, Callable[[Any], Any]] = {
    "protocol": Protocol,
    "mode": Mode,
    "scheduler": Scheduler,
    "all_down": AllDown,
    "on_no_backend": OnNoBackend,
    "on_backend_down": OnBackend,
    "on_backend_removed": OnBackend,
    "drain_then": DrainThen,
    "kind": CheckKind,
    "query_type": QueryType,
    "rcode": ResponseCode,
    "via": CheckVia,
    "command": tuple,
}
RELEASED: Mapping[type, frozenset[str]] = {
    Vip: frozenset({"address", "prefix_length", "device", "guard"}),
    Farm: frozenset(
        {
            *("id", "name", "vip", "port", "port_last", "protocol", "mode", "scheduler", "snat_address", "enabled", "all_down"),
            *("idle_timeout_s", "health", "backends"),
        }
    ),
    Backend: frozenset({"id", "address", "port", "weight", "priority", "draining"}),
    HealthCheck: frozenset({"kind", "interval_ms", "timeout_ms", "rise", "fall", "port", "path", "status", "host"}),
}
"""The fields that 0.1.0 knows. Others are omitted at their default, so that a peer of that version can read the record."""
FIELDS = {
    kind: tuple(
        (field.name, MISSING if field.name in released else field.default)
        for field in fields(kind)
        if field.name != "kept_size"
    )
    for kind, released in RELEASED.items()
}
"""Name and default of each field; without a default, it is always written. The sizes of lookup tables are in the header, where
0.1.0 ignores them: every farm has one, and a peer of that version refuses a farm with an unknown field."""


class DamagedRecord(Exception):
    """The record is not a complete configuration; the message names the defect."""


class NewerRecord(XlbError):
    """A newer version of xlb wrote the record."""


@dataclass(frozen=True, slots=True)
class Record:
    """A configuration and its encoded bytes, which are the same on disk, on the network and on the peer's disk."""

    config: Config
    body: bytes


Put = Callable[[Record], Awaitable[None]]
"""Plans, stores and applies a record on this node; raises XlbError with everything as it was."""


class Encoder:
    """Encodes configurations. Caches each farm's line, so that the cost of a change depends on the changed farms only."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[Farm, bytes]] = {}
        self._lists: dict[str, tuple[PrefixList, list[bytes]]] = {}
        self._accounts: tuple[Mapping[str, User], Mapping[str, Token], list[bytes]] = {}, {}, []

    def encode(self, config: Config) -> bytes:
        """The whole record; `decode` of it is `config`."""
        known, self._lines = self._lines, {}
        header: dict[str, object] = {
            "xlb": "farms",
            "version": FORMAT_VERSION,
            "generation": config.generation,
            "hash_seed": config.hash_seed,
            "next_id": config.next_id,
        }
        if config.pair:  # omitted on a single node, so that an earlier xlb can read its record
            header |= {"pair": config.pair, "epoch": config.epoch, "history": config.history}
        if sizes := {name: farm.kept_size for name, farm in config.farms.items() if farm.kept_size}:
            header["table_sizes"] = sizes
        if config.provenance is not None:  # a peer of 0.1.0 ignores it
            header["provenance"] = asdict(config.provenance)
        lines = [_line(header)]
        lines += [_line({"vip": _values(vip)}) for vip in config.vips.values()]
        lists, self._lists = self._lists, {}
        for name, prefixes in config.prefixes.items():
            of_list = lists.get(name)
            if of_list is None or of_list[0] is not prefixes:
                of_list = (prefixes, [_line({"prefixes": {"name": name} | packed(piece)}) for piece in pieces(prefixes)])
            self._lists[name] = of_list
            lines += of_list[1]
        if self._accounts[0] is not config.users or self._accounts[1] is not config.tokens:
            of_users = [_line({"user": asdict(user)}) for user in config.users.values()]
            of_tokens = [_line({"token": asdict(token)}) for token in config.tokens.values()]
            self._accounts = config.users, config.tokens, of_users + of_tokens
        lines += self._accounts[2]
        for name, farm in config.farms.items():
            entry = known.get(name)
            if entry is None or entry[0] is not farm:
                entry = (farm, _line({"farm": _farm_values(farm)}))
            self._lines[name] = entry
            lines.append(entry[1])
        return b"".join([*lines, _line({"sha256": _digest(lines)})])


class Decoder:
    """Decodes configurations. Caches the farm of each line: an unchanged farm keeps its object and is not checked again, so
    that the cost of a change depends on the changed farms only.
    """

    def __init__(self) -> None:
        self._farms: dict[bytes, Farm] = {}
        self._lists: dict[tuple[bytes, ...], PrefixList] = {}

    def decode(self, text: bytes) -> Config:
        """Like the function `decode`."""
        header, lines = _opened(text)
        try:
            config, self._farms, self._lists = _config(header, lines, self._farms, self._lists)
        except DamagedRecord:
            raise
        except (InvalidInput, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedRecord(f"it contains an invalid value: {error}") from error
        return config


def decode(text: bytes) -> Config:
    """The configuration a record holds. Raises DamagedRecord, or NewerRecord naming the remedy."""
    return Decoder().decode(text)


def decode_header(text: bytes) -> Config:
    """The standing of a configuration, without its content, from a record's first line; what follows it is not looked at.

    Raises as `decode`.
    """
    try:
        return Config(**_standing(_header(text.partition(b"\n")[0])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRecord(f"it contains an invalid value: {error}") from error


def _header(line: bytes) -> dict[str, Any]:
    header = _object(line, 1)
    version = header.get("version")
    if header.get("xlb") != "farms" or not isinstance(version, int):
        raise DamagedRecord("its first line is not a header")
    if version > FORMAT_VERSION:
        raise NewerRecord(
            f"written in format {version} by a newer xlb; this version reads up to {FORMAT_VERSION}: upgrade xlb",
            Code.NEWER_FORMAT,
        )
    return header


def _opened(text: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Header and lines of a complete record."""
    lines = text.splitlines(keepends=True)
    if not lines:
        raise DamagedRecord("it is empty")
    header = _header(lines[0])
    trailer = _object(lines[-1], len(lines))
    if len(lines) < 2 or set(trailer) != {"sha256"} or not lines[-1].endswith(b"\n"):
        raise DamagedRecord(f"it ends in line {len(lines)} without the closing digest")
    if trailer["sha256"] != _digest(lines[:-1]):
        raise DamagedRecord("its digest does not match its lines")
    return header, lines[1:-1]


def _digest(lines: list[bytes]) -> str:
    """Hash line by line: the built-in SHA-256 holds the interpreter lock during each call."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def _line(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DamagedRecord(f"line {number} is not JSON") from None
    if not isinstance(value, dict):
        raise DamagedRecord(f"line {number} is not a JSON object")
    return value


def _values(value: Vip | Backend | HealthCheck | Farm) -> dict[str, Any]:
    return {name: found for name, default in FIELDS[type(value)] if (found := getattr(value, name)) != default}


def _farm_values(farm: Farm) -> dict[str, Any]:
    return _values(farm) | {"health": _values(farm.health), "backends": [_values(backend) for backend in farm.backends]}


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _TYPES[name](value) if name in _TYPES else value for name, value in values.items()}


def _config(
    header: Mapping[str, Any],
    lines: list[bytes],
    known: Mapping[bytes, Farm],
    known_lists: Mapping[tuple[bytes, ...], PrefixList],
) -> tuple[Config, dict[bytes, Farm], dict[tuple[bytes, ...], PrefixList]]:
    """The configuration, its farms by their lines, and its prefix lists by theirs. `known…`: those that are already checked."""
    vips: dict[str, Vip] = {}
    of_lists: dict[str, list[tuple[bytes, dict[str, str]]]] = {}  # the lines of each prefix list
    farms: dict[str, Farm] = {}
    users: dict[str, User] = {}
    tokens: dict[str, Token] = {}
    farm_lines: dict[bytes, Farm] = {}
    sizes = _table_sizes(header)
    for number, line in enumerate(lines, 2):
        farm = known.get(line)
        if farm is None:
            ((kind, values),) = _object(line, number).items()
            if kind == "vip":
                vips[values["address"]] = Vip(**values)
                continue
            if kind == "prefixes":
                of_lists.setdefault(values["name"], []).append((line, values))
                continue
            if kind == "user":
                users[values["name"]] = User(**values | {"role": Role(values["role"])})
                continue
            if kind == "token":
                tokens[values["name"]] = Token(**values | {"role": Role(values["role"])})
                continue
            if kind != "farm":
                raise ValueError(f"an unknown kind of line: {kind}")
            health = HealthCheck(**_typed(values["health"]))
            backends = tuple(Backend(**_typed(each)) for each in values["backends"])
            lists = {"more_vips": tuple(values.get("more_vips", ())), "more_ports": _pairs(values.get("more_ports", ()))}
            farm = Farm(**_typed(values) | lists | {"health": health, "backends": backends})
        if farm.kept_size != sizes.get(farm.name, 0):
            farm = replace(farm, kept_size=sizes.get(farm.name, 0))
        farms[farm.name] = farm_lines[line] = farm
    if len(vips) + len(farms) + len(users) + len(tokens) + sum(map(len, of_lists.values())) != len(lines):
        raise ValueError("a name that is listed twice")
    prefix_lists: dict[tuple[bytes, ...], PrefixList] = {}
    for name, parts in of_lists.items():
        key = tuple(line for line, _ in parts)
        prefix_lists[key] = known_lists.get(key) or _joined(name, [values for _, values in parts])
    config = Config(
        vips=MappingProxyType(vips),
        farms=MappingProxyType(farms),
        prefixes=MappingProxyType({each.name: each for each in prefix_lists.values()}),
        users=MappingProxyType(users),
        tokens=MappingProxyType(tokens),
        **_standing(header),
    )
    check_accounts(users, tokens)
    check_config(config, {farm.name for line, farm in farm_lines.items() if line in known})
    return config, farm_lines, prefix_lists


def _joined(name: str, parts: list[dict[str, str]]) -> PrefixList:
    """A prefix list from the pieces of its lines."""
    checked = [unpack(name, values["v4"], values["v6"]) for values in parts]
    return PrefixList(name, b"".join(each.v4 for each in checked), b"".join(each.v6 for each in checked))


def _table_sizes(header: Mapping[str, Any]) -> Mapping[str, int]:
    sizes: Mapping[str, int] = header.get("table_sizes", {})
    if not isinstance(sizes, Mapping) or not set(sizes.values()) <= set(TABLE_SIZES):
        raise ValueError("an unknown size of a lookup table")
    return sizes


def _pairs(values: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    return tuple((int(one), int(other)) for one, other in values)


def _standing(header: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the header; a single node's record has no pair, epoch and history."""
    numbers = {name: int(header[name]) for name in ("generation", "hash_seed", "next_id")}
    history, provenance = _pairs(header.get("history", ())), _provenance(header.get("provenance"))
    pair = {"epoch": int(header.get("epoch", 0)), "history": history, "pair": str(header.get("pair", ""))}
    return {**numbers, **pair, "provenance": provenance}


def _provenance(values: Any) -> Provenance | None:
    """None for anything else than the encoder writes: a record is never refused for it."""
    names = [field.name for field in fields(Provenance)]
    if not isinstance(values, dict) or not values.keys() >= set(names):
        return None
    found = {name: values[name] for name in names}
    time_s = found.pop("time_s")
    texts = all(isinstance(each, str) and len(each) <= MAX_STRING and each.isprintable() for each in found.values())
    return Provenance(time_s=time_s, **found) if texts and type(time_s) is int and 0 <= time_s < 1 << 35 else None
