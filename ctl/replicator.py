"""Flow replication's side effects: reads the kernel's flow events, sends them, and puts the peer's flows into the tables.

What is sent, acknowledged and in step is decided in `sync.replication`; what a flow looks like on the wire in
`sync.flowcodec`. Here is one thread that does whatever may take long, so that the loop and its heartbeats never wait for
it. Must not know roles, leases or how the peer is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bpf.tables import Array, DataPlane

Send = Callable[[bytes], bool]
"""Queue one message for the peer without waiting; False if there is no room or no connection (`Channel.send`)."""


@dataclass(frozen=True, slots=True)
class ReplicationStatus:
    """What `cluster status` shows under "sync", and the counters of `stats`."""

    in_step: bool = False
    protected: float = 0.0  # share of this node's flows that the peer has; of a backup: 1.0 once it is in step
    lag_ms: float = 0.0  # age of the oldest change the peer has not applied
    resyncs: int = 0  # snapshots sent again because changes were lost
    sent_records: int = 0
    applied_records: int = 0
    unwritten_records: int = 0  # the table was full
    swept_entries: int = 0  # deleted because the peer does not have them
    lost_events: int = 0  # the kernel's ring was full
    bad_messages: int = 0  # dropped: not a message of ours
    dropped_messages: int = 0  # dropped: more than a peer may send at once


class Replicator:
    """Sends this node's flow changes while it serves, takes in the peer's while it does not.

    Make it on the running loop; call every method on the loop. Nothing here waits: work goes to one thread, in order,
    and callbacks come back on the loop.
    """

    def __init__(
        self,
        plane: DataPlane,
        send: Send,
        boot: int,
        clock_offset_ns: Callable[[], int | None],
        connections: Callable[[], int],
        step_changed: Callable[[bool, str], None],
    ) -> None:
        """boot: random number of this run. clock_offset_ns: what to add to the peer's clock to get ours, None while unknown.

        connections: how many this node has, e.g. the last sweep's count. step_changed(in_step, why): the tables are or
        are no longer in step, with the sentence for the log.
        """

    def peer_present(self, present: bool, boot: int = 0) -> None:
        """The peer can or can no longer be reached; `boot`: its present run (`Failover.peer_boot`), 0 while unknown.

        A serving node begins a new stream to a peer that appears.
        """

    def serve(self, epoch: int) -> None:
        """This node is active: send its flows, and take only what it does not know."""

    def stop_serving(self) -> None:
        """This node is no longer active: nothing more is sent. Flush first where nothing may be lost."""

    def message(self, message: bytes) -> None:
        """A message of the peer's replicator arrived. Anything that is none is counted and dropped."""

    def flush(self, number: int, done: Callable[[int], None]) -> None:
        """Read pending flow changes, send them, and call done(number) once the peer has applied everything up to now.

        Not called while no stream runs, or when the stream ends first: the caller has a deadline of its own.
        """

    def apply_pending(self, done: Callable[[], None]) -> None:
        """Call `done` once everything received before this call is in the table. Gives up deleting what the peer lacks."""

    def removed(self, family: str, keys: Array) -> None:
        """Somebody deleted these forward entries on purpose (any thread): the peer should delete them too."""

    def still_alive(self, family: str, keys: Array, values: Array) -> None:
        """Connections that are busy although their forward entry is silent (any thread): the peer cannot know."""

    def status(self) -> ReplicationStatus:
        """How far the peer is, as of now."""
        return ReplicationStatus()

    def close(self) -> None:
        """End the thread; work under way is finished, what waits is dropped."""
