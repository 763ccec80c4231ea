"""Where the packets of a capture go: a pcapng file, lines for people, documents for programs."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

import click

from bpf.kernel.capture import Losses
from ctl.capture.record import Record
from ctl.capture.text import Capture, Names, document, line
from ctl.cli.output import printable
from ctl.errors import Code, InvalidInput, XlbError
from ctl.version import package_version

_NS = 1_000_000_000


class Output(Protocol):
    """real_ns: what to add to times of CLOCK_MONOTONIC for those of CLOCK_REALTIME."""

    def write(self, record: Record, names: Names, real_ns: int, number: int) -> None: ...

    def flush(self) -> None: ...

    def end(self, total: Losses) -> None: ...


class PcapngFile:
    """`path` "-": standard output."""

    def __init__(self, path: str, snap_bytes: int) -> None:
        """Raises XlbError if the file cannot be written."""
        if path == "-" and sys.stdout.isatty():
            raise InvalidInput("standard output is a terminal: name a file, or a pipe to read it", "-w")
        self._path = path
        try:
            self._file: IO[bytes] = sys.stdout.buffer if path == "-" else Path(path).open("wb")  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        self._capture = Capture(f"xlbctl {package_version()}", f"{os.uname().sysname} {os.uname().release}", snap_bytes)
        self._start_ns = time.time_ns()
        self._put(self._capture.begin())
        self.flush()

    def write(self, record: Record, names: Names, real_ns: int, number: int) -> None:
        self._put(self._capture.packets(record, names, real_ns, number))

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def end(self, total: Losses) -> None:
        self._put(self._capture.end(self._start_ns, time.time_ns(), total.matched, total.lost))
        self.flush()
        if self._path != "-":
            self._file.close()

    def _put(self, blocks: bytes) -> None:
        try:
            self._file.write(blocks)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> Exception:
        """A pipe whose reader has what it wanted is no failure."""
        if isinstance(error, BrokenPipeError):
            return error
        return XlbError(f"the capture cannot be written to {self._path}: {error.strerror}", Code.STORAGE_FAILED)


class Lines:
    """One line per packet."""

    def write(self, record: Record, names: Names, real_ns: int, _number: int) -> None:
        seconds, rest = divmod(record.entered_ns + real_ns, _NS)
        when = f"{datetime.fromtimestamp(seconds, UTC).astimezone():%H:%M:%S}.{rest // 1000:06d}"
        click.echo(printable(line(record, names, when)))

    def flush(self) -> None:
        sys.stdout.flush()

    def end(self, _total: Losses) -> None:
        self.flush()


class Documents:
    """One document per line."""

    def write(self, record: Record, names: Names, real_ns: int, number: int) -> None:
        seconds, rest = divmod(record.entered_ns + real_ns, _NS)
        when = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
        click.echo(json.dumps(document(record, names, when, number), ensure_ascii=False))

    def flush(self) -> None:
        sys.stdout.flush()

    def end(self, _total: Losses) -> None:
        self.flush()
