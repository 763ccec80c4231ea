"""`conn.why`: why a client cannot connect. The node that serves answers; a backup asks it.

Observes; what the observations mean is decided in `ctl.explanation.why` and, for the configuration and the maps, in
`ctl.explanation.explain`, which `conn.show` uses too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bpf.dataplane import FlowTuple
from ctl.api.commands.conn import SHOW_ARGUMENTS, ConnectionCommands, flow_tuple
from ctl.api.commands.dispatcher import Arguments, Dispatcher
from ctl.cluster.membership import Membership
from ctl.cluster.peer_questions import PeerQuestions
from ctl.config.model import Backend, Config
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.diagnosis.drops import RecentCounters
from ctl.diagnosis.finding import Finding, Severity
from ctl.diagnosis.kernel.recent_drops import packets
from ctl.errors import XlbError
from ctl.explanation import why as the_way
from ctl.network.vip_addresses import VipAddresses, wanted
from ctl.runtime.clock import monotonic_ns

QUESTION = "conn.why"
WAIT_S = 5.0
ANY_PORT = 49152
"""Stands for the client's port where none is given: the first that RFC 6335 has for ephemeral ports."""


@dataclass(frozen=True, slots=True)
class WhyCommand:
    """What it uses of the node."""

    connections: ConnectionCommands
    interfaces: DataInterfaces
    addresses: VipAddresses
    recent: RecentCounters
    membership: Callable[[], Membership]

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register(QUESTION, self.why, SHOW_ARGUMENTS)

    def answer(self, questions: PeerQuestions) -> None:
        """The peer, which does not serve, may ask."""
        questions.register(QUESTION, self._own)

    async def why(self, arguments: Arguments) -> dict[str, Any]:
        """{"connects", "reason", "remedy", "node" (which judged), "farm", "backend", "verdict", "findings", …}.

        connects: null where only the node that serves could know, and cannot be asked.
        """
        standing = self.connections.standing()
        if standing.serving in ("", standing.node):
            return await self._own(arguments)
        flow_tuple(_with_port(arguments))  # what is invalid needs no peer
        try:
            answer: dict[str, Any] = await self.membership().required_configuration().ask(QUESTION, arguments, WAIT_S)
        except XlbError as error:
            own, remedy = await self._own(arguments), f"xlbctl why on {standing.serving}"
            message = f"{standing.serving} answers for the VIPs and cannot be asked ({error.detail}): the configuration alone"
            findings = [_view("peer", message), *own["findings"]]
            unknown = {"connects": None, "reason": f"peer: {message}, where nothing speaks against it", "remedy": remedy}
            return own | {"findings": findings} | (unknown if own["connects"] else {})
        first = _view("peer", f"{standing.node} is {standing.role}; {standing.serving} answers for the VIPs, and judges:")
        return answer | {"asked": standing.node, "findings": [first, *answer["findings"]]}

    async def _own(self, arguments: Arguments) -> dict[str, Any]:
        """As this node sees it."""
        exact = "source_port" in arguments
        arriving, standing = flow_tuple(_with_port(arguments)), self.connections.standing()
        entries = await self.connections.look_up(arriving) if exact else ()

        def judged() -> dict[str, Any]:
            config = self.connections.config()
            answer = self.connections.explained(arriving, *entries)
            down = self.connections.health.unusable(config)
            backends = the_way.reachable(arriving, answer, config, down, exact)
            machine = self._machine(arriving, config, backends) if standing.node == standing.serving else None
            findings = the_way.way(arriving, answer, config, standing, machine, backends)
            reason = the_way.first_reason(findings)
            return {
                "connection": the_way.heading(arriving, arriving.source_port if exact else 0),
                "protocol": str(arguments.get("protocol", "tcp")),
                "connects": reason is None,
                "reason": f"{reason.name}: {reason.message}" if reason is not None else "",
                "remedy": reason.remedy if reason is not None else "",
                "node": standing.node,
                "asked": standing.node,
                "farm": answer["farm"],
                "backend": answer["backend"] if exact else None,
                "verdict": answer["verdict"],
                "findings": [each.view() for each in findings],
            }

        return await asyncio.to_thread(judged)

    def _machine(self, arriving: FlowTuple, config: Config, backends: tuple[Backend, ...]) -> the_way.Machine:
        network, plane = self.connections.network, self.connections.plane
        present = network.addresses()
        places = [each for each in wanted(config) if each.address == arriving.destination]
        taken = self.addresses.taken
        towards = sorted({*(each.address for each in backends[: the_way.MAX_HOPS]), arriving.source})
        seconds, dropped = self.recent.since(time.monotonic(), packets(plane))
        return the_way.Machine(
            lease_left_ms=(plane.lease()[0] - monotonic_ns()) // 1_000_000,
            interfaces=self.interfaces.examined(network.interfaces(), generic=True),
            absent=not all(each in present for each in places),
            taken=next((taken[each] for each in places if each in taken), ""),
            own=frozenset(each.address for each in present - self.addresses.ours) - config.vips.keys(),
            hops=self.connections.next_hops(towards),
            forwarding=network.forwarding_problems(self.interfaces.names),
            seconds=seconds,
            dropped=dropped,
        )


def _with_port(arguments: Arguments) -> Arguments:
    return {"source_port": ANY_PORT} | arguments


def _view(name: str, message: str) -> dict[str, Any]:
    return Finding(name, Severity.INFO, message).view()
