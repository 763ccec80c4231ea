"""A node of the rig: the real xlbd in a namespace, with its own files, and the real xlbctl."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ctl.api.client import Client
from tests.rig.namespaces import Namespace
from tests.tree import TREE

_BIN = Path(sys.executable).parent


def _command(script: str, module: str) -> list[str]:
    """The installed script, or the same function straight from the tree where the package is not installed."""
    if (_BIN / script).exists():
        return [str(_BIN / script)]
    return [sys.executable, "-c", f"import sys; sys.argv[0] = {script!r}; from {module} import main; main()"]


class Refused(AssertionError):
    """xlbctl exited with a status other than the expected one."""


class Node:
    """One xlbd with its directories. Starting and stopping is explicit, so that tests can do it repeatedly."""

    def __init__(self, name: str, namespace: Namespace, directory: Path, bpf_dir: Path) -> None:
        self.name, self.namespace, self.directory, self.bpf_dir = name, namespace, directory, bpf_dir
        self.state_dir, self.run_dir, self.config, self.log = (
            directory / part for part in ("state", "run", "node.toml", "xlbd.log")
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.started_in_s = 0.0
        self.processor: int | None = None  # the only one it may use, as if it were a machine of its own
        self.tree = TREE  # where xlbd's code comes from; another copy is another version
        self._header = directory / "headers" / "linux" / "types.h"
        directory.mkdir(parents=True)
        self.state_dir.mkdir()
        self.run_dir.mkdir()

    def configure(self, interfaces: tuple[str, ...], xdp_mode: str, max_flows: int, extra: str = "") -> None:
        """Write the node file; `extra` is TOML appended to it."""
        names = ", ".join(f'"{interface}"' for interface in interfaces)
        self.config.write_text(
            f'[node]\nname = "{self.name}"\nstate_dir = "{self.state_dir}"\n'
            f'run_dir = "{self.run_dir}"\nbpf_dir = "{self.bpf_dir}"\n'
            f'[data]\ninterfaces = [{names}]\nxdp_mode = "{xdp_mode}"\nmax_flows = {max_flows}\n{extra}'
        )

    def start(self, *options: str, deadline_s: float = 30) -> Node:
        """Start xlbd with `options` and wait for its readiness notification, as systemd would."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        began = time.monotonic()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            path = self.directory / "notify"
            path.unlink(missing_ok=True)
            notify.bind(str(path))
            with self.log.open("ab") as log:
                self.process = self.namespace.popen(
                    self.xlbd_command(*options),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.tree,
                    env={
                        **os.environ,
                        "PYTHONPATH": str(self.tree),
                        "NOTIFY_SOCKET": str(path),
                        "CPATH": str(self._header.parents[1]),
                    },
                )
            self._wait_ready(notify, deadline_s)
        self.started_in_s = time.monotonic() - began
        return self

    def xlbd_command(self, *options: str) -> list[str]:
        pinned = [] if self.processor is None else ["taskset", "--cpu-list", f"{self.processor}"]
        return [*pinned, *_command("xlbd", "ctl.daemon"), "--config", str(self.config), *options]

    def start_refused(self, *prefix: str, deadline_s: float = 60) -> tuple[int, str]:
        """Start xlbd, with `prefix` before it on the command line, where it must fail: its exit status and its log."""
        done = self.namespace.run(
            *prefix, *self.xlbd_command(), check=False, timeout_s=deadline_s, environment={"PYTHONPATH": str(self.tree)}
        )
        return done.returncode, done.stderr

    def _wait_ready(self, notify: socket.socket, deadline_s: float) -> None:
        assert self.process is not None
        deadline = time.monotonic() + deadline_s
        exit_watch = os.pidfd_open(self.process.pid)
        watch = select.poll()  # descriptors may be beyond what select() takes
        watch.register(notify, select.POLLIN)
        watch.register(exit_watch, select.POLLIN)
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                readable = {descriptor for descriptor, _ in watch.poll(left_s * 1000)}
                if notify.fileno() in readable:
                    message = notify.recv(4096)
                    if b"READY=1" in message:
                        return
                    if b"EXTEND_TIMEOUT_USEC=" in message:  # the limit counts silence, as systemd's does
                        deadline = time.monotonic() + deadline_s
                elif exit_watch in readable:
                    raise AssertionError(f"{self.name}: xlbd exited {self.process.wait()} before it was ready\n{self.tail()}")
        finally:
            os.close(exit_watch)
        raise AssertionError(f"{self.name}: xlbd was not ready within {deadline_s} s\n{self.tail()}")

    def tail(self, lines: int = 40) -> str:
        """The end of the daemon's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def break_compiler(self) -> None:
        """Let clang find a header that is an error first: what the running daemon compiles from here on fails."""
        self._header.parent.mkdir(parents=True, exist_ok=True)
        self._header.write_text('#error "broken"\n')

    def repair_compiler(self) -> None:
        self._header.unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, deadline_s: float = 30) -> int:
        """SIGTERM and wait; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(deadline_s)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.signal(signal.SIGKILL)
        self.wait(30)

    def wait(self, deadline_s: float) -> int:
        assert self.process is not None
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self.name}: xlbd did not exit within {deadline_s} s\n{self.tail()}") from error

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def xlbctl_command(self, *arguments: str) -> list[str]:
        return [*_command("xlbctl", "ctl.cli.main"), "--config", str(self.config), *arguments]

    def xlbctl(self, *arguments: str, expect: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the real command on the node. Raises Refused unless it exits with `expect`."""
        done = self.namespace.run(
            *self.xlbctl_command(*arguments), check=False, stdin=stdin, environment={"PYTHONPATH": str(self.tree)}
        )
        if done.returncode != expect:
            output = f"{done.stdout}{done.stderr}"
            raise Refused(
                f"xlbctl {' '.join(arguments)} exited {done.returncode}, not {expect}\n{output}\n--- xlbd:\n{self.tail(15)}"
            )
        return done

    def call(self, command: str, **arguments: Any) -> Any:
        """Ask the daemon without a process for the question: quick set-up and polling."""
        with Client(self.run_dir / "control.sock") as client:
            return client.call(command, arguments)

    def json(self, *arguments: str) -> Any:
        """The JSON document `xlbctl -o json …` prints."""
        return json.loads(self.xlbctl("-o", "json", *arguments).stdout)

    def close(self) -> None:
        if self.running:
            self.kill()
