"""The page's server: on this machine's own address, for whoever holds the token, within limits."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from painter import Painter, make_session, working

from guidefold.ground.errors import InputError
from guidefold.run.settings import Settings
from guidefold.show.live import LARGEST_SEED, LONGEST_PROMPT
from guidefold.show.server import HEADERS, LARGEST_BODY, TOKEN, _page, serving

WISH = {"prompt": "a small blue dog", "seed": 7, "strength": 0.5}
HOSTILE = """</script><img src=x onerror="window.__hit=1">'"&amp;{{ 7 * 7 }}<!--"""
PATHS = ("/", "/drawings/0", "/pictures/0", "/nosuch")


class Answer:
    """What the server answered."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.body = response.read()
        self.headers = dict(response.getheaders())

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Page:
    """A server and what draws behind it, asked as its own page asks, but for what a test alters."""

    def __init__(self, address: str, live: Painter) -> None:
        self.address, self.live = address, live
        parts = urlsplit(address)
        assert parts.port is not None
        self.host, self.port = f"{parts.hostname}:{parts.port}", parts.port
        self.token = parts.query.removeprefix("token=")

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **altered: str | None
    ) -> Answer:
        """``header=None`` leaves a header out; underscores stand for hyphens."""
        given: dict[str, str | None] = {"host": self.host, TOKEN.lower(): self.token}
        if method != "GET":
            given |= {"origin": f"http://{self.host}", "content-type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in altered.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None and "content-length" not in given:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def wish(self, body: Any = None, **altered: str | None) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body or WISH).encode()
        return self.ask("/drawings", "POST", data, **altered)

    def finished(self, answer: Answer) -> dict[str, Any]:
        assert answer.status == 202, answer.body
        until = time.monotonic() + 10
        while True:
            stands: dict[str, Any] = self.ask(f"/drawings/{answer.json['id']}").json
            if stands["state"] != "drawing":
                return stands
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    live = Painter()
    with working(live), serving(live) as address:
        yield Page(address, live)


def test_the_page_says_how_many_steps_teacher_and_student_take() -> None:
    few, session = {"steps": 2}, make_session()
    assert "4 steps per picture</p>" in _page_of(session)
    session.settings = Settings.model_validate({**session.settings.model_dump(), "student": few})
    assert "4 steps per picture, of the student 2</p>" in _page_of(session)


def _page_of(session: Any) -> str:
    return _page(Painter(session), "", "", "")


# Drawing


def test_what_is_asked_for_is_drawn_told_and_handed_out(page: Page) -> None:
    stands = page.finished(page.wish())
    assert (stands["state"], stands["done"], stands["total"]) == ("done", 12, 12)
    teacher, student = stands["pictures"]["teacher"], stands["pictures"]["student"]
    assert (teacher["passes"], teacher["guidance"]) == (8, 3.0)
    assert (student["passes"], student["strength"]) == (4, 0.5)
    picture = page.ask(f"/pictures/{teacher['id']}")
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    assert picture.body.startswith(b"\x89PNG")


def test_a_second_drawing_waits_until_the_first_has_ended_or_is_stopped(page: Page) -> None:
    page.live.gate.clear()
    try:
        first = page.wish({**WISH, "seed": 8})
        second = page.wish({**WISH, "seed": 9})
        assert (second.status, "under way" in second.json["error"]) == (429, True)
        assert page.ask(f"/drawings/{first.json['id']}", "DELETE").status == 204
    finally:
        page.live.gate.set()
    assert page.finished(first)["state"] == "stopped"
    assert page.finished(page.wish({**WISH, "seed": 9}))["state"] == "done"


# Strangers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1:{port}.evil.example",
        "evil.example@127.0.0.1:{port}",
        "LOCALHOST.:{port}",
        "[::1]:{port}",
        "0.0.0.0:{port}",
        "",
        None,
    ],
)
def test_a_name_that_is_not_the_pages_is_refused(page: Page, path: str, host: str | None) -> None:
    answer = page.ask(path, host=None if host is None else host.format(port=page.port))
    assert answer.status in (400, 403)
    assert b"<html" not in answer.body


def test_the_machines_two_names_for_itself_are_the_pages(page: Page) -> None:
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{page.port}"
        assert page.ask("/", host=host).status == 200
        answer = page.wish(host=host, origin=f"http://{host}")
        assert page.finished(answer)["state"] == "done"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("token", [None, "", "x", "{token}x", "é"])
def test_nothing_is_answered_without_the_token(page: Page, path: str, token: str | None) -> None:
    given = None if token is None else token.format(token=page.token)
    answer = page.ask(path, **{TOKEN.lower(): given})
    assert (answer.status, answer.json["error"][:16]) == (403, "Open the address")
    assert page.token.encode() not in answer.body


def test_the_token_stands_in_an_address_for_the_page_alone(page: Page) -> None:
    without = {TOKEN.lower(): None}
    assert page.ask(f"/?token={page.token}", **without).status == 200
    for path in (*PATHS[1:], "//", "/drawings"):
        assert page.ask(f"{path}?token={page.token}", **without).status == 403


def test_the_token_is_long_and_new_at_every_start_and_not_in_the_page(page: Page) -> None:
    live = Painter()
    with serving(live) as address:
        other = Page(address, live)
        assert len(page.token) >= 43
        assert other.token != page.token
        assert other.ask("/", **{TOKEN.lower(): page.token}).status == 403
        assert other.token.encode() not in other.ask("/").body


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "",
        "http://evil.example",
        "https://{host}",
        "http://127.0.0.1",
        "http://{host}/",
    ],
)
def test_what_changes_something_is_taken_from_the_page_alone(
    page: Page, origin: str | None
) -> None:
    given = None if origin is None else origin.format(host=page.host)
    drawn = len(page.live.painted)
    assert page.wish({**WISH, "seed": 99}, origin=given).status == 403
    assert page.ask("/drawings/0", "DELETE", origin=given).status == 403
    assert len(page.live.painted) == drawn


def test_a_stranger_is_not_told_that_it_may_ask(page: Page) -> None:
    stranger = "http://evil.example"
    asked = {"access_control_request_method": "POST", "origin": stranger}
    answers = [page.ask("/drawings", "OPTIONS", **asked), page.ask("/", origin=stranger)]
    for answer in answers:
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_it_listens_at_this_machines_own_address_and_nowhere_else(page: Page) -> None:
    for other in ("127.0.0.2", "::1"):  # what listens at every address would answer there
        with pytest.raises(OSError), socket.create_connection((other, page.port), timeout=5):
            pass


def test_a_port_that_is_taken_is_refused_in_words(page: Page) -> None:
    with (
        pytest.raises(InputError, match=f"--port {page.port}: Address already in use"),
        serving(Painter(), page.port),
    ):
        pass


# Answers


@pytest.mark.parametrize(
    ("path", "method"), [("/", "GET"), ("/pictures/0", "GET"), ("/drawings", "POST"), ("/x", "PUT")]
)
@pytest.mark.parametrize("token", [True, False])
def test_every_answer_brings_the_headers(page: Page, path: str, method: str, token: bool) -> None:
    altered = {} if token else {TOKEN.lower(): None}
    headers = page.ask(path, method, b"" if method != "GET" else None, **altered).headers
    assert {name: headers[name.lower()] for name in HEADERS} == HEADERS
    assert HEADERS["Referrer-Policy"] == "no-referrer"
    assert HEADERS["X-Content-Type-Options"] == "nosniff"
    assert HEADERS["Cache-Control"] == "no-store"
    policy = headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("connect-src") == "'self'"
    assert rules.pop("img-src") == "blob: data:"
    for name in ("style-src", "script-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules.pop(name))
    assert set(rules.values()) == {"'none'"}
    assert rules.keys() == {"base-uri", "form-action", "frame-ancestors"}
    assert "server" not in headers


@pytest.mark.parametrize(
    "name", ["..", "../server.py", "..%2f..%2fetc%2fpasswd", "%2e%2e", "my run", "teacher-000.png"]
)
def test_pictures_and_drawings_have_ids_and_no_paths(page: Page, name: str) -> None:
    for room in ("pictures", "drawings"):
        answer = page.ask(f"/{room}/{name.replace(' ', '%20')}")
        assert (answer.status, list(answer.json)) == (404, ["error"])


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 422, "JSON"),
        (b"{", 422, "JSON"),
        (b"[]", 422, "object"),
        (b"\xff", 422, "JSON"),
        (b'{"prompt": "\\ud800", "seed": 1, "strength": 1}', 422, "JSON"),
        (b"[" * 10_000, 422, "JSON"),
        (b'{"prompt": "a", "seed": 1, "strength": NaN}', 422, "finite"),
        ({**WISH, "prompt": "a" * (LONGEST_PROMPT + 1)}, 422, "prompt: "),
        ({**WISH, "prompt": " "}, 422, "Say what to draw"),
        ({**WISH, "seed": LARGEST_SEED + 1}, 422, "seed: "),
        ({**WISH, "seed": "1"}, 422, "seed: "),
        ({**WISH, "strength": -1}, 422, "strength: "),
        ({**WISH, "strength": 99}, 422, "Use one from 0 to 1.75"),
        ({"prompt": "a"}, 422, "seed: "),
        ({**WISH, "adapter": "/etc"}, 422, "adapter: "),
        ({**WISH, "prompt": "é" * LARGEST_BODY}, 413, "at most"),
    ],
)
def test_a_wish_that_cannot_be_drawn_is_answered_in_words(
    page: Page, body: Any, status: int, said: str
) -> None:
    answer = page.wish(body)
    assert answer.status == status
    assert said in answer.json["error"]
    assert not re.search(r"Traceback|\.py|pydantic", answer.json["error"])


def test_what_is_too_large_is_refused_whatever_it_says_of_its_size(page: Page) -> None:
    part = b"%x\r\n%s\r\n" % (1024, b" " * 1024)
    chunks = part * (LARGEST_BODY // 1024 + 1) + b"0\r\n\r\n"
    answer = page.wish(chunks, transfer_encoding="chunked", content_length=None)
    assert answer.status == 413


def test_a_client_that_hangs_up_in_the_middle_of_its_request_is_no_fault(
    page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = len(page.live.painted)
    head = f"POST /drawings HTTP/1.1\r\nHost: {page.host}\r\nOrigin: http://{page.host}\r\n"
    head += f"{TOKEN}: {page.token}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as client:
        client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert page.ask("/").status == 200  # served later, so that the other one has ended
    assert not caplog.records
    assert len(page.live.painted) == drawn


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_form_is_no_wish(page: Page, kind: str | None) -> None:
    assert page.wish(content_type=kind).status == 415


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE"])
def test_a_verb_that_nobody_expects_is_refused(page: Page, method: str) -> None:
    assert page.ask("/", method).status == 405


def test_a_fault_of_ours_is_not_shown(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_id: str) -> None:
        raise RuntimeError("secret.py line 3")

    monkeypatch.setattr(page.live, "status", fail)
    answer = page.ask("/drawings/0")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"
    until = time.monotonic() + 10
    while "secret.py line 3" not in caplog.text:  # the terminal is told, after the answer
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_a_user_wrote_is_escaped_in_the_page() -> None:
    live = Painter(make_session(run=HOSTILE.replace("/", "|"), prompt=HOSTILE))
    with serving(live) as address:
        text = Page(address, live).ask("/").body.decode()
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 1
    assert "{{ 7 * 7 }}" in text, "no template of ours"


# The end


def test_the_server_ends_with_the_command_also_while_somebody_is_connected() -> None:
    live, before = Painter(), threading.active_count()
    with serving(live) as address:
        page = Page(address, live)
        idle = socket.create_connection(("127.0.0.1", page.port))
        assert page.ask("/").status == 200
    idle.close()
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        page.ask("/")
    live.work()  # closed: it ends at once
