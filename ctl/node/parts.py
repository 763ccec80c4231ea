"""The parts of a node, as `ctl.node.composition` made them and `ctl.node.node` runs them."""

from __future__ import annotations

from dataclasses import dataclass

from ctl.api.commands.dispatcher import Dispatcher
from ctl.api.server import ApiServer
from ctl.cluster.membership import Membership
from ctl.cluster.pairing.check import ClusterCheck
from ctl.cluster.pairing.create_join import Pairing
from ctl.dataplane.kernel.program_capture import ProgramCapture
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.kernel.tunnel_sources import TunnelSources
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.diagnosis.kernel.recent_drops import DropSampler
from ctl.health.probes.replication import CheckReplication
from ctl.health.probes.runner import CheckRunner
from ctl.health.probes.source_addresses import OwnSources
from ctl.network.announcer import Announcer
from ctl.network.neighbours import NextHopKeeper
from ctl.network.vip_addresses import VipAddresses
from ctl.node.notify import Notify
from ctl.node.reconciler import Reconciler
from ctl.node.running_configuration import RunningConfiguration
from ctl.node.sampling import Sampling
from ctl.node.state_watch import StateWatch
from ctl.node.summary import Summary
from ctl.node.transaction import Transaction
from ctl.runtime.commands import Commands
from ctl.runtime.event_hub import EventHub
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.memory import Tidier
from ctl.runtime.startup import Startup
from ctl.runtime.supervisor import Supervisor
from ctl.runtime.systemd import Notifier


@dataclass(frozen=True, slots=True)
class LocalParts:
    """What works on this node's own kernel and disk, whether it is single or in a pair."""

    addresses: VipAddresses
    sources: OwnSources
    checks: CheckRunner
    replication: CheckReplication
    commands: Commands
    sweeper: Sweeper
    next_hops: NextHopKeeper
    transaction: Transaction
    configuration: RunningConfiguration
    interfaces: DataInterfaces
    drops: DropSampler
    reconciler: Reconciler
    tunnel: TunnelSources
    announcer: Announcer
    capture: ProgramCapture


@dataclass(frozen=True, slots=True)
class NodeParts:
    """Everything. No part knows this class: each has only what it was given."""

    hub: EventHub
    notify: Notify
    sampling: Sampling
    supervisor: Supervisor
    startup: Startup
    lag: LoopLag
    tidier: Tidier
    notifier: Notifier
    summary: Summary
    local: LocalParts
    membership: Membership
    state_watch: StateWatch
    pairing: Pairing
    cluster_check: ClusterCheck
    dispatcher: Dispatcher
    api: ApiServer
