"""`xlbctl capture`: each packet that XDP takes, before and after, with its verdict, farm and backend.

xlbd puts the program that records packets on the interfaces; this reads the records from its maps, without xlbd, and decides
when the capture is over. It is over in any case once this process is: xlbd watches it, and the program stops to record.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import click

from bpf.constants import CAPTURE_SNAP_BYTES
from bpf.dataplane import CaptureFilter, PlaneError
from bpf.kernel.capture import CaptureMaps, Losses
from ctl.capture import selection
from ctl.capture.record import decode
from ctl.capture.selection import Selection
from ctl.capture.text import Names
from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.capturing.output import Documents, Lines, Output, PcapngFile
from ctl.cli.options import complete_backend, complete_farm, number, parse_server
from ctl.cli.terminal.interrupt import interruptible
from ctl.config import record_codec
from ctl.config.model import Config
from ctl.errors import Code, InvalidInput, XlbError
from ctl.state import node_file

AHEAD_NS = 3_000_000_000
"""How long the program records without this process, for example while that is stopped."""
LOOK_EVERY_S = 0.5
IDLE_S = 0.02
"""The ring holds more than what a CPU forwards in this time."""
LEAST_SNAP_BYTES = 14
FARMS = "farms.jsonl"


@click.command(
    "capture",
    cls=XlbCommand,
    examples=[
        "xlbctl capture --client 192.0.2.7",
        "xlbctl capture --drops --count 20",
        "xlbctl capture --farm web --backend 10.77.0.11 --seconds 10 -w web.pcapng",
        "xlbctl capture --verdict drop_no_backend -o json",
        "xlbctl capture -w - | tshark -r - -T fields -e ip.src -e ip.dst -e frame.comment",
    ],
)
@click.option("--farm", shell_complete=complete_farm, metavar="FARM", help="Only packets of this farm.")
@click.option("--client", metavar="ADDR[/BITS]", help="Only packets from, to or about this client or network.")
@click.option(
    "--backend", shell_complete=complete_backend, metavar="ADDR[:PORT]", help="Only packets of connections to this backend."
)
@click.option(
    "--verdict", multiple=True, metavar="VERDICT", help="Only packets with this verdict of 'xlbctl stats'; repeatable."
)
@click.option("--drops", is_flag=True, help="Only packets that are dropped.")
@click.option("-w", "--write", metavar="FILE", help="Write a pcapng file; -: standard output.")
@click.option("--count", type=number(1, 1_000_000_000), metavar="N", help="End after N packets.")
@click.option("--seconds", type=number(1, 86_400), metavar="S", help="End after S seconds.")
@click.option(
    "--snaplen",
    type=number(LEAST_SNAP_BYTES, CAPTURE_SNAP_BYTES),
    default=CAPTURE_SNAP_BYTES,
    metavar="BYTES",
    help="Keep so many bytes of each packet.",
)
@pass_session
def capture(
    session: Session,
    farm: str | None,
    client: str | None,
    backend: str | None,
    verdict: tuple[str, ...],
    drops: bool,
    write: str | None,
    count: int | None,
    seconds: int | None,
    snaplen: int,
) -> None:
    """Show each packet that XDP takes: as it came, as it left, its verdict with the reason, its farm and backend.

    tcpdump sees none of them. Packets are recorded where they are handled, by a build of the program that xlbd puts on the
    interfaces for this time; connections stay, and without a capture nothing is slower. Options that select packets apply
    together. In a file each packet is there as received, and as sent or given to the kernel, with a comment (tshark:
    frame.comment). Ctrl-C ends it. Needs root.
    """
    chosen = Selection(
        farm or "",
        _client(client) if client else None,
        _backend(backend) if backend else None,
        selection.verdicts(verdict, drops),
        snaplen,
    )
    if write is not None and session.json:
        raise InvalidInput("-o json prints packets, and -w writes them: use one of them", "-w")
    if os.geteuid() != 0:
        raise XlbError("capturing packets needs root: sudo xlbctl capture", Code.NOT_PERMITTED)
    configured = _Configured(session)
    chosen.filter(configured.config())
    output: Output = PcapngFile(write, snaplen) if write is not None else Documents() if session.json else Lines()
    limit = _Limit(count or 0, time.monotonic() + seconds if seconds else float("inf"))
    directory = Path(session.call("capture.start")["directory"])
    ended = False
    try:
        with _capture_maps(directory) as maps:
            reader = _Reader(maps, chosen, configured, output, limit)
            ended = reader.run(lambda: _announce(write))
            total = reader.end()
    finally:
        with contextlib.suppress(XlbError):  # xlbd notices the end of this process too
            session.call("capture.end")
    click.echo(_summary(reader.number, total, maps_losses=reader.losses), err=True)
    if ended:
        raise XlbError(
            "the capture ended early: xlbd was restarted, or replaced the program for a change; run it again",
            Code.CAPTURE_ENDED,
        )


@dataclass(slots=True)
class _Limit:
    """When a capture is over. count 0: never; until_s of time.monotonic()."""

    count: int
    until_s: float

    def is_over(self, number: int) -> bool:
        return 0 < self.count <= number or time.monotonic() >= self.until_s


class _Configured:
    """The configuration on disk: that in force, whether xlbd runs or not."""

    def __init__(self, session: Session) -> None:
        path = session.config or node_file.DEFAULT_PATH
        self._path = node_file.load(path).node.state_dir / FARMS
        self._seen: tuple[int, int] | None = None
        self._config = Config()

    def config(self) -> Config:
        """Read again when it has changed; as before if it cannot be read."""
        with contextlib.suppress(OSError, record_codec.DamagedRecord):
            status = self._path.stat()
            if self._seen != (status.st_ino, status.st_mtime_ns):
                self._config = record_codec.decode(self._path.read_bytes())
                self._seen = status.st_ino, status.st_mtime_ns
        return self._config


@dataclass(slots=True)
class _Reader:
    """Reads records and writes them until the capture is over. number: of the last record."""

    maps: CaptureMaps
    chosen: Selection
    configured: _Configured
    output: Output
    limit: _Limit
    number: int = 0
    losses: list[Losses] = field(default_factory=list)
    _wanted: CaptureFilter = field(default_factory=CaptureFilter)
    _names: Names = field(default_factory=lambda: Names({}, {}, _interface))
    _real_ns: int = 0
    _looked_s: float = 0.0

    def run(self, begun: Callable[[], None]) -> bool:
        """Returns whether xlbd has ended the capture. begun: called once packets are recorded."""
        with interruptible() as wait:
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            try:
                self._look()
                begun()
                pause_s = 0.0
                while wait(pause_s) is None and not self.limit.is_over(self.number):
                    if time.monotonic() - self._looked_s >= LOOK_EVERY_S and not self._look():
                        return True
                    pause_s = 0.0 if self._read() else IDLE_S
                return False
            except BrokenPipeError:  # the reader of the pipe has what it wanted
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return False

    def end(self) -> Losses:
        """Stop recording, write what is left, and the statistics."""
        self.maps.record(self._wanted, 0)
        with contextlib.suppress(BrokenPipeError):
            while self._read():
                pass
        self.losses = self.maps.losses()
        total = Losses(*(sum(getattr(each, name) for each in self.losses) for name in ("seen", "matched", "lost")))
        with contextlib.suppress(BrokenPipeError):
            self.output.end(total)
        return total

    def _look(self) -> bool:
        """Record on, by the configuration and the clock as they are now. False: the program is not there any more."""
        self._looked_s = time.monotonic()
        if not self.maps.is_pinned():
            return False
        config = self.configured.config()
        with contextlib.suppress(XlbError):  # a farm that was removed meanwhile has the packets of its connections
            self._wanted = self.chosen.filter(config)
        self._names = Names.of(config, _interface)
        self._real_ns = time.time_ns() - time.monotonic_ns()
        self.maps.record(self._wanted, time.monotonic_ns() + AHEAD_NS)
        return True

    def _read(self) -> int:
        """Write the records that wait; returns how many there were."""
        found = 0
        for content in self.maps.read():
            found += 1
            if 0 < self.limit.count <= self.number:
                continue
            self.number += 1
            self.output.write(decode(content), self._names, self._real_ns, self.number)
        if found:
            self.output.flush()
        return found


def _capture_maps(directory: Path) -> CaptureMaps:
    try:
        return CaptureMaps(directory)
    except PlaneError as error:
        raise XlbError(str(error), Code.KERNEL_REFUSED) from error


def _client(text: str) -> IPv4Network | IPv6Network:
    try:
        return selection.parse_client(text)
    except ValueError as error:
        raise InvalidInput(str(error), "--client") from error


def _backend(text: str) -> tuple[str, int | None]:
    try:
        return parse_server(text)
    except ValueError as error:
        raise InvalidInput(str(error), "--backend") from error


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"(interface {index})"


def _announce(write: str | None) -> None:
    where = f" to {write}" if write not in (None, "-") else ""
    click.echo(f"xlbctl: capturing{where}, Ctrl-C ends it", err=True)


def _summary(written: int, total: Losses, maps_losses: list[Losses]) -> str:
    """As tcpdump has it."""
    lines = [
        f"{written} packets captured",
        f"{total.matched} packets matched the filter, of {total.seen} that xlb handled",
        f"{total.lost} packets lost",
    ]
    if total.lost:
        by_cpu = ", ".join(f"{cpu}: {each.lost}" for cpu, each in enumerate(maps_losses) if each.lost)
        lines[-1] += f" (by CPU: {by_cpu}): use a narrower filter, -w, or --snaplen 96"
    return "\n".join(lines)
