"""Two daemons in this process that can be made a pair over loopback addresses of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ctl.network.network import InterfaceAddress
from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.fakes.network import FakeNetwork
from tests.fakes.plane import FakePlane

_numbers = itertools.count()

NODE_FILE = """\
[node]
name = "{name}"
state_dir = "{directory}/state"
run_dir = "{directory}/run"
bpf_dir = "{directory}/bpf"
[data]
interfaces = ["eth0"]
[cluster]
track = []
{cluster}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """One node: its daemon and its address on the cluster network."""

    daemon: RunningDaemon
    address: str
    directory: Path

    def call(self, command: str, **arguments: Any) -> Any:
        return self.daemon.call(command, **arguments)

    @property
    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("cluster.status")
        return answer


def network(address: str) -> FakeNetwork:
    """eth0 for clients, and a cluster interface with this address."""
    made = FakeNetwork()
    made.present.add(InterfaceAddress("eth1", address, 24))
    return made


@contextlib.contextmanager
def site(directory: Path, name: str, address: str, cluster: str = "", plane: FakePlane | None = None) -> Iterator[Site]:
    """A node that runs; given the plane of an earlier one, it is a restart."""
    directory.mkdir(exist_ok=True)
    if plane is not None:
        plane.closed = False
    (directory / "node.toml").write_text(NODE_FILE.format(name=name, directory=directory, cluster=cluster))
    # A test run by root must not make the test runner's own threads real-time ones.
    with (
        mock.patch("ctl.runtime.realtime_scheduling.run_in_time", lambda: (False, [])),
        running_daemon(directory, plane, network(address)) as daemon,
    ):
        yield Site(daemon, address, directory)


def addresses() -> tuple[str, str]:
    """Two loopback addresses that no other test, nor another run of the tests, has."""
    number = os.getpid() % 200 * 256 + next(_numbers)
    base = f"127.{1 + number // 256 % 250}.{number % 256}"
    return f"{base}.1", f"{base}.2"


@contextlib.contextmanager
def two_sites(
    tmp_path: Path, names: tuple[str, str] = ("lb1", "lb2"), cluster: Mapping[int, str] | None = None
) -> Iterator[tuple[Site, Site]]:
    """Two single nodes. cluster: lines of the [cluster] section by node, 0 or 1."""
    extra, (first, second) = cluster or {}, addresses()
    with (
        site(tmp_path / "1", names[0], first, extra.get(0, "")) as one,
        site(tmp_path / "2", names[1], second, extra.get(1, "")) as two,
    ):
        yield one, two


def join(one: Site, two: Site) -> Any:
    """Make them a pair, `one` as its creator."""
    token = one.call("cluster.create", local=one.address, peer=two.address)["token"]
    return two.call("cluster.join", local=two.address, token=token)
