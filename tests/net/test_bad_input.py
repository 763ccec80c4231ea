"""What a real node refuses: one sentence that names the thing and the remedy, the right status, and nothing changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.serving import VIPS, Serving, serving
from tests.rig import Layout, Rig

AS_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")


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


def one_sentence(text: str) -> str:
    """The last line, which must be the complaint; a traceback is never an answer to bad input."""
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


def test_a_second_daemon_on_the_same_run_dir(site: Serving) -> None:
    code, log = site.node.start_refused()
    assert code == 1
    assert str(site.node.run_dir) in one_sentence(log)
    assert site.tcp().error == ""
    assert site.node.call("farm.list")


def test_a_vip_on_a_missing_interface(site: Serving) -> None:
    done = site.node.xlbctl("vip", "add", "10.77.0.102/24", "--dev", "eth7", expect=1)
    assert "eth7" in one_sentence(done.stderr)
    assert {vip["address"] for vip in site.node.call("vip.list")} == set(VIPS.values())


def test_control_socket_for_somebody_without_the_right(site: Serving) -> None:
    done = site.rig.node.namespace.run(*AS_NOBODY, *site.node.xlbctl_command("farm", "list"), check=False)
    assert done.returncode == 1
    assert "xlb" in one_sentence(done.stderr)


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
    assert done.returncode in (1, 2)
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert site.node.call("config.export") == before


def test_no_privilege(bare: Rig) -> None:
    code, log = bare.node.start_refused(*AS_NOBODY)
    assert code == 1
    assert one_sentence(log)


def test_no_bpffs(bare: Rig) -> None:
    good = bare.node.config.read_text()
    elsewhere = bare.directory / "not-a-bpffs"
    bare.node.config.write_text(good.replace(str(bare.node.bpf_dir), str(elsewhere)))
    code, log = bare.node.start_refused()
    bare.node.config.write_text(good)
    assert code == 1
    assert str(elsewhere) in log
    assert "mount" in one_sentence(log)


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
    assert named in one_sentence(log)
    assert exit_status == code
