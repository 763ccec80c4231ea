"""Backends are added, removed, drained, fail and get weights while clients send requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.net.serving import BACKEND_PORTS, PORTS, VIPS, Serving, serving
from tests.rig import HTTP_PORT, HeldConnections, Layout, Tally, http_get, repeat, tcp_connect
from tests.wait import wait_until

QUICK: dict[str, Any] = {"interval_ms": 400, "timeout_ms": 400, "rise": 2, "fall": 2}
"""A healthy backend answers in this time also while other tests use the processors: the first result alone decides."""
QUICK_HTTP = QUICK | {"kind": "http", "path": "/health"}
QUICK_TCP = QUICK | {"kind": "tcp"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Serving]:
    with serving() as serve:
        yield serve


@pytest.fixture
def site(shared: Serving) -> Iterator[Serving]:
    yield shared
    shared.clear()


def connect_many(site: Serving, count: int = 200, family: int = 4) -> Tally:
    return site.rig.client.run(repeat(lambda: tcp_connect(VIPS[family], PORTS["tcp"]), count, Tally()))


@pytest.mark.parametrize("scheduler", ["maglev", "roundrobin"])
def test_weights_are_honoured(site: Serving, scheduler: str) -> None:
    site.add_farm("tcp", weights=(1, 2, 3), scheduler=scheduler)
    tally = connect_many(site, 12_000)
    assert tally.failures == []
    for name, share in tally.shares().items():
        assert share == pytest.approx(int(name[1]) / 6, abs=0.02)
    assert sum(backend["new_connections"] for backend in site.node.call("farm.show", name="tcp4")["backends"]) == 12_000


def test_a_draining_backend_keeps_its_connections_and_gets_no_new_ones(site: Serving) -> None:
    site.add_farm("tcp")
    held = HeldConnections(VIPS[4], PORTS["tcp"], 90)
    site.rig.client.run(held.open())
    kept = len(held.on_backend("b1"))
    assert kept > 0
    address = f"{site.rig.backend('b1').address4}:{BACKEND_PORTS['tcp']}"
    site.node.xlbctl("backend", "drain", "tcp4", address)
    assert site.state("tcp4", "b1") == "drain"
    tally = connect_many(site)
    assert tally.failures == []
    assert set(tally.by_backend) == {"b2", "b3"}
    assert site.rig.client.run(held.confirm()) == 0
    assert (held.broken, held.wrong_bytes) == ([], 0)
    site.rig.client.run(held.close())


def test_a_drain_cuts_live_connections_at_its_deadline(site: Serving) -> None:
    """Those of the drained backend get a RST with their next segment; the others continue."""
    site.add_farm("tcp")
    held = HeldConnections(VIPS[4], PORTS["tcp"], 90)
    site.rig.client.run(held.open())
    on_first = len(held.on_backend("b1"))
    assert on_first > 0
    address = f"{site.rig.backend('b1').address4}:{BACKEND_PORTS['tcp']}"
    answer = site.node.xlbctl("backend", "drain", "tcp4", address, "--deadline", "2", "--then", "cut", "--wait")
    assert "drained" in answer.stdout and "connections left" in answer.stderr
    assert site.rig.client.run(held.confirm()) == on_first
    assert len(held.broken) == on_first and all("reset" in why.lower() for why in held.broken), "ended by a RST"
    site.rig.client.run(held.close())


def test_adding_a_backend_moves_no_connection(site: Serving) -> None:
    site.add_farm("tcp")
    held = HeldConnections(VIPS[4], PORTS["tcp"], 200)
    site.rig.client.run(held.open())
    added = site.rig.add_backend()
    site.node.xlbctl("backend", "add", "tcp4", f"{added.address4}:{BACKEND_PORTS['tcp']}", "--weight", "2")
    tally = connect_many(site)
    assert tally.failures == []
    assert set(tally.by_backend) == {"b1", "b2", "b3", "b4"}
    assert site.rig.client.run(held.confirm()) == 0
    assert (held.broken, held.wrong_bytes) == ([], 0)
    site.rig.client.run(held.close())


def test_a_removed_backend_gets_nothing_new(site: Serving) -> None:
    site.add_farm("tcp")
    site.node.xlbctl("backend", "remove", "tcp4", f"{site.rig.backend('b2').address4}:{BACKEND_PORTS['tcp']}")
    tally = connect_many(site)
    assert tally.failures == []
    assert set(tally.by_backend) == {"b1", "b3"}


@pytest.mark.parametrize("family", [4, 6])
def test_a_dead_backend_is_taken_out_and_comes_back_by_itself(site: Serving, family: int) -> None:
    farm = site.add_farm("tcp", family, health=QUICK_TCP)
    wait_until(lambda: all(site.state(farm, name) == "up" for name in ("b1", "b2", "b3")), "all backends up")
    site.rig.backend("b2").kill()
    wait_until(lambda: site.state(farm, "b2") == "down", "b2 noticed as down")
    assert site.backend(farm, "b2")["last_error"]
    tally = connect_many(site, family=family)
    assert tally.failures == []
    assert set(tally.by_backend) == {"b1", "b3"}
    site.rig.backend("b2").start()
    wait_until(lambda: site.state(farm, "b2") == "up", "b2 back by itself")
    tally = connect_many(site, family=family)
    assert tally.failures == []
    assert set(tally.by_backend) == {"b1", "b2", "b3"}


def test_a_udp_client_is_moved_off_a_dead_backend(site: Serving) -> None:
    """A UDP client does not notice the failure and continues with the same ports: its flow must not outlive the backend."""
    site.add_farm("udp", health=QUICK_TCP | {"port": BACKEND_PORTS["tcp"]})
    wait_until(lambda: all(site.state("udp4", name) == "up" for name in ("b1", "b2", "b3")), "all backends up")
    before = {port: site.udp(source_port=port).backend for port in range(3000, 3060)}
    assert set(before.values()) == {"b1", "b2", "b3"}
    site.rig.backend("b1").kill()
    wait_until(lambda: site.state("udp4", "b1") == "down", "b1 noticed as down")
    wait_until(lambda: all(not site.udp(timeout_s=0.3, source_port=port).error for port in before), "every client served again")
    after = {port: site.udp(source_port=port).backend for port in before}
    assert set(after.values()) == {"b2", "b3"}
    assert all(after[port] == backend for port, backend in before.items() if backend != "b1"), (
        "a client of another backend was moved"
    )


@pytest.mark.parametrize("family", [4, 6])
def test_checks_by_datagrams_and_by_a_command(site: Serving, family: int) -> None:
    """Their answers reach the node's own address through the program; each kind sees what it checks and nothing else."""
    quick = QUICK | {"rise": 1}
    script = 'echo "of $XLB_FARM at $XLB_ADDRESS"; test "$XLB_ADDRESS" != ' + site.rig.backend("b3").address4
    checks: dict[str, dict[str, Any]] = {
        "udp": {"kind": "udp", "payload": "hex:00ff", "answer": "hex:0a00ff"},
        "port": {"kind": "udp", "payload": "x"},
        "icmp": {"kind": "icmp"},
        "command": {"kind": "command", "command": ["/bin/sh", "-c", script], "timeout_ms": 2000, "interval_ms": 2000},
    }
    for number, (name, check) in enumerate(checks.items()):
        site.add_farm("udp", family, name=name, port=9100 + number, health=quick | check)

    def are(expected: dict[str, str]) -> bool:
        found = {name: "".join(site.state(name, backend)[0] for backend in ("b1", "b2", "b3")) for name in checks}
        return found == expected

    third = "d" if family == 4 else "u"
    wait_until(lambda: are({"udp": "uuu", "port": "uuu", "icmp": "uuu", "command": f"uu{third}"}), "all are checked")
    site.rig.backend("b2").kill()
    wait_until(lambda: are({"udp": "udu", "port": "udu", "icmp": "uuu", "command": f"uu{third}"}), "its UDP port is closed")
    assert site.backend("port", "b2")["last_error"].endswith(": port unreachable")
    site.rig.cut("b1", silently=True)
    wait_until(lambda: site.state("icmp", "b1") == "down", "no echo")
    assert site.backend("icmp", "b1")["last_error"].startswith("no answer from ")
    if family == 4:
        address = site.rig.backend("b3").address4
        assert site.backend("command", "b3")["last_error"] == f"/bin/sh exited with 1: of command at {address}"


