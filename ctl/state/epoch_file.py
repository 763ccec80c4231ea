"""state_dir/epoch.json: the epochs and leases that this node knows, and whether it is in maintenance.

Decides the format, and how to handle a damaged file. The failover machine decides the values. An epoch is on disk before the
node is active in it, so that no epoch is used again after a restart; so is the lease that the peer relies on.
"""

from __future__ import annotations

import contextlib
import errno
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeGuard

from ctl.errors import Code, XlbError, storage_code
from ctl.state.durable_files import Files, utc_stamp
from ctl.state.sealed import is_intact, sealed
from sync.failover.timing import MAX_LEASE_NS, MIN_LEASE_NS

FILE = "epoch.json"
COPY = "epoch.json.copy"
FORMAT_VERSION = 2  # 1: without the leases
MAX_BYTES = 4096
SECTOR_BYTES = 512
"""Size of the file: what a disk writes as a whole."""
MAX_EPOCH = 2**63 - 1
MAX_NODES = 140
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class EpochState:
    """State that survives a restart. `reserved`: up to this epoch this node may have been active (`sync.failover.epochs`).

    Leases: `sync.failover.agreement`.
    """

    epoch: int = 0
    reserved: int = 0
    maintenance: bool = False
    lease_ns: int = 0
    peer_lease_ns: int = 0
    nodes: str = ""  # of the pair, "lb1/lb2": tells a node that lost its cluster.json that it is not single


class EpochFile:
    """Methods block (fsync): call them in a thread."""

    def __init__(self, state_dir: Path, files: Files | None = None) -> None:
        self.path, self._copy = state_dir / FILE, state_dir / COPY
        self._files = files or Files()

    def load(self) -> tuple[EpochState, str]:
        """The stored state, and a warning or "".

        A damaged file is saved under another name and restored from its copy. Without a copy this node starts from nothing:
        the peer and the configuration know the earlier epochs. Raises XlbError if the file has a newer format or cannot be
        read.
        """
        try:
            return self._read(self.path), ""
        except FileNotFoundError:
            return EpochState(), ""
        except (ValueError, RecursionError) as error:
            damage = f"{self.path} is damaged ({error}), saved as {self._keep()}"
        try:
            state = self._read(self._copy)
        except (FileNotFoundError, ValueError, RecursionError):
            return EpochState(), f"{damage}; this node learns the epoch from its peer"
        with contextlib.suppress(OSError):  # the next change of the state writes it as well
            self.save(state)
        return state, f"{damage}, restored from {self._copy}"

    def _read(self, path: Path) -> EpochState:
        """Raises FileNotFoundError, ValueError for what is damaged, XlbError for the rest."""
        try:
            text = self._files.read(path, MAX_BYTES + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise XlbError(f"cannot read {path}: {error.strerror}; run xlbd as root", storage_code(error)) from None
        return _decode(text, path)

    def _keep(self) -> Path:
        """Save the damaged file under another name."""
        kept = self.path.with_name(f"{FILE}.corrupt-{utc_stamp()}")
        try:
            self._files.rename(self.path, kept)
        except OSError as reason:
            raise XlbError(
                f"{self.path} is damaged and cannot be renamed: {reason.strerror}; move it away by hand", Code.DAMAGED_FILE
            ) from None
        return kept

    def exists(self) -> bool:
        """Whether there is one; `load` takes a missing one for a new node's."""
        return self._files.exists(self.path)

    def save(self, state: EpochState) -> None:
        """Returns once the file would survive a power cut. Raises OSError.

        On a full disk it is written in the space that the present file has. The copy is written first, so that it is never
        older; a disk that refuses it may still take the file.
        """
        document = sealed({"xlb": "epoch", "version": FORMAT_VERSION, **asdict(state)})
        text = json.dumps(document, separators=(",", ":")).encode().ljust(SECTOR_BYTES - 1) + b"\n"
        with contextlib.suppress(OSError):
            self._write(self._copy, text)
        self._write(self.path, text)

    def _write(self, path: Path, text: bytes) -> None:
        try:
            self._files.replace(path, text)
        except OSError as error:
            if error.errno not in _FULL or not self._files.exists(path):
                raise
            self._files.overwrite(path, text)

    def remove(self) -> None:
        """Delete the file when the node becomes single; its next pair starts with new epochs. Raises OSError."""
        self._files.remove(self._copy)
        self._files.remove(self.path)


def _decode(text: bytes, path: Path) -> EpochState:
    """Raises ValueError for what is damaged, XlbError for a newer format."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("xlb") != "epoch":
        raise ValueError("it is not an epoch file")
    if not is_intact(document):
        raise ValueError("its digest does not match its content")
    version = document.get("version")
    if not _is_number(version):
        raise ValueError("version: expected a number")
    if version > FORMAT_VERSION:
        raise XlbError(
            f"{path} was written in format {version} by a newer xlb; this version reads {FORMAT_VERSION}: upgrade xlb",
            Code.NEWER_FORMAT,
        )
    epoch, reserved, maintenance = (document.get(key) for key in ("epoch", "reserved", "maintenance"))
    if not _is_number(epoch) or not _is_number(reserved) or not isinstance(maintenance, bool):
        raise ValueError("epoch, reserved: expected numbers, maintenance: true or false")
    nodes = document.get("nodes", "")
    if not isinstance(nodes, str) or len(nodes) > MAX_NODES:
        raise ValueError(f"nodes: expected at most {MAX_NODES} characters")
    own_ns, peer_ns = _lease(document, "lease_ns"), _lease(document, "peer_lease_ns")
    return EpochState(epoch, reserved, maintenance, own_ns, peer_ns, nodes)


def _lease(document: dict[str, object], key: str) -> int:
    """0: not known, as in a file of format 1."""
    value = document.get(key, 0)
    if not _is_number(value) or not (value == 0 or MIN_LEASE_NS <= value <= MAX_LEASE_NS):
        raise ValueError(f"{key}: expected 0 or {MIN_LEASE_NS} to {MAX_LEASE_NS}")
    return value


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_EPOCH
