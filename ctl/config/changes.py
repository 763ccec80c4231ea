"""Applies control commands to a configuration: `Config` in, a new `Config` out.

Decides which changes are allowed and their result. Must not know the kernel, files, sockets or clients. Farms that a change
does not touch keep their object identity; a change without effect returns the same `Config`; every other change increments
`generation` by one. Arguments come from the network, so this module checks types and key names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from bpf.constants import MAX_BACKENDS, MAX_FARMS
from ctl.config import accounts, table_sizes
from ctl.config.farms_file import Document, parse
from ctl.config.fields import (
    BACKEND_FIELDS,
    FARM_FIELDS,
    VIP_FIELDS,
    BackendName,
    Fields,
    read_backend,
    read_backend_name,
    read_farm,
    read_vip,
)
from ctl.config.model import Backend, CheckKind, Config, DrainThen, Farm, PrefixList, Token, User, Vip
from ctl.config.prefixes import check_lists, check_lists_of_farm, unpack, users_of
from ctl.config.validation import (
    check_backend,
    check_farm,
    check_limits,
    check_listener,
    check_name,
    check_vip,
    check_vip_of_farm,
    suggest,
)
from ctl.errors import Code, InvalidInput, XlbError

Arguments = Mapping[str, object]
MakeConfig = Callable[[Config], Config]
"""Returns the changed configuration; the same object if nothing changes."""

Change = Callable[[Config, Arguments], Config]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Committed:
    """An accepted change; `old is new` if it changed nothing. `note`: a remark for the client."""

    old: Config
    new: Config
    note: str = ""


def change(config: Config, command: str, arguments: Arguments) -> Config:
    """Apply control command `command` ("farm.add", …: the keys of CHANGES).

    Raises InvalidInput or XlbError, naming what was expected; `config` is never modified.
    """
    return CHANGES[command](config, arguments)


def vip_add(config: Config, arguments: Arguments) -> Config:
    """address: "10.0.0.1/24" or "2001:db8::1/64", device: interface name, guard: bool = True."""
    vip = read_vip(Fields(arguments, "vip", VIP_FIELDS))
    check_vip(vip)
    if vip.address in config.vips:
        raise InvalidInput(f"{vip.address} already exists on {config.vips[vip.address].device}", "vip.address", Code.VIP_EXISTS)
    vips = {**config.vips, vip.address: vip}
    check_limits(vips, config.farms.values())
    return _changed(config, vips=vips)


def vip_set(config: Config, arguments: Arguments) -> Config:
    """address, and guard: bool."""
    fields = Fields(arguments, "vip", ("address", "guard"))
    vip = _vip(config, fields)
    changed = replace(vip, guard=fields.boolean("guard"))
    return config if changed == vip else _changed(config, vips={**config.vips, vip.address: changed})


def vip_delete(config: Config, arguments: Arguments) -> Config:
    """address. Refused (XlbError) naming the farms that use it."""
    address = _vip(config, Fields(arguments, "vip", ("address",))).address
    users = sorted(farm.name for farm in config.farms.values() if address in (*farm.vips, *farm.snat_addresses))
    if users:
        raise XlbError(
            f"{address} is used by farm {_named(users)}; delete or move that farm first (xlbctl farm delete NAME)",
            Code.VIP_IN_USE,
        )
    return _changed(config, vips={each: vip for each, vip in config.vips.items() if each != address})


def _named(users: list[str]) -> str:
    return ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")


def farm_add(config: Config, arguments: Arguments) -> Config:
    """name, vip (several: "A,B"), port (80, "80,443,8000-8010" or "all") and any of a farm's settings; those of the
    check are in a table "health".
    """
    name = arguments.get("name")
    farm = read_farm(Fields(arguments, f"farm.{name}" if isinstance(name, str) else "farm", FARM_FIELDS))
    if farm.name in config.farms:
        raise InvalidInput(
            f"farm {farm.name} already exists; change it with xlbctl farm set {farm.name}", "farm.name", Code.FARM_EXISTS
        )
    check_farm(farm)
    ids = _Ids(config)
    return _with_farm(config, replace(farm, id=ids.farm()), ids)


def farm_set(config: Config, arguments: Arguments) -> Config:
    """name and any of farm_add's fields; fields of `health` that are not given keep their value."""
    name = arguments.get("name")
    fields = Fields(arguments, f"farm.{name}" if isinstance(name, str) else "farm", FARM_FIELDS)
    farm = read_farm(fields, find_farm(config, fields.text("name")))
    check_farm(farm)
    return _with_farm(config, farm)


