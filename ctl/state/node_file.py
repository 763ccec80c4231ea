"""The node file (TOML): settings of this machine, edited by the operator and never replicated.

Decides defaults, names and bounds. Only `load` reads the file system and the host name.
"""

from __future__ import annotations

import enum
import ipaddress
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ctl.config import toml_text
from ctl.config.fields import Fields
from ctl.config.validation import MAX_PRIORITY, canonical_address, check_command, check_device, check_name
from ctl.errors import Code, InvalidInput, XlbError, storage_code

DEFAULT_PATH = Path("/etc/xlb/node.toml")

MIN_FLOWS, MAX_FLOWS = 1024, 1 << 25
MIN_TAKEOVER_MARGIN_MS = 5
"""The kernel checks the lease against its coarse clock, which steps every 4 ms at HZ=250; a peer that waits less than this
beyond the lease could become active before this node is fenced."""

MAX_MS = 60_000
MAX_NAME = 64
MAX_COMMAND = 256
ANNOUNCE_INTERVAL_S, MAX_ANNOUNCE_INTERVAL_S = 5, 3600
"""A neighbour that missed every announcement of a takeover is lost for no longer than this. One broadcast of 60 bytes per VIP
and interval costs a network with a hundred VIPs 20 frames per second."""

WEB_LISTEN = ("127.0.0.1:8443",)
SESSION_MINUTES, MAX_SESSION_MINUTES = 480, 30 * 24 * 60
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")


class XdpMode(enum.StrEnum):
    """How the program is attached: auto takes native and falls back to generic."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


@dataclass(frozen=True, slots=True)
class NodeSection:
    """Names and directories."""

    name: str
    state_dir: Path  # farms, epoch, keys
    run_dir: Path  # control socket, layout.json
    bpf_dir: Path  # pins
    name_given: bool  # the node file sets the name; otherwise a node of a pair has the name it was paired with


@dataclass(frozen=True, slots=True)
class DataSection:
    """The data plane."""

    interfaces: tuple[str, ...]
    xdp_mode: XdpMode
    max_flows: int  # connections
    announce_interval_s: int  # between two announcements of each VIP by the node that serves it; 0: only when something changes
    tunnel_source: tuple[str, ...]  # mode ipip sends to backends from these, at most one of each family; else from its own
    probe_vips: bool  # a single node asks the link before it adds a VIP, and leaves it to a machine that answers


@dataclass(frozen=True, slots=True)
class ClusterSection:
    """Timing and policy of a pair; without effect on a single node."""

    heartbeat_ms: int
    lease_ms: int
    takeover_ms: int
    priority: int
    failback: bool
    track: tuple[str, ...]  # default: data.interfaces
    gateway: str  # canonical address; empty: none
    vrrp_id: int  # virtual router identifier of the advertisements (RFC 9568), the same on both nodes
    vrrp_multicast: bool  # also advertise to 224.0.0.18 or ff02::12, for monitoring
    dns_name: str  # what `cluster check` resolves on both nodes; empty: their own names
    priority_given: bool  # it is set in the node file; otherwise the nodes of a pair agree on it


@dataclass(frozen=True, slots=True)
class ChecksSection:
    """Health checks on this node."""

    command_user: str  # the account that runs commands


@dataclass(frozen=True, slots=True)
class NotifySection:
    """The command that gets each event of this node."""

    command: tuple[str, ...]  # a program and its arguments; empty: none
    user: str  # the account that runs it; default: checks.command_user


@dataclass(frozen=True, slots=True)
class WebSection:
    """The HTTP API and page of this node: xlb-web. xlbd checks it and does not use it."""

    listen: tuple[str, ...]  # "ADDRESS:PORT", "[ADDRESS]:PORT"; port 0: any free one
    tls_certificate: str  # file with the chain (PEM); empty: xlb-web makes one
    tls_key: str  # file with its key; given if and only if the certificate is
    state_dir: Path  # of xlb-web: its certificate, sessions, known SSH hosts
    remote_command: str  # xlbctl on the node that a pair is made with
    session_minutes: int  # how long a login lasts


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """A checked node file."""

    source: str
    node: NodeSection
    data: DataSection
    cluster: ClusterSection
    checks: ChecksSection
    notify: NotifySection
    web: WebSection

    @property
    def control_endpoint(self) -> str:
        """ZeroMQ address of the control socket."""
        return f"ipc://{self.node.run_dir}/control.sock"

    def paired_as(self, name: str) -> NodeSettings:
        """The settings of a node that was paired under `name`: a host name that changed since then does not matter.

        A name that the node file sets is kept, and refused later if it is another one.
        """
        return self if self.node.name_given else replace(self, node=replace(self.node, name=name))


_SECTIONS = {
    "node": tuple(name for name in NodeSection.__slots__ if name != "name_given"),
    "data": tuple(DataSection.__slots__),
    "cluster": tuple(name for name in ClusterSection.__slots__ if name != "priority_given"),
    "checks": tuple(ChecksSection.__slots__),
    "notify": tuple(NotifySection.__slots__),
    "web": tuple(WebSection.__slots__),
}


def load(path: Path) -> NodeSettings:
    """Read and check a node file. Raises InvalidInput (content) or XlbError (missing, unreadable), naming path and remedy."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        example = '[data]\n    interfaces = ["eth0"]'
        raise XlbError(
            f"node file {path} does not exist; create it, or name another with --config. The minimum is\n    {example}",
            Code.STORAGE_FAILED,
        ) from None
    except OSError as error:
        raise XlbError(
            f"cannot read the node file {path}: {error.strerror}; run as root, or name another with --config",
            storage_code(error),
        ) from None
    return parse(toml_text.decode(data, str(path)), str(path), socket.gethostname())


