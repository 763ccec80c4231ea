"""The daemon's messages to systemd and the journal, and its small background parts."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ctl.config.model import Backend, Config, Farm
from ctl.network import neighbours
from ctl.network.neighbours import MAX_NEIGHBOURS, NextHopKeeper
from ctl.runtime.logs import set_up_logging
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.systemd import Notifier, watchdog_interval_s
from ctl.version import installed_version
from tests.fakes.logs import logging_restored
from tests.fakes.network import FakeNetwork
from tests.tree import TREE
from tests.wait import wait_until_async

DEADLINE_S = 10.0


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_notified(tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"@xlb-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(DEADLINE_S)
        notifier = Notifier(name)
        notifier.compiling()
        notifier.ready("single node lb1")
        notifier.alive()
        notifier.stopping()
        notifier.close()
        notifier.alive()  # systemd's socket is gone: no error
        assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=60000000\nSTATUS=compiling the data plane"
        assert [manager.recv(100) for _ in range(3)] == [b"READY=1\nSTATUS=single node lb1", b"WATCHDOG=1", b"STOPPING=1"]


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("x")
    Notifier(str(tmp_path / "absent")).ready("x")


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [("", "", None), ("0", "", None), ("x", "", None), ("30000000", "", 10.0), ("3000000", "1", None), ("3000000", "own", 1.0)],
)
def test_watchdog_interval(monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, expected: float | None) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_interval_s() == expected


_LOG = """
import logging
from ctl.runtime.logs import set_up_logging
set_up_logging("info")
logging.getLogger("ctl.x").{}
logging.getLogger("else").info("hidden")
"""


def logged(call: str, journal: bool) -> str:
    read, write = os.pipe()
    status = os.fstat(write)
    stream = f"{status.st_dev}:{status.st_ino}" if journal else f"{status.st_dev}:1"
    subprocess.run(
        [sys.executable, "-c", _LOG.format(call)],
        stderr=write,
        check=True,
        cwd=TREE,
        env={**os.environ, "JOURNAL_STREAM": stream},
    )
    os.close(write)
    with os.fdopen(read) as file:
        return file.read()


def test_the_journal_gets_priorities() -> None:
    assert logged(r"error('one\ntwo')", journal=True) == "<3>one\n<3>two\n"
    assert logged("info('%d', 7)", journal=True) == "<6>7\n"
    assert logged("debug('quiet')", journal=True) == ""


def test_a_terminal_gets_time_and_level() -> None:
    line = logged("warning('look')", journal=False)
    assert line.endswith(" WARNING look\n") and line.startswith("20")


def test_libraries_log_warnings_only() -> None:
    with logging_restored():
        set_up_logging("debug")
        assert logging.getLogger("ctl.node.node").isEnabledFor(logging.DEBUG)
        assert not logging.getLogger("asyncssh").isEnabledFor(logging.INFO)


def test_loop_lag_shows_what_blocked_the_loop() -> None:
    async def scenario() -> LoopLag:
        lag = LoopLag()
        task = asyncio.ensure_future(lag.run())
        for _ in range(3):
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        until = loop.time() + 0.15
        while loop.time() < until:
            pass  # block the loop
        await wait_until_async(lambda: lag.worst_ms, "a measured lag")
        task.cancel()
        return lag

    assert asyncio.run(scenario()).view()["worst"] > 50


class OldKernelNetwork(FakeNetwork):
    """A kernel without managed neighbours."""

    @property
    def needs_repeating(self) -> bool:
        return True


def config_of(addresses: list[str]) -> Config:
    servers = tuple(Backend(id=number, address=address, port=80) for number, address in enumerate(addresses, 1))
    return Config(farms={"web": Farm(id=1, name="web", vip="10.0.0.100", port=80, port_last=80, backends=servers)})


def keep(network: FakeNetwork, config: Config, asked: int) -> NextHopKeeper:
    async def scenario() -> NextHopKeeper:
        keeper = NextHopKeeper(network, lambda: config)
        task = asyncio.ensure_future(keeper.run())
        keeper.wake()
        await wait_until_async(lambda: len(network.asked) >= asked, f"{asked} requests")
        task.cancel()
        return keeper

    return asyncio.run(scenario())


def test_a_kernel_without_managed_neighbours_is_asked_periodically(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "REPEAT_S", 0.01)
    network = OldKernelNetwork()
    keep(network, config_of(["10.0.0.1"]), 3)
    assert set(network.asked) == {(2, "10.0.0.1")}


def test_the_neighbours_kept_are_bounded() -> None:
    addresses = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(MAX_NEIGHBOURS + 5)]
    keeper = keep(FakeNetwork(), config_of(addresses), MAX_NEIGHBOURS)
    assert len(keeper.kept) == MAX_NEIGHBOURS


def test_the_daemon_starts_without_openssl() -> None:
    code = (
        "import sys; from ctl.runtime import footprint; footprint.keep_small(); "
        "from ctl.node import process; from ctl.api.commands.dispatcher import Dispatcher; "
        "import hashlib; hashlib.sha256(b'x'); "
        "print(sorted(name for name in ('ssl', '_ssl', '_hashlib', 'unittest') if sys.modules.get(name)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_check_by_https_loads_openssl() -> None:
    code = (
        "from ctl.runtime import footprint; footprint.keep_small(); from ctl.node import process; "
        "from ctl.health.probes import probe; print(probe._openssl().ssl.OPENSSL_VERSION)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("OpenSSL ") and done.stderr == ""


def test_versions_are_those_of_the_installation() -> None:
    import importlib.metadata

    for project in ("pyzmq", "msgpack", "numpy"):
        assert installed_version(project) == importlib.metadata.version(project)
    assert installed_version("no-such-project") is None
