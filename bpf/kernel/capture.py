"""The maps of a capture, as its client uses them: the filter, the records, and how many were lost (bpf/program/capture.h).

Must not know what a record means to people, nor how the program that writes it came onto the interfaces.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpf import libbpf
from bpf.constants import CAPTURE_RING_BYTES
from bpf.dataplane import CaptureFilter, PlaneError
from bpf.maps import elements
from bpf.maps.byte_ring import ByteRing

READ_AT_ONCE = 512

_SETTINGS = struct.Struct("=QQ16s16sIIII")
_LOSSES = struct.Struct("=QQQ")
_NUMBER = struct.Struct("=I")
_NAMES = ("capture_settings", "capture_backends", "capture_ring", "capture_losses")


def encode(wanted: CaptureFilter, until_ns: int) -> bytes:
    """As struct capture_settings."""
    client = wanted.client
    address = client.network_address.packed if client else b""
    mask = client.netmask.packed if client else b""
    bits = sum(1 << number for number in wanted.verdicts)
    numbers = (client.version if client else 0, wanted.farm, wanted.backends is not None, wanted.snap_bytes)
    return _SETTINGS.pack(until_ns, bits, address, mask, *numbers)


@dataclass(frozen=True, slots=True)
class Losses:
    """Packets that the program handled during the capture, that the filter selected, and of these the ones that were lost."""

    seen: int = 0
    matched: int = 0
    lost: int = 0


class CaptureMaps:
    """One capture, as a context."""

    def __init__(self, directory: Path) -> None:
        """Open the maps that are pinned there. Raises PlaneError."""
        self.directory = directory
        self._maps: dict[str, int] = {}
        self._written: frozenset[int] = frozenset()
        try:
            for name in _NAMES:
                self._maps[name] = libbpf.obj_get(directory / name)
            self._ring = ByteRing(self._maps["capture_ring"], CAPTURE_RING_BYTES)
        except OSError as error:
            self._close_maps()
            raise PlaneError(f"the records in {directory} cannot be read: {error.strerror or error}") from error
        self._inode = self._find()

    def __enter__(self) -> CaptureMaps:
        return self

    def __exit__(self, *_: object) -> None:
        self._ring.close()
        self._close_maps()

    @property
    def readable(self) -> int:
        """A descriptor that is readable while records wait."""
        return self._maps["capture_ring"]

    def is_pinned(self) -> bool:
        """Whether the program still records for this capture."""
        return self._find() == self._inode

    def record(self, wanted: CaptureFilter, until_ns: int) -> None:
        """Record until then, in ns of CLOCK_MONOTONIC. Raises OSError."""
        backends = wanted.backends or frozenset()
        for number in backends - self._written:
            elements.update(self._maps["capture_backends"], _NUMBER.pack(number), _NUMBER.pack(1))
        for number in self._written - backends:
            elements.delete(self._maps["capture_backends"], _NUMBER.pack(number))
        self._written = backends
        elements.update(self._maps["capture_settings"], _NUMBER.pack(0), encode(wanted, until_ns))

    def read(self) -> Iterator[bytes]:
        """The records that wait, not more than READ_AT_ONCE."""
        return self._ring.read(READ_AT_ONCE)

    def skip(self) -> None:
        """Forget the records that wait."""
        self._ring.skip()

    def losses(self) -> list[Losses]:
        """By CPU."""
        size = libbpf.possible_cpus() * _LOSSES.size
        content = elements.lookup(self._maps["capture_losses"], _NUMBER.pack(0), size)
        return [Losses(*each) for each in _LOSSES.iter_unpack(content or b"")]

    def _find(self) -> int:
        try:
            return (self.directory / "capture_ring").stat().st_ino
        except OSError:
            return 0

    def _close_maps(self) -> None:
        for fd in self._maps.values():
            os.close(fd)
        self._maps.clear()
