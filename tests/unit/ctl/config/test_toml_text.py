"""Bytes of TOML files: a byte order mark is accepted, other encodings get an error that names the remedy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.config.toml_text import decode
from ctl.errors import InvalidInput

TEXT = '# Straße\nname = "a"\n'


def test_utf_8_with_and_without_a_mark() -> None:
    assert decode(TEXT.encode(), "x") == decode(TEXT.encode("utf-8-sig"), "x") == TEXT
    assert decode(b"", "x") == decode(b"\xef\xbb\xbf", "x") == ""


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_unicode_encodings_are_named(encoding: str) -> None:
    for data in (TEXT.encode(encoding), "\ufeff".encode(encoding) + TEXT.encode(encoding)):
        with pytest.raises(InvalidInput, match=r"^x: (is UTF-(16|32) text|line 1 has a NUL byte).*; save it as UTF-8$"):
            decode(data, "x")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (TEXT.encode("latin-1"), "byte 0xdf at line 1, column 7"),
        ("a\r\nöö\xfc".encode() + b"\xe4", "byte 0xe4 at line 2, column 4"),
        (b"a\xc3", "byte 0xc3 at line 1, column 2"),
    ],
)
def test_the_place_of_a_wrong_byte(data: bytes, place: str) -> None:
    with pytest.raises(InvalidInput, match=f"^x: {place} is not UTF-8; save the file as UTF-8$"):
        decode(data, "x")


@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        text = decode(data, "x")
    except InvalidInput:
        return
    assert text.encode() == data.removeprefix(b"\xef\xbb\xbf")