def farm_delete(config: Config, arguments: Arguments) -> Config:
    """name."""
    name = _named_farm(config, arguments).name
    return _changed(config, farms={each: farm for each, farm in config.farms.items() if each != name})


def farm_start(config: Config, arguments: Arguments) -> Config:
    """name."""
    return _with_farm(config, replace(_named_farm(config, arguments), enabled=True))


def farm_stop(config: Config, arguments: Arguments) -> Config:
    """name. New connections are refused, existing ones continue."""
    return _with_farm(config, replace(_named_farm(config, arguments), enabled=False))


def backend_add(config: Config, arguments: Arguments) -> Config:
    """farm, address and any of: port (default: the farm's first) and the settings of a backend."""
    fields, farm = _backend_arguments(config, arguments, BACKEND_FIELDS)
    backend = read_backend(fields, farm)
    if _find(farm, BackendName(backend.address, backend.port)) is not None:
        raise InvalidInput(
            f"farm {farm.name} already has this backend; change it with xlbctl backend set {farm.name} {backend.endpoint}",
            fields.place,
            Code.BACKEND_EXISTS,
        )
    check_backend(backend, farm, fields.place)
    ids = _Ids(config)
    farm = replace(farm, backends=(*farm.backends, replace(backend, id=ids.backend())))
    check_farm(farm)
    return _with_farm(config, farm, ids)


def backend_set(config: Config, arguments: Arguments) -> Config:
    """farm, address, port (the backend) and any of its settings (draining False ends a drain)."""
    fields, farm = _backend_arguments(config, arguments, BACKEND_FIELDS)
    backend = read_backend(fields, farm, _backend(farm, fields))
    check_backend(backend, farm, fields.place)
    return _with_backend(config, farm, backend)


def backend_drain(config: Config, arguments: Arguments) -> Config:
    """farm, address, port, and drain_until and drain_then: the backend gets no new connections, existing ones continue until
    then. Without drain_until, a drain has no deadline.
    """
    fields, farm = _backend_arguments(config, arguments, ("address", "port", "drain_until", "drain_then"))
    before = replace(_backend(farm, fields), draining=True, drain_until=0, drain_then=DrainThen.KEEP)
    backend = read_backend(fields, farm, before)
    check_backend(backend, farm, fields.place)
    return _with_backend(config, farm, backend)


def backend_remove(config: Config, arguments: Arguments) -> Config:
    """farm, address, port."""
    fields, farm = _backend_arguments(config, arguments, ("address", "port"))
    gone = _backend(farm, fields)
    return _with_farm(config, replace(farm, backends=tuple(each for each in farm.backends if each is not gone)))


def prefixes_set(config: Config, arguments: Arguments) -> Config:
    """name, and v4, v6: the packed prefixes of each family in base64. Adds the list, or replaces it in every farm at once."""
    fields = Fields(arguments, "prefixes", ("name", "v4", "v6"))
    name = fields.text("name")
    check_name(name, "prefixes.name")
    made = unpack(name, fields.text("v4", ""), fields.text("v6", ""))
    lists = {**config.prefixes, name: made}
    check_lists(lists)
    return _changed(config, prefixes=lists)


def prefixes_delete(config: Config, arguments: Arguments) -> Config:
    """name. Refused (XlbError) naming the farms that use it."""
    name = find_prefixes(config, Fields(arguments, "prefixes", ("name",)).text("name")).name
    users = users_of(name, config.farms.values())
    if users:
        raise XlbError(
            f"prefix list {name} is used by farm {_named(users)}; take it away there first "
            f'(xlbctl farm set {users[0]} --allow "" or --deny "")',
            Code.PREFIXES_IN_USE,
        )
    return _changed(config, prefixes={each: found for each, found in config.prefixes.items() if each != name})


def _of_accounts(command: str) -> Change:
    """One of `ctl.config.accounts.NAMES` as a change."""

    def change_accounts(config: Config, arguments: Arguments) -> Config:
        users, tokens = accounts.changed(config.users, config.tokens, command, arguments)
        return _changed(config, users=users, tokens=tokens)

    return change_accounts


