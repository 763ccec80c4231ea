"""`xlbctl import`: output, includes, options, and the farms file in a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.cli import run
from tests.fakes.daemon import running_daemon
from tests.fakes.other_balancers import FILES, SAMPLES, write_samples

REAL = """global_defs {
}
include conf.d/*.conf
include gone.conf
"""


@pytest.mark.parametrize("kind", SAMPLES)
def test_what_is_printed_can_be_applied(kind: str, tmp_path: Path) -> None:
    """A daemon takes it, and then has nothing to change."""
    (tmp_path / "in").write_text(SAMPLES[kind])
    code, out, err = run("import", kind, str(tmp_path / "in"), "--vip", "192.0.2.10/24", "--dev", "eth0")
    assert code == 0 and "not carried over" not in err
    farms = tmp_path / "farms.toml"
    farms.write_text(out)
    with running_daemon(tmp_path / "d") as daemon:
        for more, note in (((), "changes applied"), (("--dry-run",), "no changes: ")):
            done, _, problem = run("--config", str(daemon.config), "apply", "-f", str(farms), *more)
            assert done == 0 and note in problem, problem
        assert [each["name"] for each in daemon.call("farm.list")] == [
            "192.0.2.10-80" if kind in ("keepalived", "ipvsadm") else "web"
        ]


def test_json_has_the_file_the_document_and_the_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path)
    code, out, err = run("import", "haproxy", FILES["haproxy"], "-o", "json")
    answer = json.loads(out)
    plain = run("import", "haproxy", FILES["haproxy"])
    assert code == 0 and (answer["farms_file"], err) == plain[1:]
    assert [farm["name"] for farm in answer["document"]["farm"]] == ["web"]
    assert answer["origins"] == [{"file": "haproxy.cfg", "line": 1, "what": "farm", "name": "web", "statement": "listen web"}]
    first = answer["findings"][0]
    assert set(first) == {"file", "line", "kind", "statement", "why", "remedy"}
    lines = [
        f"{each['file']}:{each['line']}: {each['kind']}: {each['statement']}: {each['why']}; {each['remedy']}"
        for each in answer["findings"]
    ]
    assert err.splitlines() == lines


def test_standard_input_and_options() -> None:
    code, out, err = run(
        "import", "haproxy", "-", "--vip", "2001:db8::5/64", "--vip", "198.51.100.5", "--dev", "br0", input=SAMPLES["haproxy"]
    )
    assert code == 0 and 'address = "198.51.100.5/32"\ndevice = "br0"' in out and "2001:db8::5" not in out
    assert err.splitlines()[0].startswith("stdin:1: ") and "192.0.2.1" not in out.replace("192.0.2.11", "")


def test_an_interface_that_cannot_exist_is_named_and_not_used_for_other_vips() -> None:
    text = "listen web\n  bind 192.0.2.1:80 interface a/b\n  bind 192.0.2.3:80\n  server s 192.0.2.2:80\n"
    code, out, err = run("import", "haproxy", "-", input=text)
    assert code == 0 and out.count('device = "eth0"') == 2
    assert "stdin:2: not carried over: 192.0.2.1 on a/b: expected the name of an interface" in err
    code, out, err = run("import", "haproxy", "-", input=text.replace("a/b", "br1"))
    assert code == 0 and out.count('device = "br1"') == 2 and "192.0.2.3: br1 is written" in err


def test_included_files_are_read_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "conf.d" / "sub").mkdir(parents=True)
    (tmp_path / "keepalived.conf").write_text(REAL)
    (tmp_path / "conf.d" / "web.conf").write_text(SAMPLES["keepalived"] + "include sub/more\n")
    (tmp_path / "conf.d" / "sub" / "more").write_text("frobnicate\n")
    (tmp_path / "conf.d" / "bad.conf").write_bytes(b"\xff\xfe\x00")
    code, out, err = run("import", "keepalived", str(tmp_path / "keepalived.conf"))
    assert code == 0 and 'name = "192.0.2.10-80"' in out
    assert f"{tmp_path}/keepalived.conf:4: not carried over: include gone.conf: there is no such file" in err
    assert (
        f"{tmp_path}/keepalived.conf:3: not carried over: include conf.d/*.conf: {tmp_path}/conf.d/bad.conf: is UTF-16" in err
    )
    assert f"{tmp_path}/conf.d/sub/more:1: not carried over: frobnicate" in err
    assert f"{tmp_path}/conf.d/web.conf:1" in out


def test_several_files_become_one_farms_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`apply` removes what its file does not name. HAProxy reads several files as one, with the defaults of the first."""
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path)
    code, out, err = run("import", "zevenet", "web_l4xnat.cfg", "mail_l4xnat.cfg", "-o", "json")
    answer = json.loads(out)
    assert code == 0 and [(each["file"], each["name"]) for each in answer["origins"]] == [
        ("web_l4xnat.cfg", "web"),
        ("mail_l4xnat.cfg", "mail"),
    ]
    assert answer["farms_file"].startswith("# Made of web_l4xnat.cfg, mail_l4xnat.cfg by xlbctl import zevenet.")
    Path("a.cfg").write_text("defaults\n  mode tcp\n  timeout client 7s\n")
    Path("b.cfg").write_text("listen x\n  bind 192.0.2.1:80\n  frobnicate\n  server s 192.0.2.2:80\n")
    code, out, err = run("import", "haproxy", "a.cfg", "b.cfg")
    assert code == 0 and "idle_timeout_s = 7" in out and "b.cfg:3: not carried over: frobnicate: " in err


def test_a_file_that_includes_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "loop.conf"
    path.write_text(SAMPLES["keepalived"] + "include loop.conf\n")
    code, _, err = run("import", "keepalived", str(path))
    assert code == 0 and "files include each other" in err


def test_a_list_of_addresses_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "bad.lst").write_text("198.51.100.0/24  # a scanner\n\n203.0.113.7\n")
    text = SAMPLES["haproxy"] + "  tcp-request connection reject if { src -f bad.lst }\n"
    (tmp_path / "haproxy.cfg").write_text(text)
    code, out, err = run("import", "haproxy", str(tmp_path / "haproxy.cfg"))
    assert code == 0 and "not carried over" not in err
    assert '"198.51.100.0/24",\n    "203.0.113.7/32",' in out and 'deny = "web-deny"' in out


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "keepalived",
            "virtual_server 192.0.2.1 80 {\n real_server 192.0.2.2 80 {\n",
            'in:2: "real_server" has no closing brace',
        ),
        ("keepalived", "}\n", 'in:1: "}" without a block'),
        ("keepalived", "", "in: has nothing that a farms file can have; is it a configuration of keepalived?"),
        ("ipvsadm", "-A -t\n", "in:1: -t has no value"),
        ("ipvsadm", "\n-a -t 192.0.2.1:80 -r 192.0.2.2:80\n", "in:2: a server of 192.0.2.1:80, which no line before it adds"),
        ("ipvsadm", "hello\n", "in:1: expected a rule such as"),
        ("ipvsadm", "TCP 192.0.2.1:80 5 6 7\n  -> 192.0.2.2:80 5 6 7\n", "in:2: the list has no column Forward"),
        ("haproxy", "\nserver a 192.0.2.1:80\n", "in:2: expected a section"),
        ("haproxy", "listen a from b\n", 'in:1: there is no section "defaults b"'),
        (
            "haproxy",
            "frontend a\n mode http\n bind :80\n",
            "in: has nothing that a farms file can have; the lines above have the reasons",
        ),
        ("nftlb", '{"farms": [\n{"name": "a",\n', "in:3: is not JSON here: unexpected the end of the file"),
        ("nftlb", '{"farms": [\n{"name" "a"}]}', 'in:2: is not JSON here: expected ":" after "name"'),
        ("zevenet", "web;tcp;192.0.2.1\n", "in:1: expected a farm"),
        ("zevenet", ";server;192.0.2.1;80;0x1;1;1;up\n", "in:1: a backend before the line of its farm"),
    ],
)
def test_what_is_not_of_this_kind_is_refused_with_its_line(
    kind: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").write_text(text)
    code, out, err = run("import", kind, "in")
    assert (code, out) == (2, "") and f"xlbctl: {message}" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("import pound x", "'pound' is not one of 'keepalived'"),
        ("import haproxy /nonexistent", "FILE: cannot read /nonexistent: No such file or directory"),
        ("import haproxy", "FILE"),
        ("import haproxy - --vip here", "--vip: 'here' is not ADDRESS or ADDRESS/LENGTH"),
        ("import haproxy - --dev a/b", "--dev: expected the name of an interface"),
    ],
)
def test_wrong_usage(arguments: str, message: str) -> None:
    code, out, err = run(*arguments.split(), input="")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
