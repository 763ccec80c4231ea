"""Static files below a directory: the page, and the libraries of Debian's packages."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 4 << 20
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


@dataclass(frozen=True, slots=True)
class Directory:
    """Every file below `root` whose kind is known."""

    root: Path

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
            if not found.is_relative_to(root) or not found.is_file() or found.stat().st_size > MAX_FILE_BYTES:
                return None
            content = found.read_bytes()
        except OSError:
            return None
        return File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