def parse(text: str, source: str, hostname: str) -> NodeSettings:
    """Check the TOML `text`; `source` names it in errors, `hostname` is node.name's default.

    Raises InvalidInput whose key is the section and setting, e.g. "data.xdp_mode", and whose message names `source`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"is not valid TOML: {error}", source) from None
    try:
        return _parse(document, source, hostname)
    except InvalidInput as error:
        raise InvalidInput(f"{error.detail} (in {source})", error.key, error.code) from None


def _parse(document: Mapping[str, object], source: str, hostname: str) -> NodeSettings:
    top = Fields(document, "", tuple(_SECTIONS))
    node, data, cluster, checks, notify, web = (top.section(name, known) for name, known in _SECTIONS.items())
    data_section = _data(data)
    cluster_section = _cluster(cluster, data_section.interfaces)
    checks_section = _checks(checks)
    notify_section = _notify(notify, checks_section.command_user)
    return NodeSettings(source, _node(node, hostname), data_section, cluster_section, checks_section, notify_section, _web(web))


def _node(fields: Fields, hostname: str) -> NodeSection:
    name = fields.text("name", _name_of_host(hostname))
    check_name(name, fields.key("name"))
    defaults = {"state_dir": "/var/lib/xlb", "run_dir": "/run/xlb", "bpf_dir": "/sys/fs/bpf/xlb"}
    paths = {}
    for key, default in defaults.items():
        paths[key] = Path(fields.text(key, default))
        if not paths[key].is_absolute():
            raise InvalidInput(f'expected an absolute path like {default}, got "{paths[key]}"', fields.key(key))
    return NodeSection(name, **paths, name_given="name" in fields)


def _name_of_host(hostname: str) -> str:
    """A valid name in any case: the kernel takes host names that are none, and nobody can correct the node file for that."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", hostname).lstrip("._-")[:MAX_NAME] or "node"


def _data(fields: Fields) -> DataSection:
    if "interfaces" not in fields:
        raise InvalidInput(
            'is missing; expected the interfaces that carry traffic, e.g. ["eth0"]',
            fields.key("interfaces"),
            Code.MISSING_ARGUMENT,
        )
    interfaces = _interfaces(fields, "interfaces", ())
    if not interfaces:
        raise InvalidInput('expected at least one interface, e.g. ["eth0"]', fields.key("interfaces"))
    return DataSection(
        interfaces,
        fields.choice("xdp_mode", XdpMode, XdpMode.AUTO),
        fields.integer("max_flows", 1048576, MIN_FLOWS, MAX_FLOWS),
        fields.integer("announce_interval_s", ANNOUNCE_INTERVAL_S, 0, MAX_ANNOUNCE_INTERVAL_S),
        _tunnel_source(fields, "tunnel_source"),
        fields.boolean("probe_vips", True),
    )


def _tunnel_source(fields: Fields, name: str) -> tuple[str, ...]:
    addresses = tuple(canonical_address(each, fields.key(name)) for each in fields.texts(name, ()))
    if len({":" in each for each in addresses}) < len(addresses):
        raise InvalidInput(f"expected at most one IPv4 and one IPv6 address, got {', '.join(addresses)}", fields.key(name))
    return addresses


