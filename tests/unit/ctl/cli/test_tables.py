"""Tables fit the terminal: addresses stay whole, headers too, lesser columns go first. And the keys that move a view."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from ctl.cli.farm import BACKEND_COLUMNS
from ctl.cli.terminal.tables import Column, left_out, table_lines
from ctl.cli.terminal.view import View
from tests.fakes.cli import XLBCTL, Terminal
from tests.fakes.daemon import RunningDaemon, running_daemon

V4 = ("10.77.0.11:8080", "1", "0", "up", "1.23k", "45.6k", "33.3 %", "1.5M", "1.2 GB", "3 min 20 s", "")
V6 = ("[2001:db8:1234:5678:9abc:def0:1234:5678]:8080", *V4[1:10], "connection refused by the server after 12 s")
COLUMNS = (Column("NAME"), Column("ADDRESS", priority=1), Column("STATE", priority=2), Column("WHY", text=True, priority=3))


@pytest.mark.parametrize("row", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 250])
def test_addresses_and_headers_stay_whole(row: tuple[str, ...], width: int) -> None:
    lines = table_lines(BACKEND_COLUMNS, [row], width)
    assert row[0] in "\n".join(lines)
    assert all(len(line) <= max(width, len(row[0]) + 14) for line in lines), lines
    titles = {column.title for column in BACKEND_COLUMNS}
    if row[0] in lines[1]:  # not as blocks
        header = re.split(r" {2,}", lines[0])
        assert set(header) <= titles and {"BACKEND", "STATE"} <= set(header)
        assert set(header) | set(left_out(BACKEND_COLUMNS, [row], width)) == {
            title
            for title, cell in zip([column.title for column in BACKEND_COLUMNS], row, strict=True)
            if cell or title in header
        }


def test_lesser_columns_go_first_and_empty_ones_before_them() -> None:
    cells = [("a", "10.0.0.1", "up", ""), ("b", "10.0.0.2", "down", "")]
    assert table_lines(COLUMNS, cells, 80)[0].split() == ["NAME", "ADDRESS", "STATE", "WHY"]
    assert table_lines(COLUMNS, cells, 21)[0].split() == ["NAME", "ADDRESS", "STATE"], "WHY is empty"
    assert table_lines(COLUMNS, cells, 20)[0].split() == ["NAME", "ADDRESS"]
    assert left_out(COLUMNS, cells, 20) == ["STATE"]
    assert table_lines(COLUMNS, cells, 6)[0] == "NAME"


def test_sentences_wrap_between_words() -> None:
    columns = (Column("NAME"), Column("REMEDY", text=True))
    lines = table_lines(columns, [("a", "sysctl -w net.ipv4.conf.eth0.forwarding=1 and look")], 40)
    assert lines == ["NAME  REMEDY", "a     sysctl -w", "      net.ipv4.conf.eth0.forwarding=1", "      and look"]


def test_where_nothing_fits_each_row_is_a_block() -> None:
    lines = table_lines(
        (Column("CLIENT"), Column("BACKEND"), Column("IDLE", priority=1)), [(V6[0], V6[0], "1 s"), ("x", "", "")], 60
    )
    assert lines == [f"CLIENT   {V6[0]}", f"BACKEND  {V6[0]}", "IDLE     1 s", "", "CLIENT   x"]


def test_a_pipe_gets_every_column() -> None:
    assert table_lines(COLUMNS, [("a", "10.0.0.1", "", "x " * 100)])[1].split()[:3] == ["a", "10.0.0.1", "-"]


def test_keys_move_the_view_within_its_bounds() -> None:
    view = View()
    assert view.window(50, 10) == slice(0, 10)
    for keys, offset in (
        (b"jj", 2),
        (b"k", 1),
        (b"\x1b[A\x1b[A\x1b[A", 0),
        (b"\x1b[6~", 10),
        (b" ", 20),
        (b"G", 40),
        (b"j", 40),
    ):
        view.pressed(keys)
        assert view.window(50, 10).start == offset, keys
    assert view.window(5, 10) == slice(0, 10)
    view.pressed(b"/ab\x7fq\r")
    assert (view.filter, view.quit) == ("aq", False)
    assert view.matches("xAQx") and not view.matches("ab")
    view.pressed(b"q")
    assert view.quit


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("node")) as daemon:
        daemon.call("vip.add", address="2001:db8:1234:5678:9abc:def0:1234:100/64", device="eth0")
        daemon.call("vip.add", address="10.77.0.100/24", device="eth0")
        for name, vip, net in (
            ("six", "2001:db8:1234:5678:9abc:def0:1234:100", "2001:db8:1234:5678:9abc:def0:1234:"),
            ("web", "10.77.0.100", "10.77.0."),
        ):
            daemon.call("farm.add", name=name, vip=vip, port=80, health={"kind": "none"})
            for number in range(11, 41):
                daemon.call("backend.add", farm=name, address=f"{net}{number}", port=8080)
        yield daemon


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize(
    "command", ["farm show six", "farm show web", "farm list", "vip list", "cluster status", "doctor", "stats --all"]
)
def test_nothing_wraps_on_a_narrow_terminal(daemon: RunningDaemon, command: str, columns: int) -> None:
    with Terminal(
        [*XLBCTL, "--config", str(daemon.config), *command.split()], rows=60, columns=columns, NO_COLOR="1"
    ) as terminal:
        terminal.wait()
        lines = terminal.output.replace("\r", "").splitlines()
    # One word, such as the path of this test's directory, is never cut.
    assert lines and [line for line in lines if len(line) > columns and max(map(len, line.split())) < columns - 20] == []
    if command == "farm show web":
        assert sum(bool(re.match(r"10\.77\.0\.\d+:8080 ", line)) for line in lines) == 30
        assert columns == 80 or any(line.startswith("not shown in 60 columns: ") for line in lines)


def test_top_scrolls_and_filters_on_a_terminal(daemon: RunningDaemon) -> None:
    command = [*XLBCTL, "--config", str(daemon.config), "top", "--interval", "0.2"]
    with Terminal(command, rows=20, columns=60, NO_COLOR="1") as terminal:
        terminal.expect(r"49 more below; q quits")
        terminal.type("G")
        terminal.expect(r"10\.77\.0\.40:8080(.|\n)*49 more above; q quits")
        terminal.type("/.23:")
        terminal.expect(r"filter: \.23:")
        terminal.type("\r")
        terminal.expect(r"web .*\r\n  10\.77\.0\.23:8080(.|\n)*filter \.23:: 2 lines; q quits")
        terminal.type("\x1b")
        terminal.expect(r"49 more below")
        terminal.type("q")
        assert terminal.wait() == 0
        assert terminal.line_mode and "\x1b[?1049l" in terminal.output
