"""xlb-web of a rig's node: a process in its namespace, and what the kernel knows of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ctl.accounts.passwords import hash_password
from tests.fakes.web import PASSWORD, WebClient
from tests.rig.node import Node
from tests.tree import TREE
from tests.wait import wait_until


def web_section(node: Node, listen: Sequence[str] = ("127.0.0.1:0",)) -> str:
    """For the node file."""
    return f'[web]\nlisten = {json.dumps(list(listen))}\nstate_dir = "{node.directory / "web"}"\n'


def add_user(node: Node, name: str, role: str) -> None:
    """An account with the password PASSWORD, in the configuration of the node or its pair."""
    hashed = hash_password(PASSWORD)
    node.call("user.add", name=name, role=role, password_hash=hashed)


class WebProcess:
    """Starting and stopping is explicit; the node file must have the section [web]."""

    def __init__(self, node: Node) -> None:
        self.node, self.log = node, node.directory / "web.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> None:
        """Start it as its unit does, at a lower priority and on the node's processor, and wait until it listens."""
        pinned = [] if self.node.processor is None else ["taskset", "--cpu-list", f"{self.node.processor}"]
        command = ["nice", "-n", "5", *pinned, sys.executable, "-m", "ctl.web.main", "--config", str(self.node.config)]
        with self.log.open("ab") as log:
            began = log.tell()
            self.process = self.node.namespace.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=TREE,
                env={**os.environ, "PYTHONPATH": str(TREE)},
            )

        def listens() -> re.Match[str] | None:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
            return re.search(r"listening on https://\S+:(\d+),", self.log.read_bytes()[began:].decode())

        found = wait_until(listens, "xlb-web listens")
        assert found is not None
        self.port = int(found[1])

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def resident_mb(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def client(self, host: str = "127.0.0.1") -> WebClient:
        """Use it in a thread that has entered a namespace."""
        return WebClient(self.port, host)

    def stop(self) -> None:
        self._end(signal.SIGTERM, 0)

    def kill(self) -> None:
        self._end(signal.SIGKILL, -signal.SIGKILL)

    def _end(self, number: signal.Signals, expect: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        assert self.process.wait(30) == expect, self.log.read_text()[-3000:]
        self.process = None

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
