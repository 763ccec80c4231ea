"""`xlbctl cluster check`: what the pair needs from its two machines and the network, one finding per line with its remedy.

`compare` and the `judge_…` functions decide what the facts mean and are pure; `ClusterCheck` collects the facts, the
peer's over the cluster link, and runs the probes. Every step is bounded in time.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ctl.cluster.gateway_probe import GatewayProbe
from ctl.cluster.membership import Membership
from ctl.cluster.pairing import network_probes
from ctl.cluster.pairing.facts import facts_of
from ctl.cluster.peer_questions import PeerQuestions
from ctl.config.model import Config
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.errors import Code, XlbError
from ctl.network.network import Network
from ctl.network.vip_addresses import wanted
from ctl.state.node_file import NodeSettings

OK, WARN, FAIL = "ok", "warn", "fail"
_STATUS = {"ok": OK, "info": OK, "fail": FAIL}
MAX_OFFSET_MS = 1000.0
NOTABLE_OFFSET_MS = 100.0
CLOCK_SAMPLES = 5
PING_S, PROBE_S = 1.0, 1.2
ANSWER_S = 15.0

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `status`: ok, warn or fail; `remedy` is empty when all is well."""

    name: str
    status: str
    message: str
    remedy: str = ""


# --- what facts mean -------------------------------------------------------------------------------------------------


def compare(one: Facts, two: Facts) -> Iterator[Finding]:
    """Both nodes' facts, this node's first."""
    yield _equal("kernel", "kernel", one, two, "install the same kernel on both and reboot")
    yield _equal("xlb version", "version", one, two, "install the same version of xlb on both")
    yield _equal("table ABI", "abi", one, two, "install the same version of xlb on both")
    yield from _times(one, two)
    for facts in (one, two):
        yield from examine(facts)
        yield judge_interface(facts)
    yield from _mtu(one, two)
    yield from _drivers(one, two)


def examine(facts: Facts) -> Iterator[Finding]:
    """What one node shows by itself."""
    node, clock, dns = facts["node"], facts["clock"], facts["dns"]
    if clock["synchronised"]:
        yield Finding(f"clock of {node}", OK, "synchronised")
    else:
        yield Finding(f"clock of {node}", WARN, str(clock["why"]), "install chrony or enable systemd-timesyncd")
    if not dns["error"]:
        yield Finding(f"DNS on {node}", OK, f"{dns['name']} resolves")
    else:
        remedy = "correct /etc/resolv.conf or /etc/hosts, or name what should resolve as cluster.dns_name in the node file"
        yield Finding(f"DNS on {node}", FAIL if dns["configured"] else WARN, f"{dns['name']}: {dns['error']}", remedy)
    for view in facts.get("firewall", ()):  # not known to an earlier version
        yield Finding(f"firewall of {node}", _STATUS.get(view["status"], WARN), str(view["message"]), str(view["remedy"]))
    for each in facts["data"]:
        name = f"XDP on {node} {each['name']}"
        if each["xdp_mode"] == "native":
            yield Finding(name, OK, f"native, driver {each['driver'] or 'unknown'}")
        elif each["xdp_mode"]:
            remedy = "use an interface whose driver has native XDP; generic mode is several times slower"
            yield Finding(name, WARN, f"{each['xdp_mode']}, driver {each['driver'] or 'unknown'}", remedy)
        else:
            yield Finding(name, FAIL, "the program is not attached", f"xlbctl doctor on {node} shows the cause")


def judge_interface(facts: Facts) -> Finding:
    """Whether the cluster has an interface of its own."""
    node, device = facts["node"], facts["cluster_device"]
    name = f"cluster interface of {node}"
    if not device:
        return Finding(name, FAIL, "the cluster address is on no interface", f"configure it on {node}")
    if any(each["name"] == device for each in facts["data"]):
        remedy = "give the cluster a cable of its own: a cut of the shared one looks like a dead peer"
        return Finding(name, WARN, f"{device} carries clients' traffic as well", remedy)
    return Finding(name, OK, f"{device}, its own")


