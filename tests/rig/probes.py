"""New connections at a steady pace to measure outages to the millisecond; tests.rig.probe_process opens them.

Decides what counts as an outage. A probe is good when its handshake was complete within half a second; a lost SYN, which the
client's kernel repeats after a second, is not, even if the repetition succeeds.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from tests.rig.namespaces import Namespace
from tests.rig.probe_process import RECORD

PROBE_PORT = 7002
_SCRIPT = str(Path(__file__).with_name("probe_process.py"))

Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Probed:
    """The attempts of a period: when each started and how long it took, in ns; took < 0: it failed."""

    began: Times
    took: Times

    def between(self, since_ns: int, until_ns: int) -> Probed:
        """The attempts that started then."""
        inside = (self.began >= since_ns) & (self.began < until_ns)
        return Probed(self.began[inside], self.took[inside])

    @property
    def failed(self) -> int:
        return int(np.count_nonzero(self.took < 0))

    @property
    def slowest_ms(self) -> float:
        """The longest time to establish a connection."""
        return float(self.took.max(initial=0)) / 1e6

    @property
    def outage_ms(self) -> float:
        """The longest time without the start, or without the end, of a good probe; infinite if there are fewer than two."""
        good = self.took >= 0
        if np.count_nonzero(good) < 2:
            return float("inf")
        began = np.sort(self.began[good])
        ended = np.sort(self.began[good] + self.took[good])
        return float(max(np.diff(began).max(), np.diff(ended).max())) / 1e6


class Acceptor:
    """Accepts the probes' connections on a backend and closes them; a probe measures the path to it."""

    def __init__(self, namespace: Namespace, port: int = PROBE_PORT) -> None:
        self._process = namespace.popen([sys.executable, "-S", _SCRIPT, "accept", str(port)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Probes:
    """Probing from now until `stop`. Pass the client's namespace, and the VIP and port of a farm of acceptors."""

    def __init__(self, namespace: Namespace, address: str, port: int = PROBE_PORT, interval_ms: float = 1.0) -> None:
        words = [sys.executable, "-S", _SCRIPT, "connect", address, str(port), str(round(interval_ms * 1000))]
        self._process = namespace.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        self._records = bytearray()
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="probes", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while data := self._out.read(65536):
            with self._lock:
                self._records += data

    def so_far(self) -> Probed:
        """Every attempt that has come to an end."""
        with self._lock:
            whole = len(self._records) // RECORD.size
            pairs = np.frombuffer(bytes(self._records[: whole * RECORD.size]), np.int64).reshape(-1, 2)
        order = np.argsort(pairs[:, 0], kind="stable")
        return Probed(pairs[order, 0], pairs[order, 1])

    def stop(self) -> Probed:
        """Start no more, wait for those in progress, return all."""
        if self._process.poll() is None:
            self._in.close()
            self._process.wait(10)
        self._reader.join(5)
        self._in.close()
        self._out.close()
        return self.so_far()

    def close(self) -> None:
        """Stop at once, whatever is in progress."""
        if self._process.poll() is None:
            self._process.kill()
        self.stop()
