"""A simulated disk: what is written is there at once, what is synced survives a power cut.

Decides what a power cut leaves, and what a full or read-only disk refuses.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from ctl.state.durable_files import Files


class Disk(Files):
    """Implements `ctl.state.durable_files.Files` in memory. A full disk takes what needs no further space."""

    def __init__(self, wrote: Callable[[], None]) -> None:
        """wrote: called after each write, when a crash may come before the next step."""
        self._wrote = wrote
        self._names: dict[Path, bytes] = {}  # as the running kernel sees them
        self._durable: dict[Path, bytes] = {}
        self.full = self.read_only = False

    def power_cut(self) -> bool:
        """Names that were not synced are as they were before. Returns whether there were any."""
        before, self._names = self._names, dict(self._durable)
        return before != self._durable

    def matching(self, prefix: str) -> list[bytes]:
        """The files whose name begins so."""
        return [content for path, content in self._names.items() if path.name.startswith(prefix)]

    # --- Files --------------------------------------------------------------------------------------------------

    def publish(self, path: Path, content: bytes) -> None:
        self._names[path] = content

    def read(self, path: Path, limit: int = -1) -> bytes:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        content = self._names[path]
        return content if limit < 0 else content[:limit]

    def exists(self, path: Path) -> bool:
        return path in self._names

    def make_directory(self, path: Path) -> None:
        pass

    def write_synced(self, path: Path, content: bytes) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, "read-only file system", str(path))
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device", str(path))
        self._names[path] = content
        self._wrote()

    def overwrite(self, path: Path, content: bytes) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, "read-only file system", str(path))
        self._names[path] = self._durable[path] = content
        self._wrote()

    def remove(self, path: Path) -> None:
        self._names.pop(path, None)

    def link(self, existing: Path, new: Path) -> None:
        if new in self._names:
            raise FileExistsError(errno.EEXIST, "file exists", str(new))
        self._names[new] = self.read(existing)

    def rename(self, old: Path, new: Path) -> None:
        self._names[new] = self.read(old)
        del self._names[old]

    def sync_directory(self, path: Path) -> None:
        under = {each: content for each, content in self._names.items() if each.parent == path}
        self._durable = {each: content for each, content in self._durable.items() if each.parent != path} | under
