"""Flow replication as the event loop sees it: this node's flow changes go to the peer, the peer's into the flow maps.

What is sent, acknowledged and in step is decided in `sync.flows.sender` and `sync.flows.receiver`; what a flow looks like
on the wire in `sync.flows.codec`. Decides what runs on the loop and what in the worker, one thread that does whatever may take
long, so that the loop and its heartbeats never wait for it. Must not know roles, leases or how the peer is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bpf.dataplane import Array
from ctl.cluster.flows.engine import LIMITS, Outlets, ReplicationEngine
from ctl.cluster.flows.source import ReplicatedPlane
from ctl.runtime.clock import Clock, monotonic_ns
from ctl.runtime.realtime_scheduling import favour_this_thread
from sync.flows.message_codec import MAX_MESSAGE_BYTES
from sync.transport import ChannelBounds

QUEUED_MESSAGES = 4 * LIMITS.window_blocks
"""Bound per direction. A peer that respects its window never has so many in flight."""

BULK_BOUNDS = ChannelBounds(QUEUED_MESSAGES, MAX_MESSAGE_BYTES)
"""What the channel that carries these messages needs."""

SENDS_PER_TURN = 8
RESEND_S = 0.002
RESENDS = 100
"""As long as the sending machine waits before it sends again by itself."""
COMMANDS_PER_STEP = 32
RELEASE_BOUND_S = 10.0

log = logging.getLogger(__name__)

Send = Callable[[bytes], bool]
"""Queue one message for the peer without waiting; False if the queue is full or there is no connection (`Channel.send`)."""


Command = Callable[[int], None]
"""Work for the engine, at the time given in ns."""


class Worker(Protocol):
    """Runs commands and the engine's steps one after the other, apart from the event loop."""

    def put(self, command: Command) -> None:
        """Queue a command, in any thread; returns at once."""

    def close(self) -> None:
        """Return when the work in progress has ended; queued work is dropped."""


MakeWorker = Callable[[ReplicationEngine, Callable[[Exception], None], Clock], Worker]
"""engine, failed: called once, in the worker, with an error that is a bug; now_ns."""


@dataclass(frozen=True, slots=True)
class ReplicationStatus:
    """What `cluster status` shows under "sync", and the counters of `stats`."""

    in_step: bool = False
    protected: float = 0.0  # share of this node's flows that the peer has; of a backup: 1.0 once it is in step
    lag_ms: float = 0.0  # age of the oldest change the peer has not applied
    resyncs: int = 0  # snapshots sent again because changes were lost
    sent_records: int = 0
    applied_records: int = 0
    unwritten_records: int = 0  # the map was full
    swept_entries: int = 0  # deleted because the peer does not have them
    lost_events: int = 0  # the kernel's ring was full
    bad_messages: int = 0  # dropped: not a message of ours
    dropped_messages: int = 0  # dropped: more than a peer may send at once
    held_flows: int = 0  # the program cannot read them yet


