"""What a real node refuses: one message that names the thing and the remedy, the right status, and no change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from ctl.api.protocol import MAX_MESSAGE_BYTES
from tests.net.serving import VIPS, Serving, copy_of_the_code, serving
from tests.rig import Layout, Rig

UNPRIVILEGED = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving(Layout(backends=1)) as serve:
        serve.add_farm("tcp")
        yield serve


@pytest.fixture(scope="module")
def bare() -> Iterator[Rig]:
    """A rig whose node has not been started."""
    with Rig(Layout(backends=1)) as rig:
        yield rig


def last_line(text: str) -> str:
    """The last line, which must be the message; a traceback is never an answer to bad input."""
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


def test_a_second_daemon_on_the_same_run_dir(site: Serving) -> None:
    code, log = site.node.start_refused()
    assert code == 1
    assert str(site.node.run_dir) in last_line(log)
    assert site.tcp().error == ""
    assert site.node.call("farm.list")


def test_a_vip_on_a_missing_interface(site: Serving) -> None:
    done = site.node.xlbctl("vip", "add", "10.77.0.102/24", "--dev", "eth7", expect=2)
    assert "eth7" in last_line(done.stderr)
    assert {vip["address"] for vip in site.node.call("vip.list")} == set(VIPS.values())


@pytest.mark.may_skip
def test_control_socket_without_permission(site: Serving, unprivileged: tuple[str, ...]) -> None:
    done = site.rig.node.namespace.run(*unprivileged, *site.node.xlbctl_command("farm", "list"), check=False)
    assert done.returncode == 1
    assert "xlb" in last_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("farm", "show", "nosuch"), "nosuch"),
        (("farm", "add", "tcp4", "--vip", VIPS[4], "--port", "1"), "tcp4"),
        (("farm", "add", "other", "--vip", VIPS[4], "--port", "7000"), "7000"),
        (("farm", "add", "other", "--vip", VIPS[4], "--port", "0"), "0"),
        (("farm", "add", "other", "--vip", VIPS[4], "--port", "70000"), "70000"),
        (("farm", "add", "other", "--vip", "10.77.0.250", "--port", "80"), "10.77.0.250"),
        (("backend", "add", "tcp4", "10.77.0.99:80", "--weight", "-1"), "-1"),
        (("backend", "add", "tcp4", "[fd77::21]:80"), "fd77::21"),
        (("backend", "add", "nosuch", "10.77.0.99:80"), "nosuch"),
        (("vip", "add", "10.77.0.300/24", "--dev", "eth0"), "10.77.0.300"),
        (("vip", "delete", VIPS[4]), VIPS[4]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_commands_change_nothing(site: Serving, arguments: tuple[str, ...], named: str) -> None:
    before = site.node.call("config.export")
    done = site.node.namespace.run(*site.node.xlbctl_command(*arguments), check=False)
    assert done.returncode == (1 if "delete" in arguments else 2), "a VIP in use is refused; the others make no sense"
    assert named in last_line(done.stderr)
    assert site.node.call("config.export") == before


@pytest.mark.parametrize(
    "message",
    [bytes(100_000_000), b"\xc1", b"GET / HTTP/1.1\r\n\r\n", b""],
    ids=["100 MB", "not msgpack", "HTTP", "nothing"],
)
def test_malformed_messages_do_no_harm(site: Serving, message: bytes) -> None:
    before = site.node.call("config.export")
    resident_kb = resident(site)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        stranger.connect(f"ipc://{site.node.run_dir}/control.sock")
        stranger.send(message, copy=False)
        if len(message) > MAX_MESSAGE_BYTES:
            assert monitor.poll(10_000), "the daemon closes the connection"
        else:
            assert stranger.poll(10_000), "the daemon must answer with an error"
            answer = msgpack.unpackb(stranger.recv())
            assert (answer["ok"], answer["error"]["kind"]) == (False, "invalid")
            assert "msgpack" in answer["error"]["message"]
        stranger.disable_monitor()
    assert site.node.call("config.export") == before
    assert resident(site) < resident_kb + 2 * MAX_MESSAGE_BYTES // 1024
    assert site.tcp().error == ""


def resident(site: Serving) -> int:
    """xlbd's memory in kB."""
    assert site.node.process is not None
    status = Path(f"/proc/{site.node.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


@pytest.mark.may_skip
def test_no_privilege(bare: Rig, unprivileged: tuple[str, ...]) -> None:
    code, log = bare.node.start_refused(*unprivileged)
    assert code == 1
    assert last_line(log)


def test_no_bpffs(bare: Rig) -> None:
    good = bare.node.config.read_text()
    elsewhere = bare.directory / "not-a-bpffs"
    bare.node.config.write_text(good.replace(str(bare.node.bpf_dir), str(elsewhere)))
    code, log = bare.node.start_refused()
    bare.node.config.write_text(good)
    assert code == 1
    assert str(elsewhere) in log
    assert "mount" in last_line(log)


@pytest.mark.parametrize(
    ("good", "bad", "named", "code"),
    [
        ("xdp_mode", "xpd_mode", "xpd_mode", 2),
        ('"eth0"', '"eth9"', "eth9", 1),
        ("65536", "-5", "max_flows", 2),
        ('"native"', '"fast"', "xdp_mode", 2),
    ],
)
def test_wrong_node_files(bare: Rig, good: str, bad: str, named: str, code: int) -> None:
    text = bare.node.config.read_text()
    assert good in text
    bare.node.config.write_text(text.replace(good, bad))
    exit_status, log = bare.node.start_refused()
    bare.node.config.write_text(text)
    assert named in last_line(log)
    assert exit_status == code


@pytest.fixture(scope="module")
def unprivileged(bare: Rig) -> tuple[str, ...]:
    """The command prefix that drops all privileges; skips if the code can be read only with them."""
    probe = bare.node.namespace.run(*UNPRIVILEGED, *bare.node.xlbctl_command("--help"), check=False)
    if probe.returncode:
        pytest.skip("an unprivileged user cannot read this checkout")
    return UNPRIVILEGED


@pytest.fixture
def stopped() -> Iterator[Serving]:
    """A node with farms whose daemon is stopped while its data plane continues to forward."""
    with serving(Layout(backends=1)) as serve:
        serve.add_farm("tcp")
        serve.add_farm("http")
        serve.node.stop()
        yield serve


def test_pins_of_another_size_are_refused_and_continue_to_forward(stopped: Serving) -> None:
    node = stopped.node
    node.config.write_text(node.config.read_text().replace("max_flows = 65536", "max_flows = 1024"))
    code, log = node.start_refused()
    assert code == 1
    assert str(node.bpf_dir) in last_line(log)
    assert "--replace-pins" in last_line(log)
    assert stopped.tcp().error == ""
    node.start("--replace-pins")
    assert stopped.tcp().error == ""


def test_pins_of_another_abi_are_refused_and_continue_to_forward(stopped: Serving) -> None:
    node = stopped.node
    node.tree = copy_of_the_code(stopped.rig.directory / "newer")
    constants = node.tree / "bpf" / "constants.py"
    constants.write_text(re.sub(r"(?m)^ABI_VERSION = \d+$", "ABI_VERSION = 9999", constants.read_text()))
    code, log = node.start_refused()
    assert code == 1
    assert "9999" in last_line(log)
    assert stopped.tcp().error == ""


def test_a_state_file_of_a_newer_version_is_left_alone(stopped: Serving) -> None:
    node = stopped.node
    state = node.state_dir / "farms.jsonl"
    newer = json.dumps({"xlb": "farms", "version": 99}).encode() + b"\n"
    state.write_bytes(newer)
    code, log = node.start_refused()
    assert code == 1
    assert str(state) in last_line(log)
    assert state.read_bytes() == newer
    assert stopped.tcp().error == ""


def test_a_truncated_state_file_is_kept_and_the_last_good_state_served(stopped: Serving) -> None:
    node = stopped.node
    state = node.state_dir / "farms.jsonl"
    whole = state.read_bytes()
    state.write_bytes(whole[:-20])
    node.start()
    assert "tcp4" in {farm["name"] for farm in node.call("farm.list")}
    assert stopped.tcp().error == ""
    assert "farms.jsonl" in node.tail()
    (kept,) = (path for path in node.state_dir.iterdir() if path.read_bytes() == whole[:-20])
    assert str(kept) in node.tail(), "the log names the copy of the damaged file"
