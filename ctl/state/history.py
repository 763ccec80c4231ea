"""The last generations of the configuration: state_dir/history, and the configurations that lost in a split.

An entry is a second name (a hard link) of the file that `ctl.state.store` wrote: the same bytes, which nothing writes again,
so that keeping one costs neither a copy nor space while it is the newest. It is made after the change is in force. What
cannot be kept or read is missing from the history and hinders nothing else: a change counts, and a start succeeds, without.
Entries are numbered in the order in which they came into force on this node; generations of one number may be several.
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

DIRECTORY = "history"
MOST = 50
"""Generations that are shown. One more is kept, for the differences of the oldest."""
MOST_BYTES = 64 << 20
FEWEST = 2
"""So many are kept whatever their size: they are the files of the configuration in force and of the one before."""
MOST_CONFLICTS = 100
NAME = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?|conflict-[0-9]{1,19}-[0-9]{1,19}")
"""How an entry may be named: 12, or 12.40 for an older one of that generation, or conflict-3-12."""

_ENTRY = re.compile(r"([0-9]{8,19})\.jsonl")
_CONFLICT = re.compile(r"farms\.(conflict-[0-9]{1,19}-[0-9]{1,19})\.jsonl")
_NAMED = 10
_TAIL = 96
"""Bytes at the end of a record: its digest is among them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored configuration. header: its version and provenance; None: it cannot be read, and `problem` says why.

    number: its place among the entries of this node; 0: it lost in a split, and is not one of them.
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
        self._state_dir, self._directory, self._most_bytes = state_dir, state_dir / DIRECTORY, most_bytes
        self._files = files or Files()
        self._complained = False

    # --- keeping ---------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Keep the configuration on disk, unless it is the newest entry. Raises nothing: a failure is logged once."""
        try:
            self._keep()
        except OSError as error:
            if not self._complained:
                log.warning(
                    "the configuration is not kept in the history: %s: %s; it is in force, and cannot be rolled back to",
                    self._directory,
                    error.strerror or error,
                )
            self._complained = True
        else:
            self._complained = False

    def _keep(self) -> None:
        files, current = self._files, self._state_dir / FILE
        if not files.exists(current):  # lost: this node runs with the one before
            return
        files.make_directory(self._directory)
        numbers = self._numbers()
        if not numbers and files.exists(self._state_dir / PREVIOUS):  # of a version without a history
            files.link(self._state_dir / PREVIOUS, self._path(1))
            numbers = {1: 0}
        if not (numbers and self._same(current, self._path(max(numbers)))):
            number = max(numbers, default=0) + 1
            files.link(current, self._path(number))
            files.sync_directory(self._directory)
        self._remove(self._surplus(self._numbers()))

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
            if kept > FEWEST and (kept > MOST + 1 or held > self._most_bytes):
                surplus.append(number)
        return surplus[::-1]

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            self._files.remove(self._path(number))

    def _same(self, one: Path, other: Path) -> bool:
        """Whether two records are the same: the digest is their last line."""
        return self._files.read_end(one, _TAIL) == self._files.read_end(other, _TAIL)

    def _numbers(self) -> dict[int, int]:
        """The entries' numbers, and their bytes."""
        found = self._files.sizes(self._directory).items()
        return {int(match[1]): size for name, size in found if (match := _ENTRY.fullmatch(name))}

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08}.jsonl"

    # --- reading ---------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Newest first, the conflicts last. Raises XlbError when the directory cannot be read."""
        try:
            numbers = self._numbers()
            names = self._files.sizes(self._state_dir).items()
            conflicts = {match[1]: size for name, size in names if (match := _CONFLICT.fullmatch(name))}
        except OSError as error:
            raise XlbError(f"cannot read {self._directory}: {error.strerror}", storage_code(error)) from error
        found: list[Entry] = []
        seen: set[int] = set()
        for number, size in sorted(numbers.items(), reverse=True):
            header, problem = self._header(self._path(number))
            generation = header.generation if header is not None else None
            name = f"?.{number}" if generation is None else f"{generation}.{number}" if generation in seen else f"{generation}"
            found.append(Entry(name, number, self._path(number), size, header, problem))
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
