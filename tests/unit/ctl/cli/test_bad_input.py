"""Each invalid input gets one message that names it, the right exit code, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctl.api.protocol import MAX_MESSAGE_BYTES
from tests.fakes.cli import run
from tests.fakes.daemon import running_daemon

Xlbctl = Callable[..., tuple[int, str, str]]

PREPARATION = [
    "vip add 10.77.0.100/24 --dev eth0",
    "vip add 2001:db8::100/64 --dev eth0",
    "farm add web --vip 10.77.0.100 --port 80",
    "farm add range --vip 10.77.0.100 --port 8000-8010",
    "farm add six --vip 2001:db8::100 --port 80",
    "backend add web 10.77.0.11:8080",
]

# arguments, exit code, what stderr must contain
CASES = [
    ("farm show wep", 2, 'farm: there is no farm "wep"; did you mean "web"?'),
    ("farm delete nothing", 2, 'there is no farm "nothing"'),
    ("farm set nothing --port 81", 2, 'there is no farm "nothing"'),
    ("backend add nothing 10.77.0.12:80", 2, 'there is no farm "nothing"'),
    ("farm add web --vip 10.77.0.100 --port 81", 2, "farm.name: farm web already exists"),
    ("farm add web2 --vip 10.77.0.100 --port 80", 2, "farm.web2.port: "),
    ("farm add web2 --vip 10.77.0.100 --port 8005", 2, "range"),
    ("farm add web2 --vip 10.77.0.100 --port 70-90", 2, "web"),
    ("farm add x/y --vip 10.77.0.100 --port 81", 2, "farm.x/y.name: expected 1 to 64 letters"),
    ("farm add web2 --vip 10.77.0.99 --port 80", 2, "10.77.0.99 is not one of the virtual addresses"),
    ("farm add web2 --vip 10.77.0.100", 2, "--port"),
    ("farm add web2 --vip 10.77.0.100 --port 0", 2, "--port: '0' is not a port; expected 1 to 65535"),
    ("farm add web2 --vip 10.77.0.100 --port 70000", 2, "--port: '70000' is not a port; expected 1 to 65535"),
    ("farm add web2 --vip 10.77.0.100 --port http", 2, "--port: 'http' is not a port; expected 1 to 65535"),
    ("farm add web2 --vip 10.77.0.100 --port 90-80", 2, "--port: '90-80' ends before it starts"),
    ("farm add web2 --vip nowhere --port 80", 2, "--vip: 'nowhere' is not an IP address"),
    ("farm add web2 --vip 10.77.0.100 --port 81 --proto icmp", 2, "--proto: 'icmp' is not one of 'tcp', 'udp'"),
    ("farm add web2 --vip 10.77.0.100 --port 81 --mode none", 2, "--mode: 'none' is not one of"),
    ("farm add web2 --vip 10.77.0.100 --port 81 --scheduler random", 2, "--scheduler: 'random' is not one of"),
    ("farm add web2 --vip 10.77.0.100 --port 81 --snat-address 2001:db8::1", 2, "snat_address: "),
    ("farm set web", 2, "nothing to change: give at least one option"),
    ("why client 10.77.0.100:80", 2, "CLIENT: 'client' is not an IP address"),
    ("why 192.0.2.7 10.77.0.100", 2, "VIP:PORT: '10.77.0.100' is not ADDR:PORT"),
    ("why 192.0.2.7 [2001:db8::100]:80", 2, "are of different address families"),
    ("why 192.0.2.7 10.77.0.100:80 --proto udp", 2, "--proto"),
    ("history yesterday", 2, "generation: expected a generation as 'xlbctl history' names it, got 'yesterday'"),
    ("history 0 1", 2, "extra argument (1)"),
    ("history --farms", 2, "--farms: needs a GENERATION"),
    ("rollback", 2, "GENERATION"),
    ("rollback 77", 2, "generation: there is no 77 in the history of this node; see 'xlbctl history': "),
    ("rollback conflict-1-2 --dry-run", 2, "there is no conflict-1-2 in the history"),
    ("farm set web --idle-timeout -5", 2, "--idle-timeout: -5 is out of range; expected a whole number from 0"),
    ("farm set web --check http --check-path up", 2, 'health.path: expected a path of printable ASCII that begins with "/"'),
    ("farm set web --check http --check-status 99", 2, "health.status: expected an HTTP status"),
    ("farm set web --check tcp --check-interval-ms 100 --check-timeout-ms 200", 2, "timeout_ms: expected at most interval_ms"),
    ("farm set web --check smtp", 2, "--check: 'smtp' is not one of"),
    ("farm set web --check-interval-down-ms 1", 2, "interval_down_ms: expected 0 or at least interval_ms"),
    ("farm set web --check-address web", 2, "--check-address: 'web' is not an IP address"),
    ("farm set web --check https --check-sni a/b", 2, "--check-sni: 'a/b' is not allowed; expected \"\" or a host name"),
    ("farm set web --check-verify", 2, "health.verify: is for checks of kind https"),
    ("farm set web --check dns", 2, "health.query: is missing"),
    ("farm set web --check dns --check-query a --check-query-type ANY", 2, "--check-query-type: 'ANY' is not one of"),
    ("farm set web --check udp --check-payload hex:1", 2, "--check-payload: 'hex:1' is not allowed"),
    ("farm set web --check command", 2, "health.command: is missing"),
    ("farm set web --check command --check-command true", 2, "expected the absolute path of a program first"),
    ("farm set web --check command --check-command '/bin", 2, "is not a command: no closing quotation"),
    ("backend add web 10.77.0.12:80 --weight -1", 2, "--weight: -1 is out of range; expected a whole number from 0"),
    (
        "backend add web 10.77.0.12:80 --weight 70000",
        2,
        "--weight: 70000 is out of range; expected a whole number from 0 to 65535",
    ),
    ("backend add web 10.77.0.12:80 --weight much", 2, "--weight: 'much' is not a number"),
    ("backend add web 10.77.0.12:0", 2, "ADDR[:PORT]: '0' is not a port"),
    ("backend add web 10.77.0", 2, "ADDR[:PORT]: '10.77.0' is not an IP address"),
    ("backend add six 2001:db8::12", 2, "ADDR[:PORT]: '2001:db8::12' is not ADDR:PORT"),
    ("farm add web2 --vip 10.77.0.100 --port 81,90-85", 2, "'90-85' ends before it starts"),
    ("farm add web2 --vip 10.77.0.100, --port 81", 2, "'' is not an IP address"),
    ("backend add web [2001:db8::1]:80", 2, "expected an IPv4 address like the farm's VIP 10.77.0.100"),
    ("backend add six 10.77.0.12:80", 2, "expected an IPv6 address like the farm's VIP 2001:db8::100"),
    ("backend add web 10.77.0.11:8080", 2, "farm web already has this backend"),
    ("backend add web 10.77.0.100:80", 2, "got the farm's own VIP"),
    ("backend set web 10.77.0.12:80 --weight 2", 2, "farm web has no backend 10.77.0.12:80"),
    ("backend set web 10.77.0.11:8080", 2, "nothing to change"),
    ("backend remove web 10.77.0.12:80", 2, "farm web has no backend 10.77.0.12:80"),
    ("vip add 10.77.0.101/24 --dev eth9", 2, "vip.10.77.0.101.device: there is no interface 'eth9' on this node; it has: "),
    ("vip add 10.77.0.101 --dev eth0", 2, "ADDR/PREFIX: '10.77.0.101' has no prefix length"),
    ("vip add 10.77.0.101/64 --dev eth0", 2, "ADDR/PREFIX: '64' is not a prefix length; expected 0 to 32"),
    ("vip add 10.77.0.101/24", 2, "--dev"),
    ("vip add 10.77.0.100/24 --dev eth0", 2, "10.77.0.100 already exists"),
    ("vip add 224.0.0.1/24 --dev eth0", 2, "expected the address of one host"),
    ("vip delete 10.77.0.9", 2, "there is no virtual address 10.77.0.9"),
    ("vip delete 10.77.0.100", 1, "10.77.0.100 is used by farm"),
    ("conn list --farm nothing", 2, 'there is no farm "nothing"'),
    ("conn list --limit 0", 2, "--limit: 0 is out of range; expected a whole number from 1"),
    ("conn show 192.0.2.7:1", 2, "is not a connection; expected"),
    ("conn flush --farm web --backend 10.0.0.1:1", 1, "backend 10.0.0.1:1 is not in farm web"),
    ("stats --watch -o json", 2, "exclude each other"),
    ("stats --interval 0", 2, "--interval"),
    ("farm list -o yaml", 2, "--output: 'yaml' is not one of 'table', 'json'"),
    ("farm list extra", 2, "extra"),
    ("apply", 2, "--file"),
    ("apply -f /nonexistent/farms.toml", 2, "--file: cannot read /nonexistent/farms.toml: No such file or directory"),
    ("apply -f /dev/null", 2, "/dev/null: is empty: every VIP and farm would be removed; if that is meant, add --force"),
    ("apply -f /dev/null --yes", 2, "if that is meant, add --force"),
    ("apply -f /dev/null --force", 2, "5 objects not in the file would be removed: vip 10.77.0.100 removed; "),
    ("apply -f - --force", 2, "Confirm with --yes"),
    ("vip add 127.0.0.9/8 --dev eth0", 2, "127.0.0.9 is a loopback address"),
    ("vip add fe80::9/64 --dev eth0", 2, "use a global or unique local (fd00::/8) one"),
    ("vip set 10.77.0.9 --guard", 2, "there is no virtual address 10.77.0.9"),
    ("vip set 10.77.0.100", 2, "--guard"),
    ("apply -f /", 2, "--file: cannot read /: Is a directory"),
    ("--config /nonexistent/node.toml farm list", 2, "--config: "),
]

# the farms file, what stderr must contain
FILES = [
    (b"[[farm]\n", "line 1, column 7"),
    (b"\xff\xfe[\0", "is UTF-16 text; save it as UTF-8"),
    (b"[[vip]]\r\n# f\xfcr\r\n", "byte 0xfc at line 2, column 4 is not UTF-8; save the file as UTF-8"),
    (b"[[farm]]\nname = 'a'\nvip = '10.77.0.100'\nport = 81\nmood = 'good'\n", "mood"),
    (b"[[farm]]\nname = 'a'\nvip = '10.77.0.100'\nport = 70000\n", 'farm "a".port: '),
    (b"[[farm]]\nname = 'a'\nvip = '10.77.0.100'\nport = 'many'\n", 'farm "a".port: '),
    (b"[[farm]]\nname = 'a'\nvip = 1979-05-27\nport = 80\n", "cannot be sent to xlbd"),
    (b"[[farms]]\nname = 'a'\n", "farms"),
    (b"[[farm]]\nname = 'a'\nvip = '10.77.0.200'\nport = 80\n", "10.77.0.200 is not one of the virtual addresses"),
    (b"#" * (MAX_MESSAGE_BYTES + 1), "expected at most 8388608 bytes"),
]


@pytest.fixture(scope="module")
def xlbctl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Xlbctl]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as daemon:

        def call(*args: str, input: bytes | None = None) -> tuple[int, str, str]:
            return run("--config", str(daemon.config), *args, input=input)

        for command in PREPARATION:
            code, _, err = call(*command.split())
            assert code == 0, err
        yield call


@pytest.mark.parametrize(("arguments", "exit_code", "message"), CASES, ids=[case[0] for case in CASES])
def test_command(xlbctl: Xlbctl, arguments: str, exit_code: int, message: str) -> None:
    before = xlbctl("export")
    code, out, err = xlbctl(*arguments.split())
    assert (code, out) == (exit_code, "")
    assert message in err
    assert err.startswith("xlbctl: ") and err.endswith("\n") and err.count("\n") == 1
    assert xlbctl("export") == before


@pytest.mark.parametrize("command", ["apply", "diff"])
@pytest.mark.parametrize(("content", "message"), FILES, ids=[case[1] for case in FILES])
def test_farms_file(xlbctl: Xlbctl, tmp_path: Path, content: bytes, message: str, command: str) -> None:
    before = xlbctl("export")
    file = tmp_path / "farms.toml"
    file.write_bytes(content)
    for source, name, given in ((str(file), str(file), None), ("-", "standard input", content)):
        code, out, err = xlbctl(command, "-f", source, input=given)
        assert (code, out) == (2, "")
        assert message in err and name in err
        assert err.startswith("xlbctl: ") and err.count("\n") == 1
    assert xlbctl("export") == before


def test_a_node_file_with_a_misspelt_key(tmp_path: Path) -> None:
    node = tmp_path / "node.toml"
    node.write_text('[node]\nrundir = "/tmp"\n[data]\ninterfaces = ["eth0"]\n')
    code, out, err = run("--config", str(node), "farm", "list")
    assert (code, out) == (2, "")
    assert "rundir" in err and "run_dir" in err and str(node) in err


def test_no_daemon(tmp_path: Path) -> None:
    node = tmp_path / "node.toml"
    node.write_text(f'[node]\nrun_dir = "{tmp_path}"\n[data]\ninterfaces = ["eth0"]\n')
    code, out, err = run("--config", str(node), "-o", "json", "farm", "list")
    assert (code, out) == (1, "")
    assert (
        err
        == f"xlbctl: xlbd is not running: nothing listens on {tmp_path}/control.sock; start it with 'systemctl start xlbd'\n"
    )
    code, out, err = run("--config", str(node), "version")
    assert code == 0 and "xlbctl" in out and "not running" in out and "systemctl start xlbd" in err