def _interfaces(fields: Fields, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    names = fields.texts(name, default)
    for each in names:
        check_device(each, fields.key(name))
        if names.count(each) > 1:
            raise InvalidInput(f'"{each}" is listed twice', fields.key(name))
    return names


def _cluster(fields: Fields, interfaces: tuple[str, ...]) -> ClusterSection:
    heartbeat = fields.integer("heartbeat_ms", 100, 1, MAX_MS)
    lease = fields.integer("lease_ms", 300, 2, MAX_MS)
    takeover = fields.integer("takeover_ms", 350, 3, MAX_MS)
    if heartbeat >= lease:
        raise InvalidInput(f"expected less than lease_ms ({lease}), got {heartbeat}", fields.key("heartbeat_ms"))
    if takeover < lease + MIN_TAKEOVER_MARGIN_MS:
        why = "otherwise both nodes could be active at once"
        least = lease + MIN_TAKEOVER_MARGIN_MS
        raise InvalidInput(
            f"expected at least {least} (lease_ms + {MIN_TAKEOVER_MARGIN_MS}), got {takeover}; {why}", fields.key("takeover_ms")
        )
    gateway = fields.text("gateway", "")
    return ClusterSection(
        heartbeat,
        lease,
        takeover,
        fields.integer("priority", 100, 1, MAX_PRIORITY - 1),
        fields.boolean("failback", False),
        _interfaces(fields, "track", interfaces),
        canonical_address(gateway, fields.key("gateway")) if gateway else "",
        fields.integer("vrrp_id", 51, 1, 255),
        fields.boolean("vrrp_multicast", False),
        fields.text("dns_name", ""),
        "priority" in fields,
    )


def _checks(fields: Fields) -> ChecksSection:
    return ChecksSection(_user(fields, "command_user", "nobody"))


def _notify(fields: Fields, command_user: str) -> NotifySection:
    command = fields.texts("command", ())
    check_command(command, fields.key("command"))
    return NotifySection(command, _user(fields, "user", command_user))


def _web(fields: Fields) -> WebSection:
    given = fields.texts("listen", WEB_LISTEN, or_one=True)
    if not given:
        raise InvalidInput(f'expected at least one address and port like "{WEB_LISTEN[0]}"', fields.key("listen"))
    for each in given:
        listen_address(each, fields.key("listen"))
    certificate, key = (_absolute(fields, name, "") for name in ("tls_certificate", "tls_key"))
    if bool(certificate) != bool(key):
        raise InvalidInput(
            "is given without the other: xlb-web needs tls_certificate and tls_key, or neither",
            fields.key("tls_certificate" if certificate else "tls_key"),
        )
    command = fields.text("remote_command", "xlbctl")
    if not command.isprintable() or not command.strip() or len(command) > MAX_COMMAND:
        raise InvalidInput(f"expected a command of at most {MAX_COMMAND} printable characters", fields.key("remote_command"))
    return WebSection(
        given,
        certificate,
        key,
        Path(_absolute(fields, "state_dir", "/var/lib/xlb-web")),
        command,
        fields.integer("session_minutes", SESSION_MINUTES, 1, MAX_SESSION_MINUTES),
    )


def listen_address(text: str, key: str) -> tuple[str, int]:
    """Address and port of "10.0.0.1:8443" or "[::1]:8443"; all addresses (0.0.0.0, ::) are allowed. Raises InvalidInput."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
        valid = bool(colon) and (address.version == 4) == (host == bare) and not getattr(address, "scope_id", None)
    except ValueError:
        valid = False
    if not valid or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise InvalidInput(f'expected an IP address and a port like "{WEB_LISTEN[0]}" or "[::1]:8443", got "{text[:80]}"', key)
    return str(address), int(port)


def _absolute(fields: Fields, name: str, default: str) -> str:
    path = fields.text(name, default)
    if path != default and (not path.startswith("/") or not path.isprintable()):
        raise InvalidInput(f'expected an absolute path, got "{path[:80]}"', fields.key(name))
    return path


def _user(fields: Fields, name: str, default: str) -> str:
    user = fields.text(name, default)
    if _USER.fullmatch(user) is None or user == "root":
        raise InvalidInput(f'expected the name of a user other than root, got "{user[:80]}"', fields.key(name))
    return user
