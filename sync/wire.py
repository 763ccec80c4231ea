"""Messages between the two nodes as bytes: msgpack arrays of bounded size, every field checked.

Decides what is a message. Must not know sockets or what a message does. Any bytes become a message or a WireError;
nothing else is raised, and nothing is allocated beyond the given bounds.

A message is [WIRE_VERSION, type, fields…]. A flow block ends with a CRC-32 of everything else in it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import msgpack

from sync.configsync import MAX_HISTORY, Document, Version
from sync.errors import WireError
from sync.failover_types import Heartbeat, Role
from sync.replication import Acknowledgement, Block, Kind

WIRE_VERSION = 1
MAX_CONTROL_BYTES = 16 << 20
MAX_BULK_BYTES = 4 << 20
MAX_PAYLOAD_BYTES = MAX_BULK_BYTES - 1024
MAX_BODY_BYTES = MAX_CONTROL_BYTES - 8192
MAX_RECORDS = 1 << 16
MAX_TEXT = 512
_MAX_INTEGER = (1 << 63) - 1
_ROLES = {role.value: role for role in Role}
_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks, said when a connection opens: the node's name, the program's version, the layout of its flows."""

    name: str
    program: str
    layout: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A whole configuration."""

    document: Document


@dataclass(frozen=True, slots=True)
class Stored:
    """This version is on the sender's disk."""

    version: Version


@dataclass(frozen=True, slots=True)
class Forward:
    """A command for the node that serves. boot, request: which one this is, so that a repeated one is done once."""

    boot: int
    request: int
    body: bytes


@dataclass(frozen=True, slots=True)
class ForwardAnswer:
    """The answer to the Forward with the same boot and request."""

    boot: int
    request: int
    body: bytes


Control = Heartbeat | Hello | Offer | Stored | Forward | ForwardAnswer
Bulk = Block | Acknowledgement

# --- checks: from what msgpack gives to what a field holds -----------------------------------------------------------


def _integer(value: object, least: int = 0, most: int = _MAX_INTEGER) -> int:
    if type(value) is not int or not least <= value <= most:
        raise WireError(f"{value!r:.40} is not an integer between {least} and {most}")
    return value


def _up_to(most: int) -> Callable[[object], int]:
    return lambda value: _integer(value, 0, most)


def _boot(value: object) -> int:
    return _integer(value, 1)


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise WireError(f"{value!r:.40} is not true or false")
    return value


def _text(value: object) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise WireError(f"{value!r:.40} is not a text of at most {MAX_TEXT} characters")
    return value


def _bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise WireError(f"{value!r:.40} is not a byte string")
    return value


def _role(value: object) -> Role:
    if type(value) is not str or value not in _ROLES:
        raise WireError(f"{value!r:.40} is not a role")
    return _ROLES[value]


def _kind(value: object) -> Kind:
    if type(value) is not int or value not in _KINDS:
        raise WireError(f"{value!r:.40} is not a kind of block")
    return _KINDS[value]


def _family(value: object) -> int:
    if type(value) is not int or value not in (0, 4, 6):
        raise WireError(f"{value!r:.40} is not an address family")
    return value


def _version(value: object) -> Version:
    if type(value) is not list or len(value) != 2:
        raise WireError(f"{value!r:.40} is not a version")
    return _integer(value[0]), _integer(value[1])


def _document(value: object) -> Document:
    if type(value) is not list or len(value) != 3 or type(value[1]) is not list or len(value[1]) > MAX_HISTORY:
        raise WireError("not a configuration")
    document = Document(_version(value[0]), tuple(_version(entry) for entry in value[1]), _bytes(value[2]))
    epochs = [epoch for epoch, _ in (*document.history, document.version)]
    if any(earlier >= later for earlier, later in pairwise(epochs)):
        raise WireError("a configuration's history does not rise")
    return document


