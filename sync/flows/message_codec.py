"""Blocks and acknowledgements of flow replication as bytes, and back.

One msgpack list per message, the payload in it as it is, and a CRC-32 over everything before it: CURVE keeps strangers out,
the checksum notices a node whose memory or code is broken. Decides what is well-formed; must not know sockets.
"""

from __future__ import annotations

import zlib

import msgpack

from sync.errors import WireError
from sync.flows.stream import Acknowledgement, Block, Kind

MAX_MESSAGE_BYTES = 1 << 20
MAX_COUNT = 1 << 16
MAX_PROBLEM_CHARACTERS = 200
_BLOCK, _ACKNOWLEDGEMENT = 1, 2
_FAMILIES, _KINDS = frozenset({0, 4, 6}), frozenset(int(kind) for kind in Kind)
_U64, _I64 = 1 << 64, 1 << 63
_CRC_BYTES = 4


def encode(message: Block | Acknowledgement) -> bytes:
    """The message's bytes."""
    if isinstance(message, Block):
        fields: list[object] = [
            _BLOCK, message.boot, message.session, message.sequence, message.epoch, int(message.kind), message.layout,
            message.clock_ns, message.family, message.count, message.payload,
        ]  # fmt: skip
    else:
        fields = [
            _ACKNOWLEDGEMENT, message.boot, message.session, message.sequence, message.limit,
            message.in_step, message.gap, message.unknown, message.problem[:MAX_PROBLEM_CHARACTERS],
        ]  # fmt: skip
    body: bytes = msgpack.packb(fields, use_bin_type=True)
    return b"".join((body, zlib.crc32(body).to_bytes(_CRC_BYTES, "big")))


def decode(message: bytes) -> Block | Acknowledgement:
    """Raises WireError for anything `encode` does not make."""
    if not _CRC_BYTES < len(message) <= MAX_MESSAGE_BYTES:
        raise WireError(f"a replication message of {len(message)} bytes")
    body = memoryview(message)[:-_CRC_BYTES]
    if zlib.crc32(body).to_bytes(_CRC_BYTES, "big") != message[-_CRC_BYTES:]:
        raise WireError("a replication message with a wrong checksum")
    try:
        fields = msgpack.unpackb(body, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"a replication message that is not msgpack: {error!r}") from None
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        raise WireError("a replication message that is no list")
    if fields[0] == _BLOCK and len(fields) == 11:
        return _block(fields[1:])
    if fields[0] == _ACKNOWLEDGEMENT and len(fields) == 9:
        return _acknowledgement(fields[1:])
    raise WireError("a replication message of an unknown kind")


def _block(fields: list[object]) -> Block:
    boot, session, sequence, epoch, kind, layout, clock_ns, family, count, payload = fields
    numbers = [_number(value) for value in (boot, session, sequence, epoch, layout, count)]
    if type(clock_ns) is not int or not -_I64 <= clock_ns < _I64 or not isinstance(payload, bytes):
        raise WireError("a block with a damaged clock or payload")
    if type(family) is not int or family not in _FAMILIES or type(kind) is not int or kind not in _KINDS:
        raise WireError("a block of an unknown kind or family")
    if numbers[5] > MAX_COUNT or bool(family) != bool(numbers[5]) or (not family and payload):
        raise WireError("a block whose count and payload contradict each other")
    boot_, session_, sequence_, epoch_, layout_, count_ = numbers
    return Block(boot_, session_, sequence_, epoch_, Kind(kind), layout_, clock_ns, family, count_, payload)


def _acknowledgement(fields: list[object]) -> Acknowledgement:
    boot, session, sequence, limit = (_number(value) for value in fields[:4])
    in_step, gap, unknown, problem = fields[4:]
    if not (isinstance(in_step, bool) and isinstance(gap, bool) and isinstance(unknown, bool)):
        raise WireError("an acknowledgement with damaged flags")
    if not isinstance(problem, str) or len(problem) > MAX_PROBLEM_CHARACTERS:
        raise WireError("an acknowledgement with a damaged problem")
    return Acknowledgement(boot, session, sequence, limit, in_step, gap, unknown, problem)


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < _U64:
        raise WireError("a replication message with a damaged number")
    return value
