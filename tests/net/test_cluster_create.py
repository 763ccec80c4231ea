"""`xlbctl cluster create` as typed by a person, against a real OpenSSH server on the peer; then the pair under faults.

A test of a refusal checks its message, its exit code and that both nodes are unchanged.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cli import Terminal
from tests.net.serving import Serving
from tests.rig import VIP4, VIP6, Layout, Node, Rig
from tests.rig.sshd import SshServer, why_no_sshd
from tests.wait import wait_until

LOCAL, PEER, ABSENT = "10.99.0.1", "10.99.0.2", "10.99.0.77"
PASSWORD = "correct horse battery staple"


class Site(Serving):
    """Two running nodes, the second one with an SSH server and its own farm."""

    def __init__(self, rig: Rig, home: Path) -> None:
        super().__init__(rig)
        self.one, self.two = rig.nodes
        self.home = home
        self.sshd = SshServer(self.two.namespace, PEER, rig.directory / "sshd", PASSWORD)

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh" / "known_hosts"

    def command(self, *arguments: str, peer: str = PEER, remote: str = "") -> list[str]:
        """`xlbctl cluster create …` on the first node."""
        there = remote or f"env PYTHONPATH={shlex.quote(str(self.two.tree))} {shlex.join(self.two.xlbctl_command())}"
        words = ("cluster", "create", "--local", LOCAL, "--peer", peer, "--remote-command", there, *arguments)
        return self.one.xlbctl_command(*words)

    def create(
        self, *arguments: str, password: str = PASSWORD, peer: str = PEER, remote: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """The same without a terminal: the password comes through a pipe."""
        environment = {"HOME": str(self.home), "PYTHONPATH": str(self.one.tree)}
        words = self.command(*arguments, peer=peer, remote=remote)
        return self.one.namespace.run(*words, stdin=f"{password}\n", check=False, environment=environment)

    def refused(self, message: str, *arguments: str, code: int = 1, **how: str) -> None:
        """Fails unless the command is refused with this message and nothing has changed."""
        before = self.observed()
        done = self.create(*arguments, **how)
        assert done.returncode == code, done.stderr
        assert message in done.stderr.splitlines()[-1], done.stderr
        assert self.observed() == before

    def observed(self) -> list[Any]:
        """State that a refused command must not change."""
        found: list[Any] = []
        for node in (self.one, self.two):
            status = node.call("cluster.status")
            found += [status["role"], status["peer"], node.call("config.export"), (node.state_dir / "cluster.json").exists()]
        return found

    def forget(self) -> None:
        self.known_hosts.unlink(missing_ok=True)

    def know(self, key: str) -> None:
        self.known_hosts.parent.mkdir(exist_ok=True)
        self.known_hosts.write_text(f"{PEER} {key}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if reason := why_no_sshd():
        pytest.skip(reason)
    with Rig(Layout(nodes=2, backends=2)) as rig:
        for node in rig.nodes:
            node.start()
        made = Site(rig, tmp_path_factory.mktemp("home"))
        made.add_farm("http")
        made.two.call("vip.add", address="10.77.0.200/24", device="eth0")
        made.two.call("farm.add", name="old", vip="10.77.0.200", port=80)
        with made.sshd:
            yield made


def test_an_absent_peer_is_named(site: Site) -> None:
    site.refused(f"{ABSENT} port 22 cannot be reached by SSH: No route to host; check the address", "--yes", peer=ABSENT)


def test_no_ssh_server_at_the_port(site: Site) -> None:
    site.refused(f"{PEER} port 2222 cannot be reached by SSH: Connection refused; check", "--yes", "--ssh-port", "2222")


def test_an_unknown_host_key_is_not_taken_silently(site: Site) -> None:
    site.forget()
    site.refused(f"the host key of {PEER} is unknown: {site.sshd.fingerprint}; compare it with what ssh-keygen -lf", "--yes")
    site.refused("is unknown", "--yes", "--accept-host-key", "SHA256:somebodyelses")
    assert not site.known_hosts.exists()


def test_a_changed_host_key_is_refused_even_if_it_is_named(site: Site) -> None:
    site.know(site.sshd.public_key)
    site.sshd.stop()
    site.sshd.new_key()
    site.sshd.start()
    message = f"the host key of {PEER} has changed to {site.sshd.fingerprint}: another machine may intercept"
    site.refused(message, "--yes")
    site.refused(message, "--yes", "--accept-host-key", site.sshd.fingerprint)


def test_a_wrong_password(site: Site) -> None:
    site.know(site.sshd.public_key)
    site.refused(f"{PEER} refuses root's login: the password is wrong, or root may not log in", "--yes", password="guess")


def test_xlb_is_not_installed_there(site: Site) -> None:
    site.know(site.sshd.public_key)
    site.refused(f"xlb is not installed on {PEER}: install the same package there", "--yes", remote="/nowhere/xlbctl")


def test_another_version_there(site: Site) -> None:
    site.know(site.sshd.public_key)
    site.refused(f"{PEER} has xlb 9.9 and this node", "--yes", remote="""echo '{"xlbd": "9.9"}' #""")


