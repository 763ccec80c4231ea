"""Finds the control socket of the xlbd that runs with a node file, by what the kernel shows: for when the file does not say.

The file may have become invalid, may be gone, or may name another run_dir than the daemon was started with. Decides which of
the listening sockets is the daemon's. Must not know the protocol.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

FILE = "control.sock"
MAX_CANDIDATES = 64
_ACCEPTS = 0x10000  # SO_ACCEPTCON in the flags of /proc/net/unix
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def socket_of(config: Path, default: Path) -> Path | None:
    """The socket of a running xlbd whose node file is `config`, in this network namespace; None: there is none.

    default: the node file of an xlbd without --config.
    """
    for path in listening(Path("/proc/net/unix").read_text(errors="replace"))[:MAX_CANDIDATES]:
        with contextlib.suppress(OSError):
            pid = _listener(path)
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0") if pid else []
            found = config_of(words, default)
            if found is not None and _absolute(found, pid).resolve() == config.absolute().resolve():
                return path
    return None


def listening(table: str) -> list[Path]:
    """The paths of control sockets in a /proc/net/unix (proc(5)) on which a process listens."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS and fields[7].endswith(f"/{FILE}"):
            found.append(Path(fields[7]))
    return found


def config_of(words: Sequence[str], default: Path) -> Path | None:
    """The node file of a process with this command line; None: it is not xlbd."""
    if not any(os.path.basename(word) == "xlbd" or "ctl.daemon" in word for word in words):  # noqa: PTH119 (words, not paths)
        return None
    return next(_options(words), default)


def _options(words: Sequence[str]) -> Iterator[Path]:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--config":
            yield Path(following)
        elif word.startswith("--config="):
            yield Path(word.removeprefix("--config="))


def _listener(path: Path) -> int:
    """The process that listens, if it is root's or this user's; else 0. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as knock:
        knock.connect(os.fspath(path))
        pid, uid, _ = _CREDENTIALS.unpack(knock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid if uid in (0, os.geteuid()) else 0


def _absolute(path: Path, pid: int) -> Path:
    return path if path.is_absolute() else Path(f"/proc/{pid}/cwd").readlink() / path
