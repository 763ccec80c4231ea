"""A whole daemon in this process, unprivileged: the real node, store and control socket on a fake plane and network."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bpf.dataplane import PlaneError
from bpf.kernel.attach import Attachment, Mode
from ctl.api.client import Client
from ctl.api.commands.status import Origin
from ctl.config.model import Config, format_endpoint
from ctl.dataplane.features import VLANS
from ctl.dataplane.kernel.vlan_attacher import VlanAttacher
from ctl.health.check_machine import Probe
from ctl.health.probes.probe import ProbeFailed
from ctl.network.network import Interface
from ctl.node.composition import CONTROL_SOCKET, compose
from ctl.node.node import Node
from ctl.state import node_file
from ctl.state.cluster_file import ClusterFile
from ctl.state.node_file import NodeSettings
from tests.fakes.network import FakeNetwork
from tests.fakes.plane import FakePlane

DEADLINE_S = 30.0  # bounds a test that hangs
PROGRAM = 77

NODE_FILE = """\
[node]
name = "lb1"
state_dir = "{directory}/state"
run_dir = "{directory}/run"
bpf_dir = "{directory}/bpf"
[data]
interfaces = ["eth0"]
"""


class FakeAttacher:
    """Implements `ctl.dataplane.kernel.xdp_interfaces.Attacher`. VLAN devices, and `generic_only`, have no native mode."""

    def __init__(self, network: FakeNetwork, plane: FakePlane | None = None, mode: Mode = "auto") -> None:
        self._network = network
        self.generic_only: set[str] = set()
        self.refusing: set[str] = set()
        self.on: dict[str, Attachment] = {}
        self.compiled: frozenset[str] = frozenset()
        self.compiler_fails = ""
        self.captures = 0
        self.replaced = 0
        self._vlans = VlanAttacher(
            plane or FakePlane(), network, self._attach, self._detach, mode, lambda: VLANS in self.compiled
        )

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, Attachment]:
        return self._vlans.attach(interfaces)

    def follow(self, interfaces: Sequence[str], observed: Mapping[str, Interface], programs: Collection[int]) -> None:
        self._vlans.follow(interfaces, observed, programs)

    def _attach(self, interfaces: Sequence[str], mode: Mode) -> Mapping[str, Attachment]:
        """As `bpf.kernel.attach.attach`: all in one mode, or none."""
        links = {name: self._network.links.get(name) for name in interfaces}
        no_native = sorted(name for name, link in links.items() if name in self.generic_only or (link and link.vlan_protocol))
        if refusing := sorted(self.refusing & links.keys()) or (no_native if mode == "native" else []):
            raise PlaneError(f"native XDP on interface {refusing[0]} failed")
        keeps = mode == "auto" and any(link and link.xdp_mode == "generic" for link in links.values())
        word: Literal["native", "generic"] = "generic" if mode == "generic" or no_native or keeps else "native"
        for name in interfaces:
            self.put(name, PROGRAM, word)
        done = {name: Attachment(name, word, "fake", "") for name in interfaces}
        self.on |= done
        return done

    def program(self) -> int:
        return PROGRAM

    def replacements(self) -> int:
        return self.replaced

    def name_of(self, program: int) -> tuple[str, bool]:
        return ("xlb", True) if program == PROGRAM else ("other", False)

    def remove(self, name: str, by: int = 0) -> None:
        """Another program removes xlb's from an interface and attaches itself, or none (0)."""
        self.put(name, by, "native" if by else "")

    def put(self, name: str, program: int, mode: str) -> None:
        if name in self._network.links:
            self._network.links[name] = replace(self._network.links[name], xdp_program=program, xdp_mode=mode)

    def features(self) -> frozenset[str]:
        return self.compiled

    def add_features(self, features: frozenset[str]) -> None:
        if self.compiler_fails:
            raise PlaneError(self.compiler_fails)
        self.compiled |= features

    def start_capture(self) -> Path:
        if self.compiler_fails:
            raise PlaneError(self.compiler_fails)
        self.captures += 1
        return Path("/sys/fs/bpf/xlb-capture")

    def end_capture(self) -> bool:
        self.captures -= 1
        return True

    def detach(self, interfaces: Sequence[str]) -> Sequence[str]:
        return self._vlans.detach(interfaces)

    def _detach(self, interfaces: Sequence[str]) -> Sequence[str]:
        links = self._network.links
        detached = [name for name in interfaces if name in links and links[name].xdp_program == PROGRAM]
        for name in detached:
            self.on.pop(name, None)
            self.put(name, 0, "")
        return detached


class FakeServers:
    """The backends as a node's checks see them: all answer but those in `refusing`."""

    def __init__(self, *refusing: str) -> None:
        self.refusing = set(refusing)
        self.asked = 0

    async def probe(self, due: Probe) -> None:
        """Implements `ctl.health.probes.runner.RunProbe`."""
        self.asked += 1
        if due.address in self.refusing:
            raise ProbeFailed(f"{format_endpoint(due.address, due.port)}: connection refused")


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon in a thread. Tests may read `plane` and `network` while no change is in progress."""

    socket_path: Path
    config: Path
    plane: FakePlane
    network: FakeNetwork
    attacher: FakeAttacher
    node: Node
    loop: asyncio.AbstractEventLoop
    servers: FakeServers

    @property
    def farms(self) -> Config:
        """The configuration in force."""
        return self.node.parts.local.transaction.config

    def call(self, command: str, **arguments: Any) -> Any:
        """Ask over the real control socket."""
        with Client(self.socket_path) as client:
            return client.call(command, arguments)

    def on_loop(self, function: Any, *arguments: Any) -> Any:
        """Run a function on the daemon's loop and return what it returns."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(function(*arguments))
            except BaseException as error:
                done.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return done.result(DEADLINE_S)


def write_node_file(directory: Path) -> NodeSettings:
    """Write a node file whose directories are below `directory`; returns its settings."""
    for name in ("state", "run", "bpf"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    path = directory / "node.toml"
    if not path.exists():
        path.write_text(NODE_FILE.format(directory=directory))
    return node_file.load(path)


@contextlib.contextmanager
def running_daemon(
    directory: Path,
    plane: FakePlane | None = None,
    network: FakeNetwork | None = None,
    detach: bool = False,
    servers: FakeServers | None = None,
    compiled: frozenset[str] = frozenset(),
) -> Iterator[RunningDaemon]:
    """Start a daemon whose files are in `directory`; stop it at the end.

    compiled: features of its program. Given the plane of an earlier one, it is a restart that adopts pins. Raises what the node
    raises when it cannot start.
    """
    settings = write_node_file(directory)
    cluster = ClusterFile(settings.node.state_dir).load(repair=True)
    settings = settings if cluster is None else settings.paired_as(cluster.own.name)
    plane, network = plane or FakePlane(), network or FakeNetwork()
    attacher, probed = FakeAttacher(network, plane), servers or FakeServers()
    attacher.compiled = compiled
    started: Future[tuple[Node, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        node = compose(settings, plane, network, attacher, Origin("built", 1.0), run_probe=probed.probe)
        stop = asyncio.Event()
        try:
            await node.start()
        except BaseException as error:
            await node.stop(detach=False)
            started.set_exception(error)
            return
        started.set_result((node, asyncio.get_running_loop(), stop))
        await stop.wait()
        await node.stop(detach)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="xlbd", daemon=True)
    thread.start()
    node, loop, stop = started.result(DEADLINE_S)
    try:
        yield RunningDaemon(
            settings.node.run_dir / CONTROL_SOCKET, directory / "node.toml", plane, network, attacher, node, loop, probed
        )
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the daemon did not stop"
