"""The node file: defaults of the contract, and a message for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctl.errors import InvalidInput, XlbError
from ctl.state.node_file import XdpMode, load, parse

LEAST = '[data]\ninterfaces = ["eth0"]\n'


def test_defaults() -> None:
    settings = parse(LEAST, "node.toml", "lb1")
    assert settings.node.name == "lb1"
    assert (settings.node.state_dir, settings.node.run_dir) == (Path("/var/lib/xlb"), Path("/run/xlb"))
    assert settings.node.bpf_dir == Path("/sys/fs/bpf/xlb")
    assert settings.data.interfaces == ("eth0",)
    assert (settings.data.xdp_mode, settings.data.max_flows) == (XdpMode.AUTO, 1048576)
    cluster = settings.cluster
    assert (cluster.heartbeat_ms, cluster.lease_ms, cluster.takeover_ms, cluster.priority) == (100, 300, 350, 100)
    assert (cluster.failback, cluster.track, cluster.gateway) == (False, ("eth0",), "")
    assert settings.control_endpoint == "ipc:///run/xlb/control.sock"


def test_every_setting_of_the_contract() -> None:
    text = """
        [node]
        name = "lb2"
        state_dir = "/s"
        run_dir = "/r"
        bpf_dir = "/b"
        [data]
        interfaces = ["eth0", "eth1"]
        xdp_mode = "native"
        max_flows = 4096
        [cluster]
        heartbeat_ms = 10
        lease_ms = 30
        takeover_ms = 36
        priority = 50
        failback = true
        track = ["eth1"]
        gateway = "10.0.0.254"
    """
    settings = parse(text, "node.toml", "ignored")
    assert settings.node.name == "lb2" and settings.data.interfaces == ("eth0", "eth1")
    assert settings.data.xdp_mode is XdpMode.NATIVE and settings.cluster.track == ("eth1",)
    assert settings.cluster.failback and settings.cluster.gateway == "10.0.0.254"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "max_flow = 9", 'data.max_flow: no such setting; did you mean "max_flows"? (in /etc/node.toml)'),
        ("[dat]\n", 'dat: no such setting; did you mean "data"? (in /etc/node.toml)'),
        ("", "data.interfaces: is missing; expected the interfaces that carry traffic"),
        ("[data]\ninterfaces = []", 'data.interfaces: expected at least one interface, e.g. ["eth0"]'),
        ('[data]\ninterfaces = "eth0"', 'data.interfaces: expected a list of strings, got the string "eth0"'),
        ("[data]\ninterfaces = [1]", "data.interfaces: expected a list of strings"),
        ('[data]\ninterfaces = ["eth0", "eth0"]', 'data.interfaces: "eth0" is listed twice'),
        ('[data]\ninterfaces = ["a name too long for it"]', "data.interfaces: expected the name of an interface"),
        (LEAST + 'xdp_mode = "fast"', 'data.xdp_mode: expected auto or native or generic, got the string "fast"'),
        (LEAST + "max_flows = 10", "data.max_flows: expected 1024 to 33554432, got 10"),
        (LEAST + "max_flows = 99999999", "data.max_flows: expected 1024 to 33554432"),
        (LEAST + 'max_flows = "many"', 'data.max_flows: expected an integer from 1024 to 33554432, got the string "many"'),
        (LEAST + "[cluster]\nlease_ms = 350", "cluster.takeover_ms: expected at least 355 (lease_ms + 5), got 350"),
        (LEAST + "[cluster]\nlease_ms = 400", "cluster.takeover_ms: expected at least 405"),
        (LEAST + "[cluster]\nheartbeat_ms = 300", "cluster.heartbeat_ms: expected less than lease_ms (300), got 300"),
        (LEAST + "[cluster]\npriority = 255", "cluster.priority: expected 1 to 254, got 255"),
        (LEAST + "[cluster]\nfailback = 1", "cluster.failback: expected true or false, got 1"),
        (LEAST + '[cluster]\ngateway = "gw"', "cluster.gateway: expected an IP address"),
        (LEAST + '[node]\nrun_dir = "run"', 'node.run_dir: expected an absolute path like /run/xlb, got "run"'),
        (LEAST + '[node]\nname = "l b"', "node.name: expected 1 to 64 letters"),
        (LEAST + "[node]\nname = 1", "node.name: expected a string, got 1"),
        ("node = 3\n" + LEAST, "node: expected a table of settings, got 3"),
        ("[data", "/etc/node.toml: is not valid TOML"),
    ],
)
def test_mistakes_get_a_message(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text, "/etc/node.toml", "lb1")
    assert message in str(caught.value)
    assert "/etc/node.toml" in str(caught.value) and caught.value.exit_code == 2


def test_the_message_for_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        XlbError, match=r"node file .*node\.toml does not exist; create it, or name another with --config"
    ) as caught:
        load(tmp_path / "node.toml")
    assert 'interfaces = ["eth0"]' in str(caught.value)


def test_a_directory_or_a_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(XlbError, match="cannot read the node file"):
        load(tmp_path)
    (tmp_path / "node.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="is UTF-16 text; save it as UTF-8"):
        load(tmp_path / "node.toml")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode())
    assert load(path).data.interfaces == ("eth0",)


def test_load_uses_the_hostname(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(LEAST)
    assert load(path).source == str(path)
    assert load(path).node.name
