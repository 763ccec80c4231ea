"""The builds at both ends, without and with every optional feature: they load, and leave the verifier a margin."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bpf.constants import Handler
from ctl.dataplane import features
from tests.bpf.bed import DROP, FAMILIES, Bed, why_not
from tests.bpf.bytecode import instructions, refused_back_edges
from tests.bpf.packets import from_backend, from_client

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

VERIFIED = 600_000
"""Instructions that the verifier may follow in a program; the kernel's limit is a million, and older kernels need more."""
VERIFIED_OF_ENTRY = 200_000
KNOWN_FLOWS = 2_900
"""Instructions of the entry program without features."""
CAPTURING = {"xlb_enter", "xlb_captured"}
PROGRAMS = {"xlb", *(f"xlb_{each.name.lower()}" for each in Handler)} - CAPTURING


def test_every_feature_at_once() -> None:
    with Bed(dict.fromkeys(features.WORDS, True)) as bed:
        programs = bed.programs()
        verified = {name: info.verified for name, info in programs.items()}
        assert set(programs) == PROGRAMS
        assert max(verified.values()) <= VERIFIED, verified
        assert verified["xlb"] <= VERIFIED_OF_ENTRY, verified
        for family in FAMILIES:
            bed.reset()
            bed.farm(family.vip, (family.far(11), 8080))
            packets = (
                from_client(family),
                from_backend(family, family.far(11), family.vip, 40000),
                from_client(family, flags="A"),
            )
            sides = ("in0", "out0", "in0")
            sent = [bed.send(bytes(packet), side) for packet, side in zip(packets, sides, strict=True)]
            assert all(outcome.action != DROP for outcome in sent), sent
            assert len(bed.flows("flows", family)) == 2


def test_without_features_the_entry_program_has_known_flows_only() -> None:
    """What is compiled out costs nothing."""
    with Bed() as bed:
        programs = bed.programs()
    assert set(programs) == PROGRAMS - {"xlb_choose", "xlb_tagged"}
    assert programs["xlb"].instructions <= KNOWN_FLOWS, programs


@pytest.mark.parametrize("chosen", [(), tuple(sorted(features.WORDS))], ids=["no feature", "every feature"])
def test_older_kernels_take_the_loops(chosen: tuple[str, ...]) -> None:
    """Those of Debian 12, Linux 6.1, among them; the kernel that runs the tests may be newer."""
    command = [sys.executable, "-m", "tests.bpf.bytecode", *chosen]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {"xlb", "xlb_v4", "xlb_open_v6"} <= answer.keys()
    refused = {name: refused_back_edges(instructions(bytes.fromhex(code))) for name, code in answer.items()}
    assert not any(refused.values()), refused
