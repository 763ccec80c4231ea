"""10,000 connections of clients that mean ill, from two thousand addresses and from the loopback: the sessions of others, and
xlbd, do not notice.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from ctl.web.serving import admission
from tests.fakes.web import WebClient, insecure
from tests.rig import CLIENT4, Layout, Rig
from tests.rig.namespaces import Namespace
from tests.rig.web_process import WebProcess, add_user, web_section
from tests.wait import wait_until

PORT, HOST = 8443, "10.77.0.1"
SOURCES = "10.66.0.0/16"
COUNT, LOCAL_COUNT, FLOOD_S = 8000, 2000, 6
WORST_S = 5.0  # on a busy machine; on a quiet one 0.4 s
MOST_LAG_MS = 150
"""Of xlbd's loop, half of a lease at default times. `bench.web` measures it: 2 ms, but the hypervisor may hold the machine."""
MOST_MB = 80
SLOWLY_READ = ("/metrics", "/api/v1/events", "/lib/chart.js/chart.esm.js", "/api/v1/openapi.json") * 4
OTHER_DESCRIPTORS = 64


@dataclass
class Seen:
    """What a person saw: how long each request took, and what went wrong."""

    took_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Person:
    """Is logged in, and asks for the status again and again: on a connection that stays, and on a new one."""

    def __init__(self, namespace: Namespace, client: WebClient) -> None:
        self.client = client
        self.seen = {"kept": Seen(), "new": Seen()}
        self._namespace, self._stop = namespace, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._ready = threading.Event()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20), "the login"

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _work(self) -> None:
        self._namespace.enter()
        assert self.client.login("olga").status == 200
        kept = http.client.HTTPSConnection(self.client.host, self.client.port, timeout=20, context=insecure())
        self._asked(kept, Seen())
        self._ready.set()
        while not self._stop.wait(0.05):
            self._asked(kept, self.seen["kept"])
            new = http.client.HTTPSConnection(self.client.host, self.client.port, timeout=20, context=insecure())
            self._asked(new, self.seen["new"])
            new.close()
        kept.close()

    def _asked(self, connection: http.client.HTTPSConnection, seen: Seen) -> None:
        began = time.monotonic()
        try:
            connection.request("GET", "/api/v1/status", headers=self.client.headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                seen.wrong.append(f"status {answer.status}")
        except (OSError, http.client.HTTPException) as error:
            seen.wrong.append(repr(error))
        seen.took_s.append(time.monotonic() - began)


def slow_readers(person: Person) -> list[socket.socket]:
    """With the person's session: they ask for much, and read nothing."""
    made: list[socket.socket] = []
    for path in SLOWLY_READ:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.settimeout(20)
        raw.connect((person.client.host, PORT))
        secured = insecure().wrap_socket(raw)
        lines = [f"GET {path} HTTP/1.1", f"Host: {person.client.host}", f"Cookie: {person.client.headers['Cookie']}", "", ""]
        secured.sendall("\r\n".join(lines).encode() * 20)
        made.append(secured)
    return made


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig(Layout(backends=1)) as made:
        node = made.node
        extra = web_section(node, (f"127.0.0.1:{PORT}", f"{HOST}:{PORT}"))
        node.configure(("eth0",), made.layout.xdp_mode, made.layout.max_flows, extra)
        made.client.namespace.ip(f"route add local {SOURCES} dev lo")
        node.namespace.ip(f"route add {SOURCES} via {CLIENT4}")
        node.start()
        assert node.process is not None
        os.sched_setscheduler(node.process.pid, os.SCHED_FIFO, os.sched_param(1))  # as xlbd runs in a pair
        add_user(node, "olga", "operator")
        yield made


@pytest.fixture(scope="module")
def web(rig: Rig) -> Iterator[WebProcess]:
    made = WebProcess(rig.node)
    made.start()
    yield made
    made.close()


def flood(namespace: Namespace, host: str, sources: str, count: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.net.web_flood", host, f"{PORT}", sources, f"{count}", f"{FLOOD_S}"]
    return namespace.popen(words, stdout=subprocess.PIPE, text=True)


def measured(rig: Rig) -> tuple[float, float]:
    """Memory of xlbd in MB, and the worst lag of its loop so far in ms."""
    return rig.node.call("status")["memory_bytes"] / 1e6, float(rig.node.call("stats")["loop_lag"]["worst"])


def test_sessions_and_xlbd_do_not_notice_a_flood(rig: Rig, web: WebProcess) -> None:
    here, there = rig.node.namespace, rig.client.namespace
    people = [Person(here, web.client()), Person(there, web.client(HOST))]
    for each in people:
        each.start()
    at_rest = web.descriptors()
    slow = there.call(lambda: slow_readers(people[1]))
    before_mb, before_lag_ms = measured(rig)
    print(f"xlb-web before: {web.resident_mb():.0f} MB")
    most_mb, most_descriptors = 0.0, 0
    floods = [flood(there, HOST, SOURCES, COUNT), flood(here, "127.0.0.1", "127.0.0.0/8", LOCAL_COUNT)]

    def over() -> bool:
        nonlocal most_mb, most_descriptors
        most_mb, most_descriptors = max(most_mb, web.resident_mb()), max(most_descriptors, web.descriptors())
        return all(each.poll() is not None for each in floods)

    wait_until(over, "the end of the flood", 60, every_s=0.05)
    sent: list[dict[str, Any]] = [json.loads(each.communicate()[0]) for each in floods]
    for person in people:
        person.stop()
    for reader in slow:
        reader.close()
    after_mb, lag_ms = measured(rig)
    print(f"flood: {sent}\nxlb-web: {most_mb:.0f} MB, {most_descriptors} descriptors, {at_rest} at rest")
    print(f"xlbd: {before_mb:.1f} MB, then {after_mb:.1f} MB; loop late {before_lag_ms:.1f} ms, then {lag_ms:.1f} ms at worst")
    for place, person in zip(("loopback", "network"), people, strict=True):
        for kind, seen in person.seen.items():
            print(f"{place}, {kind} connection: {len(seen.took_s)} requests, worst {max(seen.took_s) * 1000:.0f} ms")
            # A stranger's connection may lose its place to later ones before its first request is read; a session's never does.
            lost = len(seen.took_s) // 10 if kind == "new" else 0
            assert len(seen.wrong) <= lost and max(seen.took_s) < WORST_S, seen.wrong
    opened = sum(count for each in sent for kind, count in each.items() if kind not in ("most at once", "closed by the server"))
    assert opened >= 0.85 * (COUNT + LOCAL_COUNT)  # handshakes take what time there is
    assert most_mb <= MOST_MB and most_descriptors <= admission.MAX_CONNECTIONS + OTHER_DESCRIPTORS
    assert abs(after_mb - before_mb) < 8 and lag_ms < MOST_LAG_MS
    wait_until(lambda: web.descriptors() <= at_rest + 2, "every socket of the flood is closed", 20)


def test_a_killed_xlb_web_leaves_xlbd_and_the_sessions_as_they_were(rig: Rig, web: WebProcess) -> None:
    def asked(client: WebClient) -> int:
        return rig.node.namespace.call(lambda: client.get("status").status)

    client = web.client()
    assert rig.node.namespace.call(lambda: client.login("olga").status) == 200
    incarnation = rig.node.call("status")["uptime_s"]
    for _ in range(2):
        wait_until(lambda: asked(client) == 200, "the session is stored")
        web.kill()
        web.start()
        assert asked(client) == 200, "the session goes on"
    assert rig.node.call("status")["uptime_s"] > incarnation
