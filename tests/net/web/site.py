"""Two real nodes, an SSH server on the second, and the real xlb-web of the first, reached through a port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
import threading
from collections.abc import Iterator

from ctl.accounts.passwords import hash_password
from tests.fakes.web import ACCOUNTS, PASSWORD, WebClient
from tests.net.serving import Serving
from tests.rig import Layout, Node, Rig
from tests.rig.namespaces import Namespace
from tests.rig.sshd import SshServer
from tests.rig.web_process import WebProcess
from tests.wait import wait_until

LOCAL, PEER = "10.99.0.1", "10.99.0.2"
ROOT_PASSWORD = "<b>root</b> & 'password'"


class Door:
    """Connections to a port of this machine's loopback continue at a port of a namespace's loopback."""

    def __init__(self, namespace: Namespace) -> None:
        self.inner = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(namespace,), daemon=True)
        self._thread.start()

    def _run(self, namespace: Namespace) -> None:
        namespace.enter()
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._socket))
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.inner)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._socket.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class Web:
    """xlb-web of a node behind a door; it may be stopped and started."""

    def __init__(self, node: Node) -> None:
        self.door = Door(node.namespace)
        self._running = WebProcess(node)
        self.log = self._running.log

    def start(self) -> None:
        self._running.start()
        self.door.inner = self._running.port

    def stop(self) -> None:
        self._running.stop()

    def close(self) -> None:
        self._running.close()
        self.door.close()


class WebSite(Serving):
    """The rig with an operator olga and a viewer vera, and a farm on the second node that a pair would replace."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.node = rig, rig.node
        self.one, self.two = rig.nodes
        self.sshd = SshServer(self.two.namespace, PEER, rig.directory / "sshd", ROOT_PASSWORD)
        self.web, self.other = Web(self.one), Web(self.two)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.web.door.port}"

    @property
    def other_url(self) -> str:
        """Of the second node; by a name, because a browser sends the cookies of a host to all its ports."""
        return f"https://localhost:{self.other.door.port}"

    def client(self, name: str = "", password: str = PASSWORD) -> WebClient:
        made = WebClient(self.web.door.port)
        if name:
            answer = made.login(name, password)
            assert answer.status == 200, answer.body
        return made

    def active(self) -> Node:
        """The node that is active now."""
        nodes = [
            node for node in self.rig.nodes if node.running and node.call("cluster.status")["role"] in ("active", "single")
        ]
        assert len(nodes) == 1, nodes
        return nodes[0]

    def settle(self) -> None:
        """Wait until one node is active and the other in step."""

        def settled() -> bool:
            found = [node.call("cluster.status") for node in self.rig.nodes]
            return sorted(each["role"] for each in found) == ["active", "backup"] and all(
                each["sync"]["in_step"] and each["peer"]["in_step"] for each in found
            )

        wait_until(settled, "the pair is in step")


@contextlib.contextmanager
def web_site() -> Iterator[WebSite]:
    """Build and start everything; take it down."""
    with Rig(Layout(nodes=2, backends=2)) as rig:
        one, two = rig.nodes
        there = f"env PYTHONPATH={shlex.quote(str(two.tree))} {shlex.join(two.xlbctl_command())}"
        for node in rig.nodes:
            section = (
                f'[web]\nlisten = "127.0.0.1:0"\nstate_dir = "{node.directory / "web"}"\nremote_command = {_toml(there)}\n'
            )
            node.configure(("eth0",), rig.layout.xdp_mode, rig.layout.max_flows, section)
            node.start()
        site = WebSite(rig)
        two.call("vip.add", address="10.77.0.200/24", device="eth0")
        two.call("farm.add", name="old", vip="10.77.0.200", port=80)
        hashed = hash_password(PASSWORD)
        for name, role in ACCOUNTS.items():
            one.call("user.add", name=name, role=role, password_hash=hashed)
        try:
            with site.sshd:
                site.web.start()
                yield site
        finally:
            site.web.close()
            site.other.close()


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