def _equal(name: str, key: str, one: Facts, two: Facts, remedy: str) -> Finding:
    if one[key] == two[key]:
        return Finding(name, OK, f"{one[key]} on both")
    return Finding(name, FAIL, f"{one[key]} on {one['node']}, {two[key]} on {two['node']}", remedy)


def _times(one: Facts, two: Facts) -> Iterator[Finding]:
    """Nodes with different times are never active at once either: a takeover waits for the longer lease."""
    mine, its = one["times"], two.get("times")  # not known to an earlier version, which is another finding
    if its is None:
        return
    if mine == its:
        yield Finding("failover times", OK, f"{_times_text(mine)} on both")
    else:
        message = f"{_times_text(mine)} on {one['node']}, {_times_text(its)} on {two['node']}"
        remedy = "set the same in both node files and restart xlbd; until then a takeover waits for the longer lease_ms"
        yield Finding("failover times", WARN, message, remedy)


def _times_text(times: Mapping[str, int]) -> str:
    return " ".join(f"{name} {value}" for name, value in times.items())


def _mtu(one: Facts, two: Facts) -> Iterator[Finding]:
    pairs = [("cluster", one["cluster_mtu"], two["cluster_mtu"])]
    pairs += [(mine["name"], mine["mtu"], its["mtu"]) for mine, its in zip(one["data"], two["data"], strict=False)]
    for device, mine, its in pairs:
        if mine == its:
            yield Finding(f"MTU of {device}", OK, f"{mine} on both")
        else:
            message = f"{mine} on {one['node']}, {its} on {two['node']}"
            yield Finding(f"MTU of {device}", FAIL, message, "set the same MTU on both: ip link set DEV mtu N")


def _drivers(one: Facts, two: Facts) -> Iterator[Finding]:
    mine, its = ([(each["driver"], each["xdp_mode"]) for each in facts["data"]] for facts in (one, two))
    if mine == its:
        yield Finding("XDP on both", OK, "the same drivers and modes")
    else:
        message = f"{_listed(mine)} on {one['node']}, {_listed(its)} on {two['node']}"
        yield Finding(
            "XDP on both", WARN, message, "the slower node sets what the pair can carry; use the same hardware on both"
        )


def _listed(interfaces: list[tuple[str, str]]) -> str:
    return ", ".join(f"{driver or 'unknown'} {mode or 'none'}" for driver, mode in interfaces) or "nothing"


def judge_offset(peer: str, offset_ms: float | None) -> Finding:
    """How far the two wall clocks are apart; leases do not depend on them, logs and people do."""
    if offset_ms is None:
        return Finding("clock offset", FAIL, f"{peer} did not answer", "xlbctl cluster status shows whether it is alive")
    message = f"{abs(offset_ms):.1f} ms between the nodes"
    remedy = "" if abs(offset_ms) < NOTABLE_OFFSET_MS else "synchronise both clocks with the same servers (chrony)"
    status = OK if not remedy else WARN if abs(offset_ms) < MAX_OFFSET_MS else FAIL
    return Finding("clock offset", status, message, remedy)


def judge_ping(peer: str, device: str, answered: bool) -> Finding:
    """Whether the peer answers through the cluster interface."""
    if answered:
        return Finding("ping", OK, f"{peer} answers through {device}")
    return Finding("ping", FAIL, f"{peer} does not answer through {device}", "look at the cable, the switch and firewalls")


def judge_vrrp(sender: str, hearer: str, heard: Mapping[str, bool] | str) -> Iterator[Finding]:
    """Advertisements from one node to the other; a string is the cause why they were not tried."""
    for mode in ("unicast", "multicast"):
        name = f"VRRP {mode} {sender} to {hearer}"
        if isinstance(heard, str):
            yield Finding(
                name, FAIL, heard, "give both nodes an address on the first data interface, then create the pair again"
            )
        elif heard.get(mode):
            yield Finding(name, OK, "passes")
        elif mode == "unicast":
            remedy = "let IP protocol 112 pass between the two data addresses; takeover then rests on the cluster link alone"
            yield Finding(name, FAIL, "does not pass", remedy)
        else:
            remedy = "let 224.0.0.18 and ff02::12 pass, or leave cluster.vrrp_multicast off: the pair itself needs unicast only"
            yield Finding(name, WARN, "does not pass", remedy)


