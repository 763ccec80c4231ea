"""Two nodes' configurations over a simulated link: stored on both, reported when not, adopted, saved after a split brain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.cluster.config_replication import ConfigReplica, Discarded, version_of
from ctl.cluster.peer_rpc import (
    Answer,
    DocumentOffered,
    MalformedMessage,
    PeerLink,
    Question,
    Refusal,
    VersionTold,
    decode,
    encode,
)
from ctl.config import changes, understood
from ctl.config.changes import Committed
from ctl.config.model import Config
from ctl.config.record_codec import Record
from ctl.config.record_codec import decode as decode_record
from ctl.errors import Code, InvalidInput, XlbError
from ctl.network.vip_addresses import VipAddresses
from ctl.node.transaction import Transaction
from ctl.state.store import Store
from sync.config.config_sync import Document
from tests.fakes.network import FakeNetwork
from tests.fakes.plane import FakePlane
from tests.refusals import invalid, refused
from tests.wait import wait_until_async

PAIR = "ab" * 16


def add_vip(number: int) -> Callable[[Config], Config]:
    return lambda config: changes.change(config, "vip.add", {"address": f"10.0.0.{number}/24", "device": "eth0"})


class Host:
    """Implements `ctl.cluster.config_replication.Host` by a real transaction on a real store."""

    def __init__(self, directory: Path) -> None:
        self.disk, self.network = Store(directory), FakeNetwork()
        addresses = VipAddresses(self.network, directory)
        self.transaction = Transaction(self.disk, FakePlane(), addresses, lambda _: frozenset(), self.in_force, lambda: None)
        self.adopted: list[Config] = []

    async def start(self) -> None:
        await self.transaction.load()
        if self.config.pair != PAIR:
            await self.transaction.commit(lambda config: replace(config, pair=PAIR))

    @property
    def config(self) -> Config:
        return self.transaction.config

    async def in_force(self, done: Committed) -> None:
        pass

    async def store(self, record: Record) -> None:
        await self.transaction.store(record)

    async def adopt(self, config: Config) -> None:
        await self.transaction.adopt(config)
        self.adopted.append(config)


class Side:
    """One node: its host, its replica and its end of the link."""

    def __init__(self, directory: Path, peer: str) -> None:
        self.directory, self.peer = directory, peer
        self.epoch = 0
        self.connected = True
        self.other: Side

    def make(self) -> None:
        self.host = Host(self.directory)
        self.discarded: list[Discarded] = []
        self.replica = ConfigReplica(self.host, PAIR, self.peer, self.directory, lambda: self.epoch, kept=self.discarded.append)
        self.link = PeerLink(self.peer, self.send, self.answer, self.replica.heard)
        self.replica.connect(self.link)

    async def start(self) -> None:
        await self.host.start()
        await self.host.transaction.record_with(self.replica, self.replica.start)

    async def change(self, make: Callable[[Config], Config]) -> Committed:
        return await self.host.transaction.commit(make)

    def send(self, data: bytes) -> bool:
        if not (self.connected and self.other.connected):
            return False
        asyncio.get_running_loop().call_soon(self.other.link.received, data)
        return True

    async def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "fail":
            raise InvalidInput("expected another", "farm.web.port", Code.LISTENER_IN_USE)
        if command == "refuse":
            raise XlbError("not now", Code.PEER_SERVES)
        if command == "crash":
            raise RuntimeError("a bug")
        return [command, arguments]

    async def stop(self) -> None:
        await self.replica.close()
        await self.link.close()


def scene(test: Callable[[Side, Side], Any], directory: Path) -> None:
    async def run() -> None:
        one, two = Side(directory / "one", "lb2"), Side(directory / "two", "lb1")
        one.other, two.other = two, one
        one.epoch = 2
        for side in (one, two):
            side.make()
        for side in (one, two):
            await side.start()
        try:
            await test(one, two)
        finally:
            await one.stop()
            await two.stop()

    asyncio.run(run())


async def connected(one: Side, two: Side) -> None:
    await wait_until_async(
        lambda: one.replica.peer_version is not None and two.replica.peer_version is not None, "both to hear each other"
    )


def test_a_change_is_on_both_disks_before_it_is_answered(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        done = await one.change(add_vip(1))
        assert done.note == ""
        assert version_of(done.new) == (2, 1)
        for side in (one, two):
            stored = Store(side.directory).load().config
            assert list(stored.vips) == ["10.0.0.1"] and version_of(stored) == (2, 1) and stored.pair == PAIR
        await wait_until_async(lambda: two.host.adopted, "the peer to adopt")

    scene(test, tmp_path)


def test_an_absent_peer_is_named_and_catches_up(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        two.connected = False
        done = await one.change(add_vip(1))
        assert done.note == "stored on this node only: lb2 is absent"
        two.connected = True
        await wait_until_async(lambda: two.host.config.vips, "the peer to catch up")
        assert two.host.disk.load().config == one.host.config

    scene(test, tmp_path)


def test_a_silent_peer_is_reported(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        two.connected = False
        done = await one.change(add_vip(1))
        assert "lb2 has not confirmed it" in done.note or "lb2 is absent" in done.note
        await wait_until_async(lambda: one.replica.peer_version is None, "the silence to be detected")
        assert (await one.change(add_vip(2))).note == "stored on this node only: lb2 is absent"

    scene(test, tmp_path)


def test_a_node_that_is_not_active_accepts_no_change(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        with refused(Code.NOT_SERVING):
            await two.change(add_vip(1))
        assert not two.host.config.vips

    scene(test, tmp_path)


def test_a_change_this_kernel_refuses_is_not_sent_to_the_peer(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        one.host.network.refuse_addresses = True
        with refused(Code.KERNEL_REFUSED):
            await one.change(add_vip(1))
        one.host.network.refuse_addresses = False
        await one.change(add_vip(2))
        await wait_until_async(lambda: two.host.config.vips, "the peer to have the second change")
        assert list(two.host.config.vips) == ["10.0.0.2"]
        assert version_of(two.host.config) == (2, 1)

    scene(test, tmp_path)


def test_a_setting_that_the_peer_does_not_know_is_refused(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        one.epoch = 1
        await connected(one, two)
        one.replica.peer_understands(understood.OF_0_1_0)
        await one.change(add_vip(1))
        farm = {"name": "web", "vip": "10.0.0.1", "port": 80}
        await one.change(lambda config: changes.change(config, "farm.add", farm))
        before = one.host.config
        with refused(Code.PEER_VERSION) as caught:
            await one.change(lambda config: changes.change(config, "farm.set", {"name": "web", "on_no_backend": "drop"}))
        assert "farm.web.on_no_backend" in str(caught.value) and f"upgrade xlb on {one.peer} first" in str(caught.value)
        assert one.host.config is before
        one.replica.peer_understands(understood.names())
        await one.change(lambda config: changes.change(config, "farm.set", {"name": "web", "on_no_backend": "drop"}))
        assert one.host.config.farms["web"].on_no_backend == "drop"

    scene(test, tmp_path)


def test_an_invalid_change_changes_nothing(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        await one.change(add_vip(1))
        with refused(Code.VIP_EXISTS):
            await one.change(add_vip(1))
        done = await one.change(lambda config: config)
        assert done.old is done.new and one.replica.version == (2, 1)

    scene(test, tmp_path)


def test_a_change_after_a_takeover_follows_the_last_one_even_if_that_is_not_in_force_yet(tmp_path: Path) -> None:
    """The kernel is busy when the last change of the other node has reached the disk here."""

    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        adopt, adopting, may_adopt = two.host.adopt, asyncio.Event(), asyncio.Event()

        async def late(config: Config) -> None:
            adopting.set()
            await may_adopt.wait()
            await adopt(config)

        two.host.adopt = late  # type: ignore[method-assign]
        await one.change(add_vip(1))
        await asyncio.wait_for(adopting.wait(), 5)
        one.epoch, two.epoch = 0, 3
        change = asyncio.create_task(two.change(add_vip(2)))
        await asyncio.wait([change], timeout=0.2)
        may_adopt.set()
        await change
        assert list(two.host.config.vips) == ["10.0.0.1", "10.0.0.2"], "no change is lost"
        await wait_until_async(lambda: one.host.config == two.host.config, "the same on both nodes")

    scene(test, tmp_path)


def test_concurrent_changes_are_serialised(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        await asyncio.gather(*(one.change(add_vip(number)) for number in range(1, 11)))
        await wait_until_async(lambda: len(two.host.config.vips) == 10, "all changes to arrive")
        assert one.replica.version == two.replica.version == (2, 10)

    scene(test, tmp_path)


def test_after_a_split_brain_the_higher_epoch_wins_and_the_losing_version_is_saved(tmp_path: Path, caplog: Any) -> None:
    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        await one.change(add_vip(1))
        await wait_until_async(lambda: two.host.config.vips, "the common origin")
        two.connected = False
        two.epoch = 3
        await one.change(add_vip(2))
        await two.change(add_vip(3))
        two.connected = True
        one.epoch = 0
        await wait_until_async(lambda: version_of(one.host.config) == (3, 2), "the split brain to heal")
        assert list(one.host.config.vips) == ["10.0.0.1", "10.0.0.3"]
        kept = tmp_path / "one" / "farms.conflict-2-2.jsonl"
        assert list(decode_record(kept.read_bytes()).vips) == ["10.0.0.1", "10.0.0.2"]
        what = "vip 10.0.0.2 added (/24 on eth0); vip 10.0.0.3 removed"
        assert f"is saved as {kept}; discarded: {what}" in caplog.text
        assert (one.discarded, two.discarded) == ([Discarded((2, 2), (3, 2), str(kept), what)], [])
        assert not list((tmp_path / "two").glob("farms.conflict*"))

    scene(test, tmp_path)


def test_after_a_split_brain_the_winners_accounts_are_in_force(tmp_path: Path) -> None:
    def add_user(name: str) -> Callable[[Config], Config]:
        password_hash = f"$argon2id$v=19$m=19456,t=2,p=1${'A' * 22}${'A' * 43}"
        return lambda config: changes.change(config, "user.add", {"name": name, "password_hash": password_hash})

    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        await one.change(add_user("common"))
        await wait_until_async(lambda: two.host.config.users, "the common origin")
        two.connected = False
        two.epoch = 3
        await one.change(add_user("lost"))
        await two.change(lambda config: changes.change(config, "user.delete", {"name": "common"}))
        await two.change(add_user("won"))
        two.connected = True
        one.epoch = 0
        await wait_until_async(lambda: version_of(one.host.config) == (3, 3), "the split brain to heal")
        assert list(one.host.config.users) == ["won"]
        (discarded,) = one.discarded
        assert discarded.what == "user common added (viewer); user lost added (viewer); user won removed"
        kept = tmp_path / "one" / "farms.conflict-2-2.jsonl"
        assert list(decode_record(kept.read_bytes()).users) == ["common", "lost"] and kept.stat().st_mode & 0o777 == 0o600

    scene(test, tmp_path)


def test_an_ancestor_is_replaced_silently(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        await one.change(add_vip(1))
        await wait_until_async(lambda: two.host.config.vips, "the common origin")
        one.connected = False
        one.epoch, two.epoch = 0, 3
        await two.change(add_vip(2))
        one.connected = True
        await wait_until_async(lambda: version_of(one.host.config) == (3, 2), "the old active to follow")
        assert one.host.config.history == ((2, 1),)
        assert not list(tmp_path.glob("*/farms.conflict*"))

    scene(test, tmp_path)


def test_a_restart_continues_from_the_stored_version(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        await connected(one, two)
        await one.change(add_vip(1))
        await two.stop()
        two.make()
        await two.start()
        assert two.replica.version == (2, 1)
        assert (await one.change(add_vip(2))).note == ""
        assert len(two.host.disk.load().config.vips) == 2

    scene(test, tmp_path)


def test_a_document_of_another_pair_is_refused(tmp_path: Path, caplog: Any) -> None:
    async def test(one: Side, two: Side) -> None:
        from ctl.config.record_codec import Encoder

        alien = replace(one.host.config, pair="cd" * 16, epoch=9, generation=9)
        two.link.received(encode(DocumentOffered(Document((9, 9), (), Encoder().encode(alien)))))
        two.link.received(encode(DocumentOffered(Document((9, 9), (), b"rubbish"))))
        await wait_until_async(lambda: "it belongs to another pair" in caplog.text, "the complaint")
        assert two.replica.version == (0, 0)

    scene(test, tmp_path)


def test_requests_are_answered_and_errors_keep_their_kind(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        assert await one.link.ask("echo", {"a": [1, 2]}) == ["echo", {"a": [1, 2]}]
        with invalid(Code.LISTENER_IN_USE, "farm.web.port") as caught:
            await one.link.ask("fail", {})
        assert str(caught.value) == "farm.web.port: expected another"
        with refused(Code.PEER_SERVES):
            await one.link.ask("refuse", {})
        with refused(Code.INTERNAL):
            await one.link.ask("crash", {})
        two.connected = False
        with refused(Code.PEER_UNREACHABLE):
            await one.link.ask("echo", {})

    scene(test, tmp_path)


def test_an_unanswered_request_times_out(tmp_path: Path) -> None:
    async def test(one: Side, two: Side) -> None:
        two.link.received = lambda data: None  # type: ignore[method-assign]
        with refused(Code.PEER_SILENT):
            await one.link.ask("echo", {}, timeout_s=0.05)

    scene(test, tmp_path)


MESSAGES = st.one_of(
    st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)).map(VersionTold),
    st.builds(
        lambda version, history, body: DocumentOffered(Document(version, tuple(history), body)),
        st.tuples(st.integers(0, 9), st.integers(0, 9)),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3),
        st.binary(max_size=50),
    ),
    st.builds(
        Question, st.integers(0, 9), st.text(min_size=1, max_size=20), st.dictionaries(st.text(max_size=5), st.integers(0, 9))
    ),
    st.builds(Answer, st.integers(0, 9), st.text(max_size=9)),
    st.builds(Answer, st.integers(0, 9), st.none(), st.builds(Refusal, *[st.text(max_size=9)] * 4)),
)


def test_errors_are_compatible_with_version_0_1_0_which_sends_no_code() -> None:
    """It reads the error from the fourth field, exactly three strings, and ignores the third."""
    refusal = Refusal("invalid", "farm: no such farm", "farm", Code.UNKNOWN_FARM)
    kind, number, ignored, error = msgpack.unpackb(encode(Answer(7, None, refusal)))
    assert (kind, number, error) == ("answer", 7, ["invalid", "farm: no such farm", "farm"])
    assert ignored == {"code": "unknown_farm"}
    of_0_1_0 = msgpack.packb(["answer", 7, None, ["refused", "lb2 serves too at this moment", ""]])
    assert decode(of_0_1_0) == Answer(7, None, Refusal("refused", "lb2 serves too at this moment", "", Code.UNCODED))


@given(MESSAGES)
def test_messages_survive_encoding_and_truncated_ones_are_refused(message: Any) -> None:
    data = encode(message)
    assert decode(data) == message
    for length in range(len(data)):
        with pytest.raises(MalformedMessage):
            decode(data[:length])


@given(
    st.one_of(
        st.binary(max_size=200),
        MESSAGES.map(encode).flatmap(
            lambda data: st.builds(
                lambda at, value: data[:at] + bytes([value]) + data[at + 1 :],
                st.integers(0, len(data) - 1),
                st.integers(0, 255),
            )
        ),
    )
)
def test_random_bytes_raise_only_the_declared_error(data: bytes) -> None:
    heard: list[Any] = []

    async def run() -> None:
        async def answer(command: str, arguments: dict[str, Any]) -> Any:
            return None

        link = PeerLink("lb2", lambda _: True, answer, heard.append)
        link.received(data)
        await link.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "fields",
    [
        ["offer", [1, 1], [[1, number] for number in range(65)], b""],
        ["offer", [1, 1], [[1]], b""],
        ["offer", [1], [], b""],
        ["offer", [1, 1], [], "text"],
        ["version", [1, -1]],
        ["version", [True, 1]],
        ["ask", 1, "x" * 65, {}],
        ["ask", 1, "echo", {1: 2}],
        ["ask", -1, "echo", {}],
        ["answer", 1, None, ["invalid", "message"]],
        ["answer", 1, {"code": "busy"}, ["refused", "message", "", "busy"]],
        ["unknown"],
        {"not": "a list"},
    ],
)
def test_values_out_of_bounds_are_refused(fields: Any) -> None:
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(fields))
