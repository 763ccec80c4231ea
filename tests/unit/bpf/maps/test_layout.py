"""Clang's type descriptions become numpy types, and layout.json is read completely or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpf.maps import layout
from bpf.maps.layout import LayoutError, Layouts, MapLayout

ADDRESS = ["addr_v6", [["word", "unsigned int", [4]]], "struct_packed"]
KEY = ["key", [["source", ADDRESS], ["source_port", "unsigned short"], ["zero", "unsigned char", [2]]], "struct_packed"]


def test_columns_match_the_documentation() -> None:
    found = layout.dtype_of(KEY)
    assert found == np.dtype([("source", "V16"), ("source_port", ">u2"), ("zero", "u1", (2,))])


def test_numbers_that_are_no_ports_are_in_host_order() -> None:
    description = ["v", [["port_first", "unsigned short"], ["farm", "unsigned short"], ["support", "unsigned short"]], "struct"]
    assert layout.dtype_of(description) == np.dtype([("port_first", ">u2"), ("farm", "=u2"), ("support", "=u2")])


def test_an_array_of_words_called_address_is_an_address() -> None:
    description = ["v", [["snat_address", "unsigned int", [4]], ["backend", "unsigned int", [3]]], "struct_packed"]
    assert layout.dtype_of(description) == np.dtype([("snat_address", "V16"), ("backend", "u4", (3,))])


def test_structs_inside_structs_stay() -> None:
    event = ["event", [["key", KEY], ["type", "unsigned char"]], "struct_packed"]
    found = layout.dtype_of(event)
    assert found["key"] == layout.dtype_of(KEY) and found.itemsize == 21


def test_a_plain_number_is_its_own_type() -> None:
    assert layout.dtype_of("unsigned int") == np.dtype("u4")


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ("float", "'float'"),
        (["u", [["a", "int"]], "union"], "u is a union"),
        (["v", [["bits", "unsigned int", 3]], "struct"], "bits is a bit field"),
        (["v", [["strange", "struct x"]], "struct"], "strange has the unknown type"),
    ],
)
def test_types_numpy_cannot_express_are_named(description: Any, named: str) -> None:
    with pytest.raises(LayoutError, match=named):
        layout.dtype_of(description)


def map_layout(**changes: Any) -> MapLayout:
    fields: dict[str, Any] = {
        "type": 1,
        "max_entries": 64,
        "key_size": 20,
        "value_size": 4,
        "key": KEY,
        "value": "unsigned int",
    }
    return MapLayout(**{**fields, **changes})


def test_maps_that_differ_in_anything_have_other_fingerprints() -> None:
    renamed = ["key", [["sender", ADDRESS], *KEY[1][1:]], "struct_packed"]
    others = [
        map_layout(type=9),
        map_layout(max_entries=65),
        map_layout(value="int"),
        map_layout(key=renamed),
        map_layout(meaning="x"),
    ]
    assert len({each.fingerprint() for each in [map_layout(), *others]}) == 6
    assert map_layout().fingerprint() == map_layout().fingerprint()


def test_layouts_survive_being_stored(tmp_path: Path) -> None:
    layouts = Layouts(3, "abc", {"flows": map_layout(), "lease": map_layout(key="unsigned int", key_size=4)})
    layout.store(layouts, tmp_path)
    assert layout.load(tmp_path) == layouts
    assert [path.name for path in tmp_path.iterdir()] == ["layout.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"abi": 1, "identity": "x", "tables": {"t": {"type": 1}}}', "\udcff"])
def test_a_damaged_file_counts_as_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / "layout.json").write_bytes(text.encode(errors="surrogateescape"))
    assert layout.load(tmp_path) is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    old = Layouts(1, "old", {})
    layout.store(old, tmp_path)
    with pytest.raises(TypeError):
        layout.store(Layouts(1, "new", {"t": map_layout(meaning=object())}), tmp_path)
    assert layout.load(tmp_path) == old
    assert [path.name for path in tmp_path.iterdir()] == ["layout.json"]