def judge_duplicates(vips: int, found: Mapping[str, str] | str) -> Iterator[Finding]:
    """Other owners of a VIP: address to MAC; a string is the cause why they are not known."""
    if isinstance(found, str):
        yield Finding("duplicate VIPs", WARN, found, "run xlbctl cluster check on the active node")
    elif not found:
        yield Finding("duplicate VIPs", OK, f"no other machine has one of the {vips}" if vips else "there are no VIPs yet")
    else:
        for address, mac in sorted(found.items()):
            remedy = "find the machine by its MAC in the switch and remove the address from it"
            yield Finding("duplicate VIPs", FAIL, f"{address} is answered by {mac} too", remedy)


# --- collecting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClusterCheck:
    """Runs the checks of one node, and answers the peer's questions. The fields are what it looks at."""

    settings: NodeSettings
    config: Callable[[], Config]
    network: Network
    interfaces: DataInterfaces
    membership: Membership

    def answer(self, questions: PeerQuestions) -> None:
        """Register what the peer may ask."""
        questions.register("cluster.facts", self.facts)
        questions.register("cluster.probe", self.probe)

    async def run(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        """Every finding, in the order in which one would look."""
        pair = self.membership.configuration
        own = await self.facts({})
        if pair is None:
            found = [*examine(own), *judge_duplicates(len(self.config().vips), await self._duplicates())]
            return [asdict(each) for each in found]
        peer = pair.settings.peer.name
        try:
            facts = await pair.ask("cluster.facts", {}, ANSWER_S)
        except XlbError as error:
            remedy = f"look whether xlbd runs on {peer} and whether the cluster cable carries; xlbctl cluster status"
            found = [Finding("peer", FAIL, f"{peer} cannot be asked: {error}", remedy), *examine(own), judge_interface(own)]
            return [asdict(each) for each in [*found, await self._ping(own)]]
        found = [Finding("peer", OK, f"{peer} answers on the cluster link"), *compare(own, facts)]
        found.append(judge_offset(peer, await self._offset()))  # by itself: the others would delay its answers
        ping, vrrp, duplicates = await asyncio.gather(self._ping(own), self._vrrp(), self._duplicates_where_served())
        found += [ping, *vrrp, *judge_duplicates(len(self.config().vips), duplicates)]
        return [asdict(each) for each in found]

    # --- what the peer may ask ---------------------------------------------------------------------------------

    async def facts(self, _: dict[str, Any]) -> dict[str, Any]:
        """This node's facts."""
        pair = self.membership.configuration
        address = pair.settings.own.cluster_address if pair is not None else ""
        vips = tuple(self.config().vips)
        return await asyncio.to_thread(facts_of, self.settings, self.network, self.interfaces, address, vips)

    async def probe(self, arguments: dict[str, Any]) -> Any:
        """`what`: clock (the wall clock in ns), hear or send (VRRP adverts of `router_id`), duplicates."""
        what, router_id = arguments.get("what"), arguments.get("router_id", 0)
        if what == "clock":
            return time.time_ns()
        if what == "duplicates":
            return await self._duplicates()
        if what in ("hear", "send") and isinstance(router_id, int) and 1 <= router_id <= 255:
            return await (self._hear(router_id) if what == "hear" else self._send(router_id))
        raise XlbError("the peer asked for an unknown probe: install the same version of xlb on both", Code.PEER_VERSION)

    # --- probes ------------------------------------------------------------------------------------------------

    async def _offset(self) -> float | None:
        """Of the sample with the shortest round trip, as NTP does (RFC 5905, section 8)."""
        pair, samples = self.membership.configuration, list[tuple[int, float]]()
        assert pair is not None
        for _ in range(CLOCK_SAMPLES):
            began_ns, own_ns = time.monotonic_ns(), time.time_ns()
            try:
                its_ns = await pair.ask("cluster.probe", {"what": "clock"}, PING_S)
            except XlbError:
                continue
            round_trip_ns = time.monotonic_ns() - began_ns
            samples.append((round_trip_ns, (int(its_ns) - own_ns - round_trip_ns / 2) / 1e6))
        return min(samples)[1] if samples else None

    async def _ping(self, own: Facts) -> Finding:
        pair = self.membership.configuration
        assert pair is not None
        peer, device = pair.settings.peer, str(own["cluster_device"])
        answered = asyncio.Event()
        try:
            probe = GatewayProbe(peer.cluster_address, device, lambda _: answered.set())
        except OSError as error:
            return Finding("ping", FAIL, f"cannot be sent: {error.strerror}", "run xlbd as root or with CAP_NET_RAW")
        try:
            probe.ask(time.monotonic_ns())
            await asyncio.wait_for(answered.wait(), PING_S)
        except TimeoutError:
            return judge_ping(peer.name, device, False)
        finally:
            probe.close()
        return judge_ping(peer.name, device, True)

    async def _vrrp(self) -> list[Finding]:
        pair = self.membership.configuration
        assert pair is not None
        own, peer = pair.settings.own.name, pair.settings.peer.name
        used = self.settings.cluster.vrrp_id
        router_id = secrets.choice([number for number in range(200, 255) if number != used])

        def ask(what: str) -> Any:
            return pair.ask("cluster.probe", {"what": what, "router_id": router_id}, ANSWER_S)

        work = (ask("hear"), self._send(router_id), self._hear(router_id), ask("send"))
        there, _, here, _ = await asyncio.gather(*map(_or_reason, work))
        return [*judge_vrrp(own, peer, there), *judge_vrrp(peer, own, here)]

    def _vrrp_ends(self) -> tuple[str, str, str]:
        pair = self.membership.configuration
        if pair is None:
            raise XlbError("this node is single", Code.NOT_IN_PAIR)
        own, peer = pair.settings.own, pair.settings.peer
        if not own.data_address or not peer.data_address or (":" in own.data_address) != (":" in peer.data_address):
            raise XlbError("the nodes have no data addresses of one family")
        return own.data_address, peer.data_address, self.settings.data.interfaces[0]

    async def _hear(self, router_id: int) -> dict[str, bool]:
        heard: dict[str, bool] = await _blocking(network_probes.hear_adverts, *self._vrrp_ends(), router_id, PROBE_S)
        return heard

    async def _send(self, router_id: int) -> None:
        await _blocking(network_probes.send_adverts, *self._vrrp_ends(), router_id, PROBE_S)

    async def _duplicates_where_served(self) -> Mapping[str, str] | str:
        """Only the active node can find duplicates: the backup would take the active node's answers for a stranger's."""
        pair = self.membership.configuration
        assert pair is not None
        if pair.serving:
            return await self._duplicates()
        found: Mapping[str, str] | str = await _or_reason(pair.ask("cluster.probe", {"what": "duplicates"}, ANSWER_S))
        return found

    async def _duplicates(self) -> Mapping[str, str] | str:
        links = await asyncio.to_thread(self.network.interfaces)
        asked = sorted(wanted(self.config()), key=lambda each: (each.device, each.address))
        for each in asked:
            if each.device not in links:
                return f"{each.device} is not there"
        found = await _or_reason(_blocking(self.network.who_answers, asked))
        return found if isinstance(found, str) else {each.address: mac for each, mac in found.items()}


async def _blocking(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return await asyncio.to_thread(function, *arguments)
    except OSError as error:
        raise XlbError(f"cannot be tried: {error.strerror or error}") from None


async def _or_reason(work: Any) -> Any:
    """Its result, or the message of its error."""
    try:
        return await work
    except XlbError as error:
        return str(error)
