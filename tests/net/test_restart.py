"""The daemon may stop, crash or be upgraded: existing connections continue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import xdp
from tests.net.many_flows import put_connections
from tests.net.serving import PORTS, VIPS, Serving, copy_of_the_code, serving
from tests.rig import HeldConnections, Layout, Tally, http_get, repeat
from tests.wait import wait_until

HELD = 1000


@pytest.fixture(scope="module", params=["native", "generic"])
def site(request: pytest.FixtureRequest) -> Iterator[Serving]:
    with serving(Layout(xdp_mode=request.param)) as serve:
        serve.add_farm("http")
        serve.add_farm("tcp", 4, scheduler="roundrobin")  # no hash to derive a lost flow from
        serve.add_farm("tcp", 6)
        yield serve


@pytest.fixture
def held(site: Serving) -> Iterator[HeldConnections]:
    connections = HeldConnections(VIPS[4], PORTS["tcp"], HELD)
    site.rig.client.run(connections.open())
    yield connections
    site.rig.client.run(connections.close())


def assert_unharmed(site: Serving, held: HeldConnections) -> None:
    assert site.rig.client.run(held.confirm()) == 0
    assert held.broken == []
    assert held.wrong_bytes == 0


def test_stop_and_start_under_load(site: Serving, held: HeldConnections) -> None:
    assert site.node.stop() == 0
    assert_unharmed(site, held)
    assert site.http().error == "", "new connections are served while the daemon is away"
    site.node.start()
    assert_unharmed(site, held)
    assert {farm["name"] for farm in site.node.call("farm.list")} == {"http4", "tcp4", "tcp6"}


def test_kill_and_start_under_load(site: Serving, held: HeldConnections) -> None:
    site.node.kill()
    assert_unharmed(site, held)
    assert site.http().error == "", "new connections are served while the daemon is dead"
    site.node.start()
    assert_unharmed(site, held)
    assert site.node.call("conn.count", farm="tcp4")["total"] >= HELD


def test_requests_do_not_fail_while_the_daemon_is_killed_and_started_again_and_again(site: Serving) -> None:
    tally = Tally()
    requests = site.rig.client.start(repeat(lambda: http_get(VIPS[4], PORTS["http"]), None, tally, concurrency=4))
    for _ in range(3):
        site.node.kill()
        site.node.start()
    tally.stop()
    requests.result(30)
    assert tally.failures == []
    assert tally.done > 100


def test_a_changed_farm_survives_a_crash_right_after_the_answer(site: Serving) -> None:
    site.node.xlbctl("farm", "add", "late", "--vip", VIPS[6], "--port", "99")
    site.node.kill()
    site.node.start()
    assert "late" in {farm["name"] for farm in site.node.call("farm.list")}
    site.node.xlbctl("farm", "delete", "late")


def test_upgrading_the_program_under_load(site: Serving, held: HeldConnections) -> None:
    """Another version of the C: the new program replaces the old one on the interface and finds all its connections."""
    before = program_on(site)
    tally = Tally()
    requests = site.rig.client.start(repeat(lambda: http_get(VIPS[4], PORTS["http"]), None, tally, concurrency=4))
    site.node.stop()
    site.node.tree = another_version(site.rig.directory / "upgraded")
    site.node.start()
    assert program_on(site) not in (0, before)
    assert_unharmed(site, held)
    tally.stop()
    requests.result(30)
    assert tally.failures == []
    assert site.node.call("conn.count", farm="tcp4")["total"] >= HELD


def program_on(site: Serving) -> int:
    """Id of the XDP program on the node's interface."""
    index = site.node.namespace.interface_index("eth0")
    return site.node.namespace.call(lambda: xdp.query(index)).program_id


def another_version(tree: Path) -> Path:
    """A copy of the code whose data plane differs."""
    with (copy_of_the_code(tree) / "bpf" / "program" / "xlb.c").open("a") as source:
        source.write("\nstatic const u32 another_version = 1;\n")
    return tree


def test_an_interface_that_the_node_file_names_no_more_is_left_alone(site: Serving) -> None:
    site.node.namespace.ip("link add extra0 type veth peer name extra1", "link set extra0 up", "link set extra1 up")
    index = site.node.namespace.interface_index("extra0")
    before = site.node.config.read_text()
    for text, has in ((before.replace('interfaces = ["eth0"', 'interfaces = ["extra0", "eth0"'), True), (before, False)):
        site.node.stop()
        site.node.config.write_text(text)
        site.node.start()
        assert bool(site.node.namespace.call(lambda: xdp.query(index)).program_id) is has
        assert program_on(site)
    site.node.namespace.ip("link delete extra0")


@pytest.mark.parametrize("family", [4, 6])
def test_no_flow_stays_on_a_removed_backend_after_a_crash(family: int) -> None:
    """The backend is removed and the daemon killed at once, among many flows: the next one compares flows with the farms."""
    with serving() as site:
        farms = [site.add_farm(service, family, weights=(1, 0, 0)) for service in ("tcp", "udp")]
        held = HeldConnections(VIPS[family], PORTS["tcp"], 10)
        site.rig.client.run(held.open())
        if family == 4:
            put_connections(site.node, 60_000)
        assert site.udp(family, source_port=20_001).backend == "b1"
        others = [backend.address4 if family == 4 else backend.address6 for backend in site.rig.backends]
        first = others.pop(0)
        for farm, port in zip(farms, (PORTS["tcp"], PORTS["udp"]), strict=True):
            for other in others:
                site.node.call("backend.set", farm=farm, address=other, port=port, weight=1)
            site.node.call("backend.remove", farm=farm, address=first, port=port)
        site.node.kill()
        site.node.start()

        def is_clean() -> bool:  # what the clients still send goes to others, which reset it
            listed = site.node.call("conn.list", limit=500)
            backends = {each["backend"].rpartition(":")[0].strip("[]") for each in listed["connections"]}
            return listed["total"] < 500 and first not in backends

        wait_until(is_clean, "no flow to a removed backend", 15, every_s=0.3)
        assert site.udp(family, source_port=20_001).backend != "b1"
        site.rig.client.run(held.close())
