"""keepalived.conf: virtual servers as farms, the addresses of VRRP instances as VIPs.

Source: keepalived.conf(5). Must not know how a farms file is made.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil

from ctl.errors import InvalidInput
from ctl.importing import ipvs
from ctl.importing.form import (
    MAIL,
    MAX_SERVICES,
    Address,
    Imported,
    Listener,
    Notes,
    Server,
    Service,
    Source,
    as_name,
    endpoint_name,
    host_address,
    mask_length,
    persistence,
    persistence_prefix,
    port_number,
    whole,
)
from ctl.importing.keepalived_checks import CHECKERS, TIMING, Inherited, make_check, seconds
from ctl.importing.keepalived_syntax import Statement, parse

ALL_PORTS = ((1, 65535),)
BACKUP_TIER = 1
MAX_RANGE = 256
"""Addresses of one range of a virtual_server_group."""
NOTIFY = "one program of the node gets all events of xlb"
SYSTEMD = ("xlbd starts no programs of the system", "use a unit of systemd")
FIFO = (NOTIFY, "read them with xlbctl watch -o json, or name a program in the node file: [notify] command")


def _event(name: str) -> tuple[str, str]:
    """Why a program of keepalived is not carried over, and what takes its place."""
    return NOTIFY, f"name it in the node file, [notify] command, and let it look for the event {name}"


PAIR = "the node's role follows from the pair, not from VRRP"
PAIR_REMEDY = "create the pair with xlbctl cluster create; it holds the VIPs"
BLOCKS: Mapping[str, tuple[str, str]] = {
    "vrrp_sync_group": ("all VIPs of a pair are on its active node", "nothing to do"),
    "vrrp_script": ("a node of xlb leaves its role for its interfaces and its gateway", "see track and gateway in xlbd(8)"),
    "vrrp_track_process": ("a node of xlb leaves its role for its interfaces and its gateway", "see track in xlbd(8)"),
    "vrrp_track_file": ("a node of xlb leaves its role for its interfaces and its gateway", "see track in xlbd(8)"),
    "track_file": ("a node of xlb leaves its role for its interfaces and its gateway", "see track in xlbd(8)"),
    "track_group": ("all VIPs of a pair are on its active node", "nothing to do"),
    "track_bfd": ("xlb has no BFD", "the heartbeats of the pair take its place"),
    "bfd_instance": ("xlb has no BFD", "the heartbeats of the pair take its place"),
    "static_ipaddress": ("addresses that a node always has are not VIPs", "configure them in the system's network files"),
    "static_routes": ("xlb sets no routes", "configure them in the system's network files"),
    "static_rules": ("xlb sets no routing rules", "configure them in the system's network files"),
    "interface_up_down_delays": (PAIR, "nothing to do"),
    "linkbeat_interfaces": (PAIR, "nothing to do"),
    "garp_group": ("xlb announces VIPs itself", "nothing to do"),
}
GLOBAL_LOST: Mapping[str, tuple[str, str]] = {
    "notification_email": MAIL,
    "notification_email_from": MAIL,
    "smtp_server": MAIL,
    "smtp_alert": MAIL,
    "smtp_alert_checker": MAIL,
    "smtp_alert_vrrp": MAIL,
    "lvs_sync_daemon": (
        "xlb replicates connections by itself",
        "nothing to do in a pair: xlbctl cluster status shows the protected share",
    ),
    "net_namespace": ("xlbd runs in the namespace that starts it", "start xlbd there"),
    "net_namespace_ipvs": ("xlbd runs in the namespace that starts it", "start xlbd there"),
    "startup_script": SYSTEMD,
    "shutdown_script": SYSTEMD,
    "notify_fifo": FIFO,
    "lvs_notify_fifo": FIFO,
    "vrrp_notify_fifo": FIFO,
    "enable_snmp_checker": ("xlb has no SNMP agent", "read xlbctl stats -o json"),
    "enable_snmp_rfc": ("xlb has no SNMP agent", "read xlbctl stats -o json"),
    "enable_traps": ("xlb has no SNMP agent", "read xlbctl stats -o json"),
    "snmp_server": ("xlb has no SNMP agent", "read xlbctl stats -o json"),
}
GLOBAL_IGNORED = (
    *("router_id", "lvs_id", "smtp_connect_timeout", "smtp_helo_name", "script_user", "enable_script_security", "lvs_flush"),
    *("lvs_flush_onstop", "instance", "use_pid_dir", "process_names", "process_name", "default_interface", "nftables"),
    *("nftables_ipvs", "nftables_counters", "reload_file", "max_auto_priority", "enable_dbus", "dynamic_interfaces"),
    *("no_email_faults", "checker_log_all_failures", "log_unknown_vrids", "tmp_config_directory", "config_save_dir"),
    *("child_wait_time", "umask", "reload_time_file", "shutdown_script_timeout", "startup_script_timeout", "json_version"),
)
"""Statements of global_defs about the process of keepalived itself. Those that begin with vrrp_, checker_ or bfd_ as well."""
GLOBAL_PREFIXES = ("vrrp_", "checker_", "bfd_", "lvs_process", "lvs_no_swap", "lvs_priority", "lvs_rt", "lvs_netlink")
VRRP_LOST: Mapping[str, tuple[str, str]] = {
    "virtual_routes": ("xlb sets no routes", "configure them in the system's network files on both nodes"),
    "virtual_rules": ("xlb sets no routing rules", "configure them in the system's network files on both nodes"),
    "track_script": ("no script decides about the role", "see track and gateway in xlbd(8)"),
    "track_process": ("no process decides about the role", "see track and gateway in xlbd(8)"),
    "track_file": ("no file decides about the role", "see track and gateway in xlbd(8)"),
    "track_interface": ("which interfaces a node needs is in its node file", "name them in [cluster] track, see xlbd(8)"),
    **dict.fromkeys(("notify", "notify_master", "notify_backup", "notify_fault", "notify_stop"), _event("role.changed")),
    "notify_master_rx_lower_pri": _event("role.changed"),
}
VIRTUAL_LOST: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("notify_up", "notify_down"), _event("backend.changed")),
    **dict.fromkeys(("quorum_up", "failover_down"), _event("farm.up")),
    **dict.fromkeys(("quorum_down", "failover_up"), _event("farm.down")),
    "hysteresis": ("xlb has no quorum of weights", "see farm.tier_minimum"),
    "persistence_engine": ("xlb does not read SIP", "for UDP by client use persistence_s"),
    "ops": ("each UDP connection of xlb has one backend", "nothing to do, unless each datagram must go to another server"),
    "smtp_alert": MAIL,
    "lthreshold": ("a backend takes connections again as soon as it has fewer than max_connections", "nothing to do"),
    "sorry_server_inhibit": ("a backend that is down gets no connections", "nothing to do"),
}
VIRTUAL_IGNORED = (
    "alpha",
    "omega",
    "ha_suspend",
    "inhibit_on_failure",
    "ip_family",
    "warmup",
    "nat_mask",
)
READ_BY_OTHERS = ("virtualhost", "snmp_name")
ONE_VALUE = (
    *(
        *TIMING,
        "path",
        "digest",
        "virtualhost",
        "weight",
        "lb_algo",
        "lvs_sched",
        "protocol",
        "quorum",
        "uthreshold",
        "lthreshold",
    ),
    *("persistence_timeout", "persistence_granularity", "connect_port", "sni_name", "misc_timeout", "helo_name"),
)
FLAGS = ("sh-port", "sh-fallback", "mh-port", "mh-fallback", "flag-1", "flag-2", "flag-3")


@dataclass(slots=True)
class _Context:
    out: Imported
    groups: dict[str, Statement] = field(default_factory=dict)
    used_groups: set[str] = field(default_factory=set)
    timeouts: dict[str, dict[str, int]] = field(default_factory=lambda: {"tcp": {}, "udp": {}})

    @property
    def notes(self) -> Notes:
        return self.out.notes


def read(source: Source) -> Imported:
    """Raises InvalidInput naming the line."""
    context = _Context(Imported())
    statements = parse(source, context.notes)
    for each in statements:
        if each.key == "virtual_server_group" and each.block is not None:
            context.groups[each.value()] = each
        elif each.key == "global_defs":
            _global(each, context)
    for each in statements:
        _top(each, context)
        if each.key == "virtual_server":
            _one_value_each(each, context.notes)
    for name, group in context.groups.items():
        if name not in context.used_groups:
            context.notes.lost(group.place, group.text, "no virtual_server uses the group", "nothing to do")
    return context.out


def _one_value_each(block: Statement, notes: Notes) -> None:
    """Several statements on one line: keepalived reads the first."""
    for each in block.block or []:
        if each.key in ONE_VALUE and len(each.words) > 2:
            notes.changed(
                each.place, each.text, f"only {each.key} is read of this line", "write the others on lines of their own"
            )
        _one_value_each(each, notes)


def _top(each: Statement, context: _Context) -> None:
    notes = context.notes
    if each.key == "virtual_server":
        _virtual_server(each, context)
    elif each.key == "vrrp_instance":
        _vrrp(each, context)
    elif each.key in BLOCKS:
        notes.lost(each.place, each.text, *BLOCKS[each.key])
    elif each.key == "SSL":
        why = "checks of kind https show no certificate of their own"
        notes.lost(each.place, each.text, why, "to verify the servers set farm.health.verify and ca_file")
    elif each.key not in ("virtual_server_group", "global_defs", *GLOBAL_IGNORED, "net_namespace", "net_namespace_ipvs"):
        notes.lost(
            each.place,
            each.text,
            "xlb has nothing like it, or the word is misspelled",
            "nothing to do, if keepalived ignores it too",
        )
    elif each.key.startswith("net_namespace"):
        notes.lost(each.place, each.text, *GLOBAL_LOST[each.key])


def _global(block: Statement, context: _Context) -> None:
    for each in block.block or []:
        if each.key == "lvs_timeouts":
            _timeouts(each, context)
        elif each.key in GLOBAL_LOST:
            context.notes.lost(each.place, each.text, *GLOBAL_LOST[each.key])
        elif each.key not in GLOBAL_IGNORED and not each.key.startswith(GLOBAL_PREFIXES):
            context.notes.lost(each.place, each.text, "xlb has nothing like it, or the word is misspelled", "nothing to do")


def _timeouts(each: Statement, context: _Context) -> None:
    keys = {"tcp": ("tcp", "idle_timeout_s"), "tcpfin": ("tcp", "closing_timeout_s"), "udp": ("udp", "idle_timeout_s")}
    for name, text in zip(each.rest[::2], each.rest[1::2], strict=False):
        value = whole(text, 1, 604800)
        if name not in keys or value is None:
            context.notes.lost(
                each.place, each.text, "expected tcp, tcpfin or udp and seconds to 604800", "set farm.idle_timeout_s"
            )
            return
        protocol, key = keys[name]
        context.timeouts[protocol][key] = value


# --- VRRP -------------------------------------------------------------------------------------------------------------------


def _vrrp(each: Statement, context: _Context) -> None:
    block = each.block or []
    device = next((inner.value() for inner in block if inner.key == "interface"), "") or None
    named = 0
    for inner in block:
        if inner.key in ("virtual_ipaddress", "virtual_ipaddress_excluded"):
            for address in inner.block or []:
                named += _vrrp_address(address, device, context)
        elif inner.key in VRRP_LOST:
            context.notes.lost(inner.place, inner.text, *VRRP_LOST[inner.key])
    vips = f"; its {named} addresses are VIPs of the farms file" if named > 1 else "; its address is a VIP of the farms file"
    context.notes.lost(each.place, each.text, PAIR + (vips if named else ""), PAIR_REMEDY)


def _vrrp_address(each: Statement, device: str | None, context: _Context) -> int:
    text, slash, length = each.key.partition("/")
    address = host_address(text)
    if address is None:
        context.notes.lost(each.place, each.text, "expected an address", "add it with xlbctl vip add")
        return 0
    bits = 128 if ":" in address else 32
    words = dict(zip(each.words[1:], each.words[2:], strict=False))
    number = mask_length(length) if slash else bits
    if number is None or not 1 <= number <= bits:
        context.notes.lost(
            each.place, each.text, f"expected a prefix length from 1 to {bits}", f"/{bits} is written; correct it"
        )
        number = bits
    for name in ("peer", "label", "scope", "use_vmac"):
        if name in each.words[1:]:
            context.notes.lost(
                each.place, each.text, f"a VIP of xlb has no {name}", "nothing to do, unless a program depends on it"
            )
    context.out.addresses.append(Address(each.place, address, number, words.get("dev", device)))
    return 1


# --- virtual servers --------------------------------------------------------------------------------------------------------


def _virtual_server(each: Statement, context: _Context) -> None:
    notes, block = context.notes, each.block
    if block is None:
        notes.lost(each.place, each.text, "it has no block", "nothing to do")
        return
    if len(context.out.services) >= MAX_SERVICES:
        raise InvalidInput(f"more than {MAX_SERVICES} virtual servers", str(each.place))
    last = {inner.key: inner for inner in block}
    protocol = last["protocol"].value().lower() if "protocol" in last else "tcp"
    if protocol not in ("tcp", "udp"):
        why = f"xlb balances TCP and UDP, not {protocol[:20]}"
        notes.lost(each.place, each.text, why, "leave this service on keepalived")
        return
    listeners = _listeners(each, context)
    if not listeners:
        return
    service = Service(each.place, each.head, _name(each, listeners[0], protocol), protocol, listeners=listeners)
    service.one_port = True
    service.settings |= context.timeouts[protocol]
    inherited = Inherited().within(block)
    kind = next((inner for inner in block if inner.key in ("lb_kind", "lvs_method")), None)
    service.mode = _mode(kind, notes) if kind else "dnat"
    for inner in block:
        if inner.key == "real_server":
            _real_server(inner, service, inherited, notes)
    _settings(block, service, last, notes)
    context.out.services.append(service)


def _name(each: Statement, first: Listener, protocol: str) -> str:
    name = next((inner.value() for inner in each.block or [] if inner.key == "snmp_name"), "")
    if each.value() == "group":
        name = name or each.words[2]
    ports = str(first.ports[0][0]) if first.ports != ALL_PORTS else "all"
    return as_name(name) or endpoint_name(first.address, ports, protocol)


def _listeners(each: Statement, context: _Context) -> list[Listener]:
    notes = context.notes
    if each.value() == "fwmark":
        _fwmark(each, notes)
        return []
    if each.value() == "group":
        name = each.words[2] if len(each.words) > 2 else ""
        group = context.groups.get(name)
        if group is None:
            notes.lost(
                each.place, each.text, f'there is no virtual_server_group "{name[:60]}"', "correct the name and import again"
            )
            return []
        context.used_groups.add(name)
        found: list[Listener] = []
        for inner in group.block or []:
            found += _group_member(inner, notes)
        if not found:
            why = "its group has no address that can be carried over"
            notes.lost(each.place, each.text, why, "add the farm with xlbctl farm add")
        return found
    address = host_address(each.value())
    ports = _ports(each.words[2] if len(each.words) > 2 else "0")
    if address is None or ports is None:
        notes.lost(each.place, each.text, "expected an address and a port", "correct it and import again")
        return []
    return [Listener(each.place, address, ports)]


def _fwmark(each: Statement, notes: Notes) -> None:
    why = "which packets have the mark is in the firewall's rules"
    notes.lost(each.place, each.text, why, "add a farm with the addresses and ports of these rules: xlbctl farm add")


def _ports(text: str) -> tuple[tuple[int, int], ...] | None:
    """Port 0 is all ports."""
    if text == "0":
        return ALL_PORTS
    port = port_number(text)
    return None if port is None else ((port, port),)


def _group_member(each: Statement, notes: Notes) -> list[Listener]:
    if each.key == "fwmark":
        _fwmark(each, notes)
        return []
    ports = _ports(each.value("0"))
    addresses = list(_addresses(each.key)) if ports else []
    if not addresses or ports is None:
        why = f"expected an address or a range of at most {MAX_RANGE}, and a port"
        notes.lost(each.place, each.text, why, "add the VIPs to the farm with xlbctl farm set --vip")
        return []
    return [Listener(each.place, address, ports) for address in addresses]


def _addresses(text: str) -> Iterator[str]:
    """192.0.2.1, 192.0.2.1-10, 192.0.2.250-192.0.3.9 or 192.0.2.8/29; nothing if it is none of these."""
    first, dash, last = text.partition("-")
    try:
        if "/" in text:
            network = ipaddress.ip_network(text, strict=False)
            low, high = int(network[0]), int(network[-1])
            kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address] = type(network[0])
        else:
            start = ipaddress.ip_address(first)
            kind, low = type(start), int(start)
            if not dash:
                high = low
            elif "." in last or ":" in last:
                high = int(kind(last))
            elif kind is ipaddress.IPv4Address:
                high = (low & ~0xFF) | int(last)
            else:
                high = (low & ~0xFFFF) | int(last, 16)
    except ValueError:
        return
    if low <= high < low + MAX_RANGE:
        yield from (str(kind(value)) for value in range(low, high + 1))


def _mode(each: Statement, notes: Notes) -> str:
    mode = ipvs.MODES.get(each.value().lower())
    if mode is None:
        notes.lost(each.place, each.text, "expected NAT, DR or TUN", "choose farm.mode")
        return "dnat"
    tunnel = each.words[2:]
    if mode == "ipip" and tunnel and tunnel[:2] != ["type", "ipip"]:
        notes.changed(
            each.place, each.text, "xlb tunnels with IP in IP only", "set up an IPIP tunnel on the servers, see docs/ONE-WAY.md"
        )
    return mode


def _real_server(each: Statement, service: Service, inherited: Inherited, notes: Notes) -> None:
    block = each.block or []
    address = host_address(each.value())
    port = None if len(each.words) < 3 or each.words[2] == "0" else port_number(each.words[2])
    if address is None or (len(each.words) > 2 and each.words[2] != "0" and port is None):
        notes.lost(each.place, each.text, "expected an address and a port", "add it with xlbctl backend add")
        return
    server = Server(each.place, each.head, address, port)
    method = next((inner for inner in block if inner.key in ("lb_kind", "lvs_method")), None)
    if method is not None and (mode := _mode(method, notes)) != service.mode:
        why = f"all backends of a farm have one mode, and that of this one is {service.mode}"
        notes.lost(each.place, f"{each.text} with {method.text}", why, f"add a farm of mode {mode} for it")
        return
    for inner in block:
        if inner.key == "weight":
            server.weight = _weight(inner, notes)
        elif inner.key == "uthreshold":
            limit = whole(inner.value())
            server.max_connections = limit or 0
            if limit is None:
                notes.lost(inner.place, inner.text, "expected a number of connections", "set max_connections of the backend")
        elif inner.key in VIRTUAL_LOST:
            notes.lost(inner.place, inner.text, *VIRTUAL_LOST[inner.key])
        elif inner.key not in (*CHECKERS, *TIMING, *VIRTUAL_IGNORED, *READ_BY_OTHERS, "lb_kind", "lvs_method"):
            notes.lost(inner.place, inner.text, "xlb has nothing like it, or the word is misspelled", "nothing to do")
    server.check = make_check(server, block, inherited, notes)
    service.servers.append(server)


def _weight(each: Statement, notes: Notes) -> int:
    weight = whole(each.value(), 0, 65535)
    if weight is None:
        notes.lost(each.place, each.text, "expected a weight from 0 to 65535", "1 is written; set it with xlbctl backend set")
    return 1 if weight is None else weight


def _settings(block: list[Statement], service: Service, last: Mapping[str, Statement], notes: Notes) -> None:
    flags = [inner.key for inner in block if inner.key in FLAGS]
    algorithm = last.get("lb_algo") or last.get("lvs_sched")
    head = algorithm.place if algorithm else service.place
    name = algorithm.value() if algorithm else ipvs.DEFAULT_SCHEDULER
    ipvs.set_scheduler(service, name, flags, head, algorithm.text if algorithm else f"lb_algo {name}", notes)
    mask = last.get("persistence_granularity")
    known = ("protocol", "lb_kind", "lvs_method", "lb_algo", "lvs_sched", "real_server", "persistence_granularity", *FLAGS)
    for inner in block:
        if inner.key == "persistence_timeout":
            seconds_ = whole(inner.value(str(ipvs.DEFAULT_PERSISTENCE_S)))
            if seconds_ is None:
                notes.lost(inner.place, inner.text, "expected a number of seconds", "set farm.persistence_s")
            elif seconds_:
                persistence(service, seconds_, inner.place, inner.text, notes)
        elif inner.key == "sorry_server":
            _sorry(inner, service, notes)
        elif inner.key == "backup_real_server":
            before = len(service.servers)
            _real_server(inner, service, Inherited().within(block), notes)
            for server in service.servers[before:]:
                server.priority = BACKUP_TIER
        elif inner.key == "failover_threshold":
            _threshold(inner, service, notes)
        elif inner.key == "quorum":
            _quorum(inner, service, "sorry_server" in last, notes)
        elif inner.key in VIRTUAL_LOST:
            notes.lost(inner.place, inner.text, *VIRTUAL_LOST[inner.key])
        elif inner.key.startswith("sorry_server_l"):
            notes.lost(inner.place, inner.text, "all backends of a farm have one mode", "add a farm of that mode for it")
        elif inner.key not in (*known, *TIMING, *VIRTUAL_IGNORED, *READ_BY_OTHERS):
            notes.lost(inner.place, inner.text, "xlb has nothing like it, or the word is misspelled", "nothing to do")
        elif inner.key == "delay_loop" and seconds(inner.value()) is None:
            notes.lost(inner.place, inner.text, "expected a number of seconds", "set farm.health.interval_ms")
    if mask is not None:
        length = mask_length(mask.value())
        if length is None:
            notes.lost(mask.place, mask.text, "expected a netmask", "set farm.persistence_prefix_v4")
        elif "persistence_s" in service.settings:
            persistence_prefix(service, length, mask.place, mask.text, notes)


def _sorry(each: Statement, service: Service, notes: Notes) -> None:
    before = len(service.servers)
    _real_server(each, service, Inherited(), notes)
    if len(service.servers) == before:
        return
    sorry = service.servers[-1]
    sorry.priority = min(255, max((server.priority for server in service.servers[:-1]), default=-1) + 1)
    checks = [server.check for server in service.servers[:-1] if server.check]
    if checks:
        sorry.check = checks[0]
        notes.changed(
            each.place, each.text, "keepalived does not check it; a farm checks all its backends", "let it answer the check"
        )


def _threshold(each: Statement, service: Service, notes: Notes) -> None:
    """From which share of failed servers on the backup servers serve."""
    percent = whole(each.value(), 1, 100)
    first = sum(server.priority == 0 for server in service.servers)
    if percent is None:
        notes.lost(each.place, each.text, "expected 1 to 100 percent", "set farm.tier_minimum")
    elif (minimum := first - ceil(first * percent / 100) + 1) > 1:
        service.settings["tier_minimum"] = min(1000, minimum)
        why = f"with fewer than {minimum} servers (tier_minimum) the backup servers join them instead of replacing them"
        notes.changed(each.place, each.text, why, "check whether both may serve at once")


def _quorum(each: Statement, service: Service, has_sorry: bool, notes: Notes) -> None:
    weights = {server.weight for server in service.servers if not server.priority}
    quorum = whole(each.value(), 1, 10**6)
    if quorum is None:
        notes.lost(each.place, each.text, "expected a weight", "see farm.tier_minimum")
    elif quorum > 1 and has_sorry and len(weights) == 1 and (weight := weights.pop()):
        minimum = min(1000, -(-quorum // weight))
        service.settings["tier_minimum"] = minimum
        why = f"tier_minimum = {minimum} counts servers, and the sorry server joins the others instead of replacing them"
        notes.changed(each.place, each.text, why, "check whether both may serve at once")
    elif quorum > 1:
        notes.lost(each.place, each.text, "xlb has no quorum of weights", "see farm.tier_minimum")
