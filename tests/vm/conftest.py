"""The virtual machines and the hosts on their network, made once. Without the machines each test is skipped with the reason."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import Client
from tests.vm.machines import WORK, DataNetwork, Machine, why_not


@pytest.fixture(scope="session", autouse=True)
def machines_there() -> None:
    if reason := why_not():
        pytest.skip(reason)
    print(f"virtual machines by {(WORK / 'kind').read_text().strip()}")


@pytest.fixture(scope="session")
def lb1(machines_there: None) -> Iterator[Machine]:
    machine = Machine("lb1")
    yield machine
    machine.disconnect()


@pytest.fixture(scope="session")
def lb2(machines_there: None) -> Iterator[Machine]:
    machine = Machine("lb2")
    yield machine
    machine.disconnect()


@pytest.fixture(scope="session")
def network(machines_there: None) -> Iterator[DataNetwork]:
    hosts = DataNetwork()
    yield hosts
    hosts.close()


@pytest.fixture
def client(network: DataNetwork) -> Iterator[Client]:
    loop = Client(network.client)
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def next_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package under test with a higher version number."""
    tree = tmp_path_factory.mktemp("next") / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", WORK / "xlb.deb", tree], check=True, timeout=60)
    control = tree / "DEBIAN" / "control"
    control.write_text(
        "".join(f"{line}+next\n" if line.startswith("Version: ") else f"{line}\n" for line in control.read_text().splitlines())
    )
    package = tree.parent / "next.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, package], check=True, capture_output=True, timeout=60)
    return package
