"""The composition root: creates the parts of a node and hands each what it uses.

Decides only which part gets which. Nothing runs yet when `compose` returns; `ctl.node.node` starts and stops the parts. Plane,
network and attacher are arguments, so that tests compose a node on fakes; the daemon gives the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ctl.api import condition
from ctl.api.commands import doctor
from ctl.api.commands.accounts import AccountCommands
from ctl.api.commands.backend import BackendCommands
from ctl.api.commands.cluster import ClusterCommands
from ctl.api.commands.config import ConfigCommands
from ctl.api.commands.conn import ConnectionCommands
from ctl.api.commands.dispatcher import Dispatcher
from ctl.api.commands.farm import FarmCommands
from ctl.api.commands.gauges import Gauges
from ctl.api.commands.history import HistoryCommands
from ctl.api.commands.impact import ImpactCommand
from ctl.api.commands.prefixes import PrefixCommands
from ctl.api.commands.status import Origin, StatusCommands
from ctl.api.commands.vip import VipCommands
from ctl.api.commands.why import WhyCommand
from ctl.api.monitoring.capture import CaptureCommands
from ctl.api.monitoring.metrics import MetricsCommand
from ctl.api.monitoring.watch import WatchCommand
from ctl.api.peer.both_views import BothViews
from ctl.api.peer.loaded_lists import LoadedLists
from ctl.api.peer.own_addresses import OwnAddresses
from ctl.api.peer.report import PeerReport
from ctl.api.server import ApiServer
from ctl.cluster.flows.source import ReplicatedPlane
from ctl.cluster.membership import Membership
from ctl.cluster.pairing.check import ClusterCheck
from ctl.cluster.pairing.create_join import Pairing
from ctl.cluster.parts import PairParts
from ctl.cluster.peer_questions import PeerQuestions
from ctl.config.model import Config
from ctl.dataplane import features
from ctl.dataplane.kernel.program_capture import ProgramCapture
from ctl.dataplane.kernel.program_features import ProgramFeatures
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.kernel.tunnel_sources import TunnelSources
from ctl.dataplane.kernel.xdp_interfaces import Attacher, DataInterfaces
from ctl.dataplane.slow_start import SlowStart
from ctl.diagnosis.kernel.recent_drops import DropSampler
from ctl.health.check_machine import HealthChecks, Transition
from ctl.health.probes.replication import CheckReplication
from ctl.health.probes.runner import CheckRunner, RunProbe, load_down, now_ms, own_probe
from ctl.health.probes.source_addresses import OwnSources
from ctl.network.announcer import Announcer
from ctl.network.neighbours import NextHopKeeper
from ctl.network.network import Network
from ctl.network.vip_addresses import VipAddresses
from ctl.node import advice, audit
from ctl.node.node import Node
from ctl.node.notify import Notify
from ctl.node.parts import LocalParts, NodeParts
from ctl.node.reconciler import Reconciler, Subjects
from ctl.node.running_configuration import RunningConfiguration
from ctl.node.sampling import Sampling
from ctl.node.state_watch import StateWatch
from ctl.node.summary import Summary
from ctl.node.transaction import Transaction
from ctl.runtime import memory
from ctl.runtime.clock import monotonic_ns
from ctl.runtime.commands import Commands
from ctl.runtime.event_hub import EventHub
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.startup import Startup
from ctl.runtime.supervisor import Supervisor
from ctl.runtime.systemd import Notifier
from ctl.state.history import History
from ctl.state.node_file import NodeSettings, XdpMode
from ctl.state.store import Store

CONTROL_SOCKET = "control.sock"


def compose(
    settings: NodeSettings,
    plane: ReplicatedPlane,
    network: Network,
    attacher: Attacher,
    origin: Origin,
    notifier: Notifier | None = None,
    run_probe: RunProbe | None = None,
    store: Store | None = None,
) -> Node:
    """A node on these interfaces to the kernel. Call it on a running loop; `start` the result.

    run_probe: asks a backend. store: the configuration's, default a new one.
    """
    questions = PeerQuestions(settings.node.name)
    hub = EventHub(settings.node.name)
    given = _Given(settings, store or Store(settings.node.state_dir), plane, network, attacher, run_probe, hub)
    parts = _parts(given, notifier or Notifier(""), questions)
    _register_commands(parts, settings, plane, network, origin, questions)
    return Node(settings, plane, network, parts)


@dataclass(frozen=True, slots=True)
class _Given:
    """What a node is composed on."""

    settings: NodeSettings
    store: Store
    plane: ReplicatedPlane
    network: Network
    attacher: Attacher
    run_probe: RunProbe | None
    hub: EventHub

    def serving(self) -> bool:
        """Whether the lease is open."""
        return self.plane.lease()[0] > monotonic_ns()


def _parts(given: _Given, notifier: Notifier, questions: PeerQuestions) -> NodeParts:
    """A part that calls one made after it does so through a function."""
    settings, plane, network, hub = given.settings, given.plane, given.network, given.hub
    supervisor, tidier, lag = Supervisor(), memory.Tidier(), LoopLag()

    async def replaced() -> None:
        await membership.program_replaced()
        local.sweeper.soon()  # connections that exist are not counted yet
        local.configuration.replan_soon()

    program = ProgramFeatures(settings.node.name, given.attacher, replaced=replaced)
    local = _local(given, supervisor, program, changed=lambda: summary.show(), membership=lambda: membership)
    transaction, interfaces = local.transaction, local.interfaces
    pair = PairParts(
        settings,
        plane,
        network,
        local.addresses,
        local.sweeper,
        local.replication,
        transaction,
        run_change=lambda command, arguments: dispatcher.dispatch(command, arguments, forwarded=True),
        questions=questions,
        give_up=supervisor.give_up,
        changed=lambda: summary.show(),
        unreadable_flags=lambda: features.unreadable_flags(given.attacher.features()),
        report=hub.report,
    )
    membership = Membership(
        pair, local.configuration.follow_addresses, lambda: program.require(frozenset({features.REPLICATION}))
    )
    summary = Summary(
        settings.node.name,
        config=lambda: transaction.config,
        role=lambda: membership.role,
        attachments=interfaces.attachments,
        notifier=notifier,
    )
    pairing = Pairing(settings, network, transaction, membership)
    check = ClusterCheck(settings, lambda: transaction.config, network, interfaces, membership)
    pairing.answer(questions)
    check.answer(questions)
    startup = Startup()
    dispatcher = Dispatcher(startup, lambda: membership.configuration, hub.report)
    return NodeParts(
        hub=hub,
        notify=Notify(settings.notify.command, Commands(settings.notify.user, "notify.user"), hub.report),
        sampling=Sampling(hub, plane, local.sweeper, settings.data.max_flows, lag, lambda: membership.member),
        supervisor=supervisor,
        startup=startup,
        lag=lag,
        tidier=tidier,
        notifier=notifier,
        summary=summary,
        local=local,
        membership=membership,
        state_watch=StateWatch(settings.node.state_dir, membership),
        pairing=pairing,
        cluster_check=check,
        dispatcher=dispatcher,
        api=ApiServer(settings.node.run_dir / CONTROL_SOCKET, dispatcher.dispatch, tidier.soon),
    )


def _local(
    given: _Given,
    supervisor: Supervisor,
    program: ProgramFeatures,
    changed: Callable[[], None],
    membership: Callable[[], Membership],
) -> LocalParts:
    """The parts that a single node has as well."""
    settings, plane, network = given.settings, given.plane, given.network

    def config() -> Config:
        return transaction.config

    addresses = VipAddresses(network, settings.node.run_dir, lease_open=given.serving, probe=settings.data.probe_vips)
    sources = OwnSources(network, config)
    commands = Commands(settings.checks.command_user)
    checks, replication = _checks(given, sources, commands, lambda: running)
    starts = SlowStart()
    transaction = _transaction(given, addresses, checks, starts, program, lambda: running, membership)

    def down() -> frozenset[int] | None:
        return checks.checks.down if given.serving() else None

    sweeper = Sweeper(plane, config, down, settings.data.max_flows, given.hub.report)
    next_hops = NextHopKeeper(network, config)

    def configured() -> None:
        reconciler.changed()  # what the kernel and the program should have may be other than before
        changed()

    running = RunningConfiguration(
        transaction, checks, next_hops, sweeper, supervisor, configured, lambda: starts.next_s, given.hub.report
    )
    interfaces = DataInterfaces(settings.data.interfaces, given.attacher, network)
    announcer = Announcer(addresses, settings.data.announce_interval_s)
    tunnel = TunnelSources(plane, network, settings.data.tunnel_source)
    subjects = Subjects(
        network,
        interfaces,
        transaction,
        addresses,
        next_hops,
        tunnel,
        pair=lambda: membership().member,
        fault=lambda name, message, disables: membership().fault_changed(name, message, disables),
        announce=announcer.soon,
        renew_next_hops=plane.bump_next_hops,
        report=given.hub.report,
    )
    reconciler = Reconciler(subjects, level=settings.data.xdp_mode is XdpMode.AUTO)
    return LocalParts(
        addresses,
        sources,
        checks,
        replication,
        commands,
        sweeper,
        next_hops,
        transaction,
        running,
        interfaces,
        DropSampler(plane),
        reconciler,
        tunnel,
        announcer,
        ProgramCapture(program, given.attacher),
    )


def _checks(
    given: _Given, sources: OwnSources, commands: Commands, running: Callable[[], RunningConfiguration]
) -> tuple[CheckRunner, CheckReplication]:
    """The health checks, and their results in a pair."""
    run_dir = given.settings.node.run_dir

    def health_changed(transition: Transition) -> None:
        running().health_changed(transition)
        replication.wake()

    machine = HealthChecks(load_down(run_dir))
    replication = CheckReplication(machine, lambda transitions: running().health_adopted(transitions), now_ms)
    run_probe = given.run_probe or own_probe(sources, commands, given.settings.data.tunnel_source)
    follows, report = lambda: replication.follows, given.hub.report
    return CheckRunner(machine, run_dir, health_changed, run_probe, follows, report), replication


def _transaction(
    given: _Given,
    addresses: VipAddresses,
    checks: CheckRunner,
    starts: SlowStart,
    program: ProgramFeatures,
    running: Callable[[], RunningConfiguration],
    membership: Callable[[], Membership],
) -> Transaction:
    """What changes the configuration, and what a change leads to."""
    return Transaction(
        given.store,
        given.plane,
        addresses,
        down=lambda config: checks.checks.unusable(config),
        in_force=lambda done: running().in_force(done),
        refused=lambda: running().replan_later(),
        shares=lambda config, down: starts.follow(config, down, monotonic_ns() / 1e9),
        advise=lambda old, new: advice.advice(given.network, old, new, checks.checks.unusable(new)),
        program=program,
        fault=lambda message: membership().fault_changed("program", message),
        history=History(given.settings.node.state_dir),
        provenance=audit.provenance_on(given.settings.node.name),
        report=given.hub.report,
    )


def _register_commands(
    parts: NodeParts,
    settings: NodeSettings,
    plane: ReplicatedPlane,
    network: Network,
    origin: Origin,
    questions: PeerQuestions,
) -> None:
    """Give each group of control commands what it uses."""

    local, dispatcher = parts.local, parts.dispatcher
    commit = condition.conditional(audit.audited(local.transaction.commit, parts.hub.report))
    foresee, health = condition.conditional(local.transaction.foresee), local.checks.checks

    def config() -> Config:
        return local.transaction.config

    def shares() -> Mapping[int, int]:
        return local.transaction.shares

    own = OwnAddresses(settings.node.name, network, local.addresses, lambda: parts.membership)
    own.answer(questions)
    lists = LoadedLists(plane, config, lambda: parts.membership)
    lists.answer(questions)
    gauges = Gauges(plane, local.sweeper, health)
    status = _status_commands(parts, settings, plane, network, origin, questions)
    VipCommands(config, commit, own).register(dispatcher)
    FarmCommands(config, commit, gauges).register(dispatcher)
    BackendCommands(commit, gauges, own, local.sweeper.flush).register(dispatcher)
    PrefixCommands(config, commit).register(dispatcher)
    AccountCommands(config, commit).register(dispatcher)
    ConfigCommands(config, commit, foresee, own).register(dispatcher)
    HistoryCommands(config, History(settings.node.state_dir)).register(dispatcher)
    ImpactCommand(config, plane, local.sweeper, health, shares).register(dispatcher)
    connections = ConnectionCommands(
        config, plane, local.sweeper, health, network, status.standing, shares, lambda: local.transaction.missing
    )
    connections.register(dispatcher)
    why = WhyCommand(connections, local.interfaces, local.addresses, local.drops.recent, lambda: parts.membership)
    why.register(dispatcher)
    why.answer(questions)
    status.register(dispatcher)
    WatchCommand(parts.hub).register(dispatcher)
    CaptureCommands(local.capture).register(dispatcher)
    MetricsCommand(
        config,
        status.view,
        plane,
        network,
        local.interfaces,
        local.sweeper,
        health,
        parts.membership,
        local.reconciler,
        parts.lag,
        parts.hub,
        parts.startup,
        settings.data.max_flows,
    ).register(dispatcher)
    doctor.register(dispatcher, _examined(parts, settings, plane, network, status, own, lists))
    views = BothViews(parts.membership, status.view)
    views.answer(questions)
    ClusterCommands(parts.membership, parts.pairing, parts.cluster_check, status, views).register(dispatcher)


def _status_commands(
    parts: NodeParts,
    settings: NodeSettings,
    plane: ReplicatedPlane,
    network: Network,
    origin: Origin,
    questions: PeerQuestions,
) -> StatusCommands:
    local = parts.local
    return StatusCommands(
        settings,
        origin,
        parts.startup,
        lambda: local.transaction.config,
        lambda: local.transaction.waiting,
        plane,
        network,
        local.interfaces,
        local.sweeper,
        local.reconciler,
        parts.membership,
        parts.lag,
        parts.api.counts,
        local.checks.checks,
        questions,
        PeerReport(parts.membership),
    )


def _examined(
    parts: NodeParts,
    settings: NodeSettings,
    plane: ReplicatedPlane,
    network: Network,
    status: StatusCommands,
    own: OwnAddresses,
    lists: LoadedLists,
) -> doctor.ExaminedNode:
    """What `doctor` looks at."""
    local = parts.local
    return doctor.ExaminedNode(
        settings,
        parts.startup,
        lambda: local.transaction.config,
        lambda: parts.membership.member is not None,
        plane,
        network,
        local.interfaces,
        local.addresses,
        local.next_hops,
        local.sweeper,
        local.checks.checks,
        local.sources,
        local.tunnel,
        parts.lag,
        local.drops.recent,
        status.node,
        own.of_both,
        lists.of_both,
    )
