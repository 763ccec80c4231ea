"""Layouts of the pinned maps: the structs as clang laid them out, as JSON on disk and as numpy types in memory.

A description is that of bcc: the name of a C type, or [struct name, [[field, description, …], …], kind]. Columns have these
numpy types:

* an address (`struct addr_*`, or an array of 32-bit words whose name ends in `address`) is one item of raw bytes, V4 or
  V16, in network order: it compares and sorts as a whole, and `socket.inet_ntop` takes its bytes;
* a port (a 16-bit field called `port`, `port_*` or `*_port`) is big-endian in memory and read as an ordinary number;
* any other struct in a struct stays nested, arrays stay arrays, numbers are in host byte order.

Decides types only; knows no file descriptors and no compiler.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Description = str | list[Any]

FILE_NAME = "layout.json"
_MAPS_KEY = "tables"  # as in files of 0.1.0

_NUMBERS = {
    "_Bool": "?",
    "char": "u1",
    "signed char": "i1",
    "unsigned char": "u1",
    "short": "i2",
    "unsigned short": "u2",
    "int": "i4",
    "unsigned int": "u4",
    "long": "i8",
    "unsigned long": "u8",
    "long long": "i8",
    "unsigned long long": "u8",
}


class LayoutError(ValueError):
    """A description or file that the compile step did not write."""


def dtype_of(description: Description) -> np.dtype[Any]:
    """The numpy type of a description. Raises LayoutError naming the field it cannot express."""
    if isinstance(description, str):
        return _number(description, "")
    if len(description) > 2 and description[2] == "union":
        raise LayoutError(f"{description[0]} is a union")
    return np.dtype([_field(field) for field in description[1]])


def _field(field: list[Any]) -> tuple[str, Any] | tuple[str, Any, tuple[int, ...]]:
    name, kind = field[0], field[1]
    if len(field) == 3 and not isinstance(field[2], list):
        if field[2] not in ("struct", "struct_packed"):
            raise LayoutError(f"{name} is a bit field or union")
        return name, dtype_of(field)
    if isinstance(kind, list) and kind[0].startswith("addr_"):
        return name, np.dtype(f"V{dtype_of(kind).itemsize}")
    if isinstance(kind, list):
        return (name, dtype_of(kind)) if len(field) == 2 else (name, dtype_of(kind), tuple(field[2]))
    number = _number(kind, name)
    if len(field) == 2:
        return name, number
    shape = tuple(field[2])
    if name.endswith("address") and number.itemsize == 4:
        return name, np.dtype(f"V{4 * shape[0]}")
    return name, number, shape


def _number(kind: str, name: str) -> np.dtype[Any]:
    try:
        number = np.dtype(_NUMBERS[kind])
    except KeyError:
        raise LayoutError(f"{name or 'a map'} has the unknown type {kind!r}") from None
    is_port = name == "port" or name.startswith("port_") or name.endswith("_port")
    return number.newbyteorder(">") if is_port and number.itemsize == 2 else number


@dataclass(frozen=True, slots=True)
class MapLayout:
    """One map. `type` is the kernel's map type; `meaning` describes the entries beyond their bytes."""

    type: int
    max_entries: int
    key_size: int
    value_size: int
    key: Description
    value: Description
    meaning: str = ""

    @property
    def key_dtype(self) -> np.dtype[Any]:
        return dtype_of(self.key)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        return dtype_of(self.value)

    def fingerprint(self) -> str:
        """Equal for maps whose entries an upgrade may keep."""
        parts = [self.type, self.max_entries, self.key_size, self.value_size, self.key, self.value, self.meaning]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Layouts:
    """The layouts of one build of the data plane; `identity` is the build's."""

    abi: int
    identity: str
    maps: Mapping[str, MapLayout]

    def to_json(self) -> dict[str, Any]:
        fields = MapLayout.__dataclass_fields__
        maps = {name: {field: getattr(each, field) for field in fields} for name, each in self.maps.items()}
        return {"abi": self.abi, "identity": self.identity, _MAPS_KEY: maps}


def from_json(document: Any) -> Layouts:
    """Raises LayoutError if `document` is not one of `Layouts.to_json`."""
    try:
        maps = {str(name): MapLayout(**fields) for name, fields in document[_MAPS_KEY].items()}
        return Layouts(int(document["abi"]), str(document["identity"]), maps)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise LayoutError(f"not a layout: {error!r}") from error


def store(layouts: Layouts, run_dir: Path) -> None:
    """Replace run_dir/layout.json atomically: a reader finds the old file or the new one, also after a crash."""
    handle, temporary = tempfile.mkstemp(dir=run_dir, prefix=FILE_NAME + ".")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(layouts.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(run_dir / FILE_NAME)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(run_dir: Path) -> Layouts | None:
    """The contents of run_dir/layout.json; None if it is missing or damaged, which costs one compilation."""
    try:
        return from_json(json.loads((run_dir / FILE_NAME).read_text()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, LayoutError):
        return None
