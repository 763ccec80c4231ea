"""Which of this node's interfaces and addresses its own traffic to another node uses, as the kernel decides at this moment.

Does I/O and decides one thing: on which interface the peer can be expected. A few system calls, none of which waits for another
process.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass

from ctl.network.kernel.rtnetlink import RouteSocket

_SIOCGIFFLAGS = 0x8913
_IFF_LOOPBACK, _IFF_NOARP = 0x8, 0x80
_ANY_PORT = 9  # nothing is sent


@dataclass(frozen=True, slots=True)
class Device:
    """An interface. One that is made again has the same name and another index."""

    name: str = ""
    index: int = 0


NO_DEVICE = Device()


def device_towards(own: str, peer: str) -> Device:
    """The interface on which packets of `peer` for `own` arrive: the one that has the address.

    Where that is one without a wire, such as lo or a dummy interface, the one that leads to the peer; but never just because
    that one does: a default route through another network must not make it the peer's. NO_DEVICE if the node lacks the address.
    """
    with RouteSocket() as sock:
        index = sock.holder(own)
        route = sock.route(peer)
    try:
        if index and route is not None and route.index != index and not _has_wire(socket.if_indextoname(index)):
            index = route.index
        return Device(socket.if_indextoname(index), index) if index else NO_DEVICE
    except OSError:  # it went away meanwhile
        return NO_DEVICE


def index_of(device: str) -> int:
    """The interface's index at this moment; 0 if there is none of this name."""
    try:
        return socket.if_nametoindex(device) if device else 0
    except OSError:
        return 0


def source_towards(destination: str, device: str = "", own: str = "") -> str:
    """The source address of packets to `destination`, through `device` if one is named. Raises OSError if none can be sent.

    own: the source that is wanted; OSError if the node does not have it.
    """
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        if device:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        if own:
            probe.bind((own, 0))
        probe.connect((destination, _ANY_PORT))
        return str(probe.getsockname()[0]).partition("%")[0]


def _has_wire(device: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        request = struct.pack("16sH14x", device.encode(), 0)
        flags = struct.unpack_from("16sH", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
    return not flags & (_IFF_LOOPBACK | _IFF_NOARP)
