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

from ctl.cluster.member import PairMember
from ctl.network.network import InterfaceAddress
from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.fakes.network import FakeNetwork
from tests.fakes.plane import FakePlane
from tests.wait import wait_until

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

    @property
    def member(self) -> PairMember:
        """Its part of the pair. Raises XlbError while it is single."""
        return self.daemon.node.parts.membership.required()

    def cut_links(self) -> None:
        """Close its links to the peer: from now on neither hears the other."""
        self.daemon.on_loop(self.member.links.close_soon)


def network(address: str) -> FakeNetwork:
    """eth0 for clients, and a cluster interface with this address."""
    made = FakeNetwork()
    made.present.add(InterfaceAddress("eth1", address, 24))
    return made


@contextlib.contextmanager
def site(directory: Path, name: str, address: str, cluster: str = "", plane: FakePlane | None = None) -> Iterator[Site]:
    """A running node; given the plane of an earlier one, it restarts that node."""
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
    """Two loopback addresses that no other test uses, in this process or another."""
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


def in_step(active: Site, backup: Site) -> None:
    """Wait until the nodes have these roles, the same configuration, and the backup could take over with every flow."""

    def is_ready() -> bool:
        ours, theirs = active.status, backup.status
        if (ours["role"], theirs["role"]) != ("active", "backup") or ours["generation"] != theirs["generation"]:
            return False
        known = active.member.configuration.replica.peer_version is not None
        # A heartbeat of before a switchover is in step because its sender was active.
        heard = ours["peer"]["role"] == "backup"
        return known and heard and bool(ours["peer"]["in_step"] and theirs["peer"]["alive"])

    wait_until(is_ready, f"{active.directory.name} active, {backup.directory.name} its backup in step")


def _form(one: Site, two: Site, vip: str) -> None:
    if vip:
        one.call("vip.add", address=vip, device="eth0")
    join(one, two)
    in_step(one, two)


@contextlib.contextmanager
def paired_sites(tmp_path: Path, cluster: Mapping[int, str] | None = None, vip: str = "") -> Iterator[tuple[Site, Site]]:
    """A pair in step, the first node active. vip: address/prefix length on eth0; cluster: as for `two_sites`."""
    with two_sites(tmp_path, cluster=cluster) as (one, two):
        _form(one, two, vip)
        yield one, two


@contextlib.contextmanager
def pair_without(tmp_path: Path, stopped: int, cluster: str = "", vip: str = "") -> Iterator[tuple[Site, Site]]:
    """A pair that was in step, the first node active, and of which one node was stopped then: 0 the first, 1 the second.

    Yields both nodes in order; only the other one runs. cluster: lines of the [cluster] section of both.
    """
    first, second = addresses()
    makers = [lambda: site(tmp_path / "1", "lb1", first, cluster), lambda: site(tmp_path / "2", "lb2", second, cluster)]
    with makers[1 - stopped]() as running:
        with makers[stopped]() as leaving:
            one, two = (leaving, running) if stopped == 0 else (running, leaving)
            _form(one, two, vip)
        yield one, two