def replace_from_document(config: Config, document: Mapping[str, object]) -> Config:
    """The configuration a farms file (parsed TOML) describes. Raises InvalidInput with the place in the document."""
    return replace_all(config, parse(document))


def replace_all(config: Config, wanted: Document) -> Config:
    """The configuration with VIPs and farms replaced by those of `wanted`; users and tokens stay as they are.

    Farms (by name) and backends (by farm, address and port) that exist in both keep their ids and, if equal, their object
    identity. A farm without a check gets none unless the document names its kind. Raises InvalidInput if a limit is exceeded.
    """
    ids = _Ids(config)
    used = table_sizes.slots_of(config.farms.get(farm.name, farm) for farm in wanted.farms)
    vips: dict[str, Vip] = {}
    for vip in wanted.vips:
        vips[vip.address] = config.vips[vip.address] if config.vips.get(vip.address) == vip else vip
    farms = {}
    for farm in wanted.farms:
        old = config.farms.get(farm.name)
        if old is not None and old.health.kind is CheckKind.NONE and farm.name in wanted.unchecked:
            farm = replace(farm, health=wanted.unchecked[farm.name])
        provisional = table_sizes.slots_of((old or farm,))
        farm = table_sizes.settled(_adopt_ids(farm, old, ids), old, used - provisional)
        used += table_sizes.slots_of((farm,)) - provisional
        farms[farm.name] = old if farm == old else farm
    lists = config.prefixes
    if wanted.prefixes is not None:
        lists = {
            each.name: each if config.prefixes.get(each.name) != each else config.prefixes[each.name]
            for each in wanted.prefixes
        }
    for farm in farms.values():
        check_lists_of_farm(lists, farm)
    check_lists(lists)
    check_limits(vips, farms.values())
    return _changed(config, vips=vips, farms=farms, ids=ids, prefixes=lists)


CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        "vip.add": vip_add,
        "vip.set": vip_set,
        "vip.delete": vip_delete,
        "farm.add": farm_add,
        "farm.set": farm_set,
        "farm.delete": farm_delete,
        "farm.start": farm_start,
        "farm.stop": farm_stop,
        "backend.add": backend_add,
        "backend.set": backend_set,
        "backend.drain": backend_drain,
        "backend.remove": backend_remove,
        "prefixes.set": prefixes_set,
        "prefixes.delete": prefixes_delete,
        **{command: _of_accounts(command) for command in accounts.NAMES},
    }
)


class _Ids:
    """Allocates ids that neither the old configuration nor this change uses.

    The search wraps around, so that a freed id is reused as late as possible: flows of its former owner may still exist.
    """

    def __init__(self, config: Config) -> None:
        self.next_id = config.next_id
        self._config = config
        self._farms: set[int] | None = None
        self._backends: set[int] | None = None

    def farm(self) -> int:
        if self._farms is None:
            self._farms = {farm.id for farm in self._config.farms.values()}
        return self._take(self._farms, MAX_FARMS - 1, "farm")

    def backend(self) -> int:
        if self._backends is None:
            self._backends = {backend.id for farm in self._config.farms.values() for backend in farm.backends}
        return self._take(self._backends, MAX_BACKENDS - 1, "backend")

    def _take(self, used: set[int], limit: int, kind: str) -> int:
        if len(used) >= limit:
            raise InvalidInput(
                f"all {limit} {kind} ids are in use or not released yet; remove {kind}s first", kind, Code.LIMIT_EXCEEDED
            )
        while (free := (self.next_id - 1) % limit + 1) in used:
            self.next_id += 1
        self.next_id += 1
        used.add(free)
        return free


def _adopt_ids(farm: Farm, old: Farm | None, ids: _Ids) -> Farm:
    known = {(each.address, each.port): each for each in old.backends} if old else {}
    backends = []
    for backend in farm.backends:
        before = known.get((backend.address, backend.port))
        backends.append(replace(backend, id=before.id if before else ids.backend()))
    if old is None:
        return replace(farm, id=ids.farm(), backends=tuple(backends))
    unmoved = len(backends) == len(old.backends) and set(backends) == set(old.backends)
    return replace(farm, id=old.id, kept_size=old.kept_size, backends=old.backends if unmoved else tuple(backends))


