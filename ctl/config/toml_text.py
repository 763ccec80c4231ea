"""Decodes the bytes of a TOML file (TOML 1.0: UTF-8). Windows editors write a byte order mark, or UTF-16."""

from __future__ import annotations

from ctl.errors import InvalidInput

_OTHERS = (
    (b"\xff\xfe\0\0", "UTF-32"),  # begins with the mark of UTF-16
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def decode(data: bytes, source: str) -> str:
    """The text, without a byte order mark. Raises InvalidInput naming `source`, the line and the remedy."""
    for mark, name in _OTHERS:
        if data.startswith(mark):
            raise InvalidInput(f"is {name} text; save it as UTF-8", source)
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise InvalidInput(f"line {line} has a NUL byte: it is UTF-16 or no text; save it as UTF-8", source)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        begin = data.rfind(b"\n", 0, error.start) + 1
        line, column = data.count(b"\n", 0, error.start) + 1, len(data[begin : error.start].decode()) + 1
        what = f"byte 0x{data[error.start]:02x} at line {line}, column {column}"
        raise InvalidInput(f"{what} is not UTF-8; save the file as UTF-8", source) from None
