"""What a pair's member uses of its node, handed over by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ctl.cluster.config_replication import Host
from ctl.cluster.flows.source import ReplicatedPlane
from ctl.cluster.peer_questions import PeerQuestions
from ctl.config.changes import Committed, MakeConfig
from ctl.config.model import Config
from ctl.config.record_codec import Record
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.health.probes.replication import CheckReplication
from ctl.network.network import Network
from ctl.network.vip_addresses import VipAddresses
from ctl.runtime.event_hub import Report, log_only
from ctl.state.node_file import NodeSettings


class Accepting(Protocol):
    """Where changes are recorded, or refused (`ctl.node.transaction.Recorder`)."""

    async def begin(self) -> Any: ...


class Changes(Host, Protocol):
    """The one path of changes (`ctl.node.transaction.Transaction`)."""

    @property
    def config(self) -> Config: ...

    @property
    def awaits_program(self) -> bool: ...

    async def commit(self, make: MakeConfig) -> Committed: ...

    async def prepare(self, features: frozenset[str]) -> None: ...

    async def record_with(self, recorder: Accepting, start: Callable[[Record], Awaitable[None]]) -> None: ...

    async def record_alone(self, recorder: Accepting) -> None: ...


@dataclass(frozen=True, slots=True)
class PairParts:
    """run_change: makes a change the peer forwards, as a control command. give_up: ends the daemon for a reason.

    changed: the role may be another one. unreadable_flags: of flow entries that the program would misread at this moment.
    changed: the role may be another one. report: takes events in.
    """

    settings: NodeSettings
    plane: ReplicatedPlane
    network: Network
    addresses: VipAddresses
    sweeper: Sweeper
    check_results: CheckReplication
    changes: Changes
    run_change: Callable[[str, dict[str, Any]], Awaitable[Any]]
    questions: PeerQuestions
    give_up: Callable[[str], None]
    changed: Callable[[], None]
    unreadable_flags: Callable[[], int]
    report: Report = log_only
