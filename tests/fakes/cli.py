"""xlbctl in the test's own process, as a process, and on a terminal."""

from __future__ import annotations

import codecs
import fcntl
import inspect
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from click.testing import CliRunner

from ctl.cli.main import main
from tests.tree import TREE

XLBCTL = (sys.executable, "-m", "ctl.cli.main")


def run(*args: str, input: str | bytes | None = None) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of `xlbctl ARGS`. An exception that escapes it fails the test."""
    old = "mix_stderr" in inspect.signature(CliRunner).parameters  # Debian 12's click
    runner = CliRunner(mix_stderr=False) if old else CliRunner()  # type: ignore[call-arg]
    result = runner.invoke(main, args, input=input)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


class Terminal:
    """A program on a terminal of its own, `rows` by `columns`; use it as a context manager, which kills the program."""

    def __init__(self, command: Sequence[str | Path], rows: int = 24, columns: int = 140, **environment: str) -> None:
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}  # they beat the tty
        env = {**inherited, "TERM": "xterm-256color", "PYTHONPATH": str(TREE), **environment}
        if "NO_COLOR" not in environment:
            env.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._master = master

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def expect(self, pattern: str, within_s: float = 20.0) -> re.Match[str]:
        """Wait until the output since the last match matches `pattern`; the failure shows the output.

        within_s: the longest silence.
        """
        while (found := re.search(pattern, self.output)) is None:
            assert self._read(within_s), f"{pattern!r} did not appear in {self.output!r}"
        self.output = self.output[found.end() :]
        return found

    @property
    def line_mode(self) -> bool:
        """Whether keys are echoed and arrive by line, as a shell expects of its terminal."""
        wanted = termios.ECHO | termios.ICANON
        return bool(termios.tcgetattr(self._master)[3] & wanted == wanted)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def wait(self, within_s: float = 20.0) -> int:
        """Wait for the exit and return its code; `output` has what was written until then."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0 and self._read(left):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        """Read more output; False after `seconds` or at its end."""
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the program has closed its side
            return False
        self.output += self._decoder.decode(data)
        return bool(data)