@pytest.mark.parametrize("family", [4, 6])
def test_a_check_through_the_data_path_sees_that_a_backend_lacks_the_vip(site: Serving, family: int) -> None:
    quick = {"kind": "tcp", "interval_ms": 500, "timeout_ms": 500, "rise": 1, "fall": 1}
    vip = f"{VIPS[family]}/{32 if family == 4 else 128}"
    with_vip = [site.rig.backend(name).namespace for name in ("b1", "b2")]
    for host in with_vip:
        host.sysctl({"net.ipv4.conf.all.arp_ignore": 1})
        host.ip(f"addr add {vip} dev lo{' nodad' if family == 6 else ''}")
    for name, port, via in (("through", PORTS["tcp"], "vip"), ("beside", PORTS["tcp"] + 1, "backend")):
        check = quick | {"via": via, "port": BACKEND_PORTS["tcp"]}
        site.node.call("farm.add", name=name, vip=VIPS[family], port=port, mode="dsr", health=check)
        for backend in site.rig.backends:
            site.node.call("backend.add", farm=name, address=backend.address4 if family == 4 else backend.address6)

    def states(farm: str) -> str:
        return " ".join(site.state(farm, name) for name in ("b1", "b2", "b3"))

    wait_until(lambda: (states("through"), states("beside")) == ("up up down", "up up up"), "b3 lacks the VIP")
    site.rig.backend("b2").kill()
    wait_until(lambda: states("through") == "up down down", "b2 is dead")
    assert site.backend("through", "b2")["last_error"].endswith(": connection refused")
    for host in with_vip:
        host.ip(f"addr del {vip} dev lo")


