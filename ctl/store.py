"""The configuration on disk: state_dir/farms.jsonl, safe against a crash at any instant.

A save writes a new file, syncs it, keeps the old one as farms.jsonl.previous, renames, syncs the directory. All side effects of the
state directory's farms are here; what the lines mean is decided in ctl/record.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctl.model import Config


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was found. `message` is empty or one sentence worth a warning in the log; `kept` the damaged file, if any."""

    config: Config
    message: str = ""
    kept: Path | None = None


class Store:
    """Loads and saves a node's configuration. One process at a time (the daemon holds run_dir's lock)."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def load(self) -> LoadReport:
        """The last good configuration, an empty one for a new node. Raises XlbError when the file is of a newer version or unreadable; nothing is changed then."""
        ...

    def save(self, config: Config) -> None:
        """Returns once `config` would survive a power cut. Blocking (two fsyncs): call it in a thread. Raises XlbError naming the file and the reason."""
        ...
