"""Farms on several VIPs of both families and on several ports, and features that a farm adds, by real sockets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ctl.errors import Code
from tests.net.serving import Serving, drops, program, serving
from tests.refusals import refused
from tests.rig import CLIENT4, CLIENT6, TCP_PORT, UDP_PORT, VIP4, VIP6, HeldConnections, Layout, tcp_connect, udp_exchange
from tests.wait import wait_until

SECOND4 = "10.77.0.101"
GREETER = """
import select, socket, sys
listening = []
for port in (80, 443, 8005):
    listening.append(socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True))
print("ready", flush=True)
while True:
    for one in select.select(listening, [], [])[0]:
        held, peer = one.accept()
        held.sendall(f"{one.getsockname()[1]} {peer[0].removeprefix('::ffff:')} 0\\n".encode())
        held.close()
"""
"""Listens on ports of the farm; its greeting has the port where the others have the name of a backend."""


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving(Layout(backends=1)) as serve:
        serve.node.call("vip.add", address=f"{SECOND4}/24", device="eth0")
        yield serve


def test_a_farm_on_two_vips_of_both_families_and_a_list_of_ports(site: Serving) -> None:
    (backend,) = site.rig.backends
    process = backend.namespace.popen(["python3", "-c", GREETER], stdout=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    try:
        site.node.xlbctl(
            *("farm", "add", "list", "--vip", f"{VIP4},{VIP6}", "--port", "80,443,8000-8010", "--check", "none"),
        )
        for address in (backend.address4, f"[{backend.address6}]"):
            site.node.xlbctl("backend", "add", "list", address)
        shown = site.node.json("farm", "show", "list")
        assert (shown["vip"], shown["port"]) == (f"{VIP4},{VIP6}", "80,443,8000-8010")
        assert [each["port"] for each in shown["backends"]] == [80, 80]
        for vip in (VIP4, VIP6):
            for port in (80, 443, 8005):
                answer = site.rig.client.run(tcp_connect(vip, port))
                assert (answer.backend, answer.peer.rpartition(" ")[0]) == (str(port), vip)
            assert site.rig.client.run(tcp_connect(vip, 8001)).error, "the backend does not listen there"
        listed = site.node.json("conn", "list")["connections"]
        assert {each["vip"] for each in listed} >= {f"{VIP4}:443", f"[{VIP6}]:8005"}
        fewer = site.node.json("farm", "set", "list", "--port", "443")
        assert fewer["port"] == 443
        answer = site.rig.client.run(tcp_connect(VIP6, 443))
        assert answer.backend == "80", "443 is the first port now, so that it goes to the port of the backend"
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()
        site.clear()


def test_a_feature_is_added_under_living_connections(site: Serving) -> None:
    name = site.add_farm("tcp")
    held = HeldConnections(VIP4, TCP_PORT, 100, pause_s=0.02)
    site.rig.client.run(held.open())
    before, dropped, pins = program(site.node), drops(site), set(site.node.bpf_dir.iterdir())
    done = site.node.xlbctl("farm", "set", name, "--toa")
    assert re.search(r"xlbctl: compiled the program for toa: \d+\.\d s", done.stderr)
    replaced = program(site.node)
    assert replaced != before and set(site.node.bpf_dir.iterdir()) > pins
    assert site.rig.client.run(held.confirm()) == 0
    assert (held.broken, held.wrong_bytes) == ([], 0) and drops(site) == dropped
    assert site.tcp().backend
    done = site.node.xlbctl("farm", "set", name, "--no-toa")
    assert "compiled" not in done.stderr and program(site.node) == replaced, "features are only added"
    site.rig.client.run(held.close())
    site.clear()


def test_what_does_not_compile_is_refused_and_changes_nothing(site: Serving) -> None:
    name, node = site.add_farm("tcp"), site.node
    held = HeldConnections(VIP4, TCP_PORT, 50, pause_s=0.02)
    site.rig.client.run(held.open())

    def seen() -> tuple[object, ...]:
        pins = {path: path.lstat().st_ino for path in node.bpf_dir.parent.glob(f"{node.bpf_dir.name}*/*")}
        return (
            node.call("config.export"),
            node.call("status")["generation"],
            program(node),
            pins,
            node.call("status")["findings"],
        )

    before, dropped = seen(), drops(site)
    node.break_compiler()
    change = ("farm", "set", name, "--persistence", "300")
    refusal = node.xlbctl(*change, expect=1).stderr
    assert re.search(rf"the program for persistence cannot be used on {node.name}: compiling .* failed: .*types.h", refusal)
    document = node.call("config.export")
    document["farm"][0]["mode"] = "dsr"
    with refused(Code.KERNEL_REFUSED):
        node.call("config.apply", document=document)
    assert seen() == before and site.rig.client.run(held.confirm()) == 0
    assert (held.broken, held.wrong_bytes, drops(site)) == ([], 0, dropped) and site.tcp().backend
    node.xlbctl("farm", "set", name, "--idle-timeout", "600")
    node.repair_compiler()
    assert "compiled the program for persistence" in node.xlbctl(*change).stderr
    assert program(node) != before[2] and site.rig.client.run(held.confirm()) == 0
    site.rig.client.run(held.close())
    site.clear()


def test_a_farm_on_all_ports(site: Serving) -> None:
    (backend,) = site.rig.backends
    for proto in ("tcp", "udp"):
        site.node.xlbctl(*f"farm add all-{proto} --vip {SECOND4} --port all --proto {proto} --check none".split())
        site.node.xlbctl("backend", "add", f"all-{proto}", backend.address4)
    assert site.node.json("farm", "show", "all-udp")["port"] == "all"
    assert site.rig.client.run(tcp_connect(SECOND4, TCP_PORT)).backend == "b1"
    assert site.rig.client.run(udp_exchange(SECOND4, UDP_PORT)).backend == "b1"
    assert site.rig.client.run(tcp_connect(SECOND4, 65535)).error
    refused = site.node.xlbctl(*f"farm add more --vip {SECOND4} --port 443".split(), expect=2)
    assert f"443/tcp on {SECOND4} overlaps all/tcp of farm all-tcp" in refused.stderr
    site.node.stop()
    site.node.start()
    wait_until(lambda: site.node.call("cluster.status")["role"] in ("active", "single"), "the node serves again")
    assert site.rig.client.run(tcp_connect(SECOND4, TCP_PORT)).backend == "b1", "the running maps are adopted"
    assert not any(path.name.startswith("toa") for path in site.node.bpf_dir.iterdir()), "a start has what its farms need"


@pytest.mark.parametrize("family", [4, 6])
def test_why_agrees_with_a_real_client(site: Serving, family: int) -> None:
    """The reason names what the kernel really does: routes and neighbours are its own, and so is the verdict."""
    client, vip = (CLIENT4, VIP4) if family == 4 else (CLIENT6, VIP6)
    backend = site.rig.backends[0].address4 if family == 4 else site.rig.backends[0].address6

    def why(reason: str) -> dict[str, Any]:
        answer: dict[str, Any] = site.node.call("conn.why", source=client, destination=vip, destination_port=TCP_PORT)
        failing = [each["name"] for each in answer["findings"] if not each["ok"]]
        assert (answer["connects"], failing) == (not reason, [reason] if reason else [])
        assert bool(site.tcp(family, timeout_s=0.3).error) is bool(reason)
        return answer

    try:
        why("farm")
        name = site.add_farm("tcp", family)
        wait_until(lambda: site.tcp(family, timeout_s=0.3).error == "", "the next hop of the backend")
        why("")
        site.node.xlbctl("prefixes", "set", "clients", "-f", "-", stdin=client)
        site.node.call("farm.set", name=name, deny="clients")
        assert why("lists")["verdict"] == "drop_denied"
        site.node.call("farm.set", name=name, deny="")
        site.node.namespace.run("ip", "route", "add", "unreachable", backend)
        assert why("route")["remedy"] == f"ip route get {backend}"
        site.node.namespace.run("ip", "route", "delete", "unreachable", backend)
        site.node.call("backend.drain", farm=name, address=backend, port=TCP_PORT)
        assert "--no-drain" in why("backends")["remedy"]
    finally:
        site.clear()
