"""An SSH server in this process, on a loopback address, whose xlbctl is the control socket of a daemon in this process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ctl.creation.ssh import Done, asyncssh
from tests.fakes.daemon import DEADLINE_S
from tests.fakes.pair import Site
from tests.fakes.remote import answered


@dataclass
class SshPeer:
    """Its port, its host key, and the passwords that were tried. before_join: called in a thread before the daemon joins."""

    site: Site
    password: str
    key: Any = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))
    port: int = 0
    tried: list[str] = field(default_factory=list)
    before_join: Callable[[], None] = lambda: None
    joins: threading.Event = field(default_factory=threading.Event)

    @property
    def fingerprint(self) -> str:
        return str(self.key.get_fingerprint())

    async def handle(self, process: Any) -> None:
        """Run one command."""
        command = str(process.command).removeprefix("xlbctl -o json ")
        joins = command.startswith("cluster join")
        stdin = await process.stdin.read() if joins else ""
        if joins:
            self.joins.set()
        done: Done = await asyncio.to_thread(self._run, command, stdin, joins)
        with contextlib.suppress(OSError, asyncssh.Error):
            process.stdout.write(done.output)
            process.stderr.write(done.errors)
            process.exit(done.status)

    def _run(self, command: str, stdin: str, joins: bool) -> Done:
        if joins:
            self.before_join()
        return answered(self.site, command, stdin)


@contextlib.contextmanager
def ssh_peer(site: Site, password: str) -> Iterator[SshPeer]:
    """Serves root with this password, at the node's address on the cluster link."""
    peer = SshPeer(site, password)
    started: Future[asyncio.AbstractEventLoop] = Future()

    class Server(asyncssh.SSHServer):  # type: ignore[misc]
        def begin_auth(self, username: str) -> bool:
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, given: str) -> bool:
            peer.tried.append(given)
            return (username, given) == ("root", peer.password)

    async def serve(stop: asyncio.Event) -> None:
        server = await asyncssh.listen(
            site.address, 0, server_factory=Server, server_host_keys=[peer.key], process_factory=peer.handle, encoding="utf-8"
        )
        peer.port = server.sockets[0].getsockname()[1]
        started.set_result(asyncio.get_running_loop())
        await stop.wait()
        server.close()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(stop)), name="sshd", daemon=True)
    thread.start()
    loop = started.result(DEADLINE_S)
    try:
        yield peer
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
