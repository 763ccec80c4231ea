"""What the data plane does with a packet: frame in; verdict, action and frame out. docs/DATAPLANE.md, *Steps of a packet*."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bpf.constants import (
    FRAGMENT_TICKS,
    LEASE_HANDED_OVER_NS,
)
from tests.model import answers, icmp_errors, toa, vlans
from tests.model.bits import IPIP, SERVER_DNAT, TOA, VIP_OPEN
from tests.model.connections import advance, is_one_way, match, server, touch
from tests.model.forwarding import forward
from tests.model.packet import IP, TCP, UDP, Packet, Verdict, parse_v4, parse_v6
from tests.model.state import Flow, Key, State
from tests.model.vlans import ARP, IPV4, IPV6

DROP, PASS, TX, REDIRECT = 1, 2, 3, 4  # XDP actions


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict (a counter's name), the XDP action, and the frame as it leaves: none if it is dropped."""

    verdict: str
    action: int
    frame: bytes


def handle(state: State, frame: bytes, ingress: int) -> Outcome:
    """One packet. Changes the state's tables and counters; `state.events` gets what the peer is told."""
    packet, tags = Packet(bytearray(frame), ingress, len(frame)), b""
    try:
        if packet.size < IP:
            raise Verdict("pass_not_ip")
        tags = vlans.receive(state, packet)
        verdict = dispatch(state, packet)
    except Verdict as ended:
        verdict = ended.name
    if verdict.startswith("drop_") and packet.source:
        verdict = answers.answer(state, packet, verdict)
    state.count(verdict, packet.size)
    if verdict.startswith("drop_") and packet.farm:
        traffic = state.farm_traffic[packet.farm]
        state.farm_traffic[packet.farm] = traffic._replace(drops=traffic.drops + 1)
    if verdict.startswith("pass_"):
        action = PASS
        packet.frame[12:12] = tags if state.vlans else b""
    elif verdict.startswith("drop_"):
        action = TX if packet.egress else DROP
        vlans.leave(state, packet)
    else:
        vlans.leave(state, packet)
        action = TX if packet.egress == ingress else REDIRECT
    return Outcome(verdict, action, b"" if action == DROP else bytes(packet.frame))


def dispatch(state: State, packet: Packet) -> str:
    """The verdict, before the sender of a dropped packet is answered."""
    kind = packet.word(12)
    if kind == ARP:
        return handle_arp(state, packet)
    if kind not in (IPV4, IPV6):
        return "pass_not_ip"
    try:
        return handle_ip(state, packet, parse_v4 if kind == IPV4 else parse_v6)
    except Verdict as ended:
        if ended.name != "pass_not_ours":
            raise
        return handle_transit(state, packet)


def handle_ip(state: State, packet: Packet, parse: Callable[[Packet], None]) -> str:
    try:
        parse(packet)
    except Verdict as ended:
        packet.key = Key(packet.source, packet.destination, 0, 0, packet.protocol)
        if ended.name == "drop_fragment":
            return handle_later_fragment(state, packet)
        return handle_other(state, packet, ended.name)
    packet.key = packet.flow_key()
    if packet.protocol in (TCP, UDP):
        return handle_flow(state, packet)
    if packet.protocol != packet.icmp_protocol:
        return handle_other(state, packet, "drop_protocol")
    if not packet.within(packet.transport + 8):
        return handle_other(state, packet, "drop_malformed")
    return handle_icmp(state, packet)


# --- the fence -----------------------------------------------------------------------------------------------


def fence(state: State, destination: bytes) -> None:
    """Ends the path of a packet that arrives without the lease; after a hand-over the kernel forwards what is for a VIP."""
    if state.is_open:
        return
    handed_over = state.deadline_ns == LEASE_HANDED_OVER_NS and destination in state.vips
    raise Verdict("pass_handed_over" if handed_over else "drop_fenced")


# --- neighbours ----------------------------------------------------------------------------------------------


def handle_arp(state: State, packet: Packet) -> str:
    frame = packet.frame
    if not packet.within(IP + 28) or packet.word(IP + 6) != 1 or packet.word(IP + 2) != IPV4:
        return "pass_not_ip"
    sender, target = bytes(frame[IP + 14 : IP + 18]), bytes(frame[IP + 24 : IP + 28])
    if target not in state.vips:
        return "pass_not_ip"
    if state.is_open:
        return "pass_neighbour"
    if sender != target:
        return "drop_fenced_neighbour"
    frame[IP + 6 : IP + 8] = b"\0\2"  # a gratuitous request becomes a reply, which Linux does not answer (RFC 5227 3)
    frame[IP + 18 : IP + 24] = frame[IP + 8 : IP + 14]
    return "pass_neighbour"


