"""A map full of connections without a client for each: for behaviour that depends on their number.

They are written into the kernel's map as copies of one real connection, with other addresses; no packet belongs to them.
"""

from __future__ import annotations

import numpy as np

from bpf.dataplane import Array
from bpf.kernel.plane import KernelPlane
from bpf.maps import layout
from tests.net.serving import PORTS
from tests.rig import Node

CHUNK = 1 << 16
FIRST_CLIENT, FIRST_BACKEND = 0x0AC80000, 0x0BC80000  # 10.200.0.0, 11.200.0.0 and following


def put_connections(node: Node, count: int) -> None:
    """Write `count` connections into a node's map as if clients had opened them; it must have one to farm tcp4."""
    layouts = layout.load(node.run_dir)
    assert layouts is not None
    plane = KernelPlane(node.bpf_dir, layouts)
    try:
        key, value = model(plane)
        for first in range(0, count, CHUNK):
            numbers = np.arange(first, min(first + CHUNK, count), dtype=np.uint32)
            for each in _copies(key, value, numbers):
                assert plane.update_flows("v4", *each) == len(numbers), f"{node.name} cannot hold {count} connections"
    finally:
        plane.close()


def model(plane: KernelPlane) -> tuple[Array, Array]:
    """The forward entry of a real connection."""
    for keys, values in plane.flow_batches("flows", "v4", 4096):
        ours = np.flatnonzero((keys["destination_port"] == PORTS["tcp"]) & (values["destination_port"] == PORTS["tcp"]))
        if len(ours):
            return keys[ours[:1]], values[ours[:1]]
    raise AssertionError("there is no connection to copy")


def _copies(key: Array, value: Array, numbers: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Reply entries and forward entries, keys and values each: every copy has a client and a backend of its own."""
    keys, forward = np.repeat(key, len(numbers)), np.repeat(value, len(numbers))
    _set(keys["source"], FIRST_CLIENT + numbers)
    _set(forward["destination"], FIRST_BACKEND + numbers)
    reply_keys, reply = np.zeros_like(keys), forward.copy()
    reply_keys["protocol"] = keys["protocol"]
    for there, here in (("source", "destination"), ("destination", "source")):
        reply_keys[there], reply_keys[f"{there}_port"] = forward[here], forward[f"{here}_port"]
        reply[there], reply[f"{there}_port"] = keys[here], keys[f"{here}_port"]
    reply["flags"] = 0
    return (reply_keys, reply), (keys, forward)


def _set(column: Array, addresses: Array) -> None:
    column[...] = np.frombuffer(addresses.astype(">u4").tobytes(), column.dtype)
