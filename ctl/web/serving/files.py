"""Static files below a directory: the page, and the libraries of Debian's packages."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 4 << 20
KEPT_BYTES = 4 << 20
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/vnd.microsoft.icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
"""Files of other kinds are not served."""


@dataclass(frozen=True, slots=True)
class File:
    """tag: changes with the content."""

    content: bytes
    media_type: str
    tag: str


class Directory:
    """Every file below `root` whose kind is known. Their content is kept: slow readers of one file share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept: dict[Path, tuple[tuple[int, int, int], File]] = {}

    async def read(self, path: str) -> File | None:
        """The file, "" being index.html; None: there is none, or it is outside of the directory."""
        return await asyncio.to_thread(self._read, path or "index.html")

    def _read(self, path: str) -> File | None:
        kind = TYPES.get(Path(path).suffix)
        if kind is None or "\0" in path or len(path) > 255:
            return None
        try:
            root = self.root.resolve(strict=True)
            found = (root / path).resolve(strict=True)
            status = found.stat()
            if not found.is_relative_to(root) or not found.is_file() or status.st_size > MAX_FILE_BYTES:
                return None
            version = status.st_ino, status.st_mtime_ns, status.st_size
            kept = self._kept.get(found)
            if kept is not None and kept[0] == version:
                return kept[1]
            content = found.read_bytes()
        except OSError:
            return None
        made = File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        while sum(len(each.content) for _, each in self._kept.values()) + len(content) > KEPT_BYTES and self._kept:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[found] = version, made
        return made
