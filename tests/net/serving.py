"""A rig whose node is active: the farms the net tests use, set up through the control socket."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.rig import HTTP_PORT, TCP_PORT, UDP_PORT, VIP4, VIP6, Answer, Layout, Node, Rig, http_get, tcp_connect, udp_exchange
from tests.tree import TREE

VIPS = {4: VIP4, 6: VIP6}
PORTS = {"http": 80, "tcp": TCP_PORT, "udp": UDP_PORT}
BACKEND_PORTS = {"http": HTTP_PORT, "tcp": TCP_PORT, "udp": UDP_PORT}


class Serving:
    """A started node with both VIPs, and short names for its operations in tests."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.node: Node = rig.node
        self.node.call("vip.add", address=f"{VIP4}/24", device="eth0")
        self.node.call("vip.add", address=f"{VIP6}/64", device="eth0")

    def add_farm(self, service: str, family: int = 4, weights: Sequence[int] | None = None, **fields: Any) -> str:
        """A farm for `service` (http, tcp, udp) over the rig's first backends; returns its name, e.g. tcp4.

        weights: one per backend, default 1 for each that the layout has. fields: of the farm, e.g. scheduler="roundrobin"; the
        default is no check.
        """
        name: str = fields.pop("name", f"{service}{family}")
        port = fields.pop("port", PORTS[service])
        mode = "dnat" if self.rig.layout.routed else "snat"
        proto = "udp" if service == "udp" else "tcp"
        base = {"name": name, "vip": VIPS[family], "port": port, "proto": proto, "mode": mode, "health": {"kind": "none"}}
        self.node.call("farm.add", **base | fields)
        for backend, weight in zip(self.rig.backends, weights or (1,) * self.rig.layout.backends, strict=False):
            address = backend.address4 if family == 4 else backend.address6
            self.node.call("backend.add", farm=name, address=address, port=BACKEND_PORTS[service], weight=weight)
        return name

    def clear(self) -> None:
        """Delete every farm and make all backends serve again, for the next test."""
        for farm in self.node.call("farm.list"):
            self.node.call("farm.delete", name=farm["name"])
        for backend in self.rig.backends:
            if backend.process is None:
                backend.start()
            backend.set_health("well")
            self.rig.mend(backend.name)

    def backend(self, farm: str, name: str) -> dict[str, Any]:
        """The state of backend `name` in `farm show`."""
        addresses = {self.rig.backend(name).address4, self.rig.backend(name).address6}
        found: dict[str, Any] = next(b for b in self.node.call("farm.show", name=farm)["backends"] if b["address"] in addresses)
        return found

    def state(self, farm: str, name: str) -> str:
        return str(self.backend(farm, name)["state"])

    def counters(self) -> dict[str, int]:
        """Counter name to packets."""
        return {counter["name"]: counter["packets"] for counter in self.node.call("stats")["counters"]}

    # Requests from the client, one each.

    def http(self, family: int = 4, path: str = "/", timeout_s: float = 5) -> Answer:
        return self.rig.client.run(http_get(VIPS[family], PORTS["http"], path, timeout_s))

    def tcp(self, family: int = 4, timeout_s: float = 5, port: int = PORTS["tcp"]) -> Answer:
        return self.rig.client.run(tcp_connect(VIPS[family], port, timeout_s))

    def udp(self, family: int = 4, data: bytes = b"?", timeout_s: float = 2, source_port: int = 0) -> Answer:
        return self.rig.client.run(udp_exchange(VIPS[family], PORTS["udp"], data, timeout_s, source_port))


def program(node: Node) -> str:
    """The id of the program on eth0."""
    found = re.search(r"prog/xdp id (\d+)", node.namespace.run("ip", "-d", "link", "show", "eth0").stdout)
    assert found is not None
    return found[1]


def drops(site: Serving) -> dict[str, int]:
    """Without those of the fence: where both nodes' compilers share a machine with other tests, a lease may run out."""
    found = site.counters().items()
    return {name: packets for name, packets in found if name.startswith("drop_") and name != "drop_fenced"}


SIMPLE = Layout()


@contextmanager
def serving(layout: Layout = SIMPLE) -> Iterator[Serving]:
    """Build and start a node with its VIPs, and take it down."""
    with Rig(layout) as rig:
        rig.node.start()
        yield Serving(rig)


def copy_of_the_code(tree: Path) -> Path:
    """Copy the code to `tree`, which `Node.tree` may name to run another version of xlbd; returns `tree`."""
    here = TREE
    for package in ("bpf", "ctl", "sync"):
        shutil.copytree(here / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tree
