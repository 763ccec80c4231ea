"""Client, nodes, backends and the switch between them, as network namespaces with native XDP on veth.

    client .10     lb1 .1   (lb2 .2)     b1 .21 … bN
       │ eth0         │ eth0               │ eth0
    ───┴──────────────┴────────────────────┴───  data     10.77.0.0/24  fd77::/64    VIP .100
                      │ eth1               │ eth0 (with two interfaces the backends are here)
                   ───┴────────────────────┴───  back     10.88.0.0/24  fd88::/64
                      │ ha0 (with two nodes)
                   ───┴───  cluster  10.99.0.0/24

Everything a rig makes disappears with its process, whatever the exit: namespaces exist while descriptors are open,
processes die with their parent, and a reaper that waits for the end of a pipe removes directories and pins.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from bpf.loading.bpffs import is_bpffs
from tests.rig import xdp_pass
from tests.rig.client import Client
from tests.rig.namespaces import Namespace
from tests.rig.node import Node
from tests.wait import wait_until

VIP4, VIP6 = "10.77.0.100", "fd77::100"
HTTP_PORT, TCP_PORT, UDP_PORT = 8080, 7000, 7001
CLIENT4, CLIENT6 = "10.77.0.10", "fd77::10"
BPF_ROOT = Path("/sys/fs/bpf")

_SERVER = Path(__file__).with_name("server.py")


@dataclass(frozen=True, slots=True)
class Layout:
    """What a rig is made of.

    interfaces: 1, packets leave a node by the interface they came in by; 2, backends sit behind the node's second one.
    routed: backends send what is for the client through node lb1, as mode dnat needs.
    xdp_mode: as in the node files. plain_driver: the node's eth0 is a macvlan, which has no native XDP.
    """

    backends: int = 3
    nodes: int = 1
    interfaces: int = 1
    routed: bool = False
    xdp_mode: str = "native"
    plain_driver: bool = False
    max_flows: int = 65536


def why_not() -> str:
    """Why a rig cannot be built here; empty if it can."""
    if os.geteuid() != 0:
        return "the rig needs root (network namespaces, XDP)"
    if not is_bpffs(BPF_ROOT):
        return f"no bpffs on {BPF_ROOT}: mount -t bpf bpf {BPF_ROOT}"
    missing = [tool for tool in ("ip", "bridge", "nsenter", "setpriv") if shutil.which(tool) is None]
    if missing:
        return f"missing commands: {', '.join(missing)} (packages iproute2, util-linux)"
    try:
        Namespace("probe").close()
    except OSError as error:
        return str(error)
    return ""


class Backend:
    """A backend's namespace and its server process."""

    def __init__(self, name: str, namespace: Namespace, address4: str, address6: str) -> None:
        self.name, self.namespace, self.address4, self.address6 = name, namespace, address4, address6
        self.process: subprocess.Popen[str] | None = None

    def start(self, *, wait: bool = True) -> None:
        ports = [str(port) for port in (HTTP_PORT, TCP_PORT, UDP_PORT)]
        self.process = self.namespace.popen(
            [sys.executable, str(_SERVER), self.name, *ports], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        self._expect("ready")

    def set_health(self, word: str) -> None:
        """`sick` or `well`: what GET /health answers from now on."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self.process is not None
        out: IO[str] | None = self.process.stdout
        assert out is not None
        line = out.readline().strip()
        assert line == word, f"backend {self.name} answered {line!r} instead of {word!r}"

    def kill(self) -> None:
        """SIGKILL: the kernel resets its connections."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait(10)
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None


def start_reaper(directory: Path, pins: Path) -> subprocess.Popen[bytes]:
    """Removes a directory and all pins whose path begins with `pins` when its stdin is closed: whatever this process's exit."""
    script = 'trap \'\' INT TERM HUP; cat; rm -rf -- "$1" "$2"*'
    return subprocess.Popen(
        ["sh", "-c", script, "rig-reaper", str(directory), str(pins)], stdin=subprocess.PIPE, start_new_session=True
    )


def _node_addresses(number: int) -> tuple[str, ...]:
    return f"10.77.0.{number}/24", f"fd77::{number}/64"


class Rig:
    """Use as a context manager. Nodes are configured but not started; backends answer, the client is ready."""

    def __init__(self, layout: Layout = Layout()) -> None:
        self.layout = layout
        self.id = f"{os.getpid()}-{secrets.token_hex(3)}"
        self.directory = Path(tempfile.mkdtemp(prefix=f"xlb-rig-{self.id}-"))
        self.directory.chmod(0o755)  # the daemon sets the permissions of what is inside
        self.namespaces: dict[str, Namespace] = {}
        self.nodes: list[Node] = []
        self.backends: list[Backend] = []
        self._pins = BPF_ROOT / f"xlb-rig-{self.id}-"  # what all its nodes' bpf_dirs begin with
        self._reaper = start_reaper(self.directory, self._pins)
        self._ports: list[tuple[str, str]] = []
        self._silent: set[str] = set()  # ports that were cut silently
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def node(self) -> Node:
        return self.nodes[0]

    def backend(self, name: str) -> Backend:
        return next(backend for backend in self.backends if backend.name == name)

    # --- building ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        layout = self.layout
        self.switch = self._namespace("switch")
        bridges = ["data"] + ["back"] * (layout.interfaces == 2) + ["cluster"] * (layout.nodes == 2)
        self.switch.ip(*(f"link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0" for bridge in bridges))
        self.switch.ip(*(f"link set {bridge} up" for bridge in bridges))
        self._build_client()
        for number in range(1, layout.nodes + 1):
            self._build_node(number)
        for _ in range(layout.backends):
            self.add_backend(start=False)
        for backend in self.backends:
            backend.start(wait=False)
        for backend in self.backends:
            backend.wait_ready()

    def _namespace(self, name: str) -> Namespace:
        self.namespaces[name] = namespace = Namespace(name)
        return namespace

    def _plug(
        self, host: Namespace, device: str, bridge: str, addresses: tuple[str, ...], *, sends_by_xdp: bool = False
    ) -> None:
        """Lay a cable from `device` of `host` to a bridge; the switch's end is named HOST-DEVICE."""
        port = f"{host.name}-{device}"
        self._ports.append((host.name, port))
        self.switch.ip(
            f"link add {port} type veth peer name {device} netns {host.path}",
            f"link set {port} master {bridge} up",
        )
        self.switch.plain_checksums(port)
        host.plain_checksums(device)
        if sends_by_xdp:
            self.switch.call(lambda: xdp_pass.attach(socket.if_nametoindex(port)))
        host.ip(f"link set {device} up", *(f"addr add {address} dev {device} nodad" for address in addresses))

    def _build_client(self) -> None:
        namespace = self._namespace("client")
        self._plug(namespace, "eth0", "data", (f"{CLIENT4}/24", f"{CLIENT6}/64"))
        namespace.sysctl({"net.ipv4.ip_local_port_range": "10000 65535", "net.ipv4.tcp_tw_reuse": 1})
        self.client = Client(namespace)

    def _build_node(self, number: int) -> None:
        name = f"lb{number}"
        namespace = self._namespace(name)
        addresses = _node_addresses(number)
        if self.layout.plain_driver:
            self._plug(namespace, "wire0", "data", ())
            # `arp off`: wire0 would answer for eth0's addresses with its own MAC
            namespace.ip("link set wire0 arp off", "link add eth0 link wire0 type macvlan mode bridge", "link set eth0 up")
            namespace.ip(*(f"addr add {address} dev eth0 nodad" for address in addresses))
        else:
            self._plug(namespace, "eth0", "data", addresses, sends_by_xdp=True)
        if self.layout.interfaces == 2:
            self._plug(namespace, "eth1", "back", (f"10.88.0.{number}/24", f"fd88::{number}/64"), sends_by_xdp=True)
        if self.layout.nodes == 2:
            self._plug(namespace, "ha0", "cluster", (f"10.99.0.{number}/24",))
        node = Node(name, namespace, self.directory / name, Path(f"{self._pins}{name}"))
        interfaces = ("eth0", "eth1") if self.layout.interfaces == 2 else ("eth0",)
        node.configure(interfaces, self.layout.xdp_mode, self.layout.max_flows)
        self.nodes.append(node)

    def add_backend(self, *, start: bool = True) -> Backend:
        """One more backend, named b1, b2, … with addresses .21, .22, …"""
        number = len(self.backends) + 1
        two = self.layout.interfaces == 2
        namespace = self._namespace(f"b{number}")
        net4, net6 = ("10.88.0", "fd88::") if two else ("10.77.0", "fd77::")
        address4, address6 = f"{net4}.{20 + number}", f"{net6}{20 + number}"
        self._plug(namespace, "eth0", "back" if two else "data", (f"{address4}/24", f"{address6}/64"))
        if two:
            namespace.ip(f"route add default via {net4}.1", f"route add default via {net6}1")
        elif self.layout.routed:
            namespace.ip(f"route add {CLIENT4}/32 via {net4}.1", f"route add {CLIENT6}/128 via {net6}1")
        backend = Backend(f"b{number}", namespace, address4, address6)
        self.backends.append(backend)
        if start:
            backend.start()
        return backend

    # --- faults --------------------------------------------------------------------------------------------------

    def cut(self, host: str, device: str = "eth0", *, silently: bool = False) -> None:
        """Pull the cable; `silently`: the carrier stays, frames do not arrive."""
        self._cut([f"{host}-{device}"], silently)

    def cut_off(self, host: str, *, silently: bool = False) -> None:
        """Pull all cables of a host, one right after the other."""
        self._cut(self._ports_of(host), silently)

    def _cut(self, ports: list[str], silently: bool) -> None:
        commands = [f"link set dev {port} state disabled" if silently else f"link set {port} down" for port in ports]
        self.switch.run("bridge" if silently else "ip", "-batch", "-", stdin="\n".join(commands) + "\n")
        if silently:
            self._silent.update(ports)

    def mend_all(self, host: str) -> None:
        """Undo `cut_off`, the cluster's cable first."""
        for port in reversed(self._ports_of(host)):
            self.mend(host, port.removeprefix(f"{host}-"))

    def _ports_of(self, host: str) -> list[str]:
        return [port for name, port in self._ports if name == host]

    def mend(self, host: str, device: str = "eth0") -> None:
        """Undo `cut`."""
        port = f"{host}-{device}"
        self.switch.ip(f"link set {port} up")
        if port in self._silent:  # one that was loud is set forwarding by the bridge, once it has its carrier
            wait_until(lambda: "LOWER_UP" in self.switch.run("ip", "link", "show", port).stdout, f"{port} has its carrier")
            self.switch.run("bridge", "link", "set", "dev", port, "state", "forwarding")
            self._silent.remove(port)

    def replug(self, node: Node) -> None:
        """Delete a node's eth0 and create it again, with another index and MAC, and the node's own addresses."""
        port = f"{node.name}-eth0"
        self._ports.remove((node.name, port))
        self._silent.discard(port)
        node.namespace.ip("link del eth0")
        self._plug(node.namespace, "eth0", "data", self.own_addresses(node), sends_by_xdp=True)

    def own_addresses(self, node: Node) -> tuple[str, ...]:
        """A node's own addresses on eth0, with their prefix lengths."""
        return _node_addresses(1 + self.nodes.index(node))

    # --- removal -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop everything and remove all files and pins; may be called again."""
        for node in self.nodes:
            node.close()
        for backend in self.backends:
            backend.kill()
        if hasattr(self, "client"):
            self.client.close()
        for namespace in self.namespaces.values():
            namespace.close()
        if self._reaper.poll() is None:
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait(10)