def test_a_backend_that_answers_an_error_status_is_taken_out(site: Serving) -> None:
    site.add_farm("http", health=QUICK_HTTP)
    wait_until(lambda: all(site.state("http4", name) == "up" for name in ("b1", "b2", "b3")), "all backends up")
    site.rig.backend("b3").set_health("sick")
    wait_until(lambda: site.state("http4", "b3") == "down", "b3 noticed as sick")
    assert "503" in site.backend("http4", "b3")["last_error"]
    tally = site.rig.client.run(repeat(lambda: http_get(VIPS[4], PORTS["http"]), 100, Tally()))
    assert set(tally.by_backend) == {"b1", "b2"}
    site.rig.backend("b3").set_health("well")
    wait_until(lambda: site.state("http4", "b3") == "up", "b3 back by itself")


def test_a_backend_whose_cable_is_cut_times_out_of_the_farm(site: Serving) -> None:
    site.add_farm("tcp", health=QUICK_TCP)
    wait_until(lambda: all(site.state("tcp4", name) == "up" for name in ("b1", "b2", "b3")), "all backends up")
    site.rig.cut("b1", silently=True)
    wait_until(lambda: site.state("tcp4", "b1") == "down", "b1 noticed as silent")
    tally = connect_many(site)
    assert tally.failures == []
    assert set(tally.by_backend) == {"b2", "b3"}
    site.rig.mend("b1")
    wait_until(lambda: site.state("tcp4", "b1") == "up", "b1 back by itself")


def test_changes_of_a_farm_bring_no_connection_to_a_dead_backend(site: Serving) -> None:
    """A changed check, or a dead server that is added to healthy ones, costs no request."""
    farm = site.add_farm("http", health=QUICK_HTTP)
    wait_until(lambda: all(site.state(farm, name) == "up" for name in ("b1", "b2", "b3")), "all backends up")
    site.rig.backend("b2").kill()
    wait_until(lambda: site.state(farm, "b2") == "down", "b2 noticed as down")
    dead = {"farm": farm, "address": site.rig.backend("b2").address4, "port": BACKEND_PORTS["http"]}
    slow = {"interval_ms": 5000, "timeout_ms": 1000}
    for command, arguments in (
        ("farm.set", {"name": farm, "health": slow | {"host": "www.example.org"}}),
        ("farm.set", {"name": farm, "health": {"kind": "tcp"}}),
        ("farm.stop", {"name": farm}),
        ("farm.start", {"name": farm}),
        ("backend.remove", dead),
        ("backend.add", dead),
    ):
        site.node.call(command, **arguments)
        if command != "farm.stop":
            tally = site.rig.client.run(repeat(lambda: http_get(VIPS[4], PORTS["http"]), 60, Tally()))
            assert (tally.failures, set(tally.by_backend)) == ([], {"b1", "b3"}), command
    site.rig.backend("b2").start()
    site.node.call("farm.set", name=farm, health=QUICK)
    wait_until(lambda: site.state(farm, "b2") == "up", "b2 back by itself")


