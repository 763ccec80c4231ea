"""The rig itself: what the tests that use it rely on."""

from __future__ import annotations

import asyncio
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpf import xdp
from tests.rig import (
    HTTP_PORT,
    TCP_PORT,
    UDP_PORT,
    VIP4,
    HeldConnections,
    Layout,
    Prober,
    Rig,
    http_get,
    tcp_connect,
    transfer,
    udp_exchange,
)
from tests.rig.payload import count_wrong, payload
from tests.wait import wait_until

_CHILD = """
import signal, sys
from tests.rig import Rig
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
with Rig() as rig:
    rig.node.bpf_dir.mkdir()
    print(rig.directory, rig.node.bpf_dir, rig._reaper.pid, *(backend.process.pid for backend in rig.backends), flush=True)
    sys.stdin.readline()
    raise ValueError
"""


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGINT", "raise"])
def test_nothing_is_left_however_the_process_ends(end: str) -> None:
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=pipe, stdout=pipe, stderr=null, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    directory, bpf_dir, *pids = child.stdout.readline().split()
    assert Path(directory).is_dir()
    assert Path(bpf_dir).is_dir()
    watches = [os.pidfd_open(int(pid)) for pid in pids]
    if end != "raise":
        child.send_signal(signal.Signals[end])
        assert child.wait(20) != 0
    child.stdin.close()
    assert child.wait(20) != 0
    child.stdout.close()
    for watch in watches:
        assert select.select([watch], [], [], 10)[0], "a process of the rig outlived it"
        os.close(watch)
    assert not Path(directory).exists()
    assert not Path(bpf_dir).exists()


def test_client_reaches_backends_without_a_node() -> None:
    with Rig(Layout(backends=2)) as rig:
        backend = rig.backends[1]
        for address in (backend.address4, backend.address6):
            answer = rig.client.run(http_get(address, HTTP_PORT, "/bytes/1000"))
            assert (answer.backend, answer.status, answer.body) == ("b2", 200, payload(0, 0, 1000))
            assert rig.client.run(tcp_connect(address, TCP_PORT)).backend == "b2"
            assert rig.client.run(udp_exchange(address, UDP_PORT, b"hello")).body == b"hello"
            assert rig.client.run(transfer(address, TCP_PORT, 5_000_000)) == (5_000_000, 0)


def test_nodes_are_plugged_for_native_xdp() -> None:
    with Rig(Layout(backends=1, interfaces=2)) as rig:
        for port in ("lb1-eth0", "lb1-eth1"):
            query = functools.partial(xdp.query, rig.switch.interface_index(port))
            assert rig.switch.call(query).mode is xdp.AttachMode.NATIVE


def test_a_dying_backend_breaks_held_connections_and_is_noticed() -> None:
    with Rig(Layout(backends=1)) as rig:
        held = HeldConnections(rig.backends[0].address4, TCP_PORT, 50, pause_s=0.01)
        rig.client.run(held.open())
        assert rig.client.run(held.confirm()) == 0
        assert not held.broken
        rig.backends[0].kill()
        assert rig.client.run(held.confirm()) == 50
        assert len(held.broken) == 50


def test_a_cut_cable_stalls_held_connections_and_mending_it_continues_them() -> None:
    with Rig(Layout(backends=1)) as rig:
        held = HeldConnections(rig.backends[0].address4, TCP_PORT, 5, pause_s=0.01)
        rig.client.run(held.open())
        rig.cut("b1", silently=True)
        assert rig.client.run(held.confirm(deadline_s=0.5)) == 5
        rig.mend("b1")
        assert rig.client.run(held.confirm()) == 0
        assert not held.broken


def test_a_prober_measures_an_outage() -> None:
    with Rig(Layout(backends=1)) as rig:
        address = rig.backends[0].address4
        prober = Prober(lambda: tcp_connect(address, TCP_PORT, timeout_s=0.1), interval_s=0.005)
        running = rig.client.start(prober.run())
        wait_until(lambda: len(prober.samples) > 20, "probes")
        rig.cut("b1", silently=True)
        cut_at = time.monotonic()
        wait_until(lambda: sum(bool(sample.error) for sample in prober.samples) > 20, "probes that fail")
        cut_for_s = time.monotonic() - cut_at
        rig.mend("b1")
        answered = sum(not sample.error for sample in prober.samples)
        wait_until(lambda: sum(not sample.error for sample in prober.samples) > answered + 20, "probes that are answered again")
        rig.client.run(prober.stop())
        samples = running.result(10)
        assert not samples[-1].error
        assert cut_for_s - 0.1 < prober.outage_s() < cut_for_s + 1


def test_two_nodes_are_joined_by_a_cluster_link() -> None:
    with Rig(Layout(backends=1, nodes=2)) as rig:
        first, second = rig.nodes
        address = "10.99.0.2"

        def greet() -> bytes:
            with socket.create_connection((address, 999), 3) as one:
                return one.recv(5)

        with second.namespace.call(lambda: socket.create_server((address, 999))) as server:
            server.settimeout(5)
            answer = rig.client.start(asyncio.to_thread(first.namespace.call, greet))
            with server.accept()[0] as connection:
                connection.sendall(b"hello")
            assert answer.result(5) == b"hello"


def test_the_shell_has_every_host_as_a_command() -> None:
    """`python -m tests.rig`, with a script as its input."""
    script = f"client curl -s --max-time 5 http://{VIP4}/\nxlbctl farm list\nlb1 ip -br addr show eth0\nexit\n"
    done = subprocess.run(
        [sys.executable, "-m", "tests.rig"], input=script, capture_output=True, text=True, timeout=60, check=True
    )
    assert f"{VIP4} " in done.stdout
    assert "3/3" in done.stdout
    assert f"{VIP4}/24" in done.stdout


@pytest.mark.parametrize(("connection", "offset", "wrong"), [(7, 0, 0), (7, 3, 0), (8, 0, 12), (7, 8, 13)])
def test_payload_names_connection_and_place(connection: int, offset: int, wrong: int) -> None:
    stream = payload(7, 0, 100)
    assert count_wrong(connection, offset, stream[offset if wrong == 0 else 0 :]) == wrong
