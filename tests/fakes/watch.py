"""`xlbctl watch -o json` as a process, read event by event."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.fakes.cli import XLBCTL
from tests.tree import TREE

SILENCE_S = 15.0
MOST_READS = 25


class Watch:
    """seen: every event until now, the oldest first."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(TREE)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=TREE, env=environment, start_new_session=True
        )
        self.seen: list[dict[str, Any]] = []
        self._read = b""

    def until(self, name: str, **fields: object) -> dict[str, Any]:
        """Read until an event of this name with these fields."""
        assert self.process.stdout is not None
        for _ in range(MOST_READS):
            while b"\n" in self._read:
                line, _, self._read = self._read.partition(b"\n")
                self.seen.append(event := json.loads(line))
                if event["event"] == name and fields.items() <= event["fields"].items():
                    return dict(event)
            if not select.select([self.process.stdout], [], [], SILENCE_S)[0]:
                break
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"watch ended: {self.process.communicate()}"
            self._read += data
        raise AssertionError(f"{name} {fields} did not come: {[each for each in self.seen if each['event'] != 'rates']}")

    def end(self) -> tuple[int, str]:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        _, error = self.process.communicate(timeout=20)
        return self.process.returncode, error.decode()


@contextlib.contextmanager
def watching(config: Path, *options: str, within: Sequence[str] = ()) -> Iterator[Watch]:
    """within: the command that starts it, e.g. in a namespace."""
    watch = Watch([*within, *XLBCTL, "--config", str(config), "watch", "-o", "json", *options])
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.process.communicate()
