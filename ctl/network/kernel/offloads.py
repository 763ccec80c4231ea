"""Switches off what drivers do to received frames before the program sees them: merging them, and removing VLAN tags.

Decides which features do that, and which devices are below an interface; sets them by ethtool's ioctl. Must not know farms or
XDP.

Linux disables merging on the interface with a generic program (it skips GRO and disables LRO and hardware GRO), but not on its
lower devices: the port of a VLAN or macvlan, the members of a bond or bridge. A frame that they merge is longer than the MTU
when it reaches the program, which would answer it as too big. In native mode the program receives frames before any merging.

A driver that removes the tag of a VLAN passes it on next to the frame, where the program does not see it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence

from ctl.network.kernel.messages import Link

JOINING = ("rx-gro", "rx-gro-hw", "rx-lro")
STRIPPING = ("rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_SS_FEATURES = 4
_STRING_BYTES = 32
_BLOCK = struct.Struct("=IIII")  # available, requested, active, never_changed
_SET_BLOCK = struct.Struct("=II")  # valid, requested
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENODEV})


def devices_below(interface: str, links: Iterable[Link]) -> list[str]:
    """Every device whose frames reach the interface through another one of `links`, nearest first; not the interface."""
    by_index = {link.index: link for link in links}
    start = next((link for link in by_index.values() if link.name == interface), None)
    found: list[Link] = []
    waiting = [start] if start is not None else []
    while waiting:
        upper = waiting.pop(0)
        for link in by_index.values():
            if (link.index == upper.below or link.above == upper.index) and link is not start and link not in found:
                found.append(link)
                waiting.append(link)
    return [link.name for link in found]


def joining(devices: Collection[str]) -> dict[str, list[str]]:
    """Devices that merge received frames, and the active features."""
    return _active(devices, JOINING)


def stop_joining(devices: Collection[str]) -> list[str]:
    """Switch the features off; one message per change or failure."""
    return _stop(devices, JOINING, "XDP in generic mode must see frames as they were sent")


def stripping(devices: Collection[str]) -> dict[str, list[str]]:
    """Devices that remove VLAN tags from received frames, and the active features."""
    return _active(devices, STRIPPING)


def stop_stripping(devices: Collection[str]) -> list[str]:
    """Switch the features off; one message per change or failure."""
    return _stop(devices, STRIPPING, "the program must see VLAN tags in the frames")


def _active(devices: Collection[str], names: Collection[str]) -> dict[str, list[str]]:
    found = {}
    for device in devices:
        active = [feature for feature, (_, on) in _features(device, names).items() if on]
        if active:
            found[device] = active
    return found


def _stop(devices: Collection[str], names: Collection[str], why: str) -> list[str]:
    messages = []
    for device, features in _active(devices, names).items():
        try:
            _switch_off(device, features)
            left = _active([device], names).get(device, [])
        except OSError as error:
            messages.append(f"could not switch {', '.join(features)} off on {device}: {error.strerror}")
            continue
        if done := [feature for feature in features if feature not in left]:
            messages.append(f"switched {', '.join(done)} off on {device}: {why}")
        if left:
            messages.append(f"could not switch {', '.join(left)} off on {device}: its driver keeps it on")
    return messages


def _features(device: str, wanted: Collection[str]) -> Mapping[str, tuple[int, bool]]:
    """(number, active) of those of the wanted features that the device knows; empty if the device is gone."""
    try:
        count = _feature_count(device)
        names = _ask(device, struct.pack("=III", _GSTRINGS, _SS_FEATURES, count), count * _STRING_BYTES)[12:]
        blocks = -(-count // 32)
        states = _ask(device, struct.pack("=II", _GFEATURES, blocks), blocks * _BLOCK.size)[8:]
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return {}
        raise
    found = {}
    for number in range(count):
        name = names[number * _STRING_BYTES :][:_STRING_BYTES].split(b"\0")[0].decode(errors="replace")
        if name in wanted:
            _, _, active, _ = _BLOCK.unpack_from(states, number // 32 * _BLOCK.size)
            found[name] = number, bool(active >> number % 32 & 1)
    return found


def _switch_off(device: str, features: Sequence[str]) -> None:
    known = _features(device, features)
    blocks = -(-_feature_count(device) // 32)
    valid = [0] * blocks
    for feature in features:
        number, _ = known[feature]
        valid[number // 32] |= 1 << number % 32
    _ask(device, struct.pack("=II", _SFEATURES, blocks) + b"".join(_SET_BLOCK.pack(mask, 0) for mask in valid), 0)


def _feature_count(device: str) -> int:
    answer = _ask(device, struct.pack("=IIQ", _GSSET_INFO, 0, 1 << _SS_FEATURES), 4)
    (count,) = struct.unpack_from("=I", answer, 16)
    return int(count)


def _ask(device: str, request: bytes, answer_bytes: int) -> bytes:
    """Execute one ethtool request; `answer_bytes`: space for the answer after it. Raises OSError."""
    memory = array.array("B", request + bytes(answer_bytes))
    address, _ = memory.buffer_info()
    argument = struct.pack("16sP", device.encode()[:15], address) + bytes(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        fcntl.ioctl(asker.fileno(), _SIOCETHTOOL, argument)
    return memory.tobytes()
