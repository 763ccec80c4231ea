"""Health checks of a node that carries VIPs before, or without, its own address: the guard drops answers to a VIP."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.net.serving import Serving
from tests.rig import Layout, Rig
from tests.wait import wait_until

OWN = {4: "10.77.0.1/24", 6: "fd77::1/64"}
QUICK = {"interval_ms": 400, "timeout_ms": 400, "rise": 2, "fall": 2}


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    """The node's eth0 has the VIPs and nothing else."""
    with Rig(Layout(backends=1)) as rig:
        rig.node.namespace.ip(*(f"addr del {own} dev eth0" for own in OWN.values()))
        rig.node.start()
        yield Serving(rig)


def compared(site: Serving, passes: int) -> bool:
    """Whether the daemon has compared itself with the kernel so often; it does so twice per second and on changes."""
    return bool(site.node.call("status")["reconcile"]["passes"] >= passes)


@pytest.mark.parametrize("family", [4, 6])
def test_checks_follow_an_address_that_is_replaced(site: Serving, family: int) -> None:
    nodad = " nodad" if family == 6 else ""
    node, other = site.node.namespace, {4: "10.77.0.9/24", 6: "fd77::9/64"}[family]
    node.ip(f"addr add {OWN[family]} dev eth0{nodad}")
    farm = site.add_farm("http", family, health=QUICK | {"kind": "tcp", "fall": 1})
    wait_until(lambda: site.state(farm, "b1") == "up", "the check to succeed")
    # In one process, and twice, so that a cached address is surely the one that went.
    for old, new in ((OWN[family], other), (other, OWN[family])):
        node.ip(f"addr add {new} dev eth0{nodad}", f"addr del {old} dev eth0")
        passes = site.node.call("status")["reconcile"]["passes"]
        wait_until(partial(compared, site, passes + 2), "half a second, in which two checks are made")
        assert site.state(farm, "b1") == "up"
    site.node.call("farm.delete", name=farm)
    node.ip(f"addr del {OWN[family]} dev eth0")


@pytest.mark.parametrize("kind", ["tcp", "http"])
@pytest.mark.parametrize("family", [4, 6])
def test_checks_leave_from_an_address_of_the_nodes_own(site: Serving, family: int, kind: str) -> None:
    farm = site.add_farm("http", family, health=QUICK | {"kind": kind})
    remedy = "ip address add ADDRESS/PREFIX dev eth0"
    wait_until(lambda: remedy in site.backend(farm, "b1")["last_error"], "the check to name the missing source address")
    wait_until(lambda: site.state(farm, "b1") == "down", "the backend is out")
    address = site.rig.backends[0].address4 if family == 4 else site.rig.backends[0].address6
    (finding,) = [each for each in site.node.call("doctor") if each["name"] == f"checks of {address}"]
    assert (finding["ok"], remedy in finding["remedy"]) == (False, True)

    site.node.namespace.ip(f"addr add {OWN[family]} dev eth0{' nodad' if family == 6 else ''}")
    wait_until(lambda: site.state(farm, "b1") == "up", "checked from the address that was added behind the VIP")
    assert [each for each in site.node.call("doctor") if each["name"].startswith("checks of")] == []
    assert site.http(family).error == ""

    site.node.call("farm.delete", name=farm)
    site.node.namespace.ip(f"addr del {OWN[family]} dev eth0")
