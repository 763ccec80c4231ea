"""xlbctl against a real daemon on a fake data plane: plain and JSON output of each command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cli import XLBCTL, Terminal, run
from tests.fakes.daemon import RunningDaemon, running_daemon, write_node_file
from tests.tree import TREE
from tests.wait import wait_until

Xlbctl = Callable[..., str]

FARMS = """\
[[vip]]
address = "10.77.0.100/24"
device = "eth0"

[[farm]]
name = "web"
vip = "10.77.0.100"
port = 80

[[farm.backend]]
address = "10.77.0.11"
port = 8080
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path) as running:
        yield running


@pytest.fixture
def xlbctl(daemon: RunningDaemon) -> Xlbctl:
    """Run a command that must succeed with an empty stderr; returns its stdout."""

    def call(*args: str, **options: Any) -> str:
        code, out, err = run("--config", str(daemon.config), *args, **options)
        assert (code, err) == (0, ""), f"{args}: {err}"
        return out

    return call


@pytest.fixture
def web(xlbctl: Xlbctl) -> None:
    """A farm "web" with backends of weight 1 and 3."""
    xlbctl("vip", "add", "10.77.0.100/24", "--dev", "eth0")
    xlbctl("farm", "add", "web", "--vip", "10.77.0.100", "--port", "80", "--check", "none")
    xlbctl("backend", "add", "web", "10.77.0.11:8080")
    xlbctl("backend", "add", "web", "10.77.0.12:8080", "--weight", "3", "--priority", "1")


def test_vips_come_and_go(xlbctl: Xlbctl) -> None:
    assert xlbctl("vip", "list") == "ADDRESS  DEVICE  GUARD\n"
    assert "10.77.0.100/24 added" in xlbctl("vip", "add", "10.77.0.100/24", "--dev", "eth0")
    xlbctl("vip", "add", "2001:db8::100/64", "--dev", "eth1", "--no-guard")
    assert xlbctl("vip", "list").split("\n")[1:] == [
        "10.77.0.100/24    eth0    on",
        "2001:db8::100/64  eth1    off",
        "",
    ]
    assert [vip["address"] for vip in json.loads(xlbctl("vip", "list", "-o", "json"))] == ["10.77.0.100", "2001:db8::100"]
    xlbctl("vip", "delete", "10.77.0.100/24")
    assert len(json.loads(xlbctl("-o", "json", "vip", "list"))) == 1


@pytest.mark.usefixtures("web")
def test_farm_show_as_json_has_what_the_contract_promises(xlbctl: Xlbctl) -> None:
    farm = json.loads(xlbctl("farm", "show", "web", "-o", "json"))
    expected = {"name": "web", "vip": "10.77.0.100", "port": 80, "proto": "tcp", "mode": "snat", "scheduler": "maglev"}
    assert expected.items() <= farm.items()
    assert [(b["address"], b["port"], b["weight"], b["state"]) for b in farm["backends"]] == [
        ("10.77.0.11", 8080, 1, "up"),
        ("10.77.0.12", 8080, 3, "up"),
    ]
    assert all({"connections", "packets", "bytes"} <= backend.keys() for backend in farm["backends"])


@pytest.mark.usefixtures("web")
def test_farm_show_as_plain_output(xlbctl: Xlbctl) -> None:
    lines = xlbctl("farm", "show", "web").splitlines()
    assert lines[:4] == [
        "farm          web",
        "state         up",
        "listens on    10.77.0.100:80 tcp",
        "mode          snat, backends see 10.77.0.100",
    ]
    header = next(line for line in lines if line.startswith("BACKEND"))
    assert header.split("  ")[0] == "BACKEND" and "LAST ERROR" in header
    assert lines[-2].split()[:4] == ["10.77.0.11:8080", "1", "0", "up"]
    assert lines[-1].split()[:4] == ["10.77.0.12:8080", "3", "1", "up"]


