"""What takes its time in a pair: a drain, a slow start, a list that is replaced; the VIPs move meanwhile."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from bpf.maps import layout
from bpf.maps.pinned_map import PinnedMap
from ctl.config import prefixes
from tests.net.paired import PairSite, paired
from tests.net.serving import PORTS, VIPS
from tests.rig import CLIENT4, CLIENT6, VIP6, HeldConnections, Layout, Node, Tally, repeat, tcp_connect
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
HELD = 20
LATE_S = 2.5
"""A cut takes milliseconds, and the client learns it with its next segment; the rest is for a machine that runs other tests."""


@pytest.fixture(scope="module")
def shared() -> Iterator[PairSite]:
    with paired(Layout(backends=2, nodes=2), TIMES) as pair:
        pair.node.call("vip.add", address=f"{VIP6}/64", device="eth0")
        yield pair


@pytest.fixture
def site(shared: PairSite) -> Iterator[PairSite]:
    for node in shared.rig.nodes:
        if not node.running:
            node.start()
    shared.settle()
    yield shared
    shared.clear()


def opened(site: PairSite, family: int) -> HeldConnections:
    """Connections that both nodes have."""
    held = HeldConnections(VIPS[family], PORTS["tcp"], HELD, pause_s=0.02)
    site.rig.client.run(held.open())
    assert site.rig.client.run(held.confirm()) == 0
    site.settle()
    return held


def address(site: PairSite, family: int, name: str = "b1") -> str:
    backend = site.rig.backend(name)
    return f"[{backend.address6}]:{PORTS['tcp']}" if family == 6 else f"{backend.address4}:{PORTS['tcp']}"


class Waiting:
    """`xlbctl backend drain … --wait`, running."""

    def __init__(self, node: Node, *arguments: str) -> None:
        command = node.xlbctl_command("backend", "drain", *arguments, "--wait")
        self.errors = node.directory / f"waiting-{time.monotonic_ns()}"
        with self.errors.open("w") as errors:
            self.process = node.namespace.popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)

    def shows(self, pattern: str) -> None:
        wait_until(lambda: re.search(pattern, self.errors.read_text()), f"{pattern} on stderr")

    def ended(self) -> tuple[int, str, str]:
        """Its exit status and what it printed, in the end."""
        out, _ = self.process.communicate(timeout=30)
        return self.process.returncode, out, self.errors.read_text()


def until(site: PairSite, farm: str, node: Node) -> int:
    backends = node.call("farm.show", name=farm)["backends"]
    (found,) = {each["drain_until"] for each in backends if each["drain_until"]}
    assert isinstance(found, int)
    return found


def cut_at(site: PairSite, held: HeldConnections, deadline: int) -> None:
    """Every connection of b1 ends by a RST at the deadline, neither earlier nor later; no other one does."""
    on_first = len(held.on_backend("b1"))
    assert 0 < on_first < HELD
    wait_until(lambda: held.broken, "the first connection that is cut", every_s=0.005)
    began_s = time.time()
    wait_until(lambda: len(held.broken) >= on_first, "all of them")
    assert deadline <= began_s and time.time() < deadline + LATE_S, f"{began_s - deadline:.3f} s after the deadline"
    assert site.rig.client.run(held.confirm()) == on_first == len(held.broken)
    assert all("reset" in why.lower() for why in held.broken) and held.wrong_bytes == 0
    site.rig.client.run(held.close())


def ends_logged(site: PairSite) -> list[str]:
    """Of each node, how many connections it has cut at the end of a drain."""
    found = r"drain of backend .* of farm \S+ reached its deadline: (\d+) connections ended"
    return [each for node in site.rig.nodes for each in re.findall(found, node.tail(1000))]


def test_a_dry_run_answers_the_same_on_either_node_and_a_drain_ends_on_the_active_one(site: PairSite) -> None:
    farms = {family: site.add_farm("tcp", family) for family in (4, 6)}
    held = {family: opened(site, family) for family in (4, 6)}
    before, logged = site.node.call("config.export"), len(ends_logged(site))
    for family, farm in farms.items():
        on_first, backend = len(held[family].on_backend("b1")), site.rig.backend("b1")
        drain = {"farm": farm, "address": backend.address4 if family == 4 else backend.address6, "port": PORTS["tcp"]}
        expected: list[tuple[str, dict[str, Any], dict[str, int]]] = [
            (
                "backend.drain",
                drain | {"deadline": 5, "drain_then": "cut"},
                {"stay": HELD - on_first, "move": 0, "end": on_first},
            ),
            ("backend.drain", drain, {"stay": HELD, "move": 0, "end": 0}),
            ("backend.remove", drain, {"stay": HELD - on_first, "move": 0, "end": on_first}),
            ("farm.delete", {"name": farm}, {"stay": 0, "move": 0, "end": HELD}),
            ("farm.set", {"name": farm, "table_size": 1021}, {"stay": HELD, "move": 0, "end": 0}),
        ]
        for change, arguments, fates in expected:
            one, other = (node.call("config.impact", change=change, arguments=dict(arguments)) for node in site.rig.nodes)
            assert one == other and one["connections"] == fates, change
    commands = {family: ("backend", "drain", farm, address(site, family)) for family, farm in farms.items()}
    cut = ("--deadline", "1", "--then", "cut")
    one, other = (node.json(*commands[6], *cut, "--dry-run") for node in site.rig.nodes)
    assert one == other and one["connections"]["end"] == len(held[6].on_backend("b1"))
    assert [node.call("config.export") for node in site.rig.nodes] == [before, before]
    for family in (4, 6):
        assert site.rig.client.run(held[family].confirm()) == 0
    site.other.xlbctl(*commands[4], *cut)
    site.other.call("backend.drain", **drain, deadline=1, drain_then="cut")
    for family in (4, 6):
        cut_at(site, held[family], until(site, farms[family], site.node))
    expected_log = [str(len(each.on_backend("b1"))) for each in held.values()]
    assert sorted(ends_logged(site)[logged:]) == sorted(expected_log), "by the active node, once"


def test_a_drain_is_waited_for_while_the_vips_move_and_the_daemon_restarts(site: PairSite) -> None:
    """The successor cuts at the deadline. One of those who wait asks the node that dies."""
    farm = site.add_farm("tcp")
    held, former, other = opened(site, 4), site.node, site.other
    first = address(site, 4)
    waits = Waiting(former, farm, first)
    waits.shows(rf"{re.escape(first)} of {farm}: {len(held.on_backend('b1'))} connections left\n")
    second = Waiting(other, farm, first, "--deadline", "2", "--then", "cut")
    second.shows(r"connections left, \d s until the deadline")
    deadline = until(site, farm, other)
    former.kill()
    wait_until(lambda: site.status(other)["role"] == "active", "the takeover", every_s=0.005)
    assert time.time() < deadline and not held.broken, "a takeover in time"
    cut_at(site, held, deadline)
    assert second.ended()[:2] == (0, f"backend {first} of {farm} drained: no connection left\n")
    waits.shows("xlbd does not answer; the drain stays in place; waiting for xlbd\n")
    former.start()
    assert waits.ended()[:2] == (0, f"backend {first} of {farm} drained: no connection left\n")


def test_an_interrupted_wait_leaves_the_drain(site: PairSite) -> None:
    farm = site.add_farm("tcp")
    held, first = opened(site, 4), address(site, 4)
    for node in site.rig.nodes:
        waits = Waiting(node, farm, first)
        waits.shows("connections left")
        waits.process.send_signal(signal.SIGINT)
        status, out, errors = waits.ended()
        assert (status, out) == (130, "")
        remedy = f"xlbctl backend set {farm} {first} --no-drain"
        assert errors.endswith(f"xlbctl: interrupted: the drain stays in place; {remedy} ends it\n"), errors
        assert site.state(farm, "b1") == "drain"
    waits = Waiting(site.other, farm, first)
    waits.shows("connections left")
    site.node.xlbctl(*remedy.split()[1:])
    status, out, errors = waits.ended()
    assert (status, out) == (1, "") and "was ended by another command" in errors
    assert site.rig.client.run(held.confirm()) == 0
    site.rig.client.run(held.close())


def share(node: Node, farm: str) -> float:
    """Of new connections, of the second backend, as the node's own maps have it."""
    answer = node.call("config.impact", change="farm.set", arguments={"name": farm, "on_no_backend": "drop"})
    return float(answer["farms"][0]["backends"][1]["share_before"])


