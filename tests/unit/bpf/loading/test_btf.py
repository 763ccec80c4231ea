"""The type information that programs are loaded with, read back by libbpf, whose reader is not xlb's."""

from __future__ import annotations

import ctypes as ct

import pytest

from bpf.loading import btf

NAMES = ["xlb", "xlb_v4", "xlb_open_v6"]
FUNCTION = 12  # BTF_KIND_FUNC


@pytest.fixture
def libbpf() -> ct.CDLL:
    try:
        library = ct.CDLL("libbpf.so.1")
    except OSError as error:
        pytest.skip(str(error))
    library.btf__new.argtypes, library.btf__new.restype = (ct.c_char_p, ct.c_uint32), ct.c_void_p
    library.btf__free.argtypes, library.btf__free.restype = (ct.c_void_p,), None
    library.btf__find_by_name_kind.argtypes = (ct.c_void_p, ct.c_char_p, ct.c_uint32)
    library.btf__resolve_size.argtypes = (ct.c_void_p, ct.c_uint32)
    library.btf__resolve_size.restype = ct.c_int64
    library.btf__find_by_name.argtypes = (ct.c_void_p, ct.c_char_p)
    return library


def test_each_program_is_a_function_and_their_argument_is_the_packet(libbpf: ct.CDLL) -> None:
    content, ids = btf.program_types(NAMES)
    types = libbpf.btf__new(content, len(content))
    assert types
    try:
        assert [libbpf.btf__find_by_name_kind(types, name.encode(), FUNCTION) for name in NAMES] == [*ids.values()]
        assert libbpf.btf__resolve_size(types, libbpf.btf__find_by_name(types, b"xdp_md")) == 24
    finally:
        libbpf.btf__free(types)
