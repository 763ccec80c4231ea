"""Validates a configuration: the invariants of every accepted `Config`.

Checks values only; the caller passes their place in the input (`place`) for messages. Must not know files, sockets, or the
kernel except for the sizes of its maps.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import re
from collections.abc import Collection, Iterable, Mapping

from bpf.constants import MAX_BACKENDS, MAX_FARMS, MAX_PORT_RANGES, MAX_SERVERS, MAX_SERVICES, MAX_SNAT_ADDRESSES, MAX_VIPS
from ctl.config.model import (
    MAX_PORT,
    Backend,
    CheckKind,
    CheckVia,
    Config,
    DrainThen,
    Farm,
    HealthCheck,
    Mode,
    OnBackend,
    Protocol,
    QueryType,
    Vip,
    format_ports,
)
from ctl.config.prefixes import check_list, check_lists, check_lists_of_farm
from ctl.config.settings import (
    BACKEND_SETTINGS,
    CHECK_SETTINGS,
    FARM_SETTINGS,
    MAX_CONNECTION_ID,
    MAX_INTERVAL_MS,
    NAME,
    Setting,
    shown,
)
from ctl.errors import Code, InvalidInput

MAX_BACKENDS_PER_FARM = 1024
MAX_PRIORITY = 255  # of a node
MAX_VIPS_PER_FARM = 32
MAX_PORTS_PER_FARM = 64
"""Ports and ranges in the list of a farm."""
MAX_CHECKS_IN_A_ROW = 100
MAX_TEXT = 1024
MAX_ARGUMENTS = 32

_WEB = frozenset({CheckKind.HTTP, CheckKind.HTTPS})
KINDS_OF: Mapping[str, frozenset[CheckKind]] = {
    "text": _WEB,
    "sni": frozenset({CheckKind.HTTPS}),
    "verify": frozenset({CheckKind.HTTPS}),
    "ca_file": frozenset({CheckKind.HTTPS}),
    "payload": frozenset({CheckKind.UDP}),
    "answer": frozenset({CheckKind.UDP, CheckKind.DNS}),
    "query": frozenset({CheckKind.DNS}),
    "query_type": frozenset({CheckKind.DNS}),
    "rcode": frozenset({CheckKind.DNS}),
    "service": frozenset({CheckKind.GRPC}),
    "via": frozenset({CheckKind.TCP}),
    "command": frozenset({CheckKind.COMMAND}),
}
"""The kinds of checks that use a setting. Those of 0.1.0 (path, status, host) may be set with any kind."""
KIND_DEFAULTS: Mapping[str, object] = {name: getattr(HealthCheck(), name) for name in KINDS_OF}

_NAME = re.compile(NAME)
_DEVICE = re.compile(r"[^\s/]{1,15}")
_PATH = re.compile(r"/[\x21-\x7e]*")
_HOST = re.compile(r"[\x21-\x7e]*")
_ARGUMENT = re.compile(r"[^\x00\ud800-\udfff]*")


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint for a message: the closest of `known`, or all if they are few; empty if there is no hint."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, 1, 0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; expected one of {', '.join(names)}" if 0 < len(names) <= 20 else ""


def check_bounds(value: int, low: int, high: int, key: str) -> None:
    """Raise InvalidInput unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise InvalidInput(f"expected {low} to {high}, got {value}", key)


