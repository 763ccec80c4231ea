"""Files that survive a power cut: content is on disk before its name is.

Decides the order of the steps. Must not know what is in a file, nor what a failure means to whom.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


class Files:
    """The steps on the file system, each atomic; a test replaces them to stop between any two. All raise OSError and block."""

    def replace(self, path: Path, content: bytes) -> None:
        """Put a file in place of the one there is, if any; it would survive a power cut when this returns."""
        temporary = path.with_name(f"{path.name}.new")
        self.make_directory(path.parent)
        self.write_synced(temporary, content)
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    def publish(self, path: Path, content: bytes) -> None:
        """Put a file in place of the one there is, if any; it is lost with the machine's memory, as what it describes is."""
        temporary = path.with_name(f"{path.name}.new")
        temporary.write_bytes(content)
        self.rename(temporary, path)

    def read(self, path: Path, limit: int = -1) -> bytes:
        """The content, of a longer file its first `limit` bytes."""
        with path.open("rb") as file:
            return file.read(limit)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write_synced(self, path: Path, content: bytes) -> None:
        """A new file, mode 0600, on disk when this returns."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def link(self, existing: Path, new: Path) -> None:
        os.link(existing, new)

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def utc_stamp() -> str:
    """The time as a part of a file's name, to the second."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
