"""Files that survive a power cut: the content is on disk before the name refers to it.

Decides the order of the steps. Must not know the content of a file or the effect of a failure.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path


class Files:
    """The steps on the file system, each atomic; a test replaces them to stop between any two. All raise OSError and block."""

    def replace(self, path: Path, content: bytes) -> None:
        """Create or replace a file; it survives a power cut once this returns."""
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

    def read_end(self, path: Path, size: int) -> bytes:
        """The last `size` bytes of a file, all of a shorter one."""
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read(size)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def sizes(self, directory: Path) -> dict[str, int]:
        """The regular files of a directory by name, and their bytes; none of a directory that does not exist."""
        try:
            with os.scandir(directory) as found:
                return {each.name: each.stat().st_size for each in found if each.is_file(follow_symlinks=False)}
        except FileNotFoundError:
            return {}

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write_synced(self, path: Path, content: bytes) -> None:
        """Write a new file, mode 0600; it is on disk once this returns."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def overwrite(self, path: Path, content: bytes) -> None:
        """Write over the beginning of an existing file, in the space it has: works on a full disk.

        Not atomic. A content of one sector (512 bytes) is written whole or not at all by usual disks; the caller's digest finds
        the exception.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.pwrite(descriptor, content, 0) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
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
    """The current time for a file name, to the second."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
