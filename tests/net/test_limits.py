"""Limits, prefix lists and leastconn on a real kernel, by real sockets, and during a flood of SYNs."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.serving import Serving, serving
from tests.rig import TCP_PORT, VIP4, HeldConnections, Layout
from tests.wait import wait_until

MAX_FLOWS = 8192
FLOODED = 10 * MAX_FLOWS // 8
"""Ten times the map of embryonic connections, which has an eighth of max_flows."""
FLOOD = f"""
import os, socket, struct, sys, time
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
vip, port = socket.inet_aton("{VIP4}"), {TCP_PORT}
def checksum(data):
    total = sum(struct.unpack(f"!{{len(data) // 2}}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
print("ready", flush=True)
for number in range({100 * FLOODED}):
    source = b"\\xc6\\x12" + os.urandom(2)
    tcp = struct.pack("!HHIIBBHHH", 1024 + number % 60000, port, 7, 0, 0x50, 2, 1000, 0, 0)
    summed = checksum(source + vip + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", summed) + tcp[18:]
    out.sendto(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, source, vip) + tcp, ("{VIP4}", 0))
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving(Layout(backends=3, max_flows=MAX_FLOWS)) as serve:
        yield serve


def test_limits_lists_leastconn_and_a_flood(site: Serving, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("192.0.2.0/24\n")
    site.node.xlbctl("prefixes", "set", "blocked", "-f", str(blocked))
    name = site.add_farm("tcp", scheduler="leastconn", deny="blocked")
    held = HeldConnections(VIP4, TCP_PORT, 60, pause_s=0.02)
    site.rig.client.run(held.open(concurrency=1))
    wait_until(lambda: site.node.json("farm", "show", name)["connections"] == 60, "the sweep's count")
    shares = [backend["connections"] for backend in site.node.json("farm", "show", name)["backends"]]
    assert shares == [20, 20, 20]

    site.node.xlbctl("farm", "set", name, "--max-connections", "60")
    assert f"Errno {errno.ECONNREFUSED}" in site.tcp().error
    assert site.counters()["drop_farm_full"] >= 1
    site.node.xlbctl("farm", "set", name, "--max-connections", "0")
    assert site.tcp().backend

    blocked.write_text("10.77.0.0/24  # the client's\n")
    site.node.xlbctl("prefixes", "set", "blocked", "-f", str(blocked))
    assert site.tcp(timeout_s=0.3).error and site.counters()["drop_denied"] >= 1, "replaced where it is used"
    refused = site.node.xlbctl("prefixes", "delete", "blocked", expect=1)
    assert f"farm {name}" in refused.stderr
    site.node.xlbctl("farm", "set", name, "--deny", "")
    site.node.xlbctl("prefixes", "delete", "blocked")
    assert site.tcp().backend

    process = site.rig.client.namespace.popen(["python3", "-c", FLOOD], stdout=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    answers = [site.tcp(timeout_s=4)]

    def is_flooded() -> bool:
        """A busy kernel loses some of the SYNs before they arrive."""
        answers.append(site.tcp(timeout_s=4))
        return bool(site.node.json("farm", "show", name)["new_connections"] > FLOODED)

    try:
        wait_until(is_flooded, "the flood to arrive", 60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    answers.append(site.tcp(timeout_s=4))
    assert all(answer.backend for answer in answers), [answer.error for answer in answers]
    assert site.rig.client.run(held.confirm()) == 0
    assert (held.broken, held.wrong_bytes) == ([], 0)
    site.rig.client.run(held.close())
