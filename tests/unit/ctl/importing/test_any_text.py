"""No text, truncated or changed, ends in anything but a valid farms file or a message that names a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctl.config.changes import replace_from_document
from ctl.config.farms_file import parse_text
from ctl.config.model import Config
from ctl.errors import InvalidInput
from ctl.importing.addresses import Choices
from ctl.importing.form import Included, Source
from ctl.importing.kinds import READERS, NothingToImport, import_from

FIXTURES = Path(__file__).parent / "fixtures"
TEXTS = {
    kind: [path.read_text() for path in sorted((FIXTURES / kind).iterdir()) if path.suffix not in (".toml", ".findings")]
    for kind in READERS
}
PIECES = [
    *(
        "{",
        "}",
        '"',
        "'",
        "\\",
        "#",
        "!",
        "$",
        "${",
        "$X=$X",
        "@a",
        ";",
        ";server;",
        ":",
        ",",
        "-",
        "[",
        "]",
        "0",
        "-1",
        "99999999999",
    ),
    *(
        "65536",
        "255.255.255.255",
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "::",
        "::1",
        "fe80::1%eth0",
        "::ffff:1.2.3.4",
        "2001:db8::1",
    ),
    *(
        "10.0.0.1-9",
        "10.0.0.0/33",
        "0/0",
        "\x00",
        "\x1b[2J",
        "\ud7ff",
        "é",
        "\t",
        "\n",
        "\r\n",
        " ",
        "\u2028",
        "{}",
        "[[]]",
        "null",
    ),
    *(
        "include *",
        "default_backend",
        "server",
        "bind *:0",
        "real_server",
        "virtual_server group",
        "mode http",
        "-A -t",
        "-a -t",
    ),
]
changes = st.lists(
    st.tuples(st.sampled_from(["cut", "drop", "double", "put", "swap"]), st.floats(0, 1), st.sampled_from(PIECES)), max_size=6
)


def changed(text: str, operation: str, where: float, piece: str) -> str:
    at = int(where * len(text))
    lines = text.split("\n")
    row = min(int(where * len(lines)), len(lines) - 1)
    if operation == "cut":
        return text[:at]
    if operation == "put":
        return text[:at] + piece + text[at:]
    if operation == "swap":
        words = re.split(r"(\s+)", text)
        words[min(int(where * len(words)), len(words) - 1)] = piece
        return "".join(words)
    return "\n".join([*lines[:row], *([lines[row]] * (2 if operation == "double" else 0)), *lines[row + 1 :]])


def check(kind: str, text: str) -> None:
    source = Source("input", text, lambda pattern, within: Included([Source("other", text[:200])] if len(pattern) % 2 else []))
    try:
        result = import_from(kind, [source], Choices())
    except NothingToImport as error:
        assert error.key == "input"
        return
    except InvalidInput as error:
        assert re.fullmatch(r"(input|other)(:\d+)?", error.key) and str(error).isprintable(), str(error)
        return
    assert replace_from_document(Config(), parse_text(result.text, "")).generation == 1
    for each in result.findings:
        line = str(each)
        assert line.isprintable() and line.count("\n") == 0 and each.why and each.remedy and each.statement, line


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_configuration(kind: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS[kind]))
    for each in data.draw(changes):
        text = changed(text, *each)
    check(kind, text)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=40, deadline=None)
@given(text=st.one_of(st.text(max_size=200), st.lists(st.sampled_from([*PIECES, " ", "\n"]), max_size=30).map(" ".join)))
def test_any_text(kind: str, text: str) -> None:
    check(kind, text)


@pytest.mark.parametrize("kind", READERS)
def test_a_configuration_of_another_kind(kind: str) -> None:
    for other in READERS:
        for text in TEXTS[other]:
            check(kind, text)


@pytest.mark.parametrize("kind", READERS)
def test_a_configuration_that_is_cut_off_at_each_line(kind: str) -> None:
    text = max(TEXTS[kind], key=len)
    lines = text.split("\n")
    for number in range(0, len(lines), 3):
        check(kind, "\n".join(lines[:number]))


@pytest.mark.parametrize("kind", READERS)
def test_a_statement_that_is_cut_off_after_each_of_its_first_words(kind: str) -> None:
    seen = set()
    for text in TEXTS[kind]:
        lines = text.split("\n")
        for row, line in enumerate(lines):
            words = re.findall(r"\s*[^\s;]+;?", line)
            for length in range(1, min(len(words), 5)):
                start = re.sub(r"\d+", "0", words[0]), length
                if start not in seen:
                    seen.add(start)
                    check(kind, "\n".join([*lines[:row], "".join(words[:length]), *lines[row + 1 :]]))
    assert len(seen) > 5