Check = Callable[[object], Any]
_CHECKS: dict[type, tuple[int, tuple[Check, ...]]] = {
    Heartbeat: (
        1,
        (
            *(_boot, _boot, _integer, _role, _integer, _up_to(255), _integer, _integer),
            *(_integer, _integer, _integer, _integer, _version, _boolean, _boolean, _boolean, _boolean),
        ),
    ),
    Hello: (2, (_text, _text, _integer)),
    Offer: (3, (_document,)),
    Stored: (4, (_version,)),
    Forward: (5, (_boot, _boot, _bytes)),
    ForwardAnswer: (6, (_boot, _boot, _bytes)),
    Block: (
        16,
        (_boot, _boot, _boot, _integer, _kind, _integer, _integer, _family, _up_to(MAX_RECORDS), _bytes),
    ),
    Acknowledgement: (17, (_boot, _boot, _integer, _integer, _boolean, _boolean, _boolean, _text)),
}
_BY_CODE = {code: (kind, checks) for kind, (code, checks) in _CHECKS.items()}
_NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in _CHECKS}
_BULK = (Block, Acknowledgement)
_BLOCK_HEADER = struct.Struct("!8QI")


def encode(message: Control | Bulk) -> bytes:
    """The message as bytes. Raises ValueError if it exceeds a bound: a bug of ours, not of the peer."""
    kind = type(message)
    code = _CHECKS[kind][0]
    values = [_plain(getattr(message, name)) for name in _NAMES[kind]]
    if isinstance(message, Block):
        values.append(_block_checksum(message))
    data: bytes = msgpack.packb([WIRE_VERSION, code, *values], use_bin_type=True)
    bound = MAX_BULK_BYTES if kind in _BULK else MAX_CONTROL_BYTES
    if len(data) > bound:
        raise ValueError(f"a {kind.__name__} of {len(data)} bytes exceeds the bound of {bound}")
    return data


def decode_control(data: bytes) -> Control:
    """A message of the control socket. Raises WireError for anything else."""
    message = _decode(data, MAX_CONTROL_BYTES, bulk=False)
    assert not isinstance(message, _BULK)
    return message


def decode_bulk(data: bytes) -> Bulk:
    """A message of the bulk socket. Raises WireError for anything else."""
    message = _decode(data, MAX_BULK_BYTES, bulk=True)
    assert isinstance(message, _BULK)
    return message


def _decode(data: bytes, bound: int, bulk: bool) -> Control | Bulk:
    if len(data) > bound:
        raise WireError(f"{len(data)} bytes exceed the bound of {bound}")
    parts = _unpack(data)
    if type(parts) is not list or len(parts) < 2:
        raise WireError("not a message")
    if parts[0] != WIRE_VERSION or type(parts[0]) is not int:
        raise WireError(f"wire version {parts[0]!r:.20} is not {WIRE_VERSION}: run the same version of xlb on both nodes")
    kind, checks = _BY_CODE.get(parts[1], (None, ())) if type(parts[1]) is int else (None, ())
    if kind is None or (kind in _BULK) != bulk:
        raise WireError(f"message type {parts[1]!r:.20} does not belong here")
    values = parts[2:]
    checksum = _integer(values.pop(), 0, (1 << 32) - 1) if kind is Block and values else 0
    if len(values) != len(checks):
        raise WireError(f"a {kind.__name__} has {len(checks)} fields, not {len(values)}")
    message: Control | Bulk = kind(*(check(value) for check, value in zip(checks, values, strict=True)))
    if isinstance(message, Block) and checksum != _block_checksum(message):
        raise WireError(f"block {message.sequence} of stream {message.session} has a wrong checksum")
    return message


def _unpack(data: bytes) -> object:
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            max_bin_len=MAX_CONTROL_BYTES,
            max_str_len=4 * MAX_TEXT,
            max_array_len=2 * MAX_HISTORY,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"not a msgpack message: {str(error) or type(error).__name__:.80}") from None


def _plain(value: object) -> object:
    """What msgpack can pack: enumerations by value, tuples and documents as lists."""
    if isinstance(value, Document):
        return [value.version, value.history, value.body]
    if isinstance(value, Role):
        return value.value
    return int(value) if isinstance(value, Kind) else value


def _block_checksum(block: Block) -> int:
    header = _BLOCK_HEADER.pack(
        block.boot,
        block.session,
        block.sequence,
        block.epoch,
        block.kind,
        block.layout,
        block.clock_ns,
        block.family,
        block.count,
    )
    return zlib.crc32(block.payload, zlib.crc32(header))
