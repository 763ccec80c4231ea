"""The file format: byte by byte, and read back by scapy, whose reader is not xlb's. tests/net has tshark read real ones."""

from __future__ import annotations

import io
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from ctl.capture import pcapng

NUMBERS = st.integers(0, 2**63 - 1)


def test_a_packet_block_byte_by_byte() -> None:
    block = pcapng.packet(2, (5 << 32) + 7, b"abcde", 99, "no", pcapng.OUTBOUND, 3)
    words = struct.pack("=IIIII", 2, 5, 7, 5, 99) + b"abcde\0\0\0"
    comment = struct.pack("=HH", 1, 2) + b"no\0\0"
    flags, number = struct.pack("=HHI", 2, 4, 2), struct.pack("=HHQ", 5, 8, 3)
    body = words + comment + flags + number + bytes(4)
    length = struct.pack("=I", len(body) + 12)
    assert block == struct.pack("=I", 6) + length + body + length


def test_the_first_blocks_byte_by_byte() -> None:
    assert pcapng.section("x", "y")[:28] == struct.pack("=IIIHHq", 0x0A0D0D0A, 48, 0x1A2B3C4D, 1, 0, -1) + struct.pack(
        "=HH", 3, 1
    )
    block = pcapng.interface("eth0", "in", 96)
    options = (
        struct.pack("=HH", 2, 4) + b"eth0" + struct.pack("=HH", 3, 2) + b"in\0\0" + struct.pack("=HHI", 9, 1, 9) + bytes(4)
    )
    assert block[8:-4] == struct.pack("=HHI", 1, 0, 96) + options


def test_statistics_have_what_was_lost() -> None:
    block = pcapng.statistics(1, 10, (1 << 32) + 11, 7, 2, 5, "c")
    assert struct.unpack_from("=III", block, 8) == (1, 1, 11)
    assert (
        struct.pack("=HHQ", 7, 8, 2) in block
        and struct.pack("=HHQ", 4, 8, 7) in block
        and struct.pack("=HHQ", 8, 8, 5) in block
    )


def test_a_comment_that_is_too_long_ends_between_characters() -> None:
    block = pcapng.packet(0, 0, b"", 0, "é" * 40000, pcapng.INBOUND, 1)
    (length,) = struct.unpack_from("=H", block, 30)
    assert length == pcapng.MAX_OPTION_BYTES - 1
    assert block[32 : 32 + length].decode() == "é" * (length // 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.binary(max_size=200), st.text(max_size=40), st.integers(0, 3000)), max_size=8))
def test_what_is_written_is_read(packets: list[tuple[int, bytes, str, int]]) -> None:
    blocks = pcapng.section("xlbctl", "Linux") + pcapng.interface("eth0", "received", 9216)
    for number, (time_ns, content, comment, more) in enumerate(packets):
        blocks += pcapng.packet(0, time_ns, content, len(content) + more, comment, pcapng.INBOUND, number)
    blocks += pcapng.statistics(0, 0, 1, len(packets), 0, len(packets), "")
    reader = RawPcapNgReader(io.BytesIO(blocks))  # type: ignore[arg-type]
    for time_ns, content, comment, more in packets:
        read, known = reader._read_packet()
        assert read == content and known.wirelen == len(content) + more and known.tsresol == 10**9
        assert (known.tshigh << 32) + known.tslow == time_ns
        if hasattr(known, "comments"):  # Debian's scapy reads none of a packet
            assert known.comments == [comment.encode(errors="replace")]
