"""The entry program and the programs it calls: which of them acts while one build replaces another, and after a failed call."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bpf import libbpf, xdp
from bpf.constants import Handler
from bpf.kernel import attach
from bpf.loading import loader
from bpf.maps.pinned_map import PinnedMap
from tests.bpf.bed import DROP, FAMILIES, PASS, TX, Bed, Family, why_not
from tests.bpf.packets import from_client
from tests.bpf.small import Small, small_plane
from tests.wait import wait_until

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

CALLS = (
    "int xlb(struct xdp_md *context)\n{",
    'BPF_TABLE_PINNED("prog", u32, u32, handlers, HANDLER_COUNT, PINS "/handlers");\n'
    + "".join(f"int xlb_{each.name.lower()}(struct xdp_md *context) {{ return XDP_DROP; }}\n" for each in Handler)
    + "int xlb(struct xdp_md *context)\n{\n\thandlers.call(context, HANDLER_V4);",
)
"""A program that passes a packet only if the call of its handler fails."""
TRANSMITS = (CALLS[0], CALLS[1].replace("XDP_DROP", "XDP_TX"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    with small_plane(tmp_path) as made:
        yield made


def action(fd: int) -> int:
    return xdp.test_run(fd, bytes(64)).action


def test_tracing_tools_find_the_function_of_each_program() -> None:
    """xdpdump and pwru attach by the type of a program's function, and show its name."""
    with Bed() as bed:
        types = {name: info.type_id for name, info in bed.programs().items()}
        assert len(types) == len(set(types.values())) and all(types.values()), types
        why = loader.why_untraceable(bed.pins)
        assert why is not None and not why[1]
        bed.inside(lambda: xdp.attach(bed.in0, -1, xdp.XDP_FLAGS_DRV_MODE))
        bed.inside(lambda: attach.attach(bed.pins, ["in0"], "native"))
        command = ("timeout", "--signal=INT", "2", "xdpdump", "-v", "-i", "in0", "--rx-capture", "entry,exit")
        dump = bed.inside(lambda: subprocess.run(command, capture_output=True, text=True))
        assert "Found func xlb matching xlb" in dump.stderr  # where the kernel permits it, it attaches then


def test_a_replaced_program_keeps_its_handlers_until_no_interface_has_it(small: Small) -> None:
    small.write(CALLS)
    small.ensure()
    before = libbpf.obj_get(loader.program_path(small.build.bpf_dir))  # as an interface has it
    assert action(before) == DROP
    small.write(TRANSMITS)
    assert small.ensure().how == "upgraded"
    after = libbpf.obj_get(loader.program_path(small.build.bpf_dir))
    assert (action(before), action(after)) == (DROP, TX)
    loader.forget_replaced(small.build.bpf_dir)
    wait_until(lambda: action(before) == PASS, "the kernel to empty the map")
    assert action(after) == TX
    os.close(before)
    os.close(after)


def test_a_start_that_is_repeated_before_the_program_is_attached(small: Small) -> None:
    """Twice, the daemon died between pinning and attaching: the program on the interfaces still is the first one."""
    small.write(CALLS)
    small.ensure()
    before = libbpf.obj_get(loader.program_path(small.build.bpf_dir))
    small.write(TRANSMITS)
    small.ensure()
    small.write(TRANSMITS, ("return XDP_PASS", "return XDP_ABORTED"))
    small.ensure()
    assert small.ensure().how == "adopted"
    assert action(before) == DROP
    os.close(before)


def test_removed_pins_leave_no_handlers(small: Small) -> None:
    small.write(CALLS)
    small.ensure()
    small.write(TRANSMITS)
    small.ensure()
    loader.remove_pins(small.build.bpf_dir)
    assert not list(small.build.bpf_dir.parent.glob(small.build.bpf_dir.name + "*"))


@pytest.mark.parametrize("step", ["", "open_"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_call_that_fails_drops_the_packet_with_a_reason(family: Family, step: str) -> None:
    with Bed() as bed:
        bed.reset()
        bed.farm(family.vip, (family.far(11), 8080))
        assert bed.send(bytes(from_client(family))).verdict == "forward_redirect"
        handlers = PinnedMap(bed.pins, "handlers", bed.layouts.maps["handlers"])
        assert handlers.remove(np.array([Handler[(step + family.name).upper()]], "u4").view(handlers.key)) == 1
        handlers.close()
        outcome = bed.send(bytes(from_client(family, source_port=40001)))
        assert (outcome.verdict, outcome.action) == ("drop_internal", DROP)