@pytest.mark.usefixtures("web")
def test_farm_show_shows_how_backends_are_checked(xlbctl: Xlbctl) -> None:
    assert "health check  none" in xlbctl("farm", "show", "web").splitlines()
    xlbctl("farm", "set", "web", "--check", "http", "--check-path", "/ok", "--check-fall", "5")
    (line,) = (line for line in xlbctl("farm", "show", "web").splitlines() if line.startswith("health check"))
    assert line.startswith("health check  http GET /ok answers 200-399, every 2000 ms")
    assert line.endswith("down after 5 failures")


@pytest.mark.usefixtures("web")
def test_farm_show_shows_why_a_backend_is_down_and_since_when(daemon: RunningDaemon, xlbctl: Xlbctl) -> None:
    daemon.servers.refusing.add("10.77.0.13")
    options = "--check tcp --check-interval-ms 20 --check-timeout-ms 20 --check-fall 1"
    xlbctl("farm", "set", "web", *options.split())
    endpoint = "10.77.0.13:8080"
    xlbctl("backend", "add", "web", endpoint)
    wanted = re.compile(rf"^{endpoint}.*  down  .*  \d+ s ago  {endpoint}: connection refused \(\d+ s ago\)$")

    def is_refused() -> bool:
        return any(wanted.search(line) for line in xlbctl("farm", "show", "web").splitlines())

    wait_until(is_refused, "the refused connection in farm show")


@pytest.mark.usefixtures("web")
def test_farm_list(xlbctl: Xlbctl) -> None:
    header, line = xlbctl("farm", "list").splitlines()
    assert header.split() == ["NAME", "VIP", "PROTO", "MODE", "SCHEDULER", "STATE", "UP", "CONNECTIONS"]
    assert line.split() == ["web", "10.77.0.100:80", "tcp", "snat", "maglev", "up", "2/2", "0"]


@pytest.mark.usefixtures("web")
def test_farm_set_changes_only_what_is_given(xlbctl: Xlbctl) -> None:
    before = json.loads(xlbctl("farm", "show", "web", "-o", "json"))
    xlbctl("farm", "set", "web", "--check", "http", "--check-path", "/up", "--check-status", "200", "--check-rise", "4")
    xlbctl("farm", "set", "web", "--check-interval-ms", "3000", "--scheduler", "roundrobin")
    after = json.loads(xlbctl("farm", "show", "web", "-o", "json"))
    health = {"kind": "http", "path": "/up", "status": "200", "rise": 4, "fall": 3, "interval_ms": 3000}
    assert health.items() <= after["health"].items()
    assert after["scheduler"] == "roundrobin"
    same = before.keys() - {"health", "scheduler", "backends"}
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
    shown = xlbctl("farm", "show", "web")
    assert "http GET /up answers 200, every 3000 ms, timeout 1000 ms, up after 4 successes" in shown


@pytest.mark.usefixtures("web")
def test_every_option_of_farm_add_arrives(xlbctl: Xlbctl) -> None:
    options = "--vip 10.77.0.100 --port 9000-9010 --proto udp --mode dnat --scheduler source --idle-timeout 77"
    options += " --all-down all --on-no-backend drop"
    check = "--check tcp --check-interval-ms 500 --check-timeout-ms 400 --check-rise 1 --check-fall 9 --check-port 99"
    xlbctl("farm", "add", "all", *options.split(), *check.split())
    farm = json.loads(xlbctl("farm", "show", "all", "-o", "json"))
    assert {
        "port": "9000-9010",
        "proto": "udp",
        "mode": "dnat",
        "scheduler": "source",
        "all_down": "all",
        "on_no_backend": "drop",
        "idle_timeout_s": 77,
    }.items() <= farm.items()
    health = {"kind": "tcp", "interval_ms": 500, "timeout_ms": 400, "rise": 1, "fall": 9, "port": 99}
    assert health.items() <= farm["health"].items()


