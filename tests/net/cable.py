"""Two namespaces joined by a cable, for tests of `KernelNetwork` without daemon and XDP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ctl.network.kernel.kernel_network import KernelNetwork
from tests.rig.namespaces import Namespace


@dataclass
class Cable:
    """Namespace `here` has eth0 with .1, `there` eth0 with .2; a gateway .2 leads to 10.99.0.0/16."""

    here: Namespace
    there: Namespace
    network: KernelNetwork = field(default_factory=KernelNetwork)


@contextmanager
def joined() -> Iterator[Cable]:
    """Make both namespaces; close them at the end."""
    here, there = Namespace("here"), Namespace("there")
    try:
        here.ip(f"link add eth0 type veth peer name eth0 netns {there.path}", "link set eth0 up")
        there.ip("link set eth0 up", "addr add 10.66.0.2/24 dev eth0", "addr add fd66::2/64 dev eth0 nodad")
        here.ip("addr add 10.66.0.1/24 dev eth0", "addr add fd66::1/64 dev eth0 nodad")
        here.ip("route add 10.99.0.0/16 via 10.66.0.2", "route add fd99::/64 via fd66::2")
        yield Cable(here, there)
    finally:
        here.close()
        there.close()
