"""xlb-web as a process that creates a pair over real SSH, and is killed while it does so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.state.cluster_file import ClusterFile
from tests.fakes.pair import Site, in_step, two_sites
from tests.fakes.ssh_server import SshPeer, ssh_peer
from tests.fakes.web import RunningWeb, WebClient, give_accounts, web_process
from tests.wait import wait_until

PASSWORD = "correct horse 'battery' \"staple\" ä"


class Scene:
    """Two single nodes, the second with a farm of its own and an SSH server."""

    def __init__(self, one: Site, two: Site, peer: SshPeer) -> None:
        self.one, self.two, self.peer = one, two, peer

    def start(self, client: WebClient, password: str = PASSWORD) -> None:
        form = {
            "local": self.one.address,
            "peer": self.two.address,
            "password": password,
            "password_repeat": password,
            "ssh_port": self.peer.port,
        }
        assert client.post("cluster/create", form).status == 202

    def unchanged(self) -> None:
        for site in (self.one, self.two):
            assert site.status["role"] == "single" and ClusterFile(site.directory / "state").load() is None
        assert [each["name"] for each in self.two.call("farm.list")] == ["old"]


def until(client: WebClient, *wanted: str) -> Any:
    """The view once its state, or the kind of its question, is one of these."""

    def found() -> Any:
        view = client.get("cluster/create").result
        kind = (view["question"] or {}).get("kind", "")
        assert view["state"] in ("running", "asking", *wanted), view
        return view if {view["state"], kind} & set(wanted) else None

    return wait_until(found, " or ".join(wanted))


def agree(client: WebClient, kind: str) -> Any:
    view = until(client, kind)
    answer = {"question": view["question"]["id"], "accept": True}
    assert client.post("cluster/create/answer", answer).status == 200
    return view["question"]


def _waited(event: threading.Event) -> None:
    assert event.wait(20)


def resident_mb(pid: int) -> float:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    print(f"xlb-web is resident with {resident:.0f} MB")
    return resident


def killed(web: RunningWeb) -> None:
    os.kill(web.pid, signal.SIGKILL)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with two_sites(tmp_path) as (one, two), ssh_peer(two, PASSWORD) as peer:
        two.call("vip.add", address="10.0.0.200/24", device="eth0")
        two.call("farm.add", name="old", vip="10.0.0.200", port=80)
        give_accounts(one.daemon)
        yield Scene(one, two, peer)


def test_a_host_key_is_asked_for_once_and_remembered_by_xlb_web(scene: Scene) -> None:
    config = scene.one.daemon.config
    with web_process(config) as web:
        client = web.client("olga")
        scene.start(client, "wrong password")
        assert agree(client, "host_key")["fingerprint"] == scene.peer.fingerprint
        assert until(client, "failed")["error"]["code"] == "ssh_login_refused"
        known = (web.settings.web.state_dir / "known_hosts").read_text()
        assert known.startswith(f"[{scene.two.address}]:{scene.peer.port} ssh-ed25519 ")
        scene.start(client)
        agree(client, "replace")
        done = until(client, "done")
        assert done["kept"] and scene.peer.tried == ["wrong password", PASSWORD]
        in_step(scene.one, scene.two)
        assert resident_mb(web.pid) <= 80
    assert PASSWORD not in (config.parent / "web.log").read_text()


def test_killed_at_a_question_nothing_has_changed(scene: Scene) -> None:
    config = scene.one.daemon.config
    with web_process(config) as web:
        client = web.client("olga")
        scene.start(client)
        agree(client, "host_key")
        until(client, "replace")
        killed(web)
    scene.unchanged()
    with web_process(config) as web:
        client = web.client("olga")
        assert client.get("cluster/create").result is None
        scene.start(client)
        agree(client, "replace")
        assert until(client, "done")["peer"] == "lb2"


def test_killed_during_the_join_the_nodes_are_a_pair(scene: Scene) -> None:
    """The peer has the token by then, and nobody revokes it."""
    config, released = scene.one.daemon.config, threading.Event()
    scene.peer.before_join = lambda: _waited(released)
    with web_process(config) as web:
        client = web.client("olga")
        scene.start(client)
        agree(client, "host_key")
        agree(client, "replace")
        assert scene.peer.joins.wait(20)
        killed(web)
    scene.unchanged()
    released.set()
    in_step(scene.one, scene.two)
    with web_process(config) as web:
        assert web.client("olga").get("cluster/create").result is None


def test_stopped_during_the_join_both_nodes_are_as_they_were(scene: Scene) -> None:
    """The token is revoked before xlb-web ends."""
    config, pairing = scene.one.daemon.config, scene.one.daemon.node.parts.pairing

    def revoked() -> None:
        wait_until(lambda: pairing._listener is None, "the token is revoked")

    scene.peer.before_join = revoked
    with web_process(config) as web:
        client = web.client("olga")
        scene.start(client)
        agree(client, "host_key")
        agree(client, "replace")
        assert scene.peer.joins.wait(20)
    scene.unchanged()
