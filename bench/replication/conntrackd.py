"""conntrackd in FTFW mode between two network namespaces, with real conntrack entries that are made by ctnetlink.

Translated addresses as of a load balancer with SNAT. An entry is made as established, the first state that a failover needs,
and changed to TIME_WAIT; conntrackd replicates both events. The end of TIME_WAIT, another event, is outside every measurement.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.replication import ctnetlink
from bench.replication.subject import link_bytes, processor_s
from bench.suite.turns import NotMeasured
from tests.rig.namespaces import Namespace
from tests.wait import wait_until

LIMIT = 200_000
"""Entries: net.netfilter.nf_conntrack_max is 262,144 by default and cannot be changed in a namespace."""
ADDRESSES = ("10.99.0.1", "10.99.0.2")
CLIENT, BACKEND = "192.0.2.1", "192.0.2.2"
FIRST = {CLIENT: 0x0A800000, BACKEND: 0x0B800000}
PER_CALL = 500
ESTABLISHED_S, TIME_WAIT_S = 86400, 120
_SEND_BUFFER_FORCE = 32  # SO_SNDBUFFORCE
NETLINK_BYTES = 64 << 20

_STATISTICS, _RESYNC, _COMMIT, _FLUSH_EXTERNAL = 21, 23, 46, 34  # what the command line sends to the daemon
_FILE = """
Sync {{
  Mode FTFW {{
    DisableExternalCache {direct}
  }}
  UDP {{
    IPv4_address {own}
    IPv4_Destination_Address {other}
    Port 3780
    Interface ha0
    SndSocketBuffer 4194304
    RcvSocketBuffer 4194304
    Checksum on
  }}
}}
General {{
  HashSize 131072
  HashLimit 1048576
  LogFile {folder}/log
  LockFile {folder}/lock
  NetlinkBufferSize {netlink_bytes}
  NetlinkBufferSizeMaxGrowth {netlink_bytes}
  UNIX {{
    Path {folder}/socket
  }}
}}
"""


def numbers_of(statistics: str, section: str) -> dict[str, int]:
    """The first number of each line of a section of what `conntrackd -s` prints, by the line's name."""
    found = {}
    for line in statistics.partition(f"{section}:")[2].partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if value.split():
            found[name.strip()] = int(value.split()[0])
    return found


class Daemon:
    """One conntrackd and its namespace. processor: the only one it may use."""

    def __init__(self, folder: Path, namespace: Namespace, number: int, processor: int, direct: bool) -> None:
        self.folder, self.namespace, self._processor = folder, namespace, processor
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        text = _FILE.format(
            direct="yes" if direct else "no",
            own=ADDRESSES[number],
            other=ADDRESSES[1 - number],
            folder=folder,
            netlink_bytes=NETLINK_BYTES,
        )
        (folder / "conntrackd.conf").write_text(text)

    def start(self) -> None:
        command = ["taskset", "--cpu-list", str(self._processor), "conntrackd", "-C", str(self.folder / "conntrackd.conf")]
        self.process = self.namespace.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        wait_until((self.folder / "socket").exists, "conntrackd to listen")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        for name in ("socket", "lock"):
            (self.folder / name).unlink(missing_ok=True)

    def ask(self, request: int) -> str:
        """Send what the command line of conntrackd(8) would, and return the answer."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(30)
            channel.connect(str(self.folder / "socket"))
            channel.sendall(struct.pack("=i", request))
            parts = []
            while part := channel.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    def entries(self) -> int:
        """In the kernel's table of this namespace."""
        return self.namespace.call(lambda: int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text()))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


