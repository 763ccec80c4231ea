"""xlbd's entry: options, the lock on run_dir, signals and exit codes.

Decides the order of starting and stopping, and that every failure is one sentence on stderr and an exit code: 2 for
invalid input, 1 for what fails at run time. What a node does stands in `ctl.node`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import grp
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctl import memory, nodefile
from ctl.clusterfile import ClusterFile
from ctl.errors import XlbError
from ctl.logs import LEVELS, set_up_logging
from ctl.nodefile import NodeSettings

if TYPE_CHECKING:
    from bpf.attach import Attachment
    from bpf.loader import Build
    from bpf.plane import KernelPlane
    from ctl.node import Origin

LOCK_NAME = "xlbd.lock"
RUN_DIR_MODE = 0o750
GROUP = "xlb"
THREAD_SWITCH_S = 0.0005  # how long a thread may keep the loop from the interpreter; Python's own is 5 ms

log = logging.getLogger("ctl")


def main(arguments: Sequence[str] | None = None) -> None:
    """The `xlbd` command."""
    options = _parser().parse_args(arguments)
    set_up_logging(options.log_level)
    try:
        settings = nodefile.load(options.config)
        if options.check_config:
            print(f"{options.config}: ok")
            return
        run(settings, replace_pins=options.replace_pins, detach=options.detach)
    except XlbError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def run(settings: NodeSettings, replace_pins: bool, detach: bool) -> None:
    """Serve until SIGTERM or SIGINT. Raises XlbError, with nothing changed, when the node cannot be started."""
    sys.setswitchinterval(THREAD_SWITCH_S)
    memory.limit_arenas()
    _raise_file_limit()
    with locked_run_dir(settings.node.run_dir):
        _serve_kernel(settings, replace_pins, detach)


def _serve_kernel(settings: NodeSettings, replace_pins: bool, detach: bool) -> None:
    from bpf import loader
    from bpf.plane import KernelPlane
    from bpf.tables import PlaneError
    from ctl.node import Origin

    _require_interfaces(settings.data.interfaces)
    build = _build_for(settings, ClusterFile(settings.node.state_dir).load() is not None)
    serving = False

    def started() -> None:
        nonlocal serving
        serving = True

    loaded = None
    try:
        loaded = loader.ensure(build, replace_pins)
        log.info("data plane %s in %.0f ms", loaded.how, loaded.took_ms)
        plane = KernelPlane(settings.node.bpf_dir, loaded.layouts)
        asyncio.run(_serve(settings, plane, Origin(loaded.how, loaded.took_ms), detach, started))
    except (PlaneError, XlbError) as error:
        if loaded is not None and loaded.how == "built" and not serving:
            loader.remove_pins(settings.node.bpf_dir)  # there were none before this start, which changes nothing
        if isinstance(error, XlbError):
            raise
        if error.log:
            log.debug("%s", error.log)
        raise XlbError(str(error)) from error


def _require_interfaces(names: Sequence[str]) -> None:
    """Raise XlbError before anything is made, when the node file names an interface that is not there."""
    existing = sorted(name for _, name in socket.if_nameindex())
    for name in names:
        if name not in existing:
            raise XlbError(f"data.interfaces: there is no interface {name!r} on this node; it has: {', '.join(existing)}")


def _build_for(settings: NodeSettings, paired: bool) -> Build:
    """What is to be pinned: only a pair's program reports flow changes."""
    from bpf import loader

    features = {"replication": True} if paired else {}
    return loader.Build(settings.node.bpf_dir, settings.node.run_dir, settings.data.max_flows, features)