def canonical_address(text: str, key: str) -> str:
    """A unicast IPv4 or IPv6 address in its canonical form. Raises InvalidInput."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInput(f'expected an IP address like 10.0.0.1 or 2001:db8::1, got "{text[:64]}"', key) from None
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        raise InvalidInput(f'expected an address without zone and not IPv4-mapped, got "{text}"', key)
    if address.is_unspecified or address.is_multicast:
        raise InvalidInput(f"expected the address of one host, got {text}", key)
    return str(address)


def is_ipv6(address: str) -> bool:
    """Whether a valid address is IPv6."""
    return ":" in address


def check_name(name: str, key: str) -> None:
    """Names of farms and nodes. Raises InvalidInput."""
    if _NAME.fullmatch(name) is None:
        raise InvalidInput(
            f'expected 1 to 64 letters, digits, ".", "_" or "-", beginning with a letter or digit, got "{name[:80]}"', key
        )


def check_device(device: str, key: str) -> None:
    """Names that the kernel accepts for an interface. Raises InvalidInput."""
    if _DEVICE.fullmatch(device) is None or device in (".", ".."):
        raise InvalidInput(
            f'expected the name of an interface (1 to 15 characters, no space, no "/"), got "{device[:80]}"', key
        )


def check_vip(vip: Vip, place: str = "") -> None:
    """Raises InvalidInput with a key below `place` (default "vip.ADDRESS")."""
    place = place or f"vip.{vip.address}"
    canonical_address(vip.address, f"{place}.address")
    check_bounds(vip.prefix_length, 1, 128 if is_ipv6(vip.address) else 32, f"{place}.address")
    check_device(vip.device, f"{place}.device")


def parse_status(text: str, key: str = "status") -> tuple[int, int]:
    """ "200" or "200-399" as inclusive bounds of an HTTP status. Raises InvalidInput."""
    match = re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if low > high:
        raise InvalidInput(f'expected an HTTP status or a range like 200-399, got "{text[:32]}"', key)
    return low, high


def check_health(check: HealthCheck, place: str) -> None:
    """Raises InvalidInput with a key below `place`."""
    check_bounds(check.interval_ms, 10, MAX_INTERVAL_MS, f"{place}.interval_ms")
    check_bounds(check.timeout_ms, 1, MAX_INTERVAL_MS, f"{place}.timeout_ms")
    if check.kind is not CheckKind.NONE and check.timeout_ms > check.interval_ms:
        raise InvalidInput(f"expected at most interval_ms ({check.interval_ms}), got {check.timeout_ms}", f"{place}.timeout_ms")
    check_bounds(check.rise, 1, MAX_CHECKS_IN_A_ROW, f"{place}.rise")
    check_bounds(check.fall, 1, MAX_CHECKS_IN_A_ROW, f"{place}.fall")
    check_bounds(check.port, 0, MAX_PORT, f"{place}.port")
    if _PATH.fullmatch(check.path) is None or len(check.path) > MAX_TEXT:
        raise InvalidInput(f'expected a path of printable ASCII that begins with "/", got "{check.path[:80]}"', f"{place}.path")
    if _HOST.fullmatch(check.host) is None or len(check.host) > 255:
        raise InvalidInput(f'expected a host name, got "{check.host[:80]}"', f"{place}.host")
    parse_status(check.status, f"{place}.status")
    if check.address:
        canonical_address(check.address, f"{place}.address")
    _check_settings(check, CHECK_SETTINGS, place)
    check_command(check.command, f"{place}.command")
    _check_kind(check, place)


def check_command(command: tuple[str, ...], key: str) -> None:
    if not all(isinstance(each, str) and len(each) <= MAX_TEXT and _ARGUMENT.fullmatch(each) for each in command):
        raise InvalidInput(f"expected arguments of at most {MAX_TEXT} characters, without NUL", key)
    if len(command) > MAX_ARGUMENTS:
        raise InvalidInput(f"expected at most {MAX_ARGUMENTS} arguments, got {len(command)}", key)
    if command and not command[0].startswith("/"):
        raise InvalidInput(f'expected the absolute path of a program first, got "{command[0][:80]}"', key)


def _check_kind(check: HealthCheck, place: str) -> None:
    """What a kind of check needs, and what it does not use."""
    for name, kinds in KINDS_OF.items():
        value = getattr(check, name)
        if check.kind not in kinds and value != KIND_DEFAULTS[name]:
            of = " or ".join(sorted(kinds))
            given = f"{len(value)} arguments" if isinstance(value, tuple) else shown(value)
            raise InvalidInput(f"is for checks of kind {of}; got {given} with kind {check.kind}", f"{place}.{name}")
    if check.kind is not CheckKind.NONE and 0 < check.interval_down_ms < check.interval_ms:
        raise InvalidInput(
            f"expected 0 or at least interval_ms ({check.interval_ms}), got {check.interval_down_ms}",
            f"{place}.interval_down_ms",
        )
    if check.kind is CheckKind.DNS and not check.query:
        raise InvalidInput("is missing; expected the name that a check of kind dns asks for", f"{place}.query")
    if check.kind is CheckKind.COMMAND and not check.command:
        raise InvalidInput("is missing; expected the absolute path of a program and its arguments", f"{place}.command")
    if check.ca_file and not check.verify:
        raise InvalidInput(f'expected "" without verify, got "{check.ca_file[:80]}"', f"{place}.ca_file")
    if check.kind is CheckKind.DNS and check.answer and check.query_type in (QueryType.A, QueryType.AAAA):
        address = canonical_address(check.answer, f"{place}.answer")
        if is_ipv6(address) is not (check.query_type is QueryType.AAAA):
            raise InvalidInput(f"expected an address of type {check.query_type}, got {address}", f"{place}.answer")


def check_backend(backend: Backend, farm: Farm, place: str) -> None:
    """Raises InvalidInput with a key below `place`."""
    canonical_address(backend.address, f"{place}.address")
    same_family = next((vip for vip in farm.vips if is_ipv6(vip) == is_ipv6(backend.address)), None)
    if same_family is None and farm.mode is not Mode.IPIP:
        expected = "an IPv6" if is_ipv6(farm.vip) else "an IPv4"
        raise InvalidInput(
            f"expected {expected} address like the farm's VIP {farm.vip}, got {backend.address}", f"{place}.address"
        )
    if backend.address in farm.vips:
        raise InvalidInput("expected the address of a server, got the farm's own VIP", f"{place}.address")
    span = farm.port_ranges[-1][1] - farm.port
    if not 1 <= backend.port <= MAX_PORT - span:
        what = f"the farm's ports span {span + 1}" if farm.more_ports else f"the farm's range has {span + 1} ports"
        why = f" ({what})" if span else ""
        raise InvalidInput(f"expected a port from 1 to {MAX_PORT - span}{why}, got {backend.port}", f"{place}.port")
    if farm.mode in (Mode.DSR, Mode.IPIP) and backend.port != farm.port:
        raise InvalidInput(
            f"expected the farm's port {farm.port} (mode {farm.mode} changes no port), got {backend.port}", f"{place}.port"
        )
    _check_settings(backend, BACKEND_SETTINGS, place)
    if backend.drain_until and not backend.draining:
        raise InvalidInput(
            f"expected 0 for a backend that is not draining, got {backend.drain_until}; set draining too",
            f"{place}.drain_until",
        )
    if backend.drain_then is not DrainThen.KEEP and not backend.drain_until:
        raise InvalidInput(f"expected keep without drain_until, got {backend.drain_then}", f"{place}.drain_then")
    if backend.quic_id:
        _check_quic_id(backend, farm, f"{place}.quic_id")


def _check_settings(of: Farm | Backend | HealthCheck, settings: Iterable[Setting], place: str) -> None:
    """The range of each value by itself."""
    for setting in settings:
        value = getattr(of, setting.name)
        if value != setting.default and (problem := setting.problem(value)):
            raise InvalidInput(problem, f"{place}.{setting.name}")


def _check_quic_id(backend: Backend, farm: Farm, key: str) -> None:
    scheme, *numbers = farm.quic_cid.split(":")
    if scheme != "server-id":
        raise InvalidInput(f'expected "" unless the farm\'s quic_cid is server-id:OFFSET:LENGTH, got "{backend.quic_id}"', key)
    if len(backend.quic_id) != 2 * int(numbers[1]):
        raise InvalidInput(f'expected {numbers[1]} bytes, as quic_cid = "{farm.quic_cid}", got "{backend.quic_id}"', key)
    other = next(
        (each for each in farm.backends if each.quic_id == backend.quic_id and each.endpoint != backend.endpoint), None
    )
    if other is not None:
        raise InvalidInput(f'expected an id of its own, got "{backend.quic_id}", which backend {other.endpoint} has', key)


def check_farm(farm: Farm, place: str = "") -> None:
    """Check a farm by itself. Raises InvalidInput with a key below `place` (default "farm.NAME")."""
    place = place or f"farm.{farm.name}"
    check_name(farm.name, f"{place}.name")
    _check_vips(farm, f"{place}.vip")
    _check_ports(farm, f"{place}.port")
    _check_snat(farm, f"{place}.snat_address")
    _check_settings(farm, FARM_SETTINGS, place)
    _check_combinations(farm, place)
    check_health(farm.health, f"{place}.health")
    if farm.health.via is CheckVia.VIP and farm.mode not in (Mode.DSR, Mode.IPIP):
        raise InvalidInput(
            f"expected backend unless the farm's mode is dsr or ipip, got vip with {farm.mode}", f"{place}.health.via"
        )
    if len(farm.backends) > MAX_BACKENDS_PER_FARM:
        raise InvalidInput(
            f"expected at most {MAX_BACKENDS_PER_FARM} backends, got {len(farm.backends)}",
            f"{place}.backend",
            Code.LIMIT_EXCEEDED,
        )
    seen: set[tuple[str, int]] = set()
    for number, backend in enumerate(farm.backends):
        spot = f"{place}.backend[{number}]"
        check_backend(backend, farm, spot)
        if (backend.address, backend.port) in seen:
            raise InvalidInput(
                f"the farm already has backend {backend.endpoint}; list it once, with a weight", spot, Code.BACKEND_EXISTS
            )
        seen.add((backend.address, backend.port))


def _check_combinations(farm: Farm, place: str) -> None:
    """Settings that need another one."""
    if farm.toa and (farm.mode is not Mode.SNAT or farm.protocol is not Protocol.TCP):
        raise InvalidInput(
            f"expected false unless the farm is tcp and snat, got true with {farm.protocol} and {farm.mode}", f"{place}.toa"
        )
    if farm.quic_cid and farm.protocol is not Protocol.UDP:
        raise InvalidInput(
            f'expected "" unless the farm is udp, got "{farm.quic_cid}" with {farm.protocol}', f"{place}.quic_cid"
        )
    scheme, *numbers = farm.quic_cid.split(":")
    if scheme == "server-id" and sum(map(int, numbers)) > MAX_CONNECTION_ID:
        raise InvalidInput(
            f'expected OFFSET + LENGTH of at most {MAX_CONNECTION_ID} bytes, got "{farm.quic_cid}"', f"{place}.quic_cid"
        )
    for name in ("on_backend_down", "on_backend_removed"):
        if getattr(farm, name) is OnBackend.MOVE and farm.protocol is not Protocol.UDP:
            raise InvalidInput(
                f'expected "" or keep or reset (a {farm.protocol} connection cannot change its backend), got move',
                f"{place}.{name}",
            )


def _check_vips(farm: Farm, key: str) -> None:
    for vip in farm.vips:
        canonical_address(vip, key)
    if len(farm.vips) > MAX_VIPS_PER_FARM:
        raise InvalidInput(f"expected at most {MAX_VIPS_PER_FARM} VIPs, got {len(farm.vips)}", key, Code.LIMIT_EXCEEDED)
    twice = next((vip for vip in farm.vips if farm.vips.count(vip) > 1), None)
    if twice is not None:
        raise InvalidInput(f"expected different VIPs, got {twice} twice", key)


def _check_ports(farm: Farm, key: str) -> None:
    for first, last in farm.port_ranges:
        for port in (first, last):
            if not 1 <= port <= MAX_PORT:
                raise InvalidInput(f"expected a port from 1 to {MAX_PORT}, got {port}", key)
        if last < first:
            raise InvalidInput(f"expected a range like 8000-8010, got {first}-{last}, which ends before it starts", key)
    if len(farm.port_ranges) > MAX_PORTS_PER_FARM:
        raise InvalidInput(
            f"expected at most {MAX_PORTS_PER_FARM} ports and ranges, got {len(farm.port_ranges)}", key, Code.LIMIT_EXCEEDED
        )
    for one, other in itertools.pairwise(farm.port_ranges):
        if one[1] >= other[0]:
            raise InvalidInput(f"expected each port once, got {format_ports([one])} and {format_ports([other])}", key)


def _check_snat(farm: Farm, key: str) -> None:
    addresses = farm.snat_addresses
    if addresses and farm.mode in (Mode.DSR, Mode.IPIP):
        raise InvalidInput(f"expected none (mode {farm.mode} keeps the client's address), got {', '.join(addresses)}", key)
    for address in addresses:
        canonical_address(address, key)
        if all(is_ipv6(address) != is_ipv6(vip) for vip in farm.vips):
            raise InvalidInput(f"expected the family of the farm's VIP {farm.vip}, got {address}", key)
    for six in (False, True):
        number = sum(is_ipv6(address) == six for address in addresses)
        if number > MAX_SNAT_ADDRESSES:
            raise InvalidInput(f"expected at most {MAX_SNAT_ADDRESSES} addresses, got {number}", key, Code.LIMIT_EXCEEDED)
    if len(set(addresses)) < len(addresses):
        raise InvalidInput("expected different addresses; list each once", key)


def check_vip_of_farm(vips: Mapping[str, Vip], farm: Farm, place: str = "") -> None:
    """Check that a farm's listeners and SNAT addresses are VIPs; otherwise no node, or both nodes, would answer for them.

    Raises InvalidInput with the command that adds the VIP.
    """
    wanted = [*(("vip", address) for address in farm.vips), *(("snat_address", address) for address in farm.snat_addresses)]
    for key, address in wanted:
        if address not in vips:
            length = 64 if is_ipv6(address) else 24
            remedy = f"add it first: xlbctl vip add {address}/{length} --dev INTERFACE"
            raise InvalidInput(
                f"{address} is not one of the virtual addresses; {remedy}",
                f"{place or f'farm.{farm.name}'}.{key}",
                Code.UNKNOWN_VIP,
            )


def check_listener(others: Iterable[Farm], farm: Farm, place: str = "") -> None:
    """Check that no two farms listen on one port. Raises InvalidInput naming the other farm."""
    overlap = find_overlap(others, farm)
    if overlap:
        raise _in_use(overlap, place or f"farm.{farm.name}")


def find_overlap(others: Iterable[Farm], farm: Farm) -> str:
    """What another farm listens on as well, for people; empty: nothing."""
    for other in others:
        if other.name == farm.name or other.protocol is not farm.protocol:
            continue
        shared = next((vip for vip in farm.vips if vip in other.vips), None)
        if shared is None:
            continue
        for ports, taken in itertools.product(farm.port_ranges, other.port_ranges):
            if taken[0] <= ports[1] and ports[0] <= taken[1]:
                return _overlap(farm, ports, other, taken, shared)
    return ""


def _overlap(farm: Farm, ports: tuple[int, int], other: Farm, taken: tuple[int, int], vip: str) -> str:
    protocol = farm.protocol
    return f"{format_ports([ports])}/{protocol} on {vip} overlaps {format_ports([taken])}/{protocol} of farm {other.name}"


def _in_use(overlap: str, place: str) -> InvalidInput:
    remedy = "choose another port or VIP, or delete that farm"
    return InvalidInput(f"{overlap}; {remedy}", f"{place}.port", Code.LISTENER_IN_USE)


def check_limits(vips: Collection[str], farms: Collection[Farm]) -> None:
    """Check the capacity of the kernel's maps. Raises InvalidInput."""
    from bpf.columns import port_prefixes  # imports numpy, which is slow for short xlbctl commands

    ports = ranges = servers = 0
    for farm in farms:
        single = sum(first == last for first, last in farm.port_ranges)
        prefixes = sum(len(port_prefixes(first, last)) for first, last in farm.port_ranges if first != last)
        ports += len(farm.vips) * single
        ranges += len(farm.vips) * prefixes
        if farm.more_ports:
            servers += len(farm.backends) * (single + 1)
    for key, what, number, limit in (
        ("vip", "virtual addresses", len(vips), MAX_VIPS),
        ("farm", "farms", len(farms), MAX_FARMS - 1),
        ("backend", "backends", sum(len(farm.backends) for farm in farms), MAX_BACKENDS - 1),
        ("farm.port", "listeners of one port (ports times VIPs)", ports, MAX_SERVICES),
        ("farm.port", "prefixes of port ranges", ranges, MAX_PORT_RANGES),
        ("farm.port", "ports of backends of farms with several ports", servers, MAX_SERVERS // 2),
    ):
        if number > limit:
            raise InvalidInput(
                f"this node supports at most {limit} {what}, and the change would make {number}", key, Code.LIMIT_EXCEEDED
            )


def check_config(config: Config, checked: Collection[str] = frozenset()) -> None:
    """Check every invariant of an untrusted configuration. Raises InvalidInput.

    checked: names of farms that are already checked by themselves.
    """
    for address, vip in config.vips.items():
        check_vip(vip)
        if address != vip.address:
            raise InvalidInput(f"is stored under {address}", f"vip.{vip.address}")
    for farm in config.farms.values():
        if farm.name not in checked:
            check_farm(farm)
        check_vip_of_farm(config.vips, farm)
        check_lists_of_farm(config.prefixes, farm)
    _check_listeners(config.farms.values())
    for name, each in config.prefixes.items():
        check_name(name, "prefixes.name")
        if name != each.name:
            raise InvalidInput(f"is stored under {name}", f"prefixes.{each.name}")
        check_list(each)
    check_lists(config.prefixes)
    check_limits(config.vips, config.farms.values())
    _check_ids("farm", [farm.id for farm in config.farms.values()], MAX_FARMS)
    _check_ids("backend", [backend.id for farm in config.farms.values() for backend in farm.backends], MAX_BACKENDS)


def _check_listeners(farms: Iterable[Farm]) -> None:
    """`check_listener` for all farms, in the order of their ports."""
    listeners = sorted(
        (vip, farm.protocol, first, last, farm.name) for farm in farms for vip in farm.vips for first, last in farm.port_ranges
    )
    of_name = {farm.name: farm for farm in farms}
    for (vip, protocol, first, last, name), (vip2, protocol2, first2, last2, name2) in itertools.pairwise(listeners):
        if (vip, protocol) == (vip2, protocol2) and first2 <= last:
            overlap = _overlap(of_name[name2], (first2, last2), of_name[name], (first, last), vip)
            raise _in_use(overlap, f"farm.{name2}")


def _check_ids(kind: str, ids: list[int], limit: int) -> None:
    if len(set(ids)) != len(ids):
        raise InvalidInput("two have the same id", kind)
    for each in ids:
        check_bounds(each, 1, limit - 1, f"{kind}.id")