def _changed(
    config: Config,
    vips: Mapping[str, Vip] | None = None,
    farms: Mapping[str, Farm] | None = None,
    ids: _Ids | None = None,
    prefixes: Mapping[str, PrefixList] | None = None,
    users: Mapping[str, User] | None = None,
    tokens: Mapping[str, Token] | None = None,
) -> Config:
    vips = config.vips if vips is None else vips
    farms = config.farms if farms is None else farms
    prefixes = config.prefixes if prefixes is None else prefixes
    users = config.users if users is None else users
    tokens = config.tokens if tokens is None else tokens
    same = vips == config.vips and farms == config.farms and prefixes == config.prefixes
    if same and users == config.users and tokens == config.tokens:
        return config
    return replace(
        config,
        generation=config.generation + 1,
        next_id=ids.next_id if ids else config.next_id,
        vips=_unchangeable(vips),
        farms=_unchangeable(farms),
        prefixes=_unchangeable(prefixes),
        users=_unchangeable(users),
        tokens=_unchangeable(tokens),
    )


def _unchangeable(values: Mapping[str, _Value]) -> Mapping[str, _Value]:
    return values if isinstance(values, MappingProxyType) else MappingProxyType(dict(values))


def _with_farm(config: Config, farm: Farm, ids: _Ids | None = None) -> Config:
    """Add or replace a farm that is checked by itself; check it against the other farms."""
    old = config.farms.get(farm.name)
    if old == farm:
        return config
    farm = table_sizes.settled(farm, old, table_sizes.slots_of(each for each in config.farms.values() if each is not old))
    if old is None or _listeners(old) != _listeners(farm):
        check_vip_of_farm(config.vips, farm)
        check_listener(config.farms.values(), farm)
    check_lists_of_farm(config.prefixes, farm)
    farms = {**config.farms, farm.name: farm}
    check_limits(config.vips, farms.values())
    return _changed(config, farms=farms, ids=ids)


def _listeners(farm: Farm) -> object:
    return farm.vips, farm.port_ranges, farm.protocol, farm.snat_addresses


def _with_backend(config: Config, farm: Farm, backend: Backend) -> Config:
    return _with_farm(
        config, replace(farm, backends=tuple(backend if each.id == backend.id else each for each in farm.backends))
    )


def find_farm(config: Config, name: str) -> Farm:
    """The farm of that name. Raises InvalidInput with the closest name."""
    if name not in config.farms:
        remedy = suggest(name, config.farms) or "; xlbctl farm list shows them"
        raise InvalidInput(f'there is no farm "{name[:64]}"{remedy}', "farm", Code.UNKNOWN_FARM)
    return config.farms[name]


def find_prefixes(config: Config, name: str) -> PrefixList:
    """The prefix list of that name. Raises InvalidInput with the closest name."""
    if name not in config.prefixes:
        remedy = suggest(name, config.prefixes) or "; xlbctl prefixes list shows them"
        raise InvalidInput(f'there is no prefix list "{name[:64]}"{remedy}', "prefixes.name", Code.UNKNOWN_PREFIXES)
    return config.prefixes[name]


def _vip(config: Config, fields: Fields) -> Vip:
    address = fields.address("address")
    if address not in config.vips:
        raise InvalidInput(
            f"there is no virtual address {address}{suggest(address, config.vips)}", "vip.address", Code.UNKNOWN_VIP
        )
    return config.vips[address]


def _named_farm(config: Config, arguments: Arguments) -> Farm:
    return find_farm(config, Fields(arguments, "farm", ("name",)).text("name"))


def _backend_arguments(config: Config, arguments: Arguments, known: Iterable[str]) -> tuple[Fields, Farm]:
    farm = find_farm(config, Fields(arguments, "", ("farm", *BACKEND_FIELDS)).text("farm"))
    rest = {name: value for name, value in arguments.items() if name != "farm"}
    return Fields(rest, f"farm.{farm.name}.backend", tuple(known)), farm


def _backend(farm: Farm, fields: Fields) -> Backend:
    name = read_backend_name(fields, farm)
    found = _find(farm, name)
    if found is None:
        endpoint = Backend(0, name.address, name.port).endpoint
        raise InvalidInput(
            f"farm {farm.name} has no backend {endpoint}{suggest(endpoint, [b.endpoint for b in farm.backends])}",
            fields.place,
            Code.UNKNOWN_BACKEND,
        )
    return found


def _find(farm: Farm, name: BackendName) -> Backend | None:
    return next((each for each in farm.backends if each.address == name.address and each.port == name.port), None)