def test_six_hundred_silent_backends_do_not_delay_the_checks_of_another_farm(site: Serving) -> None:
    farm = site.add_farm("tcp", health=QUICK_TCP)
    black_hole = site.rig.backend("b1").address4  # forwards nothing
    site.node.namespace.ip(f"route add 10.78.0.0/16 via {black_hole}")
    document = site.node.call("config.export")
    silent = [{"address": f"10.78.{n // 250}.{1 + n % 250}", "port": 9} for n in range(600)]
    check = {"kind": "tcp", "interval_ms": 10_000, "timeout_ms": 10_000}
    document["farm"].append({"name": "silent", "vip": VIPS[4], "port": 9, "health": check, "backend": silent})
    site.node.call("config.apply", document=document)
    syn_sent = ("ss", "-Htn", "state", "syn-sent")
    wait_until(lambda: site.node.namespace.run(*syn_sent).stdout.count("\n") > 500, "checks of all of its share to wait")
    site.rig.backend("b2").kill()
    started = time.monotonic()
    wait_until(lambda: site.state(farm, "b2") == "down", "b2 noticed as down")
    took_s = time.monotonic() - started
    site.node.namespace.ip("route del 10.78.0.0/16")
    assert took_s < 5, "its own time is 1.2 s, that of the silent ones 10 s"


def test_lower_tiers_serve_only_while_no_higher_one_is_up(site: Serving) -> None:
    site.add_farm("tcp", weights=(1,), health=QUICK_TCP)
    address = f"{site.rig.backend('b2').address4}:{BACKEND_PORTS['tcp']}"
    site.node.xlbctl("backend", "add", "tcp4", address, "--priority", "1")
    wait_until(lambda: all(site.state("tcp4", name) == "up" for name in ("b1", "b2")), "both backends up")
    assert set(connect_many(site).by_backend) == {"b1"}
    site.rig.backend("b1").kill()
    wait_until(lambda: site.state("tcp4", "b1") == "down", "b1 noticed as down")
    assert set(connect_many(site).by_backend) == {"b2"}
    site.rig.backend("b1").start()
    wait_until(lambda: site.state("tcp4", "b1") == "up", "b1 back by itself")
    assert set(connect_many(site).by_backend) == {"b1"}


@pytest.mark.parametrize("policy", ["drop", "all"])
def test_what_happens_when_all_backends_are_down(site: Serving, policy: str) -> None:
    """The health check probes a port without listener, so the servers themselves still answer."""
    site.add_farm("tcp", all_down=policy, health=QUICK_TCP | {"port": 9})
    wait_until(lambda: all(site.state("tcp4", name) == "down" for name in ("b1", "b2", "b3")), "all backends down")
    if policy == "all":
        assert set(connect_many(site).by_backend) == {"b1", "b2", "b3"}
    else:
        before = site.counters()
        assert "Errno 111" in site.tcp().error
        site.node.xlbctl("farm", "set", "tcp4", "--on-no-backend", "drop")
        assert site.tcp(timeout_s=0.3).error == "TimeoutError"
        moved = {name: count - before[name] for name, count in site.counters().items() if count != before[name]}
        assert moved["event_reset_sent"] == 1 and moved["drop_no_backend"] > 1


def test_a_farm_can_be_stopped_and_started(site: Serving) -> None:
    site.add_farm("tcp")
    held = HeldConnections(VIPS[4], PORTS["tcp"], 20)
    site.rig.client.run(held.open())
    site.node.xlbctl("farm", "stop", "tcp4")
    assert site.tcp(timeout_s=0.3).error != ""
    site.node.xlbctl("farm", "start", "tcp4")
    assert site.tcp().error == ""
    assert site.rig.client.run(held.confirm()) == 0
    site.rig.client.run(held.close())


@pytest.mark.parametrize("scheduler", ["maglev", "source"])
def test_source_hashing_keeps_a_client_on_its_backend(site: Serving, scheduler: str) -> None:
    site.add_farm("tcp", scheduler=scheduler)
    assert len(connect_many(site).by_backend) == (1 if scheduler == "source" else 3)


def test_backends_in_two_interface_mode_are_checked_over_the_second() -> None:
    with serving(Layout(interfaces=2)) as site:
        site.add_farm("http", health=QUICK_HTTP | {"port": HTTP_PORT})
        wait_until(lambda: all(site.state("http4", name) == "up" for name in ("b1", "b2", "b3")), "all backends up")
        site.rig.cut("b2")
        wait_until(lambda: site.state("http4", "b2") == "down", "b2 noticed as down")
        tally = site.rig.client.run(repeat(lambda: http_get(VIPS[4], PORTS["http"]), 100, Tally()))
        assert tally.failures == []
        assert set(tally.by_backend) == {"b1", "b3"}
