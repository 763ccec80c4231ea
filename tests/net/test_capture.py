"""xlbctl capture on a node that balances: what a person, tshark and programs see, and how a capture ends."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.config.model import format_endpoint
from tests.net.serving import BACKEND_PORTS, PORTS, VIPS, Serving, program, serving
from tests.rig import CLIENT4, CLIENT6, Layout, transfer
from tests.wait import wait_until

GENERIC = Layout(backends=2, interfaces=2, xdp_mode="generic")
CLIENTS = {4: CLIENT4, 6: CLIENT6}


class Running:
    """A capture in the background, whose packets are recorded by now."""

    def __init__(self, site: Serving, *arguments: str) -> None:
        self.node, self.before = site.node, program(site.node)
        command = self.node.xlbctl_command("capture", *arguments)
        environment = {"PYTHONPATH": str(self.node.tree), "PATH": "/usr/bin:/usr/sbin", "PYTHONUNBUFFERED": "1"}
        self.process = self.node.namespace.popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr is not None
        said = []
        while "Ctrl-C ends it" not in (line := self.process.stderr.readline()):
            said.append(line)
            assert line, f"the capture did not begin: {said}"

    def end(self, expect: int = 0, by: signal.Signals | None = signal.SIGINT) -> tuple[list[str], str]:
        """Lines of stdout, and stderr."""
        if by is not None:
            self.process.send_signal(by)
        out, err = self.process.communicate(timeout=20)
        assert self.process.returncode == expect, (out, err)
        return out.splitlines(), err


@contextlib.contextmanager
def capturing(site: Serving, *arguments: str) -> Iterator[Running]:
    running = Running(site, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()
        wait_until(lambda: is_over(site), "the usual program")


def is_over(site: Serving) -> bool:
    """No program or map of a capture is left."""
    return not site.node.bpf_dir.with_name(site.node.bpf_dir.name + "-capture").exists()


def tshark(file: Path, *fields: str) -> list[list[str]]:
    """These fields of each packet."""
    options = [word for field in fields for word in ("-e", field)]
    command = ["tshark", "-r", str(file), "-T", "fields", "-E", "separator=|", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving(Layout(backends=2)) as serve:
        for service in ("tcp", "udp"):
            for family in (4, 6):
                serve.add_farm(service, family)
        yield serve


def test_generic_mode_and_two_interfaces(tmp_path: Path) -> None:
    with serving(GENERIC) as site:
        site.add_farm("tcp", 4)
        site.add_farm("udp", 4)
        check_file(site, tmp_path / "generic.pcapng", 4)


@pytest.mark.parametrize("family", [4, 6])
def test_tshark_reads_each_packet_before_and_after(site: Serving, tmp_path: Path, family: int) -> None:
    check_file(site, tmp_path / "web.pcapng", family)


def check_file(site: Serving, file: Path, family: int) -> None:
    """A connection to the farm is in the file, with names and times; another farm's packets are not."""
    ip = "ip" if family == 4 else "ipv6"
    began_s = time.time()
    with capturing(site, "--farm", f"tcp{family}", "-w", str(file)) as running:
        backend = site.tcp(family).backend
        assert site.udp(family).error == ""
        _, err = running.end()
    fields = (
        "frame.time_epoch",
        "frame.interface_name",
        f"{ip}.src",
        f"{ip}.dst",
        "tcp.flags.str",
        "frame.comment",
        "frame.packet_id",
    )
    packets = tshark(file, *fields)
    before, after = packets[0], packets[1]
    chosen = site.rig.backend(backend)
    address = chosen.address4 if family == 4 else chosen.address6
    assert before[1] == "eth0" and before[2:4] == [CLIENTS[family], VIPS[family]] and before[4].count("S") == 1
    assert after[1] == f"eth{site.rig.layout.interfaces - 1}" and after[2:4] == [VIPS[family], address]
    verdict = "forward_tx" if site.rig.layout.interfaces == 1 else "forward_redirect"
    endpoint = format_endpoint(address, BACKEND_PORTS["tcp"])
    for packet, place in ((before, "before"), (after, "after")):
        assert packet[5].startswith(f"{place} xlb; {verdict}; farm tcp{family}; backend {endpoint}; ")
    assert before[6] == after[6] and began_s - 1 < float(before[0]) < float(after[0]) < time.time() + 1
    replies = [each for each in packets if each[2] == VIPS[family] and each[3] == CLIENTS[family]]
    assert replies and all(each[5].startswith("after xlb") for each in replies)
    assert len(packets) % 2 == 0 and all(len(each[4]) for each in packets), "TCP only"
    assert f"{len(packets) // 2} packets captured" in err and "\n0 packets lost" in err


