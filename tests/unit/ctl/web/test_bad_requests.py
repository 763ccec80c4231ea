"""Whatever a browser or a script sends gets a clear 4xx: no 5xx, no stack trace, and the next request is served."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ctl.web.api.schemas import BODIES
from ctl.web.api.table import ROUTES
from tests.fakes.daemon import running_daemon
from tests.fakes.web import RunningWeb, WebClient, give_accounts, insecure, running_web

JSON = "application/json"
LOGIN = b"POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\n"
ROUTES_TRIED = [route for route in ROUTES if route.own not in ("creation.start", "events", "session.close", "session.password")]
"""Those that open connections elsewhere, wait, or end the session of this test are not tried."""

KEYS = sorted(
    {name for body in BODIES.values() for name in body["properties"]} | {"health", "v4", "if_version", "on_behalf", ""}
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        [
            "web",
            "10.77.0.100",
            "10.77.0.100/24",
            "10.77.0.11:80",
            "eth0",
            "tcp",
            "maglev",
            "::",
            "0.0.0.0",
            "\ud800",
            "\0",
            "a" * 3000,
        ]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)
RAW = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"1",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": 1e999}',
    b'{"a": 1, "a": 2}',
    b'{"name": "\xff\xfe"}',
    b'{"name": "\\ud800"}',
    b'{"\\udfff": 1}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"document": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"document": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001,
    b"\x00" * 100,
    b"\xef\xbb\xbf{}",
]
bodies = st.sampled_from(RAW) | objects.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200)
segments = st.sampled_from(
    ["web", "10.77.0.100", "10.77.0.11:80", "[::1]:80", "..", "%2e%2e", "%00", "%ff", "%2F", "%", "ä", " "]
) | st.text(max_size=12)
headers = st.dictionaries(
    st.sampled_from(
        [
            "If-Match",
            "If-None-Match",
            "Accept",
            "Content-Type",
            "Origin",
            "Referer",
            "Range",
            "Expect",
            "X-CSRF-Token",
            "Authorization",
            "Last-Event-ID",
            "Accept-Encoding",
            "Cookie2",
        ]
    ),
    st.sampled_from(
        [
            "*",
            '"0-1"',
            "9-9",
            "text/plain",
            JSON,
            "application/json; charset=utf-16",
            "100-continue",
            "bytes=0-",
            "Bearer x",
            "https://127.0.0.1",
            "",
            "x" * 2000,
        ]
    )
    | st.text(st.characters(max_codepoint=255, blacklist_characters="\r\n\0"), max_size=20),
    max_size=3,
)


@st.composite
def requests(draw: Any) -> tuple[str, str, dict[str, str], bytes]:
    """Method, target, headers, body: of a route, or nearly."""
    route = draw(st.sampled_from(ROUTES_TRIED))
    parts = [draw(segments) if each.startswith("{") else each for each in f"/api/v1{route.path}".split("/")]
    path = "/".join(urllib.parse.quote(each, safe="%[]:.") for each in parts)
    query = draw(
        st.lists(
            st.tuples(st.sampled_from([each.name for each in route.query] or ["x"]), st.text(max_size=8) | st.just("1")),
            max_size=3,
        )
    )
    method = draw(
        st.sampled_from([route.method] * 6 + ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
    )
    target = path + ("?" + urllib.parse.urlencode(query, errors="replace") if query else "")
    return method, target, draw(headers), draw(bodies)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWeb]:
    with running_daemon(tmp_path_factory.mktemp("node")) as daemon:
        give_accounts(daemon)
        with running_web(daemon.config) as running:
            client = running.client("olga")
            assert client.post("vips", {"address": "10.77.0.100/24", "device": "eth0"}).status == 200
            assert client.post("farms", {"name": "web", "vip": "10.77.0.100", "port": 80}).status == 200
            assert client.post("farms/web/backends", {"address": "10.77.0.11", "port": 80}).status == 200
            yield running


@pytest.fixture(scope="module")
def client(web: RunningWeb) -> WebClient:
    return web.client("olga")


def exchange(port: int, data: bytes) -> http.client.HTTPResponse:
    """Send these bytes, and read one answer; its content is in `content`."""
    with socket.create_connection(("127.0.0.1", port), 20) as raw, insecure().wrap_socket(raw) as channel:
        channel.sendall(data)
        answer = http.client.HTTPResponse(channel, method=data.split(b" ", 1)[0].decode("latin-1"))
        answer.begin()
        answer.content = answer.read()  # type: ignore[attr-defined]
        return answer


def head(method: str, target: str, given: dict[str, str], body: bytes) -> bytes:
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in given.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests())
@example(request=("POST", "/api/v1/farms", {}, b'{"name": "\\ud800"}'))
@example(request=("PUT", "/api/v1/config", {}, RAW[13]))
def test_arbitrary_requests_get_an_answer_that_is_no_failure(web: RunningWeb, client: WebClient, request: Any) -> None:
    method, target, more, body = request
    given = {"Host": "localhost", "Content-Type": JSON, **client.headers, **more}
    answer = exchange(web.port, head(method, target, given, body) + body)
    content = answer.content  # type: ignore[attr-defined]
    assert answer.status < 500, (answer.status, content[:400])
    assert b"Traceback" not in content and b'File "' not in content
    if answer.status >= 400 and method != "HEAD" and answer.getheader("content-type") == JSON:
        error = json.loads(content)["error"]
        assert error["message"] and error["code"] and error["kind"] in ("invalid", "refused")


@pytest.mark.parametrize("body", RAW)
def test_a_body_that_is_no_object_is_named(client: WebClient, body: bytes) -> None:
    answer = client.post("farms", body, Content_Type=JSON)
    assert answer.status in (400, 413, 422) and answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 421),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /app/..%2f..%2fmain.py HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET //etc/passwd.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /%00.html HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET https://localhost/x HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (LOGIN + b"Content-Length: 99999999999\r\n\r\n", 413),
        (LOGIN + b"Content-Length: -1\r\n\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (LOGIN + b"Transfer-Encoding: chunked\r\n\r\n11000\r\n" + bytes(0x11000) + b"\r\n0\r\n\r\n", 413),
        (LOGIN + b"Content-Length: 2\r\n\r\n{}", 415),
        (LOGIN + b"Origin: https://evil.example\r\nContent-Length: 2\r\n\r\n{}", 403),
        (b"GET /api/v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"BREW /api/v1/farms HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /api/v1/farms HTTP/1.1\r\nHost: localhost\r\n\r\n", 401),
        (b"GET /api/v1/farms HTTP/1.1\r\nHost: localhost\r\nCookie: __Host-xlb=guess\r\n\r\n", 401),
        (b"GET /api/v1/farms HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer xlb_guess\r\n\r\n", 401),
    ],
)  # fmt: skip
def test_requests_by_hand(web: RunningWeb, data: bytes, status: int) -> None:
    answer = exchange(web.port, data)
    assert answer.status == status, answer.content[:300]  # type: ignore[attr-defined]
    if status == 405:
        assert answer.getheader("allow")


def test_every_refusal_has_the_headers_of_every_answer(web: RunningWeb) -> None:
    for path in ("/", "/none", "/api/v1/farms", "/api/v1/none", "/healthz"):
        answer = web.client().get(path)
        assert (
            answer.headers["x-content-type-options"] == "nosniff" and "default-src" in answer.headers["content-security-policy"]
        )
        assert answer.headers["cache-control"] == ("no-cache" if path == "/" else "no-store")
