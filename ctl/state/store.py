"""The configuration on disk: state_dir/farms.jsonl, safe against a crash at any time.

A save writes a new file, syncs it, links the old one as farms.jsonl.previous, renames, and syncs the directory. It takes
encoded bytes; ctl/config/record_codec.py decides the format. All side effects of storing farms are here.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ctl.config.model import Config
from ctl.config.record_codec import MAX_BYTES, DamagedRecord, NewerRecord, decode
from ctl.errors import Code, XlbError, storage_code
from ctl.state.durable_files import Files, utc_stamp

FILE = "farms.jsonl"
PREVIOUS = "farms.jsonl.previous"
TEMPORARY = "farms.jsonl.new"
CORRUPT = "farms.jsonl.corrupt"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The loaded configuration. `message`: a warning, or empty. `kept`: backup copy of the damaged file, if any."""

    config: Config
    message: str = ""
    kept: Path | None = None


class Store:
    """Loads and saves a node's configuration. One process at a time (the daemon holds run_dir's lock)."""

    def __init__(self, state_dir: Path, files: Files | None = None) -> None:
        self.state_dir = state_dir
        self.path = state_dir / FILE
        self._files = files or Files()
        self._seen: LoadReport | None = None

    def load(self) -> LoadReport:
        """The last good configuration, or an empty one on a new node.

        A damaged file is saved under another name, which the report contains. Raises XlbError, with nothing changed, if the
        file has a newer format or is unreadable. What `look` has read is not read again.
        """
        seen, self._seen = self._seen, None
        return seen or self._load()

    def look(self) -> Config:
        """The configuration that `load` will return, before that. Raises XlbError."""
        self._seen = self._seen or self._load()
        return self._seen.config

    def _load(self) -> LoadReport:
        current = self._read(self.path)
        if isinstance(current, Config):
            return LoadReport(current)
        previous = self._read(self.state_dir / PREVIOUS)
        if current is None:
            if isinstance(previous, Config):
                return LoadReport(
                    previous, f"{self.path} is missing: started with generation {previous.generation} of {PREVIOUS}"
                )
            if previous is None:
                return LoadReport(Config())
            kept = self._keep(self.state_dir / PREVIOUS)
            return LoadReport(
                Config(), f"{self.path} is missing and {PREVIOUS} is damaged: started empty; saved as {kept}", kept
            )
        kept = self._keep(self.path)
        found = f"{self.path} is damaged ({current}), saved as {kept}"
        if isinstance(previous, Config):
            return LoadReport(previous, f"{found}: started with generation {previous.generation}, the last good one", kept)
        return LoadReport(Config(), f"{found}: no earlier version exists, started empty", kept)

    def save(self, body: bytes) -> None:
        """Returns once the encoded configuration `body` survives a power cut.

        Blocking (two fsyncs): call it in a thread. Raises XlbError naming the file and the reason.
        """
        temporary, previous = self.state_dir / TEMPORARY, self.state_dir / PREVIOUS
        try:
            self._files.make_directory(self.state_dir)
            self._files.write_synced(temporary, body)
            self._keep_previous(previous)
            self._files.rename(temporary, self.path)
        except OSError as error:
            raise XlbError(
                f"cannot store the configuration in {self.path}: {_reason(error)}; nothing was changed", storage_code(error)
            ) from error
        try:
            self._files.sync_directory(self.state_dir)
        except OSError as error:
            doubt = "the change is written, but may not survive a power cut; check the disk and repeat the change"
            raise XlbError(f"cannot sync {self.state_dir}: {_reason(error)}; {doubt}", storage_code(error)) from error

    def take_back(self) -> None:
        """Undo the last `save`: restore the previous record byte for byte. Blocking. Raises XlbError."""
        temporary, previous = self.state_dir / TEMPORARY, self.state_dir / PREVIOUS
        try:
            self._files.write_synced(temporary, self._files.read(previous))
            self._files.rename(temporary, self.path)
            self._files.sync_directory(self.state_dir)
        except OSError as error:
            raise XlbError(f"cannot restore {PREVIOUS} as {self.path}: {_reason(error)}", storage_code(error)) from error

    def stored(self) -> bytes | None:
        """The bytes of the record on disk, or None. Blocking. Raises XlbError."""
        try:
            return self._files.read(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise XlbError(f"cannot read {self.path}: {_reason(error)}", storage_code(error)) from error

    def _keep_previous(self, previous: Path) -> None:
        """Link the old file as `previous`, which is missing at most between two renames."""
        spare = self.state_dir / f"{PREVIOUS}.new"
        self._files.remove(spare)
        with contextlib.suppress(FileNotFoundError):
            self._files.link(self.path, spare)
            self._files.rename(spare, previous)

    def _read(self, path: Path) -> Config | DamagedRecord | None:
        """None: no such file."""
        try:
            text = self._files.read(path, MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise XlbError(
                f"cannot read {path}: {error.strerror}; run as root, or name another state_dir in the node file",
                storage_code(error),
            ) from error
        try:
            if len(text) > MAX_BYTES:
                raise DamagedRecord(f"it is longer than {MAX_BYTES >> 20} MiB")
            return decode(text)
        except DamagedRecord as error:
            return error
        except NewerRecord as error:
            raise XlbError(
                f"{path}: {error}, or move the file away to start empty; nothing was changed", Code.NEWER_FORMAT
            ) from None

    def _keep(self, path: Path) -> Path:
        """Rename a damaged file to an unused name."""
        stamp = utc_stamp()
        kept = self.state_dir / f"{CORRUPT}-{stamp}"
        number = 1
        while self._files.exists(kept):
            number += 1
            kept = self.state_dir / f"{CORRUPT}-{stamp}-{number}"
        try:
            self._files.rename(path, kept)
            self._files.sync_directory(self.state_dir)
        except OSError as error:
            raise XlbError(
                f"{path} is damaged and cannot be renamed: {error.strerror}; move it away by hand", Code.DAMAGED_FILE
            ) from error
        return kept


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