def handle_icmp(state: State, packet: Packet) -> str:
    kind = packet.frame[packet.transport]
    if not packet.is_fragment and icmp_errors.is_error(packet, kind):
        verdict = icmp_errors.translate(state, packet, fence)
        if verdict:
            return verdict
    if not packet.is_v4 and kind == 135 and packet.within(packet.transport + 24):
        target = bytes(packet.frame[packet.transport + 8 : packet.transport + 24])
        if target in state.vips:
            return "pass_neighbour" if state.is_open else "drop_fenced_neighbour"
    return handle_other(state, packet, "pass_vip_icmp")


# --- packets without a flow ----------------------------------------------------------------------------------


def handle_other(state: State, packet: Packet, verdict: str) -> str:
    """`verdict` if the packet is for a VIP; the kernel has all others."""
    destination = packet.destination
    if destination not in state.vips:
        link_multicast = len(destination) == 16 and destination[0] == 0xFF and destination[1] & 15 == 2
        if verdict == "drop_ipv6_extension" and link_multicast and not state.is_open:
            return "drop_fenced_neighbour"  # it may be a neighbour solicitation
        raise Verdict("pass_not_ours")
    fence(state, destination)
    if verdict in ("drop_protocol", "drop_fragment") and state.vips[destination] & VIP_OPEN:
        return "pass_vip_open"
    return verdict


def handle_transit(state: State, packet: Packet) -> str:
    """Neither a flow nor a VIP: the kernel's, unless a dnat backend's service answers past its VIP."""
    key, size = packet.key, len(packet.key.source)
    if key.protocol not in (TCP, UDP):
        return "pass_not_ours"
    flags, host = server(state, key.source, key.source_port, key.protocol)
    direct = state.direct[size]
    if not host & SERVER_DNAT:
        to_server = server(state, key.destination, key.destination_port, key.protocol)[0] & SERVER_DNAT
        if to_server and packet.protocol == key.protocol:
            direct.put(key, Flow(b"", b"", 0, 0))
        return "pass_not_ours"
    routed = state.routes.lookup(key.destination) is not None
    if packet.is_later:
        if not routed:
            return "pass_not_ours"
        return "drop_fragment" if state.is_open else "drop_fenced"
    opened = Key(key.destination, key.source, key.destination_port, key.source_port, key.protocol)
    if not flags & SERVER_DNAT or direct.get(opened) or not routed:
        if packet.is_fragment:  # the fragments that follow are the kernel's too
            kernels = Flow(bytes(size), bytes(size), 0, 0, last_seen=state.tick)
            state.fragments[size].put(packet.fragment_key, kernels)
        return "pass_not_ours"
    return "drop_no_flow" if state.is_open else "drop_fenced"


# --- packets with a flow -------------------------------------------------------------------------------------


def handle_flow(state: State, packet: Packet) -> str:
    key, copies = packet.key, state.copies
    found, number = match(state, packet, key), copies.number(key)
    fence(state, key.destination)
    flow = found.flow
    is_fast = flow is not None and packet.established and is_for_fast_path(packet, flow)
    if is_fast and flow and copies.is_usable(state, packet) and packet.hop_limit > (not is_one_way(flow)):
        return forward(state, packet, flow)
    if not packet.established or flow is None:
        flow = advance(state, packet, key, found)
    touch(state, packet, key, flow)
    if flow.flags & TOA:
        toa.handle(state, packet, key, flow)
    if packet.is_fragment:
        state.fragments[len(key.source)].put(packet.fragment_key, flow)
    verdict = forward(state, packet, flow)
    if is_fast and verdict.startswith("forward_"):
        copies.keep(state, key, number, flow)
    return verdict


def is_for_fast_path(packet: Packet, flow: Flow) -> bool:
    """The others leave no copy of their flow. The outer header of a tunnel takes the place of a tag."""
    return not packet.is_syn and not packet.is_fragment and not (packet.is_tagged and flow.flags & IPIP)


def handle_later_fragment(state: State, packet: Packet) -> str:
    """It follows the first fragment of its datagram."""
    flow = state.fragments[len(packet.source)].get(packet.fragment_key)
    if flow is None or state.age(flow) > FRAGMENT_TICKS:
        return handle_other(state, packet, "pass_vip_icmp" if packet.protocol == packet.icmp_protocol else "drop_fragment")
    if not flow.farm:
        packet.key = packet.key._replace(protocol=0)
        raise Verdict("pass_not_ours")
    packet.farm = flow.farm
    fence(state, packet.destination)
    return forward(state, packet, flow)