def test_what_would_be_removed_must_be_confirmed(site: Site) -> None:
    site.know(site.sshd.public_key)
    message = "1 farm and 1 VIP of lb2 will be removed, a backup copy is saved there: old, 10.77.0.200. Confirm with --yes"
    site.refused(message, code=2)


def test_a_person_creates_the_pair_and_clients_do_not_notice(site: Site) -> None:
    site.forget()
    stop, failures, answered = threading.Event(), list[str](), [0]

    def browse() -> None:
        while not stop.is_set():
            answer = site.http(timeout_s=2)
            answered[0] += 1
            if answer.error:
                failures.append(answer.error)

    browser = threading.Thread(target=browse)
    browser.start()
    try:
        command = site.one.namespace.command(site.command())
        with Terminal(command, HOME=str(site.home), PYTHONPATH=str(site.one.tree)) as terminal:
            terminal.expect(f"Password of root on {PEER}")
            terminal.type("mistyped\n")
            terminal.expect("Repeat it")
            terminal.type(f"{PASSWORD}\n")
            terminal.expect("do not match")
            terminal.expect(f"Password of root on {PEER}")
            terminal.type(f"{PASSWORD}\n")
            terminal.expect("Repeat it")
            terminal.type(f"{PASSWORD}\n")
            asked = terminal.expect(rf"The host key of {PEER} is unknown: (\S+)\. Is that its key\?")
            assert asked[1] == site.sshd.fingerprint
            terminal.type("y\n")
            terminal.expect("1 farm and 1 VIP of lb2 will be removed, a backup copy is saved there: old, 10.77.0.200")
            terminal.type("y\n")
            terminal.expect("lb1 and lb2 are a pair; lb1 is active", within_s=60)
            assert terminal.wait() == 0
            assert PASSWORD not in terminal.output
    finally:
        stop.set()
        browser.join(10)
    assert answered[0] > 10 and not failures
    assert site.known_hosts.read_text() == f"{PEER} {site.sshd.public_key}\n"
    assert (site.one.call("cluster.status")["role"], site.two.call("cluster.status")["role"]) == ("active", "backup")
    assert site.two.call("config.export") == site.one.call("config.export")
    assert len(list(site.two.state_dir.glob("before-join-*.farms.toml"))) == 1
    addresses = site.two.namespace.run("ip", "-brief", "address").stdout
    assert VIP4 not in addresses and "10.77.0.200" not in addresses


def findings(node: Node, expect: int) -> dict[str, dict[str, str]]:
    return {each["name"]: each for each in json.loads(node.xlbctl("-o", "json", "cluster", "check", expect=expect).stdout)}


def test_every_check_passes_on_both_nodes(site: Site) -> None:
    for node, other in ((site.one, "lb2"), (site.two, "lb1")):
        found = findings(node, 0)
        bad = {name: each for name, each in found.items() if each["status"] == "fail"}
        assert not bad
        good = (
            "peer",
            "kernel",
            "xlb version",
            "table ABI",
            "clock offset",
            "ping",
            "MTU of cluster",
            "MTU of eth0",
            "XDP on lb1 eth0",
        )
        vrrp = [f"VRRP {kind} {a} to {b}" for kind in ("unicast", "multicast") for a, b in (("lb1", "lb2"), ("lb2", "lb1"))]
        for name in (*good, *vrrp, "duplicate VIPs", f"cluster interface of {other}"):
            assert found[name]["status"] == "ok", found[name]


