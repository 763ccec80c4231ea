"""MurmurHash3, 32 bits, as the data plane uses it. Addresses are hashed by words in memory order."""

from __future__ import annotations

import struct

from tests.model.state import Key

MASK = 0xFFFFFFFF
GOLDEN_RATIO = 0x9E3779B9


def mix(value: int, word: int) -> int:
    word = word * 0xCC9E2D51 & MASK
    word = (word << 15 | word >> 17) * 0x1B873593 & MASK
    value ^= word
    return (value << 13 | value >> 19) * 5 + 0xE6546B64 & MASK


def avalanche(value: int) -> int:
    value = (value ^ value >> 16) * 0x85EBCA6B & MASK
    value = (value ^ value >> 13) * 0xC2B2AE35 & MASK
    return value ^ value >> 16


def flow_hash(key: Key, seed: int, client_only: bool = False) -> int:
    value = seed
    addresses = key.source if client_only else key.source + key.destination
    for word in struct.unpack(f"<{len(addresses) // 4}I", addresses):
        value = mix(value, word)
    if not client_only:
        value = mix(mix(value, key.source_port << 16 | key.destination_port), key.protocol)
    return avalanche(value)
