"""A TCP connection to a VIP on one backend, as the modes dsr and ipip lead clients there.

The VIP is this node's own address, so no socket connects to it anywhere else. The probe is a SYN of its own (RFC 9293): sent to
the backend's next hop with the VIP as destination (the kernel routes a packet with its header included by the address given to
sendto), or within another packet to the backend. A packet socket sees the answer, which the kernel would discard because its
source is an address of this node. A RST ends the connection. The answer goes to an address of this node that is not a VIP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import ipaddress
import secrets
import socket
import struct
from dataclasses import dataclass

FIN, SYN, RST, ACK = 1, 2, 4, 16
MAX_PACKET = 256

_SO_ATTACH_FILTER = 26
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_NEXT_HEADER_OF = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}
_FAMILY_OF = {4: socket.AF_INET, 6: socket.AF_INET6}
_LD_BYTE, _LD_HALF, _LD_HALF_X, _LDX_IHL, _JEQ, _RETURN = 0x30, 0x28, 0x48, 0xB1, 0x15, 0x06  # linux/filter.h


@dataclass(frozen=True, slots=True)
class Path:
    """How a check reaches a VIP on a backend. outer: source of the outer packet, or empty: the kernel's choice."""

    vip: str
    is_tunnel: bool
    outer: str = ""


async def connect_through(path: Path, backend: str, port: int, source: str) -> None:
    """Return when `backend` accepts a connection from `source` to the VIP. Raises OSError."""
    version = ipaddress.ip_address(path.vip).version
    loop, number = asyncio.get_running_loop(), secrets.randbits(32)
    with contextlib.ExitStack() as stack:
        reserved = stack.enter_context(_socket(_FAMILY_OF[version], socket.SOCK_STREAM))
        reserved.bind((source, 0))
        own_port = reserved.getsockname()[1]
        answers = stack.enter_context(_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERTYPE[version])))
        _only_to_port(answers, version, own_port)
        sender = stack.enter_context(_sender(path, backend, version))
        sender.sendto(segment(source, path.vip, own_port, port, number, SYN), (backend, 0))
        while True:
            answer = _answer(await loop.sock_recv(answers, MAX_PACKET), path.vip, source, port, own_port)
            if answer is None or answer[1] != (number + 1) & 0xFFFFFFFF:
                continue
            flags, acknowledged = answer
            if flags & RST:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
            if flags & (SYN | ACK) == SYN | ACK:
                sender.sendto(segment(source, path.vip, own_port, port, acknowledged, RST), (backend, 0))
                return


def _socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


def _sender(path: Path, backend: str, version: int) -> socket.socket:
    """A raw socket whose kernel adds the outer header, or none."""
    outer = _FAMILY_OF[ipaddress.ip_address(backend).version]
    if not path.is_tunnel:
        return _socket(outer, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sender = _socket(outer, socket.SOCK_RAW, _NEXT_HEADER_OF[version])
    if path.outer:
        sender.bind((path.outer, 0))
    return sender


def segment(source: str, destination: str, source_port: int, port: int, number: int, flags: int) -> bytes:
    """An IP packet with a TCP header and no data (RFC 791, RFC 8200, RFC 9293)."""
    one, two = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    options = struct.pack("!BBH", 2, 4, 1220) if flags & SYN else b""
    header = struct.pack("!HHIIBBHHH", source_port, port, number, 0, (20 + len(options)) << 2, flags, 65535, 0, 0) + options
    pseudo = one.packed + two.packed + struct.pack("!II", len(header), socket.IPPROTO_TCP)
    header = header[:16] + struct.pack("!H", _checksum(pseudo + header)) + header[18:]
    if one.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(header), socket.IPPROTO_TCP, 64) + one.packed + two.packed + header
    addresses = one.packed + two.packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(header), 0, 0x4000, 64, socket.IPPROTO_TCP, 0) + addresses
    return ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + header


def _checksum(data: bytes) -> int:
    """RFC 1071; of an even number of bytes."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data):
        total += word
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _answer(packet: bytes, vip: str, own: str, port: int, own_port: int) -> tuple[int, int] | None:
    """Flags and acknowledgement of a segment from the VIP to this probe; None: it is another one."""
    try:
        six = packet[0] >> 4 == 6
        ends = (packet[8:24], packet[24:40]) if six else (packet[12:16], packet[16:20])
        tcp = packet[40 if six else (packet[0] & 15) * 4 :]
        found_port, found_own, _, acknowledged, _, flags = struct.unpack_from("!HHIIBB", tcp)
    except (IndexError, struct.error):
        return None
    expected = ipaddress.ip_address(vip).packed, ipaddress.ip_address(own).packed
    return (flags, acknowledged) if ends == expected and (found_port, found_own) == (port, own_port) else None


def _only_to_port(answers: socket.socket, version: int, port: int) -> None:
    """Have the kernel discard all but TCP to this port: a packet socket gets a copy of everything (socket(7), packet(7))."""
    if version == 6:
        load = [(_LD_HALF, 0, 0, 42)]
        protocol = 6
    else:
        load = [(_LDX_IHL, 0, 0, 0), (_LD_HALF_X, 0, 0, 2)]
        protocol = 9
    rest = [*load, (_JEQ, 0, 1, port), (_RETURN, 0, 0, MAX_PACKET), (_RETURN, 0, 0, 0)]
    program = [(_LD_BYTE, 0, 0, protocol), (_JEQ, 0, len(rest) - 1, socket.IPPROTO_TCP), *rest]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    answers.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
