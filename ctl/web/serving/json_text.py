"""JSON, read strictly and written: what two readers would understand differently is refused. Pure."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from ctl.web.serving.problems import malformed

PIECE_BYTES = 65536
MAX_DEPTH = 64


def parse_object(body: bytes) -> dict[str, Any]:
    """The object in a body. Raises HttpError (400) for anything else: another encoding, a key twice, NaN, numbers that no
    double has, more than MAX_DEPTH levels, strings that are no Unicode.
    """
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer
        )
    except (ValueError, RecursionError) as error:
        raise malformed(f"the body is not JSON: {str(error)[:200] or type(error).__name__}") from None
    if not isinstance(value, dict):
        raise malformed("the body is not a JSON object")
    _check(value, 0)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return made


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:40]} is too large")
    return int(text)


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise malformed(f"the body is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, each in value.items():
            _check(key, depth + 1)
            _check(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check(each, depth + 1)
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        raise malformed("a string of the body is no Unicode text: it has half of a surrogate pair")


def dump(value: Any) -> bytes:
    """Compact JSON; bytes as base64, numbers that JSON has not as null."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_other)
    except ValueError:  # an infinite number somewhere
        text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), default=_other)
    return text.encode(errors="replace")


def _other(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


async def dump_list(before: bytes, items: Iterator[Any], after: Callable[[], bytes]) -> AsyncIterator[bytes]:
    """A document with a long list, in pieces: it is never in memory as a whole. after: called when the list is written."""
    piece, comma = bytearray(before + b"["), b""
    for each in items:
        piece += comma + dump(each)
        comma = b","
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece + b"]" + after())