def test_a_drain_is_waited_for_and_left_in_place(daemon: RunningDaemon, xlbctl: Xlbctl, web: None) -> None:
    assert "drained: no connection left" in xlbctl("backend", "drain", "web", "10.77.0.11:8080", "--deadline", "60", "--wait")
    assert xlbctl("backend", "remove", "web", "10.77.0.12:8080", "--now") == "backend 10.77.0.12:8080 of web removed\n"
    (backend,) = json.loads(xlbctl("-o", "json", "farm", "show", "web"))["backends"]
    assert (backend["state"], backend["drain_then"]) == ("drain", "keep") and backend["drain_until"] > time.time() + 50
    ended = json.loads(xlbctl("-o", "json", "backend", "drain", "web", "10.77.0.11:8080", "--wait"))
    assert ended == {"farm": "web", "address": "10.77.0.11", "port": 8080, "connections": 0, "at_deadline": False}
    for wrong in (("--then", "cut"), ("--deadline", "0"), ("--deadline", "5", "--then", "move")):
        code, _, err = run("--config", str(daemon.config), "backend", "drain", "web", "10.77.0.11:8080", *wrong)
        assert code == 2 and "--" in err


def test_a_dry_run_tells_what_would_happen(xlbctl: Xlbctl, web: None) -> None:
    before = xlbctl("export")
    for command in (
        ("farm", "set", "web", "--table-size", "1021"),
        ("farm", "stop", "web"),
        ("farm", "delete", "web"),
        ("backend", "add", "web", "10.77.0.13:8080"),
        ("backend", "set", "web", "10.77.0.11:8080", "--weight", "0"),
        ("backend", "drain", "web", "10.77.0.11:8080", "--deadline", "5"),
        ("backend", "remove", "web", "10.77.0.11:8080", "--now"),
    ):
        assert "connections: 0 stay, 0 move, 0 end" in xlbctl(*command, "--dry-run"), command
        answer = json.loads(xlbctl("-o", "json", *command, "--dry-run"))
        assert [each["farm"] for each in answer["farms"]] == ["web"]
    assert xlbctl("export") == before


@pytest.mark.usefixtures("web")
def test_backends_are_changed_drained_and_removed(xlbctl: Xlbctl) -> None:
    def states() -> list[tuple[int, str]]:
        return [(b["weight"], b["state"]) for b in json.loads(xlbctl("farm", "show", "web", "-o", "json"))["backends"]]

    xlbctl("backend", "set", "web", "10.77.0.11:8080", "--weight", "7")
    assert states() == [(7, "up"), (3, "up")]
    xlbctl("backend", "drain", "web", "10.77.0.11:8080")
    assert states() == [(7, "drain"), (3, "up")]
    xlbctl("backend", "set", "web", "10.77.0.11:8080", "--no-drain")
    assert states() == [(7, "up"), (3, "up")]
    xlbctl("backend", "remove", "web", "10.77.0.11:8080")
    assert states() == [(3, "up")]


@pytest.mark.usefixtures("web")
def test_farm_stop_start_delete(xlbctl: Xlbctl) -> None:
    xlbctl("farm", "stop", "web")
    assert "stopped" in xlbctl("farm", "list")
    xlbctl("farm", "start", "web")
    assert "stopped" not in xlbctl("farm", "list")
    assert json.loads(xlbctl("farm", "delete", "web", "-o", "json")) == {"ok": True}
    assert len(xlbctl("farm", "list").splitlines()) == 1


def test_apply_diff_export(daemon: RunningDaemon, xlbctl: Xlbctl, tmp_path: Path) -> None:
    file = tmp_path / "farms.toml"
    file.write_text(FARMS)
    config = ("--config", str(daemon.config))
    code, preview, _ = run(*config, "apply", "-f", str(file), "--dry-run")
    assert code == 0 and "farm web: backend 10.77.0.11:8080 added" in preview
    assert xlbctl("farm", "list").count("\n") == 1, "a dry run changed something"
    assert run(*config, "diff", "-f", str(file)) == (1, preview, "")
    assert run(*config, "apply", "-f", str(file)) == (0, preview, f"{len(preview.splitlines())} changes applied\n")
    assert run(*config, "diff", "-f", str(file))[:2] == (0, "")
    exported = xlbctl("export")
    xlbctl("farm", "delete", "web")
    code, out, err = run(*config, "apply", "-f", "-", input=exported)
    assert code == 0 and "farm web added" in out
    assert xlbctl("export") == exported
    code, out, err = run(*config, "apply", "-f", "-", "-o", "json", input=exported)
    assert (code, json.loads(out), err) == (0, {"changes": [], "applied": True}, "")
    document = json.loads(xlbctl("export", "-o", "json"))
    assert document["farm"][0]["name"] == "web"


