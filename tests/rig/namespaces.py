"""Network namespaces that cannot be left behind: each lives as long as a file descriptor of this process.

No name under /run/netns, so nothing has to be cleaned up: when the process dies, by whatever signal, the kernel
closes the descriptors and takes the namespaces down, links included. Processes started inside die with their parent too.
Decides nothing about topology.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_SIOCGIFHWADDR = 0x8927
_ETHTOOL_STXCSUM = 0x17
_ETHTOOL_SGRO = 0x2C

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A private network namespace with its loopback up.

    Commands and functions run inside it without changing the mount namespace, so a bpffs stays visible.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._fd = _in_thread(_new_namespace)
        self.ip("link set lo up")
        self.sysctl(
            {
                "net.ipv6.conf.all.accept_dad": 0,  # an address that is tentative for a second only slows tests down
                "net.ipv6.conf.default.accept_dad": 0,
                "net.ipv6.conf.default.accept_ra": 0,
            }
        )

    @property
    def path(self) -> str:
        """What `nsenter --net=` and `ip … netns` take."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def enter(self) -> None:
        """Move the calling thread into the namespace permanently."""
        if _libc.setns(self._fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {self.name}")

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread inside the namespace; sockets it makes stay there."""

        def inside() -> T:
            self.enter()
            return function()

        return _in_thread(inside)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs `arguments` inside and dies with the thread that started it."""
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.path}", *arguments]

    def popen(self, arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(self.command(arguments), **options)

    def run(
        self,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float = 180,  # bounds a test that hangs
        environment: Mapping[str, str] | None = None,
        stderr: int | IO[str] = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end. Raises AssertionError with its output when `check` and it fails."""
        done = subprocess.run(
            self.command(arguments),
            input=stdin,
            text=True,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=timeout_s,
            env={**os.environ, **environment} if environment else None,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {' '.join(arguments)} exited {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def ip(self, *commands: str) -> None:
        """Run `ip` commands in one process; the first that fails raises."""
        self.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    def sysctl(self, settings: Mapping[str, int | str]) -> None:
        def write() -> None:
            for key, value in settings.items():
                Path("/proc/sys", *key.split(".")).write_text(str(value))

        self.call(write)

    def interface_index(self, device: str) -> int:
        return self.call(lambda: socket.if_nametoindex(device))

    def mac(self, device: str) -> bytes:
        """The hardware address of an interface."""

        def ask() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, struct.pack("16s24x", device.encode()))
            return answer[18:24]

        return self.call(ask)

    def offloads(self, device: str, *, checksums: bool, merge: bool) -> None:
        """Whether `device` leaves checksums, and so the division of large segments, to its other end; and joins frames."""

        def switch() -> None:
            _ethtool(device, _ETHTOOL_STXCSUM, int(checksums))
            _ethtool(device, _ETHTOOL_SGRO, int(merge))

        self.call(switch)

    def plain_checksums(self, device: str, *, merge: bool = False) -> None:
        """Make `device` send finished checksums and, unless `merge`, never join received frames into larger ones.

        XDP sees frames as they cross the veth: a checksum left to the hardware, or a frame larger than the MTU, would be
        corrupt.
        """

        def switch_off() -> None:
            _ethtool(device, _ETHTOOL_STXCSUM, 0)
            if not merge:
                _ethtool(device, _ETHTOOL_SGRO, 0)

        self.call(switch_off)


def _new_namespace() -> int:
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _ethtool(device: str, command: int, value: int) -> None:
    request = ctypes.create_string_buffer(struct.pack("II", command, value))
    argument = struct.pack("16sP16x", device.encode(), ctypes.addressof(request))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, argument)


def _in_thread(function: Callable[[], T]) -> T:
    """A thread of its own, because a thread that changed its namespace must not be used for anything else."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
