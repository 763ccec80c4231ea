"""A node file that became invalid, or was lost, takes neither xlbctl away from a running daemon nor the removal of xlb."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.serving import Serving, serving
from tests.rig import VIP4, VIP6, Layout

LOSSES = ("broken", "unknown key", "missing")


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving(Layout(xdp_mode="generic")) as serve:
        serve.add_farm("http")
        yield serve


@pytest.fixture(autouse=True)
def node_file(site: Serving, tmp_path: Path) -> Iterator[Path]:
    shutil.copy(site.node.config, tmp_path / "kept")
    yield site.node.config
    shutil.copy(tmp_path / "kept", site.node.config)


def lose(path: Path, loss: str) -> None:
    match loss:
        case "broken":
            path.write_text("[node\n" + path.read_text())
        case "unknown key":
            path.write_text(path.read_text() + "\n[cluster]\ncolour = 'red'\n")
        case "missing":
            path.unlink()


@pytest.mark.parametrize("loss", LOSSES)
def test_xlbctl_finds_the_running_daemon(site: Serving, node_file: Path, loss: str) -> None:
    lose(node_file, loss)
    done = site.node.xlbctl("-o", "json", "vip", "list")
    assert VIP4 in {each["address"] for each in json.loads(done.stdout)}
    assert f"asking the xlbd that runs, at {site.node.run_dir}/control.sock" in done.stderr


def test_xlbctl_finds_a_daemon_whose_run_dir_was_changed_in_the_file(site: Serving, node_file: Path) -> None:
    node_file.write_text(node_file.read_text().replace(str(site.node.run_dir), "/nonexistent/run"))
    done = site.node.xlbctl("-o", "json", "vip", "list")
    assert VIP4 in {each["address"] for each in json.loads(done.stdout)}
    assert "nothing listens on /nonexistent/run/control.sock; asking the xlbd that runs" in done.stderr


def test_another_node_file_does_not_lead_to_this_daemon(site: Serving, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[node\n")
    done = site.node.namespace.run(*site.node.xlbctl_command("--config", str(other), "vip", "list"), check=False)
    assert done.returncode == 2 and "is not valid TOML" in done.stderr


@pytest.mark.parametrize("loss", LOSSES)
def test_removal_leaves_nothing_in_the_kernel(site: Serving, node_file: Path, loss: str) -> None:
    node, namespace = site.node, site.node.namespace
    if not node.running:
        node.start()
    before = namespace.run("ip", "-o", "address", "show", "dev", "eth0").stdout
    assert VIP4 in before and VIP6 in before and "xdp" in namespace.run("ip", "link", "show", "dev", "eth0").stdout
    assert node.stop() == 0
    command = (sys.executable, "-m", "ctl.uninstall", str(node_file))
    environment = {"PYTHONPATH": str(node.tree)}
    lose(node_file, loss)
    done = namespace.run(*command, check=False, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "removing what is in the kernel, because" in done.stderr
    after = namespace.run("ip", "-o", "address", "show", "dev", "eth0").stdout
    assert VIP4 not in after and VIP6 not in after
    assert [line for line in before.splitlines() if f"{VIP4}/" not in line and f"{VIP6}/" not in line] == after.splitlines()
    assert "xdp" not in namespace.run("ip", "link", "show").stdout
    assert not list(node.bpf_dir.parent.glob(f"{node.bpf_dir.name}*"))


def test_removal_is_refused_while_the_daemon_runs(site: Serving, node_file: Path) -> None:
    node = site.node
    if not node.running:
        node.start()
    lose(node_file, "missing")
    command = (sys.executable, "-m", "ctl.uninstall", str(node_file))
    done = node.namespace.run(*command, check=False, environment={"PYTHONPATH": str(node.tree)})
    assert done.returncode == 1 and "another xlbd" in done.stderr
    assert site.http().error == ""
