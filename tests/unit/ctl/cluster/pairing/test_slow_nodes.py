"""Pairing on slow machines: the compiler runs before the exchange, and a limit counts silence, not work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

import ctl.cluster.pairing.sockets as sockets
from ctl.cluster.pairing.exchange import WORKING, Invitation, Reply
from ctl.cluster.pairing.sockets import MAX_REFUSALS, REFUSED_WITHIN_S, Handshake
from ctl.errors import Code, XlbError
from ctl.state.cluster_file import ClusterFile
from tests.fakes.daemon import FakeAttacher
from tests.fakes.pair import Site, in_step, join, two_sites
from tests.refusals import refused
from tests.wait import wait_until

SILENCE_S = 1.0


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, Site]]:
    monkeypatch.setattr(sockets, "SILENCE_S", SILENCE_S)
    monkeypatch.setattr(sockets, "ASK_AGAIN_S", SILENCE_S / 10)
    with two_sites(tmp_path) as both:
        yield both


def unchanged(*of: Site) -> None:
    for each in of:
        assert each.status["role"] == "single" and ClusterFile(each.directory / "state").load() is None


def test_a_creator_that_stores_for_longer_than_the_limit_is_waited_for(
    nodes: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    enough, working = threading.Event(), list[Reply]()
    save, received = ClusterFile.save, Invitation.received

    def slow(file: ClusterFile, settings: Any) -> None:
        if settings.creator:
            assert enough.wait(20), "the joiner did not ask again"
        save(file, settings)

    def counted(invitation: Invitation, *arguments: Any) -> Any:
        answer = received(invitation, *arguments)
        working.extend([answer] if isinstance(answer, Reply) and answer.message == WORKING else [])
        if len(working) > 2 * SILENCE_S / sockets.ASK_AGAIN_S:
            enough.set()
        return answer

    monkeypatch.setattr(ClusterFile, "save", slow)
    monkeypatch.setattr(Invitation, "received", counted)
    join(*nodes)
    assert enough.is_set()
    in_step(*nodes)


def compiling(monkeypatch: pytest.MonkeyPatch, of: Site, compile_it: Callable[[], None]) -> None:
    add = FakeAttacher.add_features

    def wrapped(attacher: FakeAttacher, features: frozenset[str]) -> None:
        if attacher is of.daemon.attacher:
            compile_it()
        add(attacher, features)

    monkeypatch.setattr(FakeAttacher, "add_features", wrapped)


def test_the_joiner_compiles_before_the_exchange_begins(nodes: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    began, may_end, heard = threading.Event(), threading.Event(), list[bytes]()
    received = Invitation.received

    def recorded(invitation: Invitation, message: bytes, *rest: Any) -> Any:
        heard.append(message)
        return received(invitation, message, *rest)

    def compile_it() -> None:
        began.set()
        assert may_end.wait(20)

    monkeypatch.setattr(Invitation, "received", recorded)
    compiling(monkeypatch, two, compile_it)
    with ThreadPoolExecutor(1) as thread:
        joining = thread.submit(join, one, two)
        assert began.wait(20)
        assert one.daemon.attacher.compiled == {"replication"}, "the creator compiled before it gave the token"
        assert not heard, "the exchange began before the joiner had compiled"
        may_end.set()
        joining.result(20)
    in_step(one, two)


@pytest.mark.parametrize("failing", [0, 1], ids=["creator", "joiner"])
def test_a_node_that_cannot_compile_begins_no_exchange(
    nodes: tuple[Site, Site], failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_it() -> None:
        raise XlbError("compiling the data plane failed", Code.KERNEL_REFUSED)

    compiling(monkeypatch, nodes[failing], compile_it)
    with refused(Code.KERNEL_REFUSED):
        join(*nodes)
    unchanged(*nodes)


def test_a_creator_that_hangs_is_named_as_the_cause(nodes: tuple[Site, Site]) -> None:
    one, two = nodes
    token = one.call("cluster.create", local=one.address, peer=two.address)["token"]
    hangs, may_continue = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        may_continue.wait(20)

    one.daemon.loop.call_soon_threadsafe(hang)
    assert hangs.wait(20)
    try:
        with refused(Code.CREATOR_UNREACHABLE) as caught:
            two.call("cluster.join", local=two.address, token=token)
        assert "its xlbd hangs or is overloaded" in str(caught.value)
    finally:
        may_continue.set()
    unchanged(one, two)
    two.call("cluster.join", local=two.address, token=token)
    wait_until(lambda: one.status["role"] == "active", "the pair")


def test_a_handshake_that_is_refused_at_once_is_a_wrong_key_and_a_late_one_is_not() -> None:
    late, wrong = Handshake(), Handshake()
    for number in range(MAX_REFUSALS):
        assert not wrong.refused
        for handshake, took_s in ((late, REFUSED_WITHIN_S), (wrong, 0.01)):
            handshake.happened(zmq.EVENT_CONNECTED, 10.0 * number)
            handshake.happened(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, 10.0 * number + took_s)
    assert wrong.refused and "the token is not the newest one" in wrong.why_no_answer("there", 1)
    assert not late.refused and "overloaded" in late.why_no_answer("there", 1)
    late.happened(zmq.EVENT_HANDSHAKE_SUCCEEDED, 99.0)
    assert "accepted the connection, and then sent nothing" in late.why_no_answer("there", 1)
