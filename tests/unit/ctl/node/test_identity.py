"""A node of a pair keeps the name it was paired with, whatever its host is called."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ctl.errors import InvalidInput
from ctl.state import node_file
from tests.fakes.daemon import running_daemon
from tests.fakes.pair import network, paired_sites

LEAST = '[data]\ninterfaces = ["eth0"]\n'


def test_a_changed_host_name_does_not_change_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with paired_sites(tmp_path) as (one, _):
        address, plane = one.address, one.daemon.plane
    path = tmp_path / "1" / "node.toml"
    text = path.read_text()
    path.write_text(text.replace('name = "lb1"\n', ""))
    plane.closed = False
    monkeypatch.setattr(socket, "gethostname", lambda: "cloud-17.example")
    with running_daemon(tmp_path / "1", plane, network(address)) as daemon:
        status = daemon.call("cluster.status")
        assert (status["node"], status["peer"]["name"]) == ("lb1", "lb2")
        assert daemon.call("status")["node"] == "lb1"
    path.write_text(text.replace('name = "lb1"', 'name = "lb3"'))
    plane.closed = False
    with pytest.raises(InvalidInput) as caught, running_daemon(tmp_path / "1", plane, network(address)):
        pass
    assert caught.value.key == "node.name" and '"lb1"' in str(caught.value), "a name given on purpose is refused"


@pytest.mark.parametrize(
    ("host", "name"),
    [("lb1.example.org", "lb1.example.org"), ("", "node"), ("-ü!", "node"), ("my host", "my-host"), ("x" * 200, "x" * 64)],
)
def test_every_host_name_gives_a_valid_name(host: str, name: str) -> None:
    parsed = node_file.parse(LEAST, "", host).node
    assert parsed.name == name and not parsed.name_given
