"""A host on the data network that asks repeatedly which MAC address the VIPs have, so that every node that answers is seen.

It has no kernel of its own: its frames have a MAC address and addresses that no other host has, and leave through the client's
port. The answers are in the judge's capture.
"""

from __future__ import annotations

import socket
import threading

from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from bench.failover.subject import VIPS
from tests.rig.namespaces import Namespace

MAC, ADDRESS4, ADDRESS6 = "02:00:00:00:00:99", "10.77.0.99", "fd77::99"
EVERY_S = 0.01


def questions() -> list[bytes]:
    """An ARP request and a neighbour solicitation."""
    last = int(VIPS[6].rpartition(":")[2], 16)
    group, mac = f"ff02::1:ff00:{last:x}", f"33:33:ff:00:{last >> 8:02x}:{last & 255:02x}"
    arp = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=MAC, psrc=ADDRESS4, pdst=VIPS[4])
    solicitation = ICMPv6ND_NS(tgt=VIPS[6]) / ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    return [bytes(arp), bytes(Ether(src=MAC, dst=mac) / IPv6(src=ADDRESS6, dst=group, hlim=255) / solicitation)]


class Asker:
    """From construction to `close`."""

    def __init__(self, namespace: Namespace, device: str = "eth0") -> None:
        self._ended = threading.Event()
        self._socket = namespace.call(lambda: _socket(device))
        self._questions = questions()
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            for question in self._questions:
                self._socket.send(question)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()


def _socket(device: str) -> socket.socket:
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind((device, 0))
    return sender