class Conntrackd:
    """A subject. Use as a context manager.

    direct: without the external cache: the entries go into the peer's kernel at once, which is what a failover needs, and not
    with `conntrackd -c` at the failover. processors: of the active node and of its peer.
    """

    window = 20_000
    poll_s = 0.002

    def __init__(self, processors: tuple[int, int], direct: bool = False) -> None:
        self.name = "conntrackd, no external cache" if direct else "conntrackd"
        self.direct = direct
        self._folder = tempfile.TemporaryDirectory(prefix="xlb-bench-")
        self._namespaces = [Namespace("active"), Namespace("peer")]
        self._made = self._changed = np.zeros((0, 0), np.uint8)
        one, two = self._namespaces
        one.ip(f"link add ha0 type veth peer name ha0 netns {two.path}")
        for namespace, address in zip(self._namespaces, ADDRESSES, strict=True):
            namespace.ip(f"addr add {address}/24 dev ha0", "link set ha0 up")
        self.active, self.peer = (
            Daemon(Path(self._folder.name) / namespace.name, namespace, number, processors[number], direct)
            for number, namespace in enumerate(self._namespaces)
        )
        self._socket = one.call(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))  # NETLINK_NETFILTER
        self._socket.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCE, 8 << 20)

    def __enter__(self) -> Conntrackd:
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in (self.active, self.peer):
            daemon.stop()
        self._socket.close()
        for namespace in self._namespaces:
            namespace.close()
        self._folder.cleanup()

    def prepare(self, count: int, chunk: int) -> None:
        """With new processes and empty tables."""
        if count > LIMIT:
            raise NotMeasured(f"the kernel holds {LIMIT:,} entries in a namespace (net.netfilter.nf_conntrack_max)")
        self.reset()
        numbers = np.arange(count, dtype=np.uint32)
        model: dict[str, Any] = {"client": CLIENT, "vip": "10.77.0.100", "node": "10.77.0.1", "backend": BACKEND}
        made = ctnetlink.message(ctnetlink.CREATE, ctnetlink.ESTABLISHED, ESTABLISHED_S, **model)
        changed = ctnetlink.message(ctnetlink.UPDATE, ctnetlink.TIME_WAIT, TIME_WAIT_S, **model)
        self._made, self._changed = (ctnetlink.messages(each, FIRST, numbers) for each in (made, changed))

    def reset(self) -> None:
        """Start both daemons again, with empty tables."""
        for daemon in (self.active, self.peer):
            daemon.stop()
            if daemon.entries():
                daemon.namespace.run("conntrack", "-F")
            daemon.start()

    def open(self, first: int, count: int) -> None:
        self._send(self._made[first : first + count])

    def close(self, first: int, count: int) -> None:
        self._send(self._changed[first : first + count])

    def _send(self, rows: Any) -> None:
        for at in range(0, len(rows), PER_CALL):
            self._socket.send(rows[at : at + PER_CALL])

    def progress(self) -> tuple[int, int]:
        counts = self._counts()
        return counts["connections created"], counts["connections updated"]

    def _counts(self) -> Mapping[str, int]:
        return numbers_of(self.peer.ask(_STATISTICS), "external inject" if self.direct else "cache external")

    def held(self) -> int:
        """Connections that the peer has: in its external cache, or in its kernel."""
        return self.peer.entries() if self.direct else self._counts()["current active connections"]

    def missing(self) -> int:
        return len(self._made) - self.held()

    def fill(self, count: int) -> None:
        """Have `count` established connections on both nodes."""
        self.prepare(count, count)
        for at in range(0, count, self.window):
            self.open(at, self.window)
            wait_until(lambda: self.held() >= min(count, at + self.window), "the peer to have more entries", 60)  # noqa: B023

    def resync_s(self) -> dict[str, float]:
        """A peer without entries asks for all (`conntrackd -n`), and commits them unless they are in its kernel (`-c`)."""
        count = self.active.entries()
        self._flush_peer()
        found = {"resync": _timed(lambda: self._ask_until(_RESYNC, lambda: self.held() == count))}
        if not self.direct:
            found["commit"] = _timed(lambda: self._ask_until(_COMMIT, lambda: self.peer.entries() == count))
        return found

    def _flush_peer(self) -> None:
        if not self.direct:
            self.peer.ask(_FLUSH_EXTERNAL)
        if self.peer.entries():
            self.peer.namespace.run("conntrack", "-F")
        wait_until(lambda: self.held() == 0, "an empty peer")

    def _ask_until(self, request: int, done: Callable[[], bool]) -> None:
        self.peer.ask(request)
        wait_until(done, f"conntrackd to finish request {request}", 60, every_s=0.005)

    def cpu_s(self) -> tuple[float, float]:
        return processor_s([self.active.pid]), processor_s([self.peer.pid])

    def wire_bytes(self) -> int:
        return link_bytes(self._namespaces[0])


def _timed(work: Callable[[], None]) -> float:
    began_s = time.monotonic()
    work()
    return time.monotonic() - began_s
