"""What doctor makes of the machine: whether tracing tools can attach to the program."""

from __future__ import annotations

from dataclasses import replace

from ctl.diagnosis import machine
from ctl.diagnosis.finding import Finding, Severity
from ctl.diagnosis.machine import Machine

GOOD = Machine((1 << 41) - 1, "6.1.0-13-amd64", "/sys/fs/bpf/xlb", True, True, True, True)


def tracing(untraceable: tuple[str, bool] | None) -> list[Finding]:
    found = machine.examine(replace(GOOD, untraceable=untraceable), "xlbd")
    return [each for each in found if each.name == "tracing"]


def test_what_cannot_be_traced_is_a_matter_of_the_program_or_of_the_kernel() -> None:
    assert tracing(None) == []
    assert [each.status for each in tracing(("", False))] == [Severity.OK]
    (program,) = tracing(("the program has no type information (BTF)", True))
    assert program.status is Severity.WARN and "systemctl restart xlbd" in program.remedy
    (kernel,) = tracing(("this kernel lets no program trace another (Operation not permitted)", False))
    assert kernel.status is Severity.INFO and "xlbctl capture works" in kernel.remedy
