"""The replicator's thread and the event loop, over the real channel on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator

from ctl.cluster.flows.service import BULK_BOUNDS, QUEUED_MESSAGES, Replicator
from ctl.cluster.flows.source import FAMILIES
from sync.transport import Keys, Link
from tests.fakes.flows import connections, fill, report_established
from tests.fakes.plane import FakePlane
from tests.wait import wait_until_async


class End:
    """One node: plane, replicator and channel."""

    def __init__(self, link: Link, own: str, peer: str, port: int, boot: int) -> None:
        self.plane = FakePlane(max_flows=20_000)
        self.boot = boot
        self.step_changes: list[tuple[bool, str]] = []
        self.threads: set[int] = set()
        channel = link.open(own, peer, port, BULK_BOUNDS, lambda message: self.replicator.message(message))
        self.replicator = Replicator(self.plane, channel.send, boot, lambda: 0, self.count, self.step_changed)

    def count(self) -> int:
        return sum(len(self.plane.flow_maps["flows", family]) for family in FAMILIES) // 2

    def step_changed(self, in_step: bool, why: str) -> None:
        self.threads.add(threading.get_ident())
        self.step_changes.append((in_step, why))

    def keys(self) -> set[bytes]:
        return {key for family in FAMILIES for key in self.plane.flow_maps["flows", family]}


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[tuple[End, End]]:
    one, other = Keys.generate(), Keys.generate()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    links = Link(one, other.public), Link(other, one.public)
    ends = End(links[0], "127.0.0.1", "127.0.0.2", port, 1), End(links[1], "127.0.0.2", "127.0.0.1", port, 2)
    try:
        yield ends
    finally:
        for end in ends:
            end.replicator.close()
        for link in links:
            await link.close()


def meet(active: End, backup: End) -> None:
    backup.replicator.peer_present(True, active.boot)
    active.replicator.serve(1)
    active.replicator.peer_present(True, backup.boot)


async def flush(end: End, number: int) -> None:
    done: list[int] = []
    end.replicator.flush(number, done.append)
    await wait_until_async(lambda: done == [number], f"flush {number}")


def test_flows_cross_the_link_and_the_status_shows_it() -> None:
    async def scene() -> None:
        async with two() as (active, backup):
            fill(active.plane, "v4", range(9000))
            assert active.replicator.status().protected == 0.0
            meet(active, backup)
            await wait_until_async(lambda: active.replicator.status().in_step, "step")
            report_established(active.plane, "v6", range(100))
            await flush(active, 1)
            assert backup.keys() == active.keys()
            status = active.replicator.status()
            assert (status.protected, status.lag_ms, status.resyncs) == (1.0, 0.0, 0)
            assert status.sent_records == backup.replicator.status().applied_records == 9100
            assert backup.replicator.complete and backup.replicator.status().in_step
            assert active.step_changes[-1][0] and backup.step_changes[-1][0]
            assert active.threads | backup.threads == {threading.get_ident()}, "callbacks belong on the loop"

    asyncio.run(scene())


def test_apply_pending_comes_after_every_message_received_before() -> None:
    async def scene() -> None:
        async with two() as (active, backup):
            meet(active, backup)
            await wait_until_async(lambda: active.replicator.status().in_step, "step")
            held: list[bytes] = []
            deliver = backup.replicator.message
            backup.replicator.message = held.append  # type: ignore[assignment, method-assign]
            report_established(active.plane, "v4", range(50))
            await wait_until_async(lambda: held, "the block")
            found: list[int] = []
            for message in held:
                deliver(message)
            backup.replicator.apply_pending(lambda: found.append(backup.count()))
            backup.replicator.serve(2)
            await wait_until_async(lambda: found, "apply_pending's answer")
            assert found == [50]

    asyncio.run(scene())


def test_removals_and_silent_forward_entries_are_passed_on() -> None:
    async def scene() -> None:
        async with two() as (active, backup):
            fill(active.plane, "v4", range(10))
            meet(active, backup)
            await wait_until_async(lambda: active.replicator.status().in_step, "step")
            keys, values, reply_keys, _ = connections("v4", [3, 4])
            for each in (keys, reply_keys):
                active.plane.delete_flows("flows", "v4", each)
            active.replicator.removed("v4", keys)
            _, values, *_ = connections("v4", [5], last_seen=999_999)
            active.replicator.still_alive("v4", connections("v4", [5])[0], values)
            await flush(active, 1)
            assert backup.keys() == active.keys() and backup.count() == 8
            _, found = backup.plane.lookup_flows("flows", "v4", connections("v4", [5])[0])
            assert found["last_seen"][0] == 999_999

    asyncio.run(scene())


def test_the_queue_from_a_flooding_peer_is_bounded() -> None:
    async def scene() -> None:
        async with two() as (active, _):
            for _ in range(QUEUED_MESSAGES + 1000):
                active.replicator.message(b"x")
            await wait_until_async(
                lambda: active.replicator.status().bad_messages >= QUEUED_MESSAGES, "the queue to be worked off"
            )
            status = active.replicator.status()
            assert status.bad_messages + status.dropped_messages == QUEUED_MESSAGES + 1000 and status.dropped_messages

    asyncio.run(scene())


def test_a_blocked_link_recovers_in_step() -> None:
    async def scene() -> None:
        async with two() as (active, backup):
            send, taking = active.replicator._send, [False]
            active.replicator._send = lambda message: taking[0] and send(message)
            fill(active.plane, "v4", range(5000))
            meet(active, backup)
            await wait_until_async(lambda: active.replicator._refused > 5, "refusals")
            taking[0] = True
            await wait_until_async(lambda: active.replicator.status().in_step, "step")
            assert backup.keys() == active.keys()

    asyncio.run(scene())


def test_a_failure_in_the_thread_is_reported_and_clears_in_step() -> None:
    async def scene() -> None:
        async with two() as (active, backup):
            meet(active, backup)
            await wait_until_async(lambda: active.replicator.status().in_step, "step")
            active.plane.rings["v4"].close()
            await wait_until_async(lambda: not active.replicator.status().in_step, "the end of the step")
            await wait_until_async(lambda: not active.step_changes[-1][0], "the message")
            assert "restart xlbd" in active.step_changes[-1][1]

    asyncio.run(scene())
