"""What is measured of every subject alike: a stream of short connections, lag at a rate, work at rest.

Knows nothing of who is under test. A subject numbers its connections; a peer has them in the order in which they were opened.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.suite.turns import NotMeasured
from tests.rig.namespaces import Namespace

CHUNK = 1000
"""Connections that are opened at once; they are closed after the next chunk was opened: a short connection of HTTP."""
TURN_S = 0.005
"""How often connections are opened at a given rate."""
DEADLINE_S = 30.0


class Subject(Protocol):
    """Two nodes that replicate connections, the first one active."""

    name: str
    window: int
    """How many connections may be on their way: as many as its buffers take without a loss."""
    poll_s: float
    """How often it may be asked for its progress without disturbing it."""

    def prepare(self, count: int, chunk: int) -> None:
        """Get ready to open connections 0 to `count` - 1, which neither node has, in chunks."""

    def open(self, first: int, count: int) -> None:
        """Make connections that are established on the active node."""

    def close(self, first: int, count: int) -> None:
        """Have both ends close them."""

    def progress(self) -> tuple[int, int]:
        """How many of the prepared connections the peer has; how many of them as closed."""

    def missing(self) -> int:
        """How many connections the peer lacks, counted in what it has."""

    def fill(self, count: int) -> None:
        """Have `count` established connections on both nodes."""

    def cpu_s(self) -> tuple[float, float]:
        """Processor time used so far by the active node's processes and by the peer's."""

    def wire_bytes(self) -> int:
        """Bytes on the link between the nodes, in both directions, since it exists."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a stream of `flows` short connections that the peer had after `seconds`."""

    flows: int
    seconds: float
    active_s: float
    peer_s: float
    wire_bytes: int
    missing: int

    def figures(self) -> dict[str, float]:
        return {
            "flows/s": self.flows / self.seconds,
            "active us": self.active_s / self.flows * 1e6,
            "peer us": self.peer_s / self.flows * 1e6,
            "bytes": self.wire_bytes / self.flows,
            "missing": self.missing,
        }


def stream(subject: Subject, flows: int) -> Cost:
    """Open and close connections as fast as the peer gets them. Raises NotMeasured if some do not arrive."""
    subject.prepare(flows, CHUNK)
    cpu, wire = subject.cpu_s(), subject.wire_bytes()
    opened, began_s = 0, time.monotonic()
    while True:
        has, closed = subject.progress()
        now_s = time.monotonic()
        if closed >= flows:
            break
        if now_s > began_s + DEADLINE_S:
            raise NotMeasured(f"its peer has {has:,} of {flows:,} connections, {closed:,} of them closed")
        if opened == flows or opened - closed > subject.window:
            time.sleep(subject.poll_s)
            continue
        while opened < flows and opened - closed <= subject.window:
            _turn(subject, opened, CHUNK, flows)
            opened += CHUNK
    after, wire = subject.cpu_s(), subject.wire_bytes() - wire
    return Cost(flows, now_s - began_s, after[0] - cpu[0], after[1] - cpu[1], wire, subject.missing())


def _turn(subject: Subject, first: int, chunk: int, flows: int) -> None:
    """Open a chunk and close the one before; the last one too."""
    subject.open(first, chunk)
    if first:
        subject.close(first - chunk, chunk)
    if first + chunk >= flows:
        subject.close(first, chunk)


def lags_ms(subject: Subject, per_second: int, seconds: float) -> list[float]:
    """Of each chunk at this rate, from before it was opened until the peer has it. Raises NotMeasured if some do not arrive."""
    chunk = max(1, int(per_second * TURN_S))
    flows = chunk * int(seconds / TURN_S)
    subject.prepare(flows, chunk)
    written: list[float] = []
    arrived: list[float] = []
    began_s = time.monotonic()
    while len(arrived) * chunk < flows:
        now_s = time.monotonic()
        if now_s > began_s + seconds + DEADLINE_S:
            raise NotMeasured(f"its peer has {len(arrived) * chunk:,} of {flows:,} connections")
        if len(written) * chunk < flows and now_s >= began_s + len(written) * TURN_S:
            written.append(now_s)
            _turn(subject, (len(written) - 1) * chunk, chunk, flows)
        has, _ = subject.progress()
        now_s = time.monotonic()
        arrived += [now_s] * (min(has // chunk, len(written)) - len(arrived))
        time.sleep(subject.poll_s)
    return lags(written, arrived)


def lags(written_s: Sequence[float], arrived_s: Sequence[float]) -> list[float]:
    """In ms."""
    return [(there - here) * 1000 for here, there in zip(written_s, arrived_s, strict=True)]


def at_rest(subjects: Sequence[Subject], seconds: float) -> dict[str, tuple[float, float]]:
    """Percent of a core that each node's processes use while nothing happens; all subjects in the same seconds."""
    before = [subject.cpu_s() for subject in subjects]
    began_s = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    return {subject.name: shares(earlier, subject.cpu_s(), took_s) for subject, earlier in zip(subjects, before, strict=True)}


def shares(before_s: tuple[float, float], after_s: tuple[float, float], seconds: float) -> tuple[float, float]:
    """Percent of a core, of both nodes."""
    return 100 * (after_s[0] - before_s[0]) / seconds, 100 * (after_s[1] - before_s[1]) / seconds


def processor_s(pids: Sequence[int]) -> float:
    """Processor time, user and system, of processes of all threads, ended ones included; to the nanosecond."""
    return sum(time.clock_gettime(_clock_of(pid)) for pid in pids)


def link_bytes(namespace: Namespace) -> int:
    """Bytes that the interface ha0 of a namespace has received and sent."""
    return namespace.call(lambda: device_bytes(Path("/proc/thread-self/net/dev").read_text(), "ha0"))


def device_bytes(table: str, device: str) -> int:
    """Received and sent, of an interface in the text of /proc/net/dev."""
    for line in table.splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            received, sent = numbers.split()[0], numbers.split()[8]
            return int(received) + int(sent)
    raise ValueError(f"there is no interface {device}")


def _clock_of(pid: int) -> int:
    """What clock_getcpuclockid(3) returns: CPUCLOCK_SCHED of a process."""
    return (~pid << 3) | 2
