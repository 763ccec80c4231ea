"""What is compared: each kind of balancer, set up in the namespace of a site and taken down.

A balancer that cannot run here raises NotMeasured when it starts. Must not know what is measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.suite.turns import NotMeasured
from bench.wire.generator import Generator
from bench.wire.packets import SERVER_PORT, SERVER_PORTS, VIP_PORT
from bench.wire.site import DNAT_VIPS, SERVERS, VIPS, Site, server_address
from tests.rig.namespaces import Namespace
from tests.rig.node import Node
from tests.rig.topology import BPF_ROOT, start_reaper
from tests.wait import wait_until

STREAM_PORT, REQUEST_PORT, PING_PORT = 5201, 8080, 11111
TCP_PORTS = (STREAM_PORT, REQUEST_PORT, PING_PORT)


class Balancer:
    """vips: IP version to the address that clients connect to. udp_port: and to which port they send datagrams.

    native: a program on the interfaces handles frames before the stack. exchanges: how many questions and answers there must
    have been in a flow before its packets are treated as all later ones.
    """

    native = False
    exchanges = 1

    def __init__(self, site: Site) -> None:
        self.site = site
        self.vips = dict(VIPS)
        self.udp_port = VIP_PORT

    @property
    def processes(self) -> tuple[int, ...]:
        """Those that handle packets."""
        return ()

    def start(self) -> None:
        """Set it up. Raises NotMeasured."""

    def prepare(self) -> None:
        """Called before each measurement: what all sites share and this one needs."""

    def forget(self) -> None:
        """Drop the state of connections, where the state of one measurement would change the next."""

    def close(self) -> None:
        """Stop what `start` started; may be called again."""


class Forwarding(Balancer):
    """The kernel routes; clients address a server."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.vips = {version: server_address(0, version) for version in (4, 6)}
        self.udp_port = SERVER_PORT


class Redirect(Forwarding):
    """The ceiling: a native program that only rewrites MAC addresses."""

    native = True

    def __init__(self, site: Site, generator: Generator) -> None:
        super().__init__(site)
        self._generator = generator

    def start(self) -> None:
        for device in self.site.devices:
            self._generator.attach(self.site.balancer, device, "redirect")

    def prepare(self) -> None:
        site = self.site
        front, behind = (site.balancer.interface_index(device) for device in (site.devices[0], site.egress))
        self._generator.redirect(front, 0 if front == behind else behind, site.macs_to_server())
        if front != behind:
            self._generator.redirect(behind, front, site.macs_to_client())


class _Conntrack(Balancer):
    """Connections are the kernel's, and its VIPs addresses of the balancer; they last longer than any measurement."""

    def _own_vips(self) -> None:
        self.site.balancer.ip(*(f"addr add {address} dev eth0" for address in self.vips.values()))
        self.site.balancer.sysctl(
            {"net.netfilter.nf_conntrack_udp_timeout": 600, "net.netfilter.nf_conntrack_udp_timeout_stream": 600}
        )

    def forget(self) -> None:
        self.site.balancer.run("conntrack", "--flush")


class Nftables(_Conntrack):
    """DNAT to a random server, and SNAT to the VIP unless `snat` is false."""

    def __init__(self, site: Site, *, snat: bool = True, flowtable: bool = False) -> None:
        super().__init__(site)
        self._snat, self._flowtable = snat, flowtable

    def start(self) -> None:
        self._own_vips()
        rules = nftables_rules(snat=self._snat, flowtable=self.site.devices if self._flowtable else ())
        done = self.site.balancer.run("nft", "-f", "-", stdin=rules, check=False)
        if done.returncode and self._flowtable:
            reason = done.stderr.partition("Error: ")[2].splitlines()
            raise NotMeasured(f"this kernel has no flowtable (CONFIG_NF_FLOW_TABLE): {reason[0] if reason else 'no message'}")
        assert not done.returncode, f"nft refuses the rules: {done.stderr}"


