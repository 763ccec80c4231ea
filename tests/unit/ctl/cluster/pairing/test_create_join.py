"""Two whole daemons on fakes: create, join, replicate, forward and destroy, and every reason to refuse them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ctl.cluster.pairing.create_join
from ctl.cluster.pairing.exchange import Token
from ctl.cluster.peer_questions import PeerQuestions
from ctl.config import farms_file
from ctl.errors import Code, InvalidInput, XlbError
from ctl.state.cluster_file import PAIRING_PORT, ClusterFile
from ctl.state.store import Store
from tests.fakes.pair import Site, in_step, join, paired_sites, site, two_sites
from tests.refusals import invalid, refused
from tests.wait import wait_until

VIP = {"address": "10.0.0.100/24", "device": "eth0"}
FARM = {"name": "web", "vip": "10.0.0.100", "port": 80}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    with two_sites(tmp_path) as both:
        yield both


@pytest.fixture
def pair(nodes: tuple[Site, Site]) -> tuple[Site, Site]:
    one, two = nodes
    one.call("vip.add", **VIP)
    one.call("farm.add", **FARM)
    join(one, two)
    in_step(one, two)
    return nodes


def farms(of: Site) -> list[str]:
    return [each["name"] for each in of.call("farm.list")]


def unchanged(*of: Site) -> None:
    for each in of:
        assert each.status["role"] == "single" and each.status["peer"] is None
        assert ClusterFile(each.directory / "state").load() is None


def test_the_creator_stays_active_and_the_joiner_gets_its_farms(pair: tuple[Site, Site]) -> None:
    one, two = pair
    assert one.status["role"] == "active" and two.status["role"] == "backup"
    assert farms(two) == ["web"]
    assert [each.address for each in one.daemon.network.present if each.device == "eth0"] == ["10.0.0.100"]
    assert not [each for each in two.daemon.network.present if each.device == "eth0"]
    stored = Store(two.directory / "state").load().config
    assert stored.pair == one.daemon.farms.pair and stored.hash_seed == one.daemon.farms.hash_seed
    assert two.daemon.plane.hash_seed() == one.daemon.farms.hash_seed


def test_the_joiners_own_farms_are_removed_and_saved(nodes: tuple[Site, Site]) -> None:
    one, two = nodes
    two.call("vip.add", address="10.0.0.200/24", device="eth0")
    two.call("farm.add", name="old", vip="10.0.0.200", port=80)
    assert two.call("cluster.preview")["farms"] == ["old"]
    joined = join(one, two)
    assert joined["farms"] == ["old"] and joined["vips"] == ["10.0.0.200"]
    in_step(one, two)
    assert farms(one) == farms(two) == []
    kept = farms_file.parse(farms_file.parse_text(Path(joined["kept"]).read_text(), "kept"))
    assert [farm.name for farm in kept.farms] == ["old"]
    assert not [each for each in two.daemon.network.present if each.device == "eth0"]


def test_a_change_is_on_both_disks_when_it_is_answered(pair: tuple[Site, Site]) -> None:
    one, two = pair
    one.call("backend.add", farm="web", address="10.0.0.11", port=8080)
    for each in pair:
        config = Store(each.directory / "state").load().config
        assert [backend.endpoint for backend in config.farms["web"].backends] == ["10.0.0.11:8080"]
    wait_until(lambda: two.daemon.farms.farms["web"].backends, "the backup to adopt it")


def test_the_backup_passes_changes_on_and_answers_as_the_active_does(pair: tuple[Site, Site]) -> None:
    _, two = pair
    added = two.call("backend.add", farm="web", address="10.0.0.11", port=8080, weight=3)
    assert added["weight"] == 3
    assert two.call("farm.show", name="web")["backends"][0]["weight"] == 3
    with refused(Code.BACKEND_EXISTS) as caught:
        two.call("backend.add", farm="web", address="10.0.0.11", port=8080)
    assert caught.value.key == "farm.web.backend"
    with refused(Code.VIP_IN_USE):
        two.call("vip.delete", address="10.0.0.100")
    document = two.call("config.export")
    document["farm"][0]["port"] = 81
    assert two.call("config.apply", document=document, dry_run=True)
    assert two.call("farm.show", name="web")["port"] == 80
    assert two.call("config.apply", document=document)
    assert two.call("farm.show", name="web")["port"] == 81


def test_an_absent_peer_is_named_in_the_answer(tmp_path: Path) -> None:
    with paired_sites(tmp_path) as (one, two):
        two.cut_links()
        wait_until(lambda: not one.status["peer"]["alive"], "the silence to be noticed")
        from ctl.api.client import Client

        with Client(one.daemon.socket_path) as client:
            client.call("vip.add", VIP)
            assert client.note in ("stored on this node only: lb2 is absent", "stored on this node; lb2 has not confirmed it")


def test_a_pair_survives_the_restart_of_both_nodes(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        places = [(each.address, each.daemon.plane) for each in (one, two)]
    with (
        site(tmp_path / "1", "lb1", places[0][0], plane=places[0][1]) as one,
        site(tmp_path / "2", "lb2", places[1][0], plane=places[1][1]) as two,
    ):
        wait_until(lambda: {one.status["role"], two.status["role"]} == {"active", "backup"}, "one active node")
        in_step(*sorted((one, two), key=lambda each: str(each.status["role"])))
        assert [each["address"] for each in two.call("vip.list")] == ["10.0.0.100"]


def test_a_joiner_that_dies_before_its_farms_are_gone_sets_them_aside_when_it_starts(tmp_path: Path) -> None:
    with paired_sites(tmp_path) as (_, two):
        address, plane = two.address, two.daemon.plane
        text = (tmp_path / "2/state/cluster.json").read_bytes()
    # The state after a crash right after the cluster file was written: the farms are still the node's own.
    for path in (tmp_path / "2/state").iterdir():
        path.unlink()
    with site(tmp_path / "2", "lb2", address, plane=plane) as two:
        two.call("vip.add", **VIP)
    (tmp_path / "2/state/cluster.json").write_bytes(text)
    with site(tmp_path / "2", "lb2", address, plane=plane) as two:
        assert two.call("vip.list") == []
        assert "10.0.0.100/24" in next((tmp_path / "2/state").glob("before-join-*.farms.toml")).read_text()


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_used_token_is_refused(pair: tuple[Site, Site], tmp_path: Path) -> None:
    one, two = pair
    token = one.call  # the pair exists: no new token is issued either
    with refused(Code.PAIR_EXISTS):
        token("cluster.create", local=one.address, peer=two.address)
    with refused(Code.PAIR_EXISTS):
        two.call("cluster.join", local=two.address, token=_some_token(one.address))


def test_a_token_admits_one_joiner(tmp_path: Path) -> None:
    with two_sites(tmp_path) as (one, two):
        token = one.call("cluster.create", local=one.address, peer=two.address)["token"]
        two.call("cluster.join", local=two.address, token=token)
        two.call("cluster.destroy")
        wait_until(lambda: one.status["role"] == "single", "the creator to be single again")
        with pytest.raises(XlbError) as caught:
            two.call("cluster.join", local=two.address, token=token)
        assert caught.value.code in (Code.TOKEN_USED, Code.CREATOR_UNREACHABLE), caught.value
        unchanged(one, two)


def _some_token(address: str) -> str:
    from sync.transport import Keys

    return Token(address, PAIRING_PORT, Keys.generate().public, bytes(32)).text()


def test_a_wrong_token_is_refused_and_changes_nothing(nodes: tuple[Site, Site]) -> None:
    one, two = nodes
    real = Token.parse(one.call("cluster.create", local=one.address, peer=two.address)["token"])
    wrong = Token(real.address, real.port, real.public_key, bytes(32)).text()
    with refused(Code.WRONG_TOKEN):
        two.call("cluster.join", local=two.address, token=wrong)
    unchanged(one, two)
    with invalid(Code.WRONG_TOKEN, "TOKEN"):
        two.call("cluster.join", local=two.address, token="xlb1-nonsense")


def test_a_token_of_another_key_gets_no_answer(nodes: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    monkeypatch.setattr("ctl.cluster.pairing.sockets.SILENCE_S", 0.5)
    one.call("cluster.create", local=one.address, peer=two.address)
    with refused(Code.CREATOR_UNREACHABLE):
        two.call("cluster.join", local=two.address, token=_some_token(one.address))
    unchanged(one, two)


def test_the_pairing_port_is_closed_without_a_pending_token(nodes: tuple[Site, Site]) -> None:
    one, two = nodes
    token = one.call("cluster.create", local=one.address, peer=two.address)["token"]
    with socket.create_connection((one.address, PAIRING_PORT)):
        pass
    one.call("cluster.cancel")
    with refused(Code.CREATOR_UNREACHABLE):
        two.call("cluster.join", local=two.address, token=token)
    unchanged(one, two)


def test_an_expired_token_is_refused(nodes: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    monkeypatch.setattr(ctl.cluster.pairing.create_join, "TOKEN_LIFE_S", 0)
    token = one.call("cluster.create", local=one.address, peer=two.address)["token"]
    with refused(Code.CREATOR_UNREACHABLE):
        two.call("cluster.join", local=two.address, token=token)
    unchanged(one, two)


def test_a_new_token_voids_the_old_one(nodes: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    monkeypatch.setattr("ctl.cluster.pairing.sockets.SILENCE_S", 0.5)
    old = one.call("cluster.create", local=one.address, peer=two.address)["token"]
    new = one.call("cluster.create", local=one.address, peer=two.address)["token"]
    with refused(Code.CREATOR_UNREACHABLE):
        two.call("cluster.join", local=two.address, token=old)
    two.call("cluster.join", local=two.address, token=new)


def test_random_packets_on_the_pairing_port_do_nothing(nodes: tuple[Site, Site]) -> None:
    one, two = nodes
    token = one.call("cluster.create", local=one.address, peer=two.address)["token"]
    for noise in (b"GET / HTTP/1.0\r\n\r\n", bytes(100_000), b"\xff" * 64):
        with socket.create_connection((one.address, PAIRING_PORT)) as stranger:
            stranger.sendall(noise)
    two.call("cluster.join", local=two.address, token=token)


# --- mismatches ------------------------------------------------------------------------------------------------------


def test_two_nodes_of_one_name_are_refused(tmp_path: Path) -> None:
    with two_sites(tmp_path, names=("lb1", "lb1")) as (one, two):
        with refused(Code.NODES_CONFLICT):
            join(one, two)
        unchanged(one, two)


def test_two_nodes_of_one_priority_are_refused(tmp_path: Path) -> None:
    with two_sites(tmp_path, cluster={0: "priority = 70", 1: "priority = 70"}) as (one, two):
        with refused(Code.NODES_CONFLICT):
            join(one, two)
        unchanged(one, two)


def test_different_times_are_refused(tmp_path: Path) -> None:
    with two_sites(tmp_path, cluster={1: "takeover_ms = 400"}) as (one, two):
        with refused(Code.NODES_DIFFER):
            join(one, two)
        unchanged(one, two)


def test_another_version_is_refused(nodes: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    token = one.call("cluster.create", local=one.address, peer=two.address)["token"]
    monkeypatch.setattr(ctl.cluster.pairing.create_join, "package_version", lambda: "9.9")
    with refused(Code.NODES_DIFFER):
        two.call("cluster.join", local=two.address, token=token)
    unchanged(one, two)


@pytest.mark.parametrize(
    ("local", "peer", "message"),
    [
        ("10.1.2.3", "10.1.2.4", r"--local: this node has no address 10\.1\.2\.3; it has: 127\."),
        ("nonsense", "10.1.2.4", "--local: expected an IP address"),
        ("OWN", "OWN", "--peer: .* is this node's own address"),
        ("OWN", "fd00::2", "--peer: .* are of different families"),
    ],
)
def test_invalid_addresses_are_named(nodes: tuple[Site, Site], local: str, peer: str, message: str) -> None:
    one, _ = nodes
    with pytest.raises(InvalidInput, match=message):
        one.call("cluster.create", local=local.replace("OWN", one.address), peer=peer.replace("OWN", one.address))


def test_an_address_another_program_has_is_named(nodes: tuple[Site, Site]) -> None:
    one, two = nodes
    refused = pytest.raises(XlbError, match=f"cannot listen on {one.address} port {PAIRING_PORT} for the other node: Address")
    with socket.create_server((one.address, PAIRING_PORT)), refused:
        one.call("cluster.create", local=one.address, peer=two.address)
    one.call("cluster.create", local=one.address, peer=two.address)


def test_an_unreachable_creator_is_named(nodes: tuple[Site, Site]) -> None:
    _, two = nodes
    with refused(Code.CREATOR_UNREACHABLE):
        two.call("cluster.join", local=two.address, token=_some_token("127.9.9.9"))


def test_a_creator_that_cannot_store_the_pair_leaves_both_nodes_unchanged(nodes: tuple[Site, Site], monkeypatch: Any) -> None:
    one, two = nodes
    two.call("vip.add", **VIP)
    save = ClusterFile.save

    def refuse(file: ClusterFile, settings: Any) -> None:
        if settings.creator:
            raise XlbError("cannot store it: No space left on device")
        save(file, settings)

    monkeypatch.setattr(ClusterFile, "save", refuse)
    with refused(Code.PAIR_UNCONFIRMED):
        join(one, two)
    unchanged(one, two)
    assert len(two.call("vip.list")) == 1


# --- destroy ---------------------------------------------------------------------------------------------------------


def test_destroy_on_the_active_node(pair: tuple[Site, Site]) -> None:
    one, two = pair
    ended = one.call("cluster.destroy")
    assert ended["serves"] and not ended["warning"] and ended["kept"] is None
    wait_until(lambda: two.status["role"] == "single", "the backup to be single")
    unchanged(one, two)
    assert farms(one) == ["web"] and farms(two) == []
    assert "web" in next((two.directory / "state").glob("before-leave-*.farms.toml")).read_text()
    assert [each.address for each in one.daemon.network.present if each.device == "eth0"] == ["10.0.0.100"]
    assert not [each for each in two.daemon.network.present if each.device == "eth0"]
    one.call("farm.set", name="web", port=81)


def test_destroy_on_the_backup(pair: tuple[Site, Site]) -> None:
    one, two = pair
    ended = two.call("cluster.destroy")
    assert not ended["serves"] and not ended["warning"] and ended["farms"] == ["web"]
    wait_until(lambda: one.status["role"] == "single", "the active node to be single")
    unchanged(one, two)
    assert farms(one) == ["web"] and farms(two) == []
    assert Path(ended["kept"]).exists()


def test_the_peer_cannot_end_the_pair_as_active_node_while_this_node_is_active(pair: tuple[Site, Site]) -> None:
    one, two = pair
    configuration = two.daemon.node.parts.membership.configuration
    assert configuration is not None
    asked = asyncio.run_coroutine_threadsafe(configuration.ask("cluster.leave", {"serves": True}), two.daemon.loop)
    with refused(Code.PEER_SERVES) as caught:
        asked.result(10)
    assert "serves too" in str(caught.value), "what a peer of version 0.1.0 decides by"
    assert one.status["role"] == "active" and farms(one) == farms(two) == ["web"]


def test_destroy_without_the_peer_names_the_remaining_step(pair: tuple[Site, Site]) -> None:
    one, two = pair
    two.cut_links()
    wait_until(lambda: not one.status["peer"]["alive"], "the silence")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(ctl.cluster.pairing.create_join, "LEAVE_TIMEOUT_S", 0.5)
    try:
        ended = one.call("cluster.destroy")
    finally:
        monkey.undo()
    assert "run xlbctl cluster destroy on lb2 before it is connected again, or it will take over the same" in ended["warning"]
    assert one.status["role"] == "single" and farms(one) == ["web"]


def test_a_pair_can_be_made_again_after_it_was_destroyed(pair: tuple[Site, Site]) -> None:
    one, two = pair
    one.call("cluster.destroy")
    wait_until(lambda: two.status["role"] == "single", "the backup to be single")
    one.call("farm.set", name="web", port=81)
    join(one, two)
    in_step(one, two)
    assert two.call("farm.show", name="web")["port"] == 81


def test_maintenance_ends_with_the_pair(pair: tuple[Site, Site]) -> None:
    one, two = pair
    two.call("cluster.maintenance", on=True)
    two.call("cluster.destroy")
    wait_until(lambda: one.status["role"] == "single", "the active node to be single")
    join(two, one)
    in_step(two, one)
    wait_until(lambda: [each.status["role"] for each in (two, one)] == ["active", "backup"], "the new pair's roles")


def test_a_single_node_has_no_pair_to_destroy(nodes: tuple[Site, Site]) -> None:
    with refused(Code.NOT_IN_PAIR):
        nodes[0].call("cluster.destroy")


def test_the_cluster_file_is_what_both_know(pair: tuple[Site, Site]) -> None:
    documents = [json.loads((each.directory / "state/cluster.json").read_text()) for each in pair]
    assert documents[0]["own"] == documents[1]["peer"] and documents[0]["peer"] == documents[1]["own"]
    assert documents[0]["own"]["priority"] == 100 and documents[1]["own"]["priority"] == 50


@pytest.mark.parametrize("code", [Code.PEER_SERVES, Code.UNCODED])
def test_destroy_is_refused_when_the_peer_may_be_active_too(
    pair: tuple[Site, Site], code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer of version 0.1.0 gives no cause."""
    monkeypatch.setattr(PeerQuestions, "answer", refusing(code))
    with refused(code):
        pair[0].call("cluster.destroy")
    assert pair[0].status["peer"]["name"] == "lb2" and ClusterFile(pair[0].directory / "state").load() is not None


def test_destroy_goes_ahead_without_a_peer_that_can_leave(pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeerQuestions, "answer", refusing(Code.DISK_FULL))
    assert "xlbctl cluster destroy on lb2" in pair[0].call("cluster.destroy")["warning"]
    unchanged(pair[0])


def refusing(code: Code) -> Callable[..., Awaitable[Any]]:
    async def answer(*_: object) -> Any:
        raise XlbError("a message that may change", code)

    return answer
