"""One subject's surroundings: a client, a balancer and servers in namespaces of their own, joined by cables without a switch.

    client .10 ── eth0 balancer eth1 ── servers     10.77.0.0/24 fd77::/64 in front, 10.88.0.0/24 fd88::/64 behind

With one interface, client and servers are one host behind the balancer's eth0. Every subject gets the same addresses, cables,
routes and neighbours. Decides nothing about what runs in the balancer's namespace.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.rig import xdp_pass
from tests.rig.namespaces import Namespace

CLIENT4, CLIENT6 = "10.77.0.10", "fd77::10"
BALANCER4, BALANCER6 = "10.77.0.1", "fd77::1"
BEHIND4, BEHIND6 = "10.88.0.1", "fd88::1"
VIPS = {4: "10.77.0.100", 6: "fd77::100"}
DNAT_VIPS = {4: "10.77.0.101", 6: "fd77::101"}
SERVERS = 16
"""Addresses of servers. With their ports there are 64 backends, each with 64,512 ports for the connections of one VIP: so that
a million connections find free ones. More addresses would fill the kernel's table of neighbours, which all namespaces share.
"""
SOURCES6 = "fd16::"
_RESOLVED = "nud permanent"


def server_address(number: int, version: int = 4) -> str:
    """Of server 0 … SERVERS - 1."""
    return f"10.88.0.{21 + number}" if version == 4 else f"fd88::{21 + number}"


class Site:
    """Namespaces end with the process, or with `close`."""

    def __init__(self, name: str, interfaces: int = 2) -> None:
        self.name, self.interfaces = name, interfaces
        self.client, self.balancer = Namespace(f"{name} client"), Namespace(name)
        self.server = self.client if interfaces == 1 else Namespace(f"{name} servers")
        self.devices = ("eth0", "eth1")[:interfaces]
        self._lay(self.client, "eth0")
        if interfaces == 2:
            self._lay(self.server, "eth1")
        self._configure()

    @property
    def egress(self) -> str:
        """The balancer's interface towards the servers."""
        return self.devices[-1]

    def _lay(self, host: Namespace, device: str) -> None:
        host.ip(f"link add eth0 type veth peer name {device} netns {self.balancer.path}", "link set eth0 up")
        self.balancer.ip(f"link set {device} up")

    def _configure(self) -> None:
        balancer, client, server = self.balancer, self.client, self.server
        balancer.sysctl(
            {
                "net.ipv4.ip_forward": 1,
                "net.ipv6.conf.all.forwarding": 1,
                "net.ipv4.conf.all.send_redirects": 0,
                "net.ipv4.conf.default.send_redirects": 0,
                "net.ipv4.conf.eth0.send_redirects": 0,
            }
        )
        client.sysctl({"net.ipv4.ip_local_port_range": "10000 65535", "net.ipv4.tcp_tw_reuse": 1})
        client.ip(f"addr add {CLIENT4}/24 dev eth0", f"addr add {CLIENT6}/64 dev eth0 nodad")
        behind = "eth0" if self.interfaces == 1 else "eth1"
        balancer.ip(
            f"addr add {BALANCER4}/24 dev eth0",
            f"addr add {BALANCER6}/64 dev eth0 nodad",
            f"addr add {BEHIND4}/24 dev {behind}",
            f"addr add {BEHIND6}/64 dev {behind} nodad",
        )
        mac = server.mac("eth0").hex(":")
        for version, bits in ((4, 24), (6, 64)):
            addresses = [server_address(number, version) for number in range(SERVERS)]
            server.ip(*(f"addr add {address}/{bits} dev eth0{' nodad' * (version == 6)}" for address in addresses))
            balancer.ip(*(f"neigh replace {address} lladdr {mac} dev {behind} {_RESOLVED}" for address in addresses))
        mac = client.mac("eth0").hex(":")
        balancer.ip(*(f"neigh replace {address} lladdr {mac} dev eth0 {_RESOLVED}" for address in (CLIENT4, CLIENT6)))
        balancer.ip(f"route add default via {CLIENT4}", f"route add default via {CLIENT6}")
        if self.interfaces == 2:
            client.ip(f"route add 10.88.0.0/24 via {BALANCER4}", f"route add fd88::/64 via {BALANCER6}")
            server.ip(f"route add default via {BEHIND4}", f"route add default via {BEHIND6}")

    def macs_to_balancer(self) -> bytes:
        """Destination and source of what the client sends it."""
        return self.balancer.mac("eth0") + self.client.mac("eth0")

    def macs_to_server(self) -> bytes:
        return self.server.mac("eth0") + self.balancer.mac(self.egress)

    def macs_to_client(self) -> bytes:
        return self.client.mac("eth0") + self.balancer.mac("eth0")

    def ends_have_no_program(self) -> None:
        """For connections of real sockets. With one interface a program that passes all stays: see tests.rig.xdp_pass."""
        self.client.ip("link set eth0 xdp off")
        if self.server is self.client:
            self.client.call(lambda: xdp_pass.attach(socket.if_nametoindex("eth0")))
        else:
            self.server.ip("link set eth0 xdp off")

    def offloads(self, *, large: bool, merge: bool) -> None:
        """What the cables may carry. large: segments above the MTU with unfinished checksums, at all ends; merge: the balancer
        joins frames. Client and servers always do: it is what lets a veth receive the frames of a native program.
        """
        self.client.offloads("eth0", checksums=large, merge=True)
        if self.server is not self.client:
            self.server.offloads("eth0", checksums=large, merge=True)
        for device in self.devices:
            self.balancer.offloads(device, checksums=large, merge=merge)

    def close(self) -> None:
        for namespace in {self.client, self.balancer, self.server}:
            namespace.close()


@contextmanager
def conntrack_entries(entries: int) -> Iterator[str]:
    """Let the kernel hold at least so many connections, in a hash table that suits them; yields why it does not, or "".

    These limits are the machine's and not a namespace's. They are put back at the end.
    """
    folder = Path("/proc/sys/net/netfilter")
    wanted = {folder / "nf_conntrack_max": entries, folder / "nf_conntrack_buckets": entries // 2}
    try:
        before = {path: int(path.read_text()) for path in wanted}
    except OSError as error:
        yield f"the kernel's limit of connections is not known: {error}"
        return
    try:
        for path, value in wanted.items():
            path.write_text(str(max(value, before[path])))
    except OSError as error:
        yield f"the kernel's limit of connections cannot be raised from {before}: {error}"
    else:
        yield ""
    finally:
        for path, value in before.items():
            with suppress(OSError):
                path.write_text(str(value))
