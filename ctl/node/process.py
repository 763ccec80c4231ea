"""The daemon's process once its options are read: data plane, event loop, signals.

Decides the order of starting and stopping. What a node does is in `ctl.node.node`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from bpf.dataplane import PlaneError
from bpf.kernel import attach
from bpf.kernel.attach import Attachment
from bpf.kernel.plane import KernelPlane
from bpf.loading import loader
from bpf.loading.loader import Build, Loaded
from ctl.api.commands.status import Origin
from ctl.dataplane.features import KEPT, REPLICATION, VLANS, features_of, in_words
from ctl.dataplane.kernel.vlan_attacher import VlanAttacher
from ctl.errors import Code, XlbError
from ctl.network import vlans
from ctl.network.kernel.kernel_network import KernelNetwork
from ctl.network.network import Interface
from ctl.node.composition import compose
from ctl.runtime import memory
from ctl.runtime.realtime_scheduling import worker_threads
from ctl.runtime.systemd import Notifier
from ctl.state.cluster_file import ClusterFile
from ctl.state.node_file import NodeSettings, XdpMode
from ctl.state.store import Store

WORKER_THREADS = 8  # for what would hold the loop; mostly they wait for the disk or the kernel
LAST_PACKETS_S = 0.05
"""After a program was replaced, packets may still be in it, and call the programs that its pins keep."""


log = logging.getLogger("ctl")


def serve(settings: NodeSettings, replace_pins: bool, detach: bool) -> None:
    """Run until SIGTERM or SIGINT. Raises XlbError, with nothing changed, when the node cannot be started."""
    _require_interfaces(settings.data.interfaces)
    cluster = ClusterFile(settings.node.state_dir).load(repair=True)
    settings = settings if cluster is None else settings.paired_as(cluster.own.name)
    store, network = Store(settings.node.state_dir), KernelNetwork()
    features = features_of(store.look()) | ({REPLICATION} if cluster is not None else set())
    features |= features_of_interfaces(settings, network.interfaces())
    features |= KEPT & (frozenset() if replace_pins else loader.pinned_features(settings.node.bpf_dir))
    serving = False

    def started() -> None:
        nonlocal serving
        serving = True

    loaded, notifier, before = None, Notifier(), attach.own_program(settings.node.bpf_dir)
    try:
        loaded, features = _pinned(settings, features, replace_pins, notifier.compiling)
        log.info("data plane %s in %.0f ms", loaded.how, loaded.took_ms)
        plane = KernelPlane(settings.node.bpf_dir, loaded.layouts)
        attacher = _KernelAttacher(settings, plane, network, features, before)
        asyncio.run(
            _serve(settings, plane, network, attacher, store, Origin(loaded.how, loaded.took_ms), notifier, detach, started)
        )
    except (PlaneError, XlbError) as error:
        if loaded is not None and loaded.how == "built" and not serving:
            loader.remove_pins(settings.node.bpf_dir)  # there were none before this start, so it changes nothing
        if isinstance(error, XlbError):
            raise
        if error.log:
            log.error("output of the compiler or the kernel's verifier:\n%s", loader.excerpt(error.log))
            log.debug("%s", error.log)
        raise XlbError(str(error), Code.KERNEL_REFUSED) from error


def features_of_interfaces(settings: NodeSettings, interfaces: Mapping[str, Interface]) -> frozenset[str]:
    """What the data interfaces need of the program: VLANs, if one is a VLAN device that can be handled below it."""
    wanted = settings.data.xdp_mode is not XdpMode.GENERIC and vlans.plan(settings.data.interfaces, interfaces).vlans
    return frozenset({VLANS}) if wanted else frozenset()


def _pinned(
    settings: NodeSettings, wanted: frozenset[str], replace_pins: bool, working: Callable[[], None]
) -> tuple[Loaded, frozenset[str]]:
    """What is pinned, and its features: those that are wanted; or those of the program that is pinned already, where another
    one cannot be compiled. A node whose farms are served in part is better than none. Raises PlaneError.
    """
    try:
        return loader.ensure(_build_for(settings, wanted), replace_pins, working), wanted
    except PlaneError as error:
        present = loader.pinned_features(settings.node.bpf_dir)
        if replace_pins or wanted <= present or not wanted & {REPLICATION, VLANS} <= present:
            raise
        try:
            loaded = loader.ensure(_build_for(settings, present), False, working)
        except PlaneError:
            raise error from None
        log.error("the pinned program is used, without %s: %s", in_words(wanted - present), error)
        return loaded, present


def _require_interfaces(names: Sequence[str]) -> None:
    """Raise XlbError before anything is made, when the node file names an interface that is not there."""
    existing = sorted(name for _, name in socket.if_nameindex())
    for name in names:
        if name not in existing:
            raise XlbError(
                f"data.interfaces: there is no interface {name!r} on this node; it has: {', '.join(existing)}",
                Code.UNKNOWN_INTERFACE,
            )


def _build_for(settings: NodeSettings, features: frozenset[str]) -> Build:
    """What is to be pinned."""
    return Build(settings.node.bpf_dir, settings.node.run_dir, settings.data.max_flows, dict.fromkeys(features, True))


async def _serve(
    settings: NodeSettings,
    plane: KernelPlane,
    network: KernelNetwork,
    attacher: _KernelAttacher,
    store: Store,
    origin: Origin,
    notifier: Notifier,
    detach: bool,
    started: Callable[[], None],
) -> None:
    node = compose(settings, plane, network, attacher, origin, notifier, store=store)
    memory.collect_rarely()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(worker_threads(WORKER_THREADS, "xlb-worker"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clean = False
    try:
        await node.start()
        started()
        memory.settle()
        await asyncio.to_thread(memory.give_back)
        failure = await _first(stop, node.failed)
        if failure:
            raise XlbError(f"{failure}; the data plane keeps forwarding; start xlbd again")
        clean = True
        log.info("stopping%s", "" if detach or node.in_pair else "; the data plane keeps forwarding")
    finally:
        await node.stop(detach and clean)  # a daemon that fails leaves the data plane in place


async def _first(stop: asyncio.Event, failed: asyncio.Future[str]) -> str:
    """Wait for either; returns what failed, or "" when the daemon is to stop."""
    failed.add_done_callback(lambda _: stop.set())
    await stop.wait()
    return failed.result() if failed.done() else ""


class _KernelAttacher:
    """`ctl.dataplane.kernel.xdp_interfaces.Attacher` on the program this node pinned."""

    def __init__(
        self, settings: NodeSettings, plane: KernelPlane, network: KernelNetwork, features: frozenset[str], before: int
    ) -> None:
        """features: of the program that is pinned. before: id of the one that was pinned when the daemon started, 0: none."""
        self._settings, self._plane, self._features = settings, plane, features
        self._network, self._before = network, before
        self._bpf_dir = bpf_dir = settings.node.bpf_dir
        self._vlans = VlanAttacher(
            plane,
            network,
            lambda names, mode: attach.attach(self._pins(), names, mode),
            lambda names: attach.detach(bpf_dir, names),
            settings.data.xdp_mode.value,
            lambda: VLANS in self._features,
        )
        self._lock = threading.Lock()  # the reconciler may attach while a change adds features
        self._replacing = False
        self._replacements = 0
        self._attaching = threading.Lock()  # the same, while the program is replaced by the one of a capture
        self._capturing = False

    def _pins(self) -> Path:
        """Where the program is pinned that belongs on the interfaces."""
        return loader.capture_dir(self._bpf_dir) if self._capturing else self._bpf_dir

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, Attachment]:
        with self._attaching:
            attached = self._vlans.attach(interfaces)
        self._leave_others(attached)
        with self._lock:
            if not self._replacing:  # the interfaces may have the program that is being replaced
                loader.forget_replaced(self._bpf_dir)
                if not self._capturing:  # left by a daemon that was killed
                    loader.remove_capture(self._bpf_dir)
        return attached

    def _leave_others(self, attached: Mapping[str, Attachment]) -> None:
        """Once: detach the program of the last start from interfaces that the node file does not name any more."""
        before, self._before = self._before, 0
        if not before:
            return
        kept = {each.device or name for name, each in attached.items()}
        programs = (before, self.program())
        others = [link.name for link in self._network.interfaces().values() if link.xdp_program in programs]
        for name in attach.detach(self._bpf_dir, [name for name in others if name not in kept]):
            log.info("XDP detached from %s: data.interfaces of the node file does not need it", name)

    def detach(self, interfaces: Sequence[str]) -> Sequence[str]:
        return self._vlans.detach(interfaces)

    def follow(self, interfaces: Sequence[str], observed: Mapping[str, Interface], programs: Collection[int]) -> None:
        self._vlans.follow(interfaces, observed, programs)

    def program(self) -> int:
        return attach.own_program(self._pins())

    def replacements(self) -> int:
        return self._replacements

    def name_of(self, program: int) -> tuple[str, bool]:
        return attach.name_of(program)

    def features(self) -> frozenset[str]:
        return self._features

    def add_features(self, features: frozenset[str]) -> None:
        wanted = self._features | features
        if wanted == self._features:
            return
        with self._replaces():
            loaded = loader.ensure(_build_for(self._settings, wanted))
            if loaded.how != "adopted":  # by an attempt that failed to attach it
                self._plane.reopen(self._bpf_dir, loaded.layouts)
            self._capturing = False
            self._attach_present()
        with self._lock:
            loader.forget_replaced(self._bpf_dir)
            loader.remove_capture(self._bpf_dir)
        log.info(
            "the program was replaced in %.0f ms: it is compiled for %s", loaded.took_ms, in_words(wanted - self._features)
        )
        self._features = wanted

    def start_capture(self) -> Path:
        with self._replaces():
            directory = loader.build_capture(_build_for(self._settings, self._features))
            self._capturing = True
            try:
                self._attach_present()
            except BaseException:
                self._put_back()
                raise
        return directory

    def end_capture(self) -> bool:
        if not self._capturing:
            return False
        with self._replaces():
            self._put_back()
        return True

    def _put_back(self) -> None:
        self._capturing = False
        self._attach_present()
        time.sleep(LAST_PACKETS_S)
        loader.remove_capture(self._bpf_dir)

    def _attach_present(self) -> None:
        present = {name for _, name in socket.if_nameindex()}  # /sys may be that of another network namespace
        with self._attaching:
            self._vlans.attach([name for name in self._settings.data.interfaces if name in present])

    @contextlib.contextmanager
    def _replaces(self) -> Iterator[None]:
        """The interfaces may have either program meanwhile, so that the pins of both stay."""
        with self._lock:
            self._replacing = True
            self._replacements += 1
        try:
            yield
        finally:
            with self._lock:
                self._replacing = False
                self._replacements += 1