def test_a_slow_start_continues_when_the_vips_move(site: PairSite) -> None:
    farm = site.add_farm("tcp", weights=(1,), scheduler="roundrobin")
    site.node.call("farm.set", name=farm, slow_start_s=3)
    steps = [round(weight / (1 + weight), 3) for weight in (0, 0.333, 0.666, 1)]
    added = site.rig.backend("b2").address4
    began_s = time.monotonic()
    site.node.call("backend.add", farm=farm, address=added, port=PORTS["tcp"])
    former, other = site.node, site.other
    assert [round(share(node, farm), 3) for node in site.rig.nodes] == [steps[1]] * 2
    wait_until(lambda: round(share(other, farm), 3) == steps[2], "the second step on the backup")
    former.call("cluster.switchover")
    wait_until(lambda: site.status(other)["role"] == "active", "the switchover", every_s=0.005)
    assert round(share(other, farm), 3) == steps[2], "neither from the beginning nor at the end"
    tally = site.rig.client.run(repeat(lambda: tcp_connect(VIPS[4], PORTS["tcp"]), 100, Tally()))
    if round(share(other, farm), 3) == steps[2]:
        assert tally.shares()["b2"] == pytest.approx(steps[2], abs=0.03) and not tally.failures
    wait_until(lambda: round(share(other, farm), 3) == steps[3], "its whole weight")
    assert 2 <= time.monotonic() - began_s < 2 + LATE_S


