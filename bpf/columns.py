"""Converts addresses, port ranges and flow tuples to columns of maps, and back. Pure; must not know file descriptors.

Columns are numpy structured arrays as described in bpf/maps/layout.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from bpf.constants import FlowFlag
from bpf.dataplane import Array, FlowEntry, FlowTuple

Family = Literal["v4", "v6"]
FAMILIES: tuple[Family, ...] = ("v4", "v6")

PORT_BITS = 16
ADDRESS_BYTES: dict[str, int] = {"v4": 4, "v6": 16}


def family_of(address: str) -> Family:
    """ "v6" for an IPv6 address, "v4" otherwise."""
    return "v6" if ":" in address else "v4"


def address_bytes(address: str) -> bytes:
    """The address in network order. Raises ValueError naming a string that is not an address."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except OSError as error:
        raise ValueError(f"{address!r} is not an IP address") from error


def address_text(raw: bytes) -> str:
    """The canonical string of 4 or 16 bytes in network order."""
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def address_column(addresses: Iterable[str], width: int) -> Array:
    """One V{width} item per address, padded with zeros if the field can hold either family."""
    packed = b"".join(address_bytes(address).ljust(width, b"\0") for address in addresses)
    return np.frombuffer(packed, dtype=f"V{width}")


def port_prefixes(first: int, last: int) -> list[tuple[int, int]]:
    """The fewest (port, prefix length in bits) that cover first..last and nothing else, at most 30.

    Raises ValueError unless 0 <= first <= last <= 65535.
    """
    if not 0 <= first <= last < 1 << PORT_BITS:
        raise ValueError(f"{first}-{last} is not a range of ports")
    prefixes = []
    while first <= last:
        free_bits = min((first & -first).bit_length() - 1 if first else PORT_BITS, (last - first + 1).bit_length() - 1)
        prefixes.append((first, PORT_BITS - free_bits))
        first += 1 << free_bits
    return prefixes


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first, last) of ranges of ports, ascending; those that adjoin or overlap are one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def prefix_keys(number: int, packed: bytes, key: np.dtype[Any]) -> Array:
    """Keys of the map `prefixes_*`, of type `key`, for the prefixes of list `number`: each `packed` as the bytes of its address
    and one with its length."""
    width = key["address"].itemsize
    rows = np.frombuffer(packed, dtype=[("address", f"V{width}"), ("length", "u1")])
    keys = np.zeros(len(rows), dtype=key)
    keys["address"], keys["list"] = rows["address"], number
    keys["prefix_length"] = rows["length"].astype(np.uint32) + 32  # the list is compared too
    return keys


def encode_flow_keys(tuples: Sequence[FlowTuple], key: np.dtype[Any]) -> Array:
    """Keys of the flow maps, of type `key`. All tuples must be of its family."""
    width = key["source"].itemsize
    if any(len(address_bytes(each.source)) != width or len(address_bytes(each.destination)) != width for each in tuples):
        raise ValueError("the flow tuples are not all of the key's address family")
    keys = np.zeros(len(tuples), dtype=key)
    keys["source"] = address_column((each.source for each in tuples), width)
    keys["destination"] = address_column((each.destination for each in tuples), width)
    for name in ("source_port", "destination_port", "protocol"):
        keys[name] = [getattr(each, name) for each in tuples]
    return keys


def decode_flows(flow_map: str, keys: Array, values: Array) -> list[FlowEntry]:
    """The rows of a slice as entries. Slow, Python per flow: pass only the rows that are needed."""
    return [_entry(flow_map == "embryonic", key, value) for key, value in zip(keys, values, strict=True)]


def _entry(embryonic: bool, key: Any, value: Any) -> FlowEntry:
    protocol = int(key["protocol"])
    arrives, mode = _tuple(key, protocol), one_way_mode(int(value["flags"]))
    return FlowEntry(
        arrives=arrives,
        leaves=replace(arrives, destination=one_way_backend(value)) if mode else _tuple(value, protocol),
        mode=mode,
        forward=bool(int(value["flags"]) & FlowFlag.FORWARD),
        farm=int(value["farm"]),
        backend=int(value["backend"]),
        state=int(value["state"]),
        last_seen_tick=int(value["last_seen"]),
        embryonic=embryonic,
    )


def one_way_mode(flags: int) -> str:
    """ "dsr" or "ipip" by the flags of a flow entry; empty: its packets are rewritten."""
    return "dsr" if flags & FlowFlag.DSR else "ipip" if flags & FlowFlag.IPIP else ""


def one_way_backend(value: Any) -> str:
    """The backend's address in an entry of mode dsr or ipip (bpf/program/abi.family.h)."""
    if not int(value["flags"]) & FlowFlag.OTHER_FAMILY:
        return address_text(value["destination"].tobytes())
    raw = value.tobytes()[:16] if value["destination"].nbytes == 4 else value["destination"].tobytes()[:4]
    return address_text(raw)


def _tuple(row: Any, protocol: int) -> FlowTuple:
    source, destination = address_text(row["source"].tobytes()), address_text(row["destination"].tobytes())
    return FlowTuple(source, destination, int(row["source_port"]), int(row["destination_port"]), protocol)