async def _serve(settings: NodeSettings, plane: KernelPlane, origin: Origin, detach: bool, started: Callable[[], None]) -> None:
    from ctl.addresses import KernelNetwork
    from ctl.node import Node
    from ctl.notify import Notifier

    node = Node(settings, plane, KernelNetwork(), _KernelAttacher(settings, plane), origin, Notifier())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clean = False
    try:
        await node.start()
        started()
        gc.freeze()  # what is there now stays: collections need not look at it
        await asyncio.to_thread(memory.give_back)
        failure = await _first(stop, node.failed)
        if failure:
            raise XlbError(f"{failure}; the data plane goes on serving, start xlbd again")
        clean = True
        log.info("stopping%s", "" if detach else "; the data plane goes on serving")
    finally:
        await node.stop(detach and clean)  # a daemon that fails takes nothing away from what serves


async def _first(stop: asyncio.Event, failed: asyncio.Future[str]) -> str:
    """Wait for either; returns what failed, or "" for a wish to stop."""
    failed.add_done_callback(lambda _: stop.set())
    await stop.wait()
    return failed.result() if failed.done() else ""


class _KernelAttacher:
    """`ctl.node.Attacher` on the program this node pinned."""

    def __init__(self, settings: NodeSettings, plane: KernelPlane) -> None:
        self._settings, self._plane = settings, plane
        self._bpf_dir = settings.node.bpf_dir
        self._xdp_mode = settings.data.xdp_mode

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, Attachment]:
        from bpf import attach

        return attach.attach(self._bpf_dir, interfaces, self._xdp_mode.value)

    def detach(self, interfaces: Sequence[str]) -> Sequence[str]:
        from bpf import attach

        return attach.detach(self._bpf_dir, interfaces)

    def report_flows(self, on: bool) -> None:
        from bpf import attach, loader

        loaded = loader.ensure(_build_for(self._settings, on))
        if loaded.how == "adopted":
            return
        self._plane.reopen(self._bpf_dir, loaded.layouts)
        present = [name for name in self._settings.data.interfaces if Path("/sys/class/net", name).exists()]
        attach.attach(self._bpf_dir, present, self._xdp_mode.value)
        log.info(
            "the program was replaced in %.0f ms: it %s flow changes", loaded.took_ms, "reports" if on else "no longer reports"
        )


@contextlib.contextmanager
def locked_run_dir(run_dir: Path) -> Iterator[None]:
    """Make run_dir, for root and group xlb only, and hold its lock: one daemon per run_dir.

    Raises XlbError naming the process that holds it.
    """
    path = run_dir / LOCK_NAME
    try:
        run_dir.mkdir(mode=RUN_DIR_MODE, parents=True, exist_ok=True)
        run_dir.chmod(RUN_DIR_MODE)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(run_dir, -1, grp.getgrnam(GROUP).gr_gid)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise XlbError(
            f"cannot use run_dir {run_dir}: {error.strerror}; run as root or set node.run_dir to a directory of yours"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise XlbError(
                f"another xlbd (pid {holder}) runs on {run_dir}: stop it first, or give this one its own run_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _raise_file_limit() -> None:
    """Every health check in flight is a socket: take what the hard limit allows, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 16384) if hard != resource.RLIM_INFINITY else 16384
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Parser(argparse.ArgumentParser):
    """argparse already exits with 2 on wrong usage; one line is enough for it."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"xlbd: {message}; see xlbd --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="xlbd",
        description="The xlb load balancer's daemon: stays in the foreground, logs to stderr, stops on SIGTERM.",
        epilog="The data plane goes on serving while xlbd is stopped, unless it was started with --detach.",
    )
    add = parser.add_argument
    add("--config", type=Path, default=nodefile.DEFAULT_PATH, metavar="FILE", help="node file (default: %(default)s)")
    add("--check-config", action="store_true", help="check the node file and exit: 0 when it is valid, 2 when it is not")
    add("--detach", action="store_true", help="on a clean stop, take XDP off the interfaces and remove the VIPs' addresses")
    add("--replace-pins", action="store_true", help="replace pinned tables of another version or size; drops all connections")
    add("--log-level", choices=LEVELS, default="info", help="least severe messages to log (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
