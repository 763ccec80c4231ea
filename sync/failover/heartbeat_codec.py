"""Heartbeats as bytes: a msgpack array of bounded size, every field checked.

Decides what is a heartbeat. Must not know sockets or what a heartbeat does. Any bytes become a Heartbeat or a WireError;
nothing else is raised, and nothing is allocated beyond MAX_BYTES. Flow blocks: sync/flows/message_codec.py.

A heartbeat is [WIRE_VERSION, fields…], in the order of the dataclass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import msgpack

from sync.errors import WireError
from sync.failover.timing import MAX_LEASE_NS, MIN_LEASE_NS
from sync.failover.types import Heartbeat, Role

WIRE_VERSION = 2
MAX_BYTES = 512
_MAX_INTEGER = (1 << 63) - 1
_ROLES = {role.value: role for role in Role}
_NAMES = tuple(field.name for field in fields(Heartbeat))


def encode(heartbeat: Heartbeat) -> bytes:
    """The heartbeat's bytes."""
    data: bytes = msgpack.packb([WIRE_VERSION, *(getattr(heartbeat, name) for name in _NAMES)])
    return data


def decode_control(data: bytes) -> Heartbeat:
    """The heartbeat in a message of the control channel. Raises WireError for anything `encode` does not make."""
    if len(data) > MAX_BYTES:
        raise WireError(f"{len(data)} bytes exceed the bound of {MAX_BYTES}")
    try:
        values = msgpack.unpackb(data, raw=False, use_list=True, max_ext_len=0, max_map_len=0, max_bin_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not a msgpack message: {str(error) or type(error).__name__:.80}") from None
    if type(values) is not list or not values:
        raise WireError("not a heartbeat")
    if type(values[0]) is not int or values[0] != WIRE_VERSION:
        raise WireError(f"wire version {values[0]!r:.20} is not {WIRE_VERSION}: run the same version of xlb on both nodes")
    if len(values) != 1 + len(_NAMES):
        raise WireError(f"a heartbeat has {len(_NAMES)} fields, not {len(values) - 1}")
    return Heartbeat(*(_CHECKS[name](name, value) for name, value in zip(_NAMES, values[1:], strict=True)))


def _integer(name: str, value: object, least: int = 0, most: int = _MAX_INTEGER) -> int:
    if type(value) is not int or not least <= value <= most:
        raise WireError(f"{name}: {value!r:.40} is not an integer between {least} and {most}")
    return value


def _number(name: str, value: object) -> int:
    """A boot id or a sequence number: never 0."""
    return _integer(name, value, 1)


def _priority(name: str, value: object) -> int:
    return _integer(name, value, 0, 255)


def _epoch(name: str, value: object) -> int:
    """Far enough below the largest integer that there is always a later epoch."""
    return _integer(name, value, 0, 1 << 48)


def _lease(name: str, value: object) -> int:
    return _integer(name, value, MIN_LEASE_NS, MAX_LEASE_NS)


def _allowed(name: str, value: object) -> int:
    return _integer(name, value, 0, MAX_LEASE_NS)


def _boolean(name: str, value: object) -> bool:
    if type(value) is not bool:
        raise WireError(f"{name}: {value!r:.40} is not true or false")
    return value


def _role(name: str, value: object) -> Role:
    if type(value) is not str or value not in _ROLES:
        raise WireError(f"{name}: {value!r:.40} is not a role")
    return _ROLES[value]


def _version(name: str, value: object) -> tuple[int, int]:
    if type(value) is not list or len(value) != 2:
        raise WireError(f"{name}: {value!r:.40} is not a version")
    return _epoch(name, value[0]), _integer(name, value[1])


_CHECKS: dict[str, Callable[[str, object], Any]] = {
    **dict.fromkeys(("boot", "sequence"), _number),
    **dict.fromkeys(("sent_ns", "echo_boot", "echo_sequence", "echo_sent_ns", "echo_held_ns"), _integer),
    **dict.fromkeys(("epoch", "claim", "grants"), _epoch),
    **dict.fromkeys(("in_step", "can_serve", "offering", "wants"), _boolean),
    "role": _role,
    "priority": _priority,
    "lease_ns": _lease,
    "allows_ns": _allowed,
    "version": _version,
}