class Nftlb(_Conntrack):
    """The same by nftlb, which writes nftables rules and exits."""

    def start(self) -> None:
        if shutil.which("nftlb") is None:
            raise NotMeasured("nftlb is not installed")
        self._own_vips()
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(nftlb_farms(), file)
            file.flush()
            self.site.balancer.run("nftlb", "-e", "-c", file.name)


class Haproxy(Balancer):
    """TCP mode: it terminates each connection and opens another one to a server."""

    def start(self) -> None:
        if shutil.which("haproxy") is None:
            raise NotMeasured("haproxy is not installed")
        self.site.balancer.ip(*(f"addr add {address} dev eth0" for address in self.vips.values()))
        self._directory = tempfile.TemporaryDirectory(prefix="xlb-bench-")
        file = Path(self._directory.name, "haproxy.cfg")
        file.write_text(haproxy_configuration(self.vips[4]))
        self._process = self.site.balancer.popen(
            ["haproxy", "-q", "-db", "-f", str(file)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        listens(self.site.balancer, REQUEST_PORT)

    @property
    def processes(self) -> tuple[int, ...]:
        return (self._process.pid,)

    def close(self) -> None:
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.wait(10)
            self._directory.cleanup()


class Xlb(Balancer):
    """The real xlbd. It serves one VIP in mode snat and, unless it has one interface, one in mode dnat: `DnatTwin`."""

    exchanges = 2

    def __init__(self, site: Site, mode: str, max_flows: int, core: int) -> None:
        super().__init__(site)
        self.native = mode == "native"
        self._mode, self._max_flows, self._core = mode, max_flows, core

    def start(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="xlb-bench-wire-"))
        self._directory.chmod(0o755)
        pins = BPF_ROOT / self._directory.name
        self._reaper = start_reaper(self._directory, pins)
        self.node = Node("lb1", self.site.balancer, self._directory / "lb1", pins)
        self.node.processor = self._core
        self.node.configure(self.site.devices, self._mode, self._max_flows)
        self.node.start()
        self.node.call("config.apply", document=farms_document(dnat=self.site.interfaces == 2))

    def counters(self) -> dict[str, int]:
        """Counter name to packets."""
        return {counter["name"]: counter["packets"] for counter in self.node.call("stats")["counters"]}

    def close(self) -> None:
        if hasattr(self, "_reaper") and self._reaper.poll() is None:
            if hasattr(self, "node"):
                self.node.close()
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait(10)


class DnatTwin(Balancer):
    """The other VIP of a started Xlb."""

    exchanges = 2

    def __init__(self, of: Xlb) -> None:
        super().__init__(of.site)
        self.native = of.native
        self.vips = dict(DNAT_VIPS)


# --- configurations, as text ----------------------------------------------------------------------------------


def nftables_rules(*, snat: bool, flowtable: tuple[str, ...] = ()) -> str:
    """For `nft -f -`. flowtable: its devices; empty: none."""
    blocks = []
    for family, version in (("ip", 4), ("ip6", 6)):
        vip = VIPS[version]
        backends = [f"{number} : {address} . {port}" for number, (address, port) in enumerate(udp_backends(version))]
        servers = [f"{number} : {server_address(number, version)}" for number in range(SERVERS)]
        ports = ", ".join(map(str, TCP_PORTS))
        lines = [
            f"table {family} bench {{",
            *([f"flowtable fast {{ hook ingress priority 0; devices = {{ {', '.join(flowtable)} }}; }}"] if flowtable else []),
            "chain prerouting { type nat hook prerouting priority dstnat;",
            f"{family} daddr {vip} udp dport {VIP_PORT} dnat {family} addr . port to {_one_of(backends)}",
            f"{family} daddr {vip} tcp dport {{ {ports} }} dnat to {_one_of(servers)}",
            "}",
            *([f"chain postrouting {{ type nat hook postrouting priority srcnat; ct status dnat snat to {vip}; }}"] * snat),
            *(["chain forward { type filter hook forward priority 0; flow add @fast; }"] if flowtable else []),
            "}",
        ]
        blocks.append("\n".join(lines))
    return "\n".join(blocks) + "\n"


def _one_of(elements: list[str]) -> str:
    return f"numgen random mod {len(elements)} map {{ {', '.join(elements)} }}"


def udp_backends(version: int) -> list[tuple[str, int]]:
    """Address and port of each."""
    return [(server_address(number, version), SERVER_PORT + port) for port in range(SERVER_PORTS) for number in range(SERVERS)]


def tcp_backends(version: int, port: int) -> list[tuple[str, int]]:
    return [(server_address(number, version), port) for number in range(SERVERS)]


def nftlb_farms() -> dict[str, object]:
    """nftlb's configuration file: IPv4 and IPv6, UDP and TCP, all in mode snat."""
    farms = []
    for version in (4, 6):
        tcp = [(address, "") for address, _ in tcp_backends(version, 0)]
        for protocol, ports, targets in (
            ("udp", f"{VIP_PORT}", [(address, str(port)) for address, port in udp_backends(version)]),
            ("tcp", ",".join(map(str, TCP_PORTS)), tcp),
        ):
            common = {"weight": "1", "priority": "1", "state": "up"}
            backends = [
                {"name": f"s{number}", "ip-addr": address, "port": port, **common}
                for number, (address, port) in enumerate(targets)
            ]
            farms.append(
                {
                    "name": f"{protocol}{version}",
                    "family": f"ipv{version}",
                    "virtual-addr": VIPS[version],
                    "virtual-ports": ports,
                    "source-addr": VIPS[version],
                    "mode": "snat",
                    "protocol": protocol,
                    "scheduler": "weight",
                    "state": "up",
                    "backends": backends,
                }
            )
    return {"farms": farms}


def haproxy_configuration(vip: str) -> str:
    """One proxy per port; timeouts are longer than any measurement."""
    lines = ["global", "  maxconn 2000", "defaults", "  mode tcp", "  timeout connect 10s", "  timeout client 1m"]
    lines += ["  timeout server 1m"]
    for port in TCP_PORTS:
        lines += [f"listen port{port}", f"  bind {vip}:{port}", "  balance roundrobin"]
        lines += [f"  server s{number} {server_address(number)}:{port}" for number in range(SERVERS)]
    return "\n".join(lines) + "\n"


def farms_document(*, dnat: bool) -> dict[str, object]:
    """A farms file as `config.apply` takes it."""
    farms: list[dict[str, object]] = []
    modes = {"snat": VIPS, "dnat": DNAT_VIPS} if dnat else {"snat": VIPS}
    for mode, vips in modes.items():
        for version, vip in vips.items():
            udp = ("udp", VIP_PORT, udp_backends(version))
            for protocol, port, targets in (udp, *(("tcp", port, tcp_backends(version, port)) for port in TCP_PORTS)):
                backends = [{"address": address, "port": server_port} for address, server_port in targets]
                name = f"{mode}{version}-{protocol}{port}"
                base = {"name": name, "vip": vip, "port": port, "proto": protocol, "mode": mode}
                farms.append({**base, "health": {"kind": "none"}, "backend": backends})
    vip_rows = [
        {"address": f"{vip}/{24 if version == 4 else 64}", "device": "eth0"}
        for vips in modes.values()
        for version, vip in vips.items()
    ]
    return {"vip": vip_rows, "farm": farms}


@contextmanager
def started(balancers: Mapping[str, Balancer], missing: dict[str, str]) -> Iterator[dict[str, Balancer]]:
    """Start them; those that cannot run go into `missing` with their reason. Takes all down, whatever happens."""
    with ThreadPoolExecutor(len(balancers)) as starters:  # its threads live until all is over: processes end with their thread
        try:
            running = {}
            for name, start in [(name, starters.submit(balancer.start)) for name, balancer in balancers.items()]:
                try:
                    start.result()
                except NotMeasured as reason:
                    missing[name] = str(reason)
                else:
                    running[name] = balancers[name]
            yield running
        finally:
            for balancer in balancers.values():
                balancer.close()
                balancer.site.close()


def listens(namespace: Namespace, port: int) -> None:
    """Wait until something listens on a TCP port of a namespace."""
    wait_until(lambda: namespace.run("ss", "-Hltn", f"sport = :{port}").stdout.strip(), f"port {port} is open")