def test_a_drop_at_three_in_the_morning(site: Serving) -> None:
    """The line names the packet, the verdict and its meaning; the client of another farm is not in it."""
    with capturing(site, "--drops", "--client", CLIENT4) as running:
        site.tcp(4)
        assert site.tcp(4, port=81, timeout_s=0.3).error
        lines, err = running.end()
    assert lines and all(f"{CLIENT4}:" in line and f"> {VIPS[4]}:81 [S]" in line for line in lines), lines
    assert all("drop_vip_guard" in line and "No farm serves this port of the VIP" in line for line in lines)
    assert "packets matched the filter, of " in err


def test_documents_for_programs_and_a_count(site: Serving) -> None:
    with capturing(
        site, "-o", "json", "--farm", "udp6", "--verdict", "forward_tx", "--verdict", "forward_redirect", "--count", "2"
    ) as running:
        assert site.udp(6).error == ""
        lines, _ = running.end(by=None)
    question, answer = (json.loads(line) for line in lines)
    assert question["farm"] == answer["farm"] == "udp6" and question["backend"] == answer["backend"] != ""
    assert question["before"]["packet"].startswith(f"udp [{CLIENT6}]:")
    assert answer["after"]["packet"].startswith(f"udp [{VIPS[6]}]:{PORTS['udp']} > [{CLIENT6}]:")
    assert 0 < question["ns"] < 1e9 and question["kind"] == "forward"


def test_a_killed_client_leaves_the_usual_program(site: Serving) -> None:
    usual = program(site.node)
    with capturing(site, "--seconds", "60") as running:
        recording = program(site.node)
        assert recording != usual
        refusal = site.node.xlbctl("capture", expect=1).stderr
        assert f"a capture of root runs already (process {running.process.pid})" in refusal
        running.process.kill()
        wait_until(lambda: program(site.node) == usual and is_over(site), "the usual program")
    assert site.tcp(4).backend
    assert "xdp" not in site.node.call("status")["reconcile"]["by_kind"], "nothing had to be repaired"


def test_a_capture_ends_when_the_program_is_replaced(site: Serving) -> None:
    with capturing(site) as running:
        site.node.xlbctl("farm", "set", "tcp4", "--max-rate", "1000")
        _, err = running.end(expect=1, by=None)
    assert "the capture ended early" in err and is_over(site)
    with capturing(site, "--farm", "tcp4") as running:
        assert site.tcp(4).backend
        lines, _ = running.end()
    assert any("farm tcp4" in line for line in lines)


def test_a_capture_outlives_a_killed_daemon_and_ends_with_the_next(site: Serving) -> None:
    with capturing(site, "--client", CLIENT4) as running:
        site.node.kill()
        assert site.tcp(4).backend, "the data plane forwards"
        assert "xlbd" in site.node.xlbctl("capture", expect=1).stderr, "only a running daemon can begin one"
        site.node.start()
        wait_until(lambda: is_over(site), "the usual program")
        lines, err = running.end(expect=1, by=None)
    assert any("farm tcp4" in line for line in lines) and "the capture ended early" in err
    assert site.tcp(4).backend


def test_what_makes_no_sense_is_refused_before_anything_happens(site: Serving, tmp_path: Path) -> None:
    usual = program(site.node)
    for arguments, code, words in (
        (("--farm", "tcp5"), 1, "no farm is called 'tcp5'"),
        (("--backend", "10.77.0.250"), 1, "the farms have no backend 10.77.0.250"),
        (("--backend", "10.77"), 2, "--backend: '10.77' is not"),
        (("--client", "300.1.1.1"), 2, "neither an address nor a network"),
        (("--verdict", "drop_no_backends"), 2, 'did you mean "drop_no_backend"?'),
        (("--snaplen", "1"), 2, "--snaplen"),
        (("-w", str(tmp_path / "missing" / "file")), 1, "cannot be written"),
        (("-o", "json", "-w", "-"), 2, "-w"),
    ):
        assert words in site.node.xlbctl("capture", *arguments, expect=code).stderr, arguments
    assert program(site.node) == usual and is_over(site)


def test_loss_is_counted_and_harms_nothing_else(site: Serving, tmp_path: Path) -> None:
    """The client is stopped while more arrives than the ring holds."""
    file = tmp_path / "flood.pcapng"
    with capturing(site, "-w", str(file), "--farm", "tcp4") as running:
        running.process.send_signal(signal.SIGSTOP)
        length = 12_000_000
        assert site.rig.client.run(transfer(VIPS[4], PORTS["tcp"], length)) == (length, 0)
        running.process.send_signal(signal.SIGCONT)
        _, err = running.end()
    numbers = [int(line.split()[0]) for line in err.splitlines() if line[:1].isdigit()]
    captured, matched, lost = numbers
    assert lost > 0 and captured + lost == matched and "by CPU" in err
    assert len(tshark(file, "frame.number")) == 2 * captured
