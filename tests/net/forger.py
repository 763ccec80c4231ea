"""A machine on the data network that advertises as if it were a node: new words without the keys, and old words of the node."""

from __future__ import annotations

import ipaddress
import select
import socket
import threading
from types import TracebackType
from typing import Self

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from sync.vrrp import codec
from tests.rig import Rig

INTERVAL_S = 0.2
ROUTER_ID = 51
ADDRESSES = {4: "10.77.0.", 6: "fd77::"}
VIP = {4: "10.77.0.100", 6: "fd77::100"}
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4


class Forger:
    """Sends to both nodes, five times a second each: unsigned and wrongly signed advertisements of priority 255 and everything
    that either has sent. Use as a context manager. `listen` first: what is replayed must have been sent before."""

    def __init__(self, rig: Rig, family: int) -> None:
        self._rig, self._family = rig, family
        self._addresses = [f"{ADDRESSES[family]}{number}" for number in (1, 2)]
        self._captured: dict[int, list[bytes]] = {0: [], 1: []}
        self._done = threading.Event()
        self._mac = rig.client.namespace.mac("eth0")
        self._threads = [threading.Thread(target=rig.switch.call, args=(self._listen,), daemon=True)]
        self._threads[0].start()
        self.sent = 0

    def _listen(self) -> None:
        """What each node gets on its port of the switch."""
        sockets = {}
        for index, node in enumerate(self._rig.nodes):
            one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            one.bind((f"{node.name}-eth0", _ETH_P_ALL))
            sockets[one] = index
        while not self._done.is_set():
            for one in select.select(list(sockets), [], [], 0.1)[0]:
                try:
                    frame, address = one.recvfrom(2048)
                except OSError:
                    continue  # the port is down
                protocol = frame[23] if frame[12:14] == b"\x08\x00" else frame[20] if frame[12:14] == b"\x86\xdd" else 0
                if protocol == codec.PROTOCOL and address[2] == _PACKET_OUTGOING:
                    self._captured[sockets[one]].append(frame)
        for one in sockets:
            one.close()

    @property
    def heard(self) -> list[int]:
        """How many frames were captured for each node."""
        return [len(frames) for frames in self._captured.values()]

    def __enter__(self) -> Self:
        self._old = {index: [self._as_ours(frame) for frame in frames[-400:]] for index, frames in self._captured.items()}
        self._threads.append(threading.Thread(target=self._rig.client.namespace.call, args=(self._send,), daemon=True))
        self._threads[-1].start()
        return self

    def _as_ours(self, frame: bytes) -> bytes:
        """From the forger's own MAC: otherwise the switch would learn the victim's at the forger's port."""
        return frame[:6] + self._mac + frame[12:]

    def _send(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("eth0", 0))
            turn = 0
            while not self._done.wait(INTERVAL_S):
                for index in (0, 1) if self._all_there() else ():
                    frames = [self._forged(index, None), self._forged(index, bytes([1, 1]) + bytes(26))]
                    old = self._old[index]
                    frames += [old[(turn * 3 + step) % len(old)] for step in range(3)] if old else []
                    for frame in frames:
                        link.send(frame)
                        self.sent += 1
                turn += 1

    def _all_there(self) -> bool:
        """Whether both victims have their interface at this moment."""
        try:
            return all(node.namespace.mac("eth0") for node in self._rig.nodes)
        except OSError:
            return False

    def _forged(self, index: int, trailer: bytes | None) -> bytes:
        target, source = self._addresses[index], self._addresses[1 - index]
        advert = codec.Advertisement(ROUTER_ID, 255, 4, (ipaddress.ip_address(VIP[self._family]),))
        payload = codec.build(advert, source, target, trailer=None if trailer is None else lambda _: trailer)
        ethernet = Ether(src=self._mac, dst=self._rig.nodes[index].namespace.mac("eth0"))
        if self._family == 4:
            return bytes(ethernet / IP(src=source, dst=target, ttl=255, proto=codec.PROTOCOL) / payload)
        return bytes(ethernet / IPv6(src=source, dst=target, hlim=255, nh=codec.PROTOCOL) / payload)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(10)