def loaded(node: Node) -> dict[str, int]:
    """How many prefixes of each family the node's kernel has, of all lists; empty before its program is compiled for lists."""
    layouts, found = layout.load(node.run_dir), {}
    assert layouts is not None
    for name in layouts.maps.keys() & {"prefixes_v4", "prefixes_v6"}:
        pinned = PinnedMap(node.bpf_dir, name, layouts.maps[name])
        found[name] = sum(len(keys) for keys, _ in pinned.slices(4096))
        pinned.close()
    return found


def test_lists_are_replaced_at_once_on_both_nodes_and_after_a_takeover(site: PairSite) -> None:
    """No connection of a denied client is served, whichever list is in force and whichever node is active."""
    denied, farms = (f"{CLIENT4}/32", f"{CLIENT6}/128"), [f"tcp{family}" for family in (4, 6)]

    def replace(node: Node, *lines: str, others: int) -> None:
        lines += tuple(net for n in range(others) for net in (f"198.18.{n}.0/24", f"2001:db8:{n:x}::/48"))
        node.call("prefixes.set", name="blocked", **prefixes.packed(prefixes.parse_texts("blocked", lines, "blocked")))
        have(len(lines) // 2)

    def have(of_each_family: int) -> None:
        expected = {"prefixes_v4": of_each_family, "prefixes_v6": of_each_family}
        wait_until(lambda: all(loaded(node) == expected for node in site.rig.nodes if node.running), "the list in the maps", 60)

    site.node.call("prefixes.set", name="blocked", v4="", v6="")
    for family in (4, 6):
        site.add_farm("tcp", family, deny="blocked")
    replace(site.node, *denied, others=1)
    tally, client = Tally(), site.rig.client
    asking = [client.start(repeat(partial(tcp_connect, vip, PORTS["tcp"], 0.1), None, tally, 4)) for vip in VIPS.values()]
    for others in (200, 2, 199):
        replace(site.other, *denied, others=others)
    former, other = site.node, site.other
    former.kill()
    wait_until(lambda: site.status(other)["role"] == "active", "the takeover")
    replace(other, *denied, others=198)
    former.start()
    have(199)
    site.settle()
    replace(former, *denied, others=50)
    tally.stop()
    for each in asking:
        each.result(10)
    assert tally.done > 50 and not tally.by_backend
    replace(former, others=50)
    for node in (other, former):
        assert site.node is node
        assert site.tcp(4).backend and site.tcp(6).backend
        if node is other:
            site.settle()  # a backup is not in step while it applies a change
            node.call("cluster.switchover")
            site.settle()
    for farm in farms:
        site.node.call("farm.set", name=farm, deny="")
    have(0)
    site.node.call("prefixes.delete", name="blocked")