class Replicator:
    """Sends this node's flow changes while it is active, and applies the peer's while it is not.

    Create it on the running loop; call every method on the loop unless noted otherwise. Nothing here waits: work goes to
    one thread, in order, and callbacks come back on the loop.
    """

    def __init__(
        self,
        plane: ReplicatedPlane,
        send: Send,
        boot: int,
        clock_offset_ns: Callable[[], int | None],
        connections: Callable[[], int],
        step_changed: Callable[[bool, str], None],
        make_worker: MakeWorker | None = None,
        now_ns: Clock = monotonic_ns,
        unreplicated: Callable[[], int] = lambda: 0,
        unreadable: Callable[[], int] = lambda: 0,
    ) -> None:
        """boot: random number of this incarnation. clock_offset_ns: what to add to the peer's clock to get ours, None while
        unknown.

        connections: how many this node has, e.g. the last sweep's count; unreplicated: those of them that have lasted and that
        the kernel does not report. step_changed(in_step, why): the maps of both nodes are
        or are no longer in step, with the reason for the log. make_worker: a thread by default. unreadable: see
        `ReplicaMaps`; called in any thread.
        """
        self._loop = asyncio.get_running_loop()
        self._send, self._connections, self._step_changed = send, connections, step_changed
        self._unreplicated = unreplicated
        self._flushes: dict[int, Callable[[int], None]] = {}
        self._outward: deque[bytes] = deque()
        self._outward_lock = threading.Lock()
        self._sending, self._refused = False, 0
        self._received_messages = self._taken_messages = 0  # the loop writes the one, the thread the other
        self._dropped_messages = 0
        self._lag_ms = self._protected = 0.0
        outlets = Outlets(
            send=self._queue_message,
            step_changed=lambda in_step, why: self._on_loop(self._step_changed, in_step, why),
            flushed=lambda number: self._on_loop(self._flushed, number),
            failed=lambda why: self._on_loop(self._failed, why),
        )
        self._engine = ReplicationEngine(plane, boot, clock_offset_ns, outlets, unreadable=unreadable)
        self._now_ns = now_ns
        self._closed = False
        self._worker = (make_worker or EngineThread)(self._engine, self._worker_failed, now_ns)

    # --- asked on the loop -----------------------------------------------------------------------------------

    def peer_present(self, present: bool, boot: int = 0) -> None:
        """The peer can or can no longer be reached; `boot`: its present incarnation (`Failover.peer_boot`), 0 while unknown.

        A serving node begins a new stream to a peer that appears.
        """
        if not present:
            self._forget_outward()
        self._worker.put(lambda now_ns: self._engine.peer_present(present, boot, now_ns))

    def serve(self, epoch: int) -> None:
        """This node is active: send its flows, and take only what it does not know."""
        self._worker.put(lambda now_ns: self._engine.serve(epoch, now_ns))

    def stop_serving(self) -> None:
        """This node is no longer active: nothing more is sent. Flush first where nothing may be lost."""
        self._flushes.clear()
        self._worker.put(self._engine.stop_serving)

    def message(self, message: bytes) -> None:
        """A message of the peer's replicator arrived. Anything that is none is counted and dropped."""
        if self._received_messages - self._taken_messages >= QUEUED_MESSAGES:
            self._dropped_messages += 1
            return
        self._received_messages += 1
        self._worker.put(lambda now_ns: self._take(message, now_ns))

    def flush(self, number: int, done: Callable[[int], None]) -> None:
        """Read pending flow changes, send them, and call done(number) once the peer has applied everything up to now.

        Not called while no stream runs, or when the stream ends first: the caller has a deadline of its own.
        """
        self._flushes = {number: done}  # a flush that was asked for before is of no more use
        self._worker.put(lambda now_ns: self._engine.flush(number, now_ns))

    def apply_pending(self, done: Callable[[], None]) -> None:
        """Call `done` once everything received before this call is in the maps. Stops the sweep of stale entries.

        At once when nothing waits: a takeover then needs no thread to be scheduled.
        """
        if self._taken_messages == self._received_messages and self._engine.idle:
            done()
            return
        self._worker.put(lambda _: self._engine.after_pending(lambda: self._on_loop(done)))

    def removed(self, family: str, keys: Array) -> None:
        """These forward entries were deleted on purpose (any thread): the peer should delete them too."""
        if self._engine.sender.running:
            self._worker.put(lambda now_ns: self._engine.removed(family, keys, now_ns))

    def still_alive(self, family: str, keys: Array, values: Array) -> None:
        """Connections that are busy although their forward entry is silent (any thread): the peer cannot know."""
        if self._engine.sender.running:
            self._worker.put(lambda now_ns: self._engine.still_alive(family, keys, values, now_ns))

    async def release(self) -> None:
        """The program can read more flows: return once those that were held back for it are in the maps."""
        released: asyncio.Future[None] = self._loop.create_future()

        def finish() -> None:
            if not released.done():
                released.set_result(None)

        def release(now_ns: int) -> None:
            self._engine.release(now_ns)
            self._on_loop(finish)

        self._worker.put(release)
        try:
            await asyncio.wait_for(released, RELEASE_BOUND_S)
        except TimeoutError:
            log.error("flows that were held back are not in the maps after %g s", RELEASE_BOUND_S)

    def status(self) -> ReplicationStatus:
        """How far the peer is, as of now."""
        engine = self._engine
        sender, receiver, counts, maps = engine.sender, engine.receiver, engine.counts, engine.maps.counts
        with contextlib.suppress(RuntimeError):  # the thread changed a queue while it was read: the next answer is right
            self._lag_ms = sender.lag_ns(self._now_ns()) / 1e6
            self._protected = sender.protected(self._connections(), self._unreplicated())
        serving = receiver.serving
        return ReplicationStatus(
            in_step=sender.in_step if serving else self.complete,
            protected=self._protected if serving else float(self.complete),
            lag_ms=self._lag_ms if serving else 0.0,
            resyncs=sender.resyncs,
            sent_records=counts.sent_records,
            applied_records=maps.applied_records,
            unwritten_records=maps.unwritten_records,
            swept_entries=maps.swept_entries,
            lost_events=counts.lost_events,
            bad_messages=counts.bad_messages,
            dropped_messages=self._dropped_messages,
            held_flows=engine.maps.held.count,
        )

    @property
    def complete(self) -> bool:
        """Whether this node's own maps have every flow: it is active, or in step with the active node. None is held back."""
        return self._engine.receiver.in_step and not self._engine.maps.held.count

    def close(self) -> None:
        """End the worker; work in progress is finished, queued work is dropped."""
        self._closed = True
        self._worker.close()
        self._engine.close()

    # --- on the loop, asked by the thread --------------------------------------------------------------------

    def _flushed(self, number: int) -> None:
        done = self._flushes.pop(number, None)
        if done is not None:
            done(number)

    def _failed(self, why: str) -> None:
        log.error("%s", why)

    def _forget_outward(self) -> None:
        with self._outward_lock:
            self._outward.clear()

    def _send_some(self) -> None:
        """A few messages per turn of the loop; when the channel's queue is full, again a little later."""
        for _ in range(SENDS_PER_TURN):
            with self._outward_lock:
                if not self._outward or self._closed:
                    self._sending = False
                    return
                message = self._outward[0]
            if not self._send(message):
                self._refused += 1
                if self._refused >= RESENDS:
                    self._forget_outward()
                self._loop.call_later(RESEND_S, self._send_some)
                return
            self._refused = 0
            with self._outward_lock:
                if self._outward and self._outward[0] is message:
                    self._outward.popleft()
        self._loop.call_soon(self._send_some)

    # --- in the worker ---------------------------------------------------------------------------------------

    def _worker_failed(self, error: Exception) -> None:
        self._engine.give_up()
        self._on_loop(self._step_changed, False, f"flow replication failed ({error!r}): restart xlbd")

    def _take(self, message: bytes, now_ns: int) -> None:
        try:
            self._engine.message(message, now_ns)
        finally:
            self._taken_messages += 1

    def _queue_message(self, message: bytes) -> None:
        """Beyond the bound the oldest goes: its receiver notices the gap and it is sent again."""
        with self._outward_lock:
            if len(self._outward) >= QUEUED_MESSAGES:
                self._outward.popleft()
            self._outward.append(message)
            if self._sending:
                return
            self._sending = True
        self._on_loop(self._send_some)

    def _on_loop(self, act: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the recipient
            self._loop.call_soon_threadsafe(act, *arguments)


class EngineThread:
    """The worker of a running daemon: a real-time thread. It waits until a command comes or the engine's next step is due."""

    def __init__(self, engine: ReplicationEngine, failed: Callable[[Exception], None], now_ns: Clock) -> None:
        self._engine, self._failed, self._now_ns = engine, failed, now_ns
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="xlb-replication", daemon=True)
        self._thread.start()

    def put(self, command: Command) -> None:
        self._commands.put(command)

    def close(self) -> None:
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        favour_this_thread()
        try:
            self._work()
        except Exception as error:
            log.exception("the replication thread failed")
            self._failed(error)

    def _work(self) -> None:
        commands, wait_ns = self._commands, 0
        while True:
            for _ in range(COMMANDS_PER_STEP):
                try:
                    command = commands.get(timeout=wait_ns / 1e9) if wait_ns else commands.get_nowait()
                except queue.Empty:
                    break
                wait_ns = 0
                if command is None:
                    return
                command(self._now_ns())
            wait_ns = self._engine.step(self._now_ns())
