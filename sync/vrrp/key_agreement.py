"""The secret that both nodes of a pair know without having sent it: X25519 (RFC 7748) of their CURVE keys.

Decides numbers. Must not know what the secret is used for, nor where keys are stored. CURVE keys are X25519 keys, and pairing
gave each node the other's public one, so a pair that was made before there was a use for the secret has it too. Runs once when
a node enters its pair, for about a millisecond: it need not be fast, and its duration is seen by nobody.
"""

from __future__ import annotations

import hashlib
import hmac

KEY_BYTES = 32
_PRIME = (1 << 255) - 19
_A24 = 121665  # (486662 - 2) / 4
_LABEL = b"xlb pair secret 1"


def pair_secret(own_secret: bytes, peer_public: bytes) -> bytes:
    """32 bytes that only the two nodes can compute. Raises ValueError for a public key that gives everybody the same."""
    shared = x25519(own_secret, peer_public)
    if not any(shared):  # RFC 7748, section 6.1
        raise ValueError("the peer's public key is of small order")
    return hmac.digest(_LABEL, shared, hashlib.sha256)


def x25519(scalar: bytes, point: bytes) -> bytes:
    """The function X25519 of RFC 7748, section 5. Raises ValueError unless both are 32 bytes."""
    if len(scalar) != KEY_BYTES or len(point) != KEY_BYTES:
        raise ValueError("a key of X25519 has 32 bytes")
    factor = int.from_bytes(scalar, "little")
    factor = (factor & ~7 & ((1 << 255) - 1)) | 1 << 254
    base = int.from_bytes(point, "little") & ((1 << 255) - 1)
    low, high = (1, 0), (base, 1)  # in projective coordinates; high - low is always the point itself
    for position in range(254, -1, -1):
        if factor >> position & 1:
            high, low = _double(high), _add(low, high, base)
        else:
            high, low = _add(low, high, base), _double(low)
    x, z = low
    return (x * pow(z, _PRIME - 2, _PRIME) % _PRIME).to_bytes(KEY_BYTES, "little")


def _double(point: tuple[int, int]) -> tuple[int, int]:
    x, z = point
    plus, minus = (x + z) ** 2 % _PRIME, (x - z) ** 2 % _PRIME
    difference = plus - minus
    return plus * minus % _PRIME, difference * (plus + _A24 * difference) % _PRIME


def _add(one: tuple[int, int], two: tuple[int, int], base: int) -> tuple[int, int]:
    """The sum of two points whose difference has the coordinate `base`."""
    (x1, z1), (x2, z2) = one, two
    crossed, straight = (x1 - z1) * (x2 + z2), (x1 + z1) * (x2 - z2)
    return (crossed + straight) ** 2 % _PRIME, base * (crossed - straight) ** 2 % _PRIME
