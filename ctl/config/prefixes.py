"""Prefix lists: text, one prefix per line, to the packed form that the model, the record and the kernel use, and back.

Packed: the prefixes of one family in ascending order, each as the bytes of its address and one with its length. Decides what a
valid prefix is. Must not know files, farms or maps.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_network

from ctl.config.model import Farm, PrefixList
from ctl.errors import Code, InvalidInput

MAX_PREFIXES_PER_LIST = 100_000
MAX_PACKED_BYTES = 3 << 20
"""Of all lists together, 5 bytes for an IPv4 prefix and 17 for an IPv6 one: the configuration is stored and sent as a whole."""
MAX_LISTS = 256
PIECE_BYTES = 17 * 5 * 400
"""Of a list in one line of a record, so that no line keeps the interpreter for long; a multiple of both row sizes."""

_KINDS: Mapping[str, type[IPv4Address] | type[IPv6Address]] = {"v4": IPv4Address, "v6": IPv6Address}
ROW_BYTES = {"v4": 5, "v6": 17}


def parse_text(name: str, text: str, source: str) -> PrefixList:
    """The list in a file: a prefix or an address per line, `#` begins a comment. Raises InvalidInput naming the line."""
    return parse_lines(name, text.splitlines(), lambda number: f"{source} line {number}")


def parse_texts(name: str, texts: Iterable[str], key: str) -> PrefixList:
    """The list in an array of strings. Raises InvalidInput naming the element, counted from 0."""
    return parse_lines(name, texts, lambda number: f"{key}[{number - 1}]")


def parse_lines(name: str, lines: Iterable[str], place_of: Callable[[int], str]) -> PrefixList:
    """place_of: how messages name a line, counted from 1. Raises InvalidInput."""
    rows: dict[str, set[bytes]] = {"v4": set(), "v6": set()}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            problem = _add(text, rows)
            if problem:
                raise InvalidInput(problem, place_of(number))
    return check_list(PrefixList(name, *(b"".join(sorted(each)) for each in rows.values())))


def _add(text: str, rows: Mapping[str, set[bytes]]) -> str:
    """Add one prefix; returns what is wrong with it, or ""."""
    address, slash, length_text = text.partition("/")
    family = "v6" if ":" in address else "v4"
    try:
        raw = _KINDS[family](address).packed
    except AddressValueError:
        raw = b""
    if not raw or "%" in address:
        return f'expected a prefix like 10.0.0.0/8 or 2001:db8::/32, or an address, got "{text[:64]}"'
    bits = 8 * len(raw)
    if slash and not (length_text.isascii() and length_text.isdigit() and len(length_text) < 4 and int(length_text) <= bits):
        return f'expected a length from 0 to {bits} after "/", got "{text[:64]}"'
    length = int(length_text) if slash else bits
    if _has_host_bits(raw, length):
        return f"{text} has bits after the first {length}; write {ip_network(text, strict=False)}, or {address} for one address"
    rows[family].add(raw + bytes([length]))
    return ""


def _has_host_bits(raw: bytes, length: int) -> bool:
    return length < 8 * len(raw) and int.from_bytes(raw, "big") << length & (1 << 8 * len(raw)) - 1 != 0


def unpack(name: str, v4: str, v6: str, key: str = "prefixes") -> PrefixList:
    """A list as it travels, each family packed and in base64. Raises InvalidInput."""
    try:
        packed = [base64.b64decode(each, validate=True) for each in (v4, v6)]
    except (binascii.Error, ValueError):
        raise InvalidInput("expected prefixes in base64", key) from None
    checked = []
    for raw, size in zip(packed, ROW_BYTES.values(), strict=True):
        rows = sorted({raw[at : at + size] for at in range(0, len(raw), size)})
        if any(len(row) != size or row[-1] > 8 * (size - 1) or _has_host_bits(row[:-1], row[-1]) for row in rows):
            raise InvalidInput(f"expected rows of {size} bytes: an address and the length of its prefix", key)
        checked.append(b"".join(rows))
    return check_list(PrefixList(name, *checked))


def packed(of: PrefixList) -> dict[str, str]:
    """The arguments of `unpack`."""
    return {"v4": base64.b64encode(of.v4).decode(), "v6": base64.b64encode(of.v6).decode()}


def pieces(of: PrefixList) -> Iterator[PrefixList]:
    """The list as smaller ones of its name, at least one; joined they are the list."""
    parts = [(of.v4[at : at + PIECE_BYTES], b"") for at in range(0, len(of.v4), PIECE_BYTES)]
    parts += [(b"", of.v6[at : at + PIECE_BYTES]) for at in range(0, len(of.v6), PIECE_BYTES)]
    for v4, v6 in parts or [(b"", b"")]:
        yield PrefixList(of.name, v4, v6)


def texts(of: PrefixList) -> Iterator[str]:
    """Each prefix as a string, IPv4 first, in ascending order."""
    for raw, kind, size in ((of.v4, IPv4Address, 5), (of.v6, IPv6Address, 17)):
        for at in range(0, len(raw), size):
            yield f"{kind(raw[at : at + size - 1])}/{raw[at + size - 1]}"


def matching(of: PrefixList, address: str) -> str | None:
    """The longest prefix of the list that covers the address, or None."""
    kind, rows = (IPv6Address, of.v6) if ":" in address else (IPv4Address, of.v4)
    raw = kind(address).packed
    size, bits, value = len(raw) + 1, 8 * len(raw), int.from_bytes(raw, "big")
    found = {rows[at : at + size] for at in range(0, len(rows), size)}
    for length in range(bits, -1, -1):
        network = (value >> bits - length << bits - length).to_bytes(len(raw), "big")
        if network + bytes([length]) in found:
            return f"{kind(network)}/{length}"
    return None


def check_list(of: PrefixList, key: str = "prefixes") -> PrefixList:
    """The list, if it is not too long. Raises InvalidInput."""
    if of.count > MAX_PREFIXES_PER_LIST:
        raise InvalidInput(
            f"expected at most {MAX_PREFIXES_PER_LIST} prefixes, got {of.count}; join adjacent ones", key, Code.LIMIT_EXCEEDED
        )
    return of


def check_lists(lists: Mapping[str, PrefixList]) -> None:
    """Check what all lists need together. Raises InvalidInput."""
    total = sum(len(each.v4) + len(each.v6) for each in lists.values())
    if len(lists) > MAX_LISTS:
        raise InvalidInput(f"expected at most {MAX_LISTS} prefix lists, got {len(lists)}", "prefixes", Code.LIMIT_EXCEEDED)
    if total > MAX_PACKED_BYTES:
        raise InvalidInput(
            f"all prefix lists together need {total} bytes (5 for an IPv4 prefix, 17 for an IPv6 prefix), more than the "
            f"{MAX_PACKED_BYTES} that a node stores; join adjacent prefixes, or delete a list",
            "prefixes",
            Code.LIMIT_EXCEEDED,
        )


def check_lists_of_farm(lists: Collection[str], farm: Farm, place: str = "") -> None:
    """Check that the lists a farm names exist. Raises InvalidInput with the command that adds one."""
    for key in ("allow", "deny"):
        name = getattr(farm, key)
        if name and name not in lists:
            known = f"; there are {', '.join(sorted(lists)[:10])}" if lists else ""
            raise InvalidInput(
                f'there is no prefix list "{name}"; add it first: xlbctl prefixes set {name} -f FILE{known}',
                f"{place or f'farm.{farm.name}'}.{key}",
                Code.UNKNOWN_PREFIXES,
            )


def users_of(name: str, farms: Iterable[Farm]) -> list[str]:
    """The names of the farms that use a list, in order."""
    return sorted(farm.name for farm in farms if name in (farm.allow, farm.deny))