@pytest.mark.usefixtures("web")
def test_apply_removes_only_what_is_confirmed(daemon: RunningDaemon, xlbctl: Xlbctl, tmp_path: Path) -> None:
    exported = xlbctl("export")
    less = tmp_path / "less.toml"
    less.write_text(exported.partition("[[farm]]")[0])
    apply = ("--config", str(daemon.config), "apply", "-f")
    code, out, err = run(*apply, str(less))
    assert (code, out) == (2, "") and "1 object not in the file would be removed: farm web removed. Confirm with --yes" in err
    assert run(*apply, str(less), "--dry-run")[:2] == (0, "farm web removed\n")
    assert run(*apply, "/dev/null", "--dry-run")[:2] == (0, "vip 10.77.0.100 removed\nfarm web removed\n")
    assert xlbctl("export") == exported
    for answer, expected, done in (("n\n", 130, False), ("y\n", 0, True)):
        with Terminal([*XLBCTL, *apply, str(less)]) as terminal:
            terminal.expect(r"farm web removed\s+1 object not in the file would be removed. Continue\? \[y/N\]")
            terminal.type(answer)
            assert terminal.wait() == expected
        assert (xlbctl("export") != exported) is done
    code, out, _ = run(*apply, "-", input=exported)
    assert code == 0 and "farm web added" in out, "what removes nothing asks nothing"
    assert run(*apply, str(less), "--yes")[:2] == (0, "farm web removed\n")
    assert run(*apply, "/dev/null", "--force", "--yes")[:2] == (0, "vip 10.77.0.100 removed\n")
    assert run(*apply, "/dev/null", "--force")[0] == 0, "nothing is left to remove"


def test_apply_reads_files_of_windows_editors(daemon: RunningDaemon, tmp_path: Path) -> None:
    file = tmp_path / "farms.toml"
    file.write_bytes(b"\xef\xbb\xbf" + FARMS.replace("\n", "\r\n").encode())
    assert "farm web added" in run("--config", str(daemon.config), "apply", "-f", str(file))[1]
    code, _, err = run("--config", str(daemon.config), "apply", "-f", "-", input=file.read_bytes())
    assert (code, err) == (0, "no changes: the configuration is equal to the file\n")


@pytest.mark.usefixtures("web")
def test_connections(xlbctl: Xlbctl) -> None:
    assert xlbctl("conn", "list") == "PROTO  CLIENT  VIP  BACKEND  FARM  STATE  IDLE\n"
    assert json.loads(xlbctl("conn", "list", "--farm", "web", "-o", "json"))["connections"] == []
    assert xlbctl("conn", "count") == "0\n"
    assert json.loads(xlbctl("conn", "count", "-o", "json")) == {"total": 0}
    assert xlbctl("conn", "flush").startswith("0 flow entries removed")
    assert xlbctl("conn", "flush", "--farm", "web", "--backend", "10.77.0.11:8080").startswith("0 flow")
    explanation = xlbctl("conn", "show", "192.0.2.7:40000 -> 10.77.0.100:80")
    assert "web" in explanation and "10.77.0.11:8080" in explanation


@pytest.mark.usefixtures("web")
def test_stats_status_version_doctor(daemon: RunningDaemon, xlbctl: Xlbctl) -> None:
    every = xlbctl("stats", "--all")
    assert "drop_fenced" in every and "The lease has expired" in every
    assert "drop_fenced" not in xlbctl("stats"), "a counter that counted nothing is shown"
    counters = json.loads(xlbctl("stats", "-o", "json"))
    assert {"drop_fenced", "forward_tx"} <= {counter["name"] for counter in counters["counters"]}
    assert counters["farms"]["web"]["packets"] == 0
    status = json.loads(xlbctl("cluster", "status", "-o", "json"))
    assert status["role"] == "single" and {"node", "epoch", "generation", "lease_ms_left", "peer", "sync"} <= status.keys()
    assert re.search(r"^role +single$", xlbctl("cluster", "status"), re.MULTILINE)
    versions = json.loads(xlbctl("version", "-o", "json"))
    assert {"xlbctl", "xlbd", "abi", "kernel", "libbpf", "bcc"} <= versions.keys()
    code, out, _ = run("--config", str(daemon.config), "doctor", "-o", "json")
    checks = json.loads(out)
    assert code == (0 if all(check["ok"] for check in checks) else 1)
    assert run("--config", str(daemon.config), "doctor")[1].startswith("CHECK")


