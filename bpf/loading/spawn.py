"""Starts a process without holding up the other threads of this one.

`subprocess` holds the interpreter lock until the child executes its program (vfork(2)). That child is not real-time, so on a
busy machine it first waits for a processor: the loop of a node waited 70 ms, as long as some leases last. posix_spawn(3),
called without the lock, holds up the calling thread alone. Must not know what the process does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from collections.abc import Mapping, Sequence

_libc = ctypes.CDLL(None)  # its functions run without the interpreter lock
_FILE_ACTIONS_BYTES = 256
"""More than posix_spawn_file_actions_t has in any libc."""


class Process:
    """A child. `end` it in any case."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], stdin: int, stdout: int, stderr: int) -> None:
        """command: found in PATH if its name has no slash. stdin, stdout, stderr: descriptors. Raises OSError."""
        self.pid = _spawn(command, environment, (stdin, stdout, stderr))
        self.exit_status: int | None = None
        """As subprocess has it: -9 for one that was killed; None while it runs."""
        self._ended = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> bool:
        """Wait for its end for at most this time; returns whether it has ended."""
        if self.exit_status is None:
            watch = select.poll()  # descriptors may be beyond what select() takes
            watch.register(self._ended, select.POLLIN)
            if watch.poll(seconds * 1000):
                self.exit_status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_status is not None

    def end(self) -> None:
        """Kill it if it runs."""
        if self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            while not self.wait(60):
                pass
        os.close(self._ended)


def _spawn(command: Sequence[str], environment: Mapping[str, str], files: tuple[int, int, int]) -> int:
    pid, actions = ctypes.c_int(), ctypes.create_string_buffer(_FILE_ACTIONS_BYTES)
    words = _strings([os.fsencode(each) for each in command])
    settings = _strings([os.fsencode(f"{name}={value}") for name, value in environment.items()])
    _libc.posix_spawn_file_actions_init(actions)
    try:
        for number, file in enumerate(files):
            _check(_libc.posix_spawn_file_actions_adddup2(actions, file, number))
        _check(_libc.posix_spawnp(ctypes.byref(pid), words[0], actions, None, words, settings))
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
    return pid.value


def _strings(values: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    """With the null pointer at their end."""
    return (ctypes.c_char_p * (len(values) + 1))(*values, None)


def _check(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))
