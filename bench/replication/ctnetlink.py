"""Messages of ctnetlink as columns: many conntrack entries made or changed by one system call. Pure.

Sources: include/uapi/linux/netlink.h, netfilter/nfnetlink.h and netfilter/nfnetlink_conntrack.h. Must not know sockets.
"""

from __future__ import annotations

import socket
import struct

import numpy as np

from bpf.dataplane import Array

CREATE, UPDATE = 0x600, 0x000
"""nlmsg_flags besides NLM_F_REQUEST: NLM_F_CREATE | NLM_F_EXCL; or neither, for an entry that exists."""
ESTABLISHED, TIME_WAIT = 3, 7
"""enum tcp_conntrack."""

_REQUEST = 1
_NEW = 1 << 8  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
_NESTED = 1 << 15
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _NAT_SOURCE, _NAT_DESTINATION = 1, 2, 3, 4, 7, 6, 13
_SEEN_REPLY, _ASSURED, _CONFIRMED = 1 << 1, 1 << 2, 1 << 3


def _attribute(kind: int, content: bytes) -> bytes:
    length = 4 + len(content)
    return struct.pack("=HH", length, kind) + content + bytes(-length % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _tuple(kind: int, source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    addresses = _nested(1, _attribute(1, socket.inet_aton(source)), _attribute(2, socket.inet_aton(destination)))
    ports = (
        _attribute(1, bytes([socket.IPPROTO_TCP])),
        _attribute(2, source_port.to_bytes(2, "big")),
        _attribute(3, destination_port.to_bytes(2, "big")),
    )
    return _nested(kind, addresses, _nested(2, *ports))


def _translated(kind: int, address: str) -> bytes:
    number = socket.inet_aton(address)
    return _nested(kind, _attribute(1, number), _attribute(2, number))


def message(flags: int, state: int, timeout_s: int, client: str, vip: str, node: str, backend: str) -> bytes:
    """One message: the entry of a connection from `client` to the VIP, translated as a load balancer with SNAT does."""
    parts = [struct.pack("=BBH", socket.AF_INET, 0, 0), _tuple(_ORIGINAL, client, vip, 40000, 80)]
    if flags & CREATE:
        status = _SEEN_REPLY | _ASSURED | _CONFIRMED
        parts += [
            _tuple(_REPLY, vip, client, 80, 40000),
            _attribute(_STATUS, status.to_bytes(4, "big")),
            _translated(_NAT_DESTINATION, backend),
            _translated(_NAT_SOURCE, node),
        ]
    parts += [
        _attribute(_TIMEOUT, timeout_s.to_bytes(4, "big")),
        _nested(_PROTOCOL_INFO, _nested(1, _attribute(1, bytes([state])))),
    ]
    body = b"".join(parts)
    return struct.pack("=IHHII", 16 + len(body), _NEW, _REQUEST | flags, 0, 0) + body


def messages(pattern: bytes, first: dict[str, int], numbers: Array) -> Array:
    """Copies of `pattern`, one row of bytes for each of `numbers`.

    first: address in `pattern` to the number by which it is replaced, plus the row's; addresses as 32-bit numbers.
    """
    rows = np.tile(np.frombuffer(pattern, np.uint8), (len(numbers), 1))
    for address, base in first.items():
        raw = socket.inet_aton(address)
        changed = (numbers.astype(np.uint32) + np.uint32(base)).astype(">u4").view(np.uint8).reshape(-1, 4)
        at = pattern.find(raw)
        while at >= 0:
            rows[:, at : at + 4] = changed
            at = pattern.find(raw, at + 4)
    return rows