def test_people_get_a_table(site: Site) -> None:
    lines = site.one.xlbctl("cluster", "check").stdout.splitlines()
    assert lines[0].split() == ["CHECK", "RESULT", "FINDING", "REMEDY"] and len(lines) > 15


def test_what_is_wrong_is_named_with_its_remedy(site: Site) -> None:
    thief = site.rig.backend("b1")
    thief.namespace.ip(f"addr add {VIP4}/32 dev eth0", f"addr add {VIP6}/128 dev eth0 nodad")
    site.two.namespace.ip("link set eth0 mtu 1400")
    try:
        found = findings(site.two, 1)
    finally:
        site.two.namespace.ip("link set eth0 mtu 1500")
        thief.namespace.ip(f"addr del {VIP4}/32 dev eth0", f"addr del {VIP6}/128 dev eth0")
    assert found["duplicate VIPs"]["status"] == "fail" and "is answered by" in found["duplicate VIPs"]["message"]
    assert found["MTU of eth0"]["message"] == "1400 on lb2, 1500 on lb1"


def test_a_change_on_the_backup_reaches_both(site: Site) -> None:
    site.two.xlbctl("farm", "add", "more", "--vip", VIP4, "--port", "81")
    assert "more" in site.one.xlbctl("farm", "list").stdout
    done = site.two.xlbctl("farm", "add", "more", "--vip", VIP4, "--port", "82", expect=2)
    assert "farm more already exists" in done.stderr


def test_an_absent_peer_is_named_on_stderr_and_it_catches_up(site: Site) -> None:
    site.two.kill()
    wait_until(lambda: not site.one.call("cluster.status")["peer"]["alive"], "the silence")
    done = site.one.xlbctl("farm", "stop", "more")
    assert "stored on this node only: lb2 is absent" in done.stderr or "lb2 has not confirmed it" in done.stderr
    site.two.start()
    wait_until(lambda: site.two.call("config.export") == site.one.call("config.export"), "the peer to catch up")


def test_destroy_leaves_one_node_that_serves(site: Site) -> None:
    done = site.one.xlbctl("cluster", "destroy", "--yes")
    assert "this node continues as a single node" in done.stdout
    wait_until(lambda: site.two.call("cluster.status")["role"] == "single", "the peer to be single")
    assert site.two.call("vip.list") == [] and not site.http().error
    assert len(list(site.two.state_dir.glob("before-leave-*.farms.toml"))) == 1


def test_create_and_join_by_token(site: Site) -> None:
    made = site.one.json("cluster", "create", "--local", LOCAL, "--peer", PEER, "--token-only")
    assert set(made) == {"token"}
    joined = site.two.xlbctl("cluster", "join", "--local", PEER, "--yes", "-", stdin=made["token"] + "\n")
    assert "lb2 is the backup of lb1" in joined.stdout
    again = site.two.xlbctl("cluster", "join", "--local", PEER, "--yes", made["token"], expect=1)
    assert "this node is in a pair with lb1 already" in again.stderr
    site.two.xlbctl("cluster", "destroy", "--yes")
    wait_until(lambda: site.one.call("cluster.status")["role"] == "single", "the serving node to be single")
    used = site.two.xlbctl("cluster", "join", "--local", PEER, "--yes", made["token"], expect=1)
    assert "the token was used, has expired or was replaced" in used.stderr or "used already" in used.stderr
    assert not site.http().error


def test_the_cluster_network_may_be_ipv6(site: Site) -> None:
    for number, node in enumerate((site.one, site.two), 1):
        node.namespace.ip(f"addr add fd99::{number}/64 dev ha0 nodad")
    token = site.one.json("cluster", "create", "--local", "fd99::1", "--peer", "fd99::2", "--token-only")["token"]
    site.two.xlbctl("cluster", "join", "--local", "fd99::2", "--yes", "--no-check", token)
    wait_until(lambda: site.two.call("cluster.status")["peer"]["alive"], "the nodes to hear each other")
    site.two.xlbctl("farm", "add", "six", "--vip", VIP6, "--port", "80")
    assert {each["name"] for each in site.one.call("farm.list")} >= {"http4", "six"}
    found = findings(site.one, 0)
    assert found["ping"]["status"] == found["VRRP unicast lb1 to lb2"]["status"] == "ok"