def test_doctor_works_without_a_daemon(tmp_path: Path) -> None:
    write_node_file(tmp_path)
    path = tmp_path / "node.toml"
    code, out, err = run("--config", str(path), "doctor", "-o", "json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert (code, err) == (1, "")
    assert "is not running" in checks["xlbd"]["message"] and "systemctl start xlbd" in checks["xlbd"]["remedy"]
    assert {"node file", "privileges", "kernel", "bpffs", "compiler", "clock", "state"} <= checks.keys()
    assert checks["node file"]["ok"] and checks["state"]["message"] == "a single node"
    assert all(check.keys() == {"name", "ok", "status", "message", "remedy"} for check in checks.values())
    assert run("--config", str(path), "doctor")[1].startswith("CHECK")

    (tmp_path / "state" / "cluster.json").write_text("{")
    assert "is damaged" in run("--config", str(path), "doctor")[1]
    path.write_text(path.read_text().replace("interfaces", "interface"))
    code, out, _ = run("--config", str(path), "doctor", "-o", "json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 1 and "data.interface" in checks["node file"]["message"] and "kernel" in checks


@pytest.mark.usefixtures("web")
def test_prometheus_format(xlbctl: Xlbctl) -> None:
    lines = xlbctl("stats", "--prometheus").splitlines()
    assert 'xlb_packets_total{verdict="drop_fenced",kind="drop"} 0' in lines
    assert 'xlb_backend_up{farm="web",backend="10.77.0.11:8080"} 1' in lines
    sample = re.compile(r'xlb_\w+\{\w+="[^"]*"(,\w+="[^"]*")*\} [0-9.]+')
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or (sample.fullmatch(line) and line.split("{")[0] in names), line


@pytest.mark.usefixtures("web")
def test_completion_queries_the_daemon(daemon: RunningDaemon) -> None:
    def complete(words: str, index: int) -> list[str]:
        typed = {"COMP_WORDS": f"xlbctl {words}", "COMP_CWORD": str(index), "_XLBCTL_COMPLETE": "bash_complete"}
        environment = {**os.environ, **typed, "XLB_CONFIG": str(daemon.config)}
        done = subprocess.run(XLBCTL, cwd=TREE, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    assert complete("farm show ", 3) == ["plain,web"]
    assert complete("backend drain web 10", 4) == ["plain,10.77.0.11:8080", "plain,10.77.0.12:8080"]
    assert complete("vip delete ", 3) == ["plain,10.77.0.100"]
    assert complete("farm show x", 3) == []
    assert complete("rollback 0", 2) == ["plain,0"]
    assert complete("why 192.0.2.7 10", 3) == ["plain,10.77.0.100:80"]


@pytest.mark.usefixtures("web")
def test_a_terminal_gets_colours_unless_disabled(daemon: RunningDaemon) -> None:
    command = [*XLBCTL, "--config", str(daemon.config), "farm", "list"]
    with Terminal(command) as terminal:
        terminal.expect("\x1b\\[[0-9;]*32mup")
        assert terminal.wait() == 0
    with Terminal(command, NO_COLOR="1") as terminal:
        terminal.expect("maglev +up ")
        assert terminal.wait() == 0


@pytest.mark.usefixtures("web")
def test_flushing_everything_asks_at_a_terminal(daemon: RunningDaemon) -> None:
    command = [*XLBCTL, "--config", str(daemon.config), "conn", "flush"]
    with Terminal(command) as terminal:
        terminal.expect(r"Break every connection .*\[y/N\]")
        terminal.type("n\n")
        assert terminal.wait() != 0
        assert "removed" not in terminal.output
    with Terminal(command) as terminal:
        terminal.expect(r"\[y/N\]")
        terminal.type("y\n")
        terminal.expect("0 flow entries removed")
        assert terminal.wait() == 0
    with Terminal([*command, "--yes"]) as terminal:
        terminal.expect("^0 flow entries removed")


@pytest.mark.usefixtures("web")
def test_top_on_a_terminal(daemon: RunningDaemon) -> None:
    with Terminal([*XLBCTL, "--config", str(daemon.config), "top", "--interval", "0.05"]) as terminal:
        terminal.expect(r"packets/s")
        terminal.expect(r"10\.77\.0\.100:80 tcp")
        terminal.expect(r"q quits")
        assert not terminal.line_mode
        terminal.type("\x1b[A")
        terminal.expect(r"10\.77\.0\.12:8080")
        terminal.type("q")
        assert terminal.wait() == 0
        assert "\x1b[?1049l" in terminal.output, "the terminal was left on the alternate screen"
        assert terminal.line_mode


@pytest.mark.usefixtures("web")
def test_top_fits_a_small_terminal_and_counts_hidden_rows(daemon: RunningDaemon) -> None:
    with Terminal([*XLBCTL, "--config", str(daemon.config), "top", "--interval", "0.05"], rows=4) as terminal:
        terminal.expect(r"1 more below")
        terminal.type("\x03")
        assert terminal.wait() == 0


@pytest.mark.usefixtures("web")
def test_top_without_a_terminal_prints_one_frame(xlbctl: Xlbctl) -> None:
    for options in ([], ["--once"]):
        lines = xlbctl("top", "--interval", "0.05", *options).splitlines()
        assert "single" in lines[0] and "packets/s" in lines[2]
        assert [line.split()[0] for line in lines[-3:]] == ["web", "10.77.0.11:8080", "10.77.0.12:8080"]
    frame = json.loads(xlbctl("top", "--interval", "0.05", "-o", "json"))
    assert frame["farms"]["web"]["backends"].keys() == {"10.77.0.11:8080", "10.77.0.12:8080"}


def test_watching_stats_ends_with_ctrl_c_and_no_traceback(daemon: RunningDaemon) -> None:
    with Terminal([*XLBCTL, "--config", str(daemon.config), "stats", "--watch", "--interval", "0.1"]) as terminal:
        terminal.expect(r"per second, over \d")
        terminal.expect(r"per second, over \d")
        terminal.type("\x03")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.output


def test_ctrl_c_while_waiting_is_one_line(tmp_path: Path) -> None:
    node = tmp_path / "node.toml"
    node.write_text(f'[node]\nrun_dir = "{tmp_path}"\n[data]\ninterfaces = ["lo"]\n')
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control.sock"))
        silent.listen()
        silent.settimeout(20)
        waiting = subprocess.Popen([*XLBCTL, "--config", node, "farm", "list"], cwd=TREE, stderr=subprocess.PIPE, text=True)
        knock, connection = silent.accept()[0], silent.accept()[0]
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=20)
        knock.close()
        connection.close()
    assert (waiting.returncode, err.lstrip("\n")) == (130, "xlbctl: interrupted\n")


@pytest.mark.usefixtures("web")
def test_a_closed_pipe_prints_no_error(daemon: RunningDaemon) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as broken:
        done = subprocess.run(
            [*XLBCTL, "--config", daemon.config, "stats", "--all"], cwd=TREE, stdout=broken, stderr=subprocess.PIPE, text=True
        )
    assert done.stderr == ""


def test_a_short_command_does_not_import_slow_modules(daemon: RunningDaemon) -> None:
    """Start-up time, without a clock: modules that are slow to import are not imported."""
    script = (
        "import sys\nfrom ctl.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, "--config", str(daemon.config), "vip", "list"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True)
    assert {"zmq", "msgpack"} <= set(done.stderr.split())
    assert not {"rich", "numpy", "asyncio", "bcc", "ctl.cli.top"} & set(done.stderr.split())
