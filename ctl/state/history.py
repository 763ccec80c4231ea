"""The last generations of the configuration: state_dir/farms.history-….jsonl, and the configurations that lost in a split.

The newest generation is the configuration on disk itself. Once another replaces it, an entry is a second name (a hard link) of
what `ctl.state.store` has as farms.jsonl.previous: the same bytes, which nothing writes again, without a copy. It is made after
the change is in force. What cannot be kept or read is missing from the history and hinders nothing else: a change counts, and a
start succeeds, without. Entries are numbered in the order in which they came into force on this node; several may have the
same generation.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ctl.config.model import Config
from ctl.config.record_codec import MAX_BYTES, MAX_HEADER_BYTES, DamagedRecord, NewerRecord, decode, decode_header
from ctl.errors import Code, InvalidInput, XlbError, storage_code
from ctl.state.durable_files import Files
from ctl.state.store import FILE, PREVIOUS

MOST = 50
"""Generations that are shown. So many entries are kept: the newest generation needs none, the oldest one to compare with."""
MOST_BYTES = 64 << 20
FEWEST = 1
"""So many entries are kept whatever their size: the newest is the file farms.jsonl.previous, too."""
MOST_CONFLICTS = 100
NAME = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?|conflict-[0-9]{1,19}-[0-9]{1,19}")
"""How an entry may be named: 12, or 12.40 for an older one of that generation, or conflict-3-12."""

_ENTRY = re.compile(r"farms\.history-([0-9]{8,19})\.jsonl")
_CONFLICT = re.compile(r"farms\.(conflict-[0-9]{1,19}-[0-9]{1,19})\.jsonl")
_NAMED = 10
_TAIL = 96
"""Bytes at the end of a record: its digest is among them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored configuration. header: its version and provenance; None: it cannot be read, and `problem` is the reason.

    number: its place among those in force on this node; 0: it lost in a split, and is not one of them.
    """

    name: str
    number: int
    path: Path
    size: int
    header: Config | None
    problem: str

    @property
    def conflict(self) -> bool:
        """Whether it lost in a split."""
        return not self.number


class History:
    """One node's. All methods block; those that change something are called by one thread at a time."""

    def __init__(self, state_dir: Path, files: Files | None = None, most_bytes: int = MOST_BYTES) -> None:
        self._state_dir, self._most_bytes = state_dir, most_bytes
        self._current, self._previous = state_dir / FILE, state_dir / PREVIOUS
        self._files = files or Files()
        self._complained = False

    # --- keeping ---------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Keep the configuration before the one on disk, if it is not kept. Raises nothing: a failure is logged once."""
        try:
            self._keep()
        except OSError as error:
            if not self._complained:
                log.warning(
                    "the configuration before is not kept in the history: %s: %s; it cannot be rolled back to",
                    self._state_dir,
                    error.strerror or error,
                )
            self._complained = True
        else:
            self._complained = False

    def _keep(self) -> None:
        numbers, end = self._numbers(), self._end(self._previous)
        newest = max(numbers, default=0)
        if end and end not in (self._end(self._current), self._end(self._path(newest))):
            self._files.link(self._previous, self._path(newest + 1))
            self._files.sync_directory(self._state_dir)
            numbers = self._numbers()
        self._remove(self._surplus(numbers))

    def free(self, size: int) -> bool:
        """Remove the oldest entries to make space for a file of so many bytes. Returns whether there is any now."""
        try:
            won, chosen = 0, []
            for number, held in sorted(self._numbers().items())[:-FEWEST]:
                if won < size:
                    won += held
                    chosen.append(number)
            if won < size:  # it would not be enough: they had better stay
                return False
            self._remove(chosen)
        except OSError:
            return False
        log.warning("the disk is full: the %d oldest generations were removed from the history for a change", len(chosen))
        return True

    def _surplus(self, numbers: dict[int, int]) -> list[int]:
        """The entries beyond the limits, oldest first."""
        held, surplus = 0, []
        for kept, (number, size) in enumerate(sorted(numbers.items(), reverse=True), 1):
            held += size
            if kept > FEWEST and (kept > MOST or held > self._most_bytes):
                surplus.append(number)
        return surplus[::-1]

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            self._files.remove(self._path(number))

    def _end(self, path: Path) -> bytes:
        """The digest of a record, its last line; empty without a file."""
        return self._files.read_end(path, _TAIL) if self._files.exists(path) else b""

    def _numbers(self) -> dict[int, int]:
        """The entries' numbers, and their bytes."""
        found = self._files.sizes(self._state_dir).items()
        return {int(match[1]): size for name, size in found if (match := _ENTRY.fullmatch(name))}

    def _path(self, number: int) -> Path:
        return self._state_dir / f"farms.history-{number:08}.jsonl"

    # --- reading ---------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Newest first, the conflicts last. Raises XlbError when the directory cannot be read."""
        try:
            sizes = self._files.sizes(self._state_dir)
        except OSError as error:
            raise XlbError(f"cannot read {self._state_dir}: {error.strerror}", storage_code(error)) from error
        conflicts = {match[1]: size for name, size in sizes.items() if (match := _CONFLICT.fullmatch(name))}
        kept = {int(match[1]): size for name, size in sizes.items() if (match := _ENTRY.fullmatch(name))}
        in_order = [(number, self._path(number), size) for number, size in sorted(kept.items(), reverse=True)]
        if FILE in sizes:
            in_order.insert(0, (max(kept, default=0) + 1, self._current, sizes[FILE]))
        found: list[Entry] = []
        seen: set[int] = set()
        for number, path, size in in_order:
            header, problem = self._header(path)
            generation = header.generation if header is not None else None
            name = f"?.{number}" if generation is None else f"{generation}.{number}" if generation in seen else f"{generation}"
            found.append(Entry(name, number, path, size, header, problem))
            if generation is not None:
                seen.add(generation)
        for name in sorted(conflicts, key=_version, reverse=True)[:MOST_CONFLICTS]:
            path = self._state_dir / f"farms.{name}.jsonl"
            found.append(Entry(name, 0, path, conflicts[name], *self._header(path)))
        return found

    def _header(self, path: Path) -> tuple[Config | None, str]:
        try:
            return decode_header(self._files.read(path, MAX_HEADER_BYTES)), ""
        except OSError as error:
            return None, error.strerror or str(error)
        except (DamagedRecord, NewerRecord) as error:
            return None, str(error)

    def find(self, name: str) -> Entry:
        """The entry of a name. Raises InvalidInput for an unknown one, XlbError for one that cannot be read."""
        if NAME.fullmatch(name) is None:
            raise InvalidInput(f"expected a generation as 'xlbctl history' names it, got {name[:64]!r}", "generation")
        entries = self.entries()
        for entry in entries:
            if name == entry.name or (entry.header and name == f"{entry.header.generation}.{entry.number}"):
                return entry
        shown = ", ".join(each.name for each in entries[:_NAMED]) + (", …" if len(entries) > _NAMED else "")
        raise InvalidInput(
            f"there is no {name} in the history of this node; see 'xlbctl history': {shown or 'it is empty'}",
            "generation",
            Code.UNKNOWN_GENERATION,
        )

    def before(self, entry: Entry) -> tuple[Entry, Config] | None:
        """The next older entry that can be read, and its configuration. None: there is none."""
        for older in self.entries():
            if 0 < older.number < entry.number:
                try:
                    return older, self.read(older)
                except XlbError:
                    continue
        return None

    def read(self, entry: Entry) -> Config:
        """Its configuration. Raises XlbError."""
        try:
            return decode(self._files.read(entry.path, MAX_BYTES))
        except OSError as error:
            raise XlbError(f"cannot read {entry.path}: {error.strerror}", storage_code(error)) from error
        except DamagedRecord as error:
            raise XlbError(f"{entry.path} is damaged ({error}); choose another generation", Code.DAMAGED_FILE) from None
        except NewerRecord as error:
            raise XlbError(f"{entry.path}: {error}", Code.NEWER_FORMAT) from None


def _version(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split("-")[1:]))
