"""Which node sends as a VIP, from the frames that leave the switch: the proof that two nodes never answer at once.

The kernel filters and stores the frames, so that a capture costs almost nothing while a fault is measured. A frame counts
if its source address is the VIP, or if it announces the VIP (ARP, neighbour advertisement); its source MAC names the node.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import itertools
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.rig.namespaces import Namespace

_ETH_P_ALL = 3
_SO_TIMESTAMPNS = 35
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_PACKET_OUTGOING = 4
_KEPT_BYTES = 64 << 20
_FRAME_BYTES = 64
_DRAIN_EVERY_S = 0.1

_PACKET_TYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE, linux/filter.h
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06


@dataclass(frozen=True, slots=True)
class Spoken:
    """A frame a node sent as the VIP: when the switch had it, in ns of CLOCK_MONOTONIC, and how it began."""

    at_ns: int
    node: str
    head: bytes = b""


def overlap_ms(spoken: list[Spoken], changes: int = 1) -> float:
    """How long two nodes answered, in a capture ordered by time with at most `moves` changes of the active node.

    Nodes that alternate as often as the VIPs moved do not overlap. Otherwise the overlap lasts from the first frame of the
    second sender to the last frame of the first sender; 0 if that frame came earlier.
    """
    turns = sum(before.node != after.node for before, after in itertools.pairwise(spoken))
    if turns <= changes:
        return 0.0
    first = spoken[0].node
    begun_ns = next(each.at_ns for each in spoken if each.node != first)
    last_ns = max(each.at_ns for each in spoken if each.node == first)
    return max(0, last_ns - begun_ns) / 1e6


def last_turns(spoken: list[Spoken], count: int) -> list[Spoken]:
    """The first frame of each of the last `count` turns, in which one node sent without the other."""
    turns = [after for before, after in itertools.pairwise(spoken) if before.node != after.node]
    return turns[-count:]


class Capture:
    """From construction to `stop`: frames that leave the switch by `ports`, sent by a node as one of `addresses`.

    nodes: name by MAC address. Frames sent into a cut cable reach no host and do not count.
    """

    def __init__(self, switch: Namespace, ports: Sequence[str], nodes: Mapping[bytes, str], *addresses: str) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._nodes = nodes
        self._spoken: list[Spoken] = []
        self._taps = [
            switch.call(lambda port=port, address=address: _tap(port, address))  # type: ignore[misc]
            for port in ports
            for address in addresses
        ]
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped.wait(_DRAIN_EVERY_S):
                self._drain()
            self._drain()
        except Exception as error:
            self._failure = error

    def _drain(self) -> None:
        for tap in self._taps:
            with contextlib.suppress(BlockingIOError, _Down):
                while True:
                    frame, controls = _receive(tap)
                    node = self._nodes.get(frame[6:12])
                    if node is not None:
                        seconds, nanoseconds = struct.unpack("=qq", controls[0][2])
                        at_ns = seconds * 1_000_000_000 + nanoseconds - self._offset_ns
                        self._spoken.append(Spoken(at_ns, node, frame))

    @property
    def last(self) -> str:
        """The node that sent the last frame; empty: none."""
        return self._spoken[-1].node if self._spoken else ""

    def stop(self) -> list[Spoken]:
        """The frames, ordered by time. Raises AssertionError if a frame was lost: a capture with holes proves nothing."""
        self._end()
        lost = sum(struct.unpack("II", tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1] for tap in self._taps)
        self.close()
        assert self._failure is None and lost == 0, f"the capture lost {lost} frames ({self._failure})"
        return sorted(self._spoken, key=lambda each: each.at_ns)

    def _end(self) -> None:
        self._stopped.set()
        self._thread.join()

    def close(self) -> None:
        """Stop without a result; may be called again."""
        self._end()
        for tap in self._taps:
            tap.close()


class _Down(Exception):
    """The port has lost its carrier or was set down, which a socket reports once."""


def _receive(tap: socket.socket) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    try:
        frame, controls, _, _ = tap.recvmsg(_FRAME_BYTES, 64)
    except OSError as error:
        if error.errno == errno.ENETDOWN:
            raise _Down from None
        raise
    return frame, controls


def _tap(port: str, address: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _KEPT_BYTES)
    tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    _attach(tap, _speaks6(address) if ":" in address else _speaks4(address))
    tap.bind((port, _ETH_P_ALL))
    return tap


# --- classic BPF: each step compares a value and states where the program continues ---------------------------


def _speaks4(address: str) -> list[bytes]:
    """IPv4 from the address, or ARP whose sender it is."""
    wanted = int(ipaddress.IPv4Address(address))
    return [
        _step(_LOAD_WORD, _PACKET_TYPE),
        _step(_JUMP_EQUAL, _PACKET_OUTGOING, 0, 8),
        _step(_LOAD_HALF, 12),
        _step(_JUMP_EQUAL, 0x0800, 0, 2),
        _step(_LOAD_WORD, 26),
        _step(_JUMP_EQUAL, wanted, 3, 4),
        _step(_JUMP_EQUAL, 0x0806, 0, 3),
        _step(_LOAD_WORD, 28),
        _step(_JUMP_EQUAL, wanted, 0, 1),
        _step(_RETURN, _FRAME_BYTES),
        _step(_RETURN, 0),
    ]


def _speaks6(address: str) -> list[bytes]:
    """IPv6 from the address, or a neighbour advertisement for it."""
    words = struct.unpack("!4I", ipaddress.IPv6Address(address).packed)
    steps = [(_LOAD_WORD, _PACKET_TYPE, "", ""), (_JUMP_EQUAL, _PACKET_OUTGOING, "", "no")]
    steps += [(_LOAD_HALF, 12, "", ""), (_JUMP_EQUAL, 0x86DD, "", "no")]
    for number, word in enumerate(words):
        steps += [(_LOAD_WORD, 22 + 4 * number, "", ""), (_JUMP_EQUAL, word, "yes" if number == 3 else "", "advertisement")]
    advertisement = len(steps)
    steps += [(_LOAD_BYTE, 20, "", ""), (_JUMP_EQUAL, 58, "", "no"), (_LOAD_BYTE, 54, "", ""), (_JUMP_EQUAL, 136, "", "no")]
    for number, word in enumerate(words):
        steps += [(_LOAD_WORD, 62 + 4 * number, "", ""), (_JUMP_EQUAL, word, "yes" if number == 3 else "", "no")]
    places = {"advertisement": advertisement, "yes": len(steps), "no": len(steps) + 1}

    def jump(target: str, here: int) -> int:
        return places[target] - here - 1 if target else 0

    program = [_step(code, k, jump(yes, here), jump(no, here)) for here, (code, k, yes, no) in enumerate(steps)]
    return [*program, _step(_RETURN, _FRAME_BYTES), _step(_RETURN, 0)]


def _step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, k)


def _attach(tap: socket.socket, program: list[bytes]) -> None:
    code = ctypes.create_string_buffer(b"".join(program))
    tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
