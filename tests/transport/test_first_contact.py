"""Who a process finds at the trainer's address, if it is not the trainer, and what its user is told."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.transport.boards import numbered, poll_until
from zswarm.errors import UserError
from zswarm.ids import Address
from zswarm.swarm_key import SwarmKey
from zswarm.transport import Switchboard, first_contact, probe
from zswarm.transport.first_contact import FirstContact
from zswarm.transport.handshake import Outcome
from zswarm.transport.probe import GREETING_BYTES, Answer, Kind, understood_untrusted

KEY = SwarmKey(b"k" * 32)
SSH, MAIL = b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail.example ESMTP ready\r\n"


def greeting(mechanism: bytes) -> bytes:
    """Return what a ZeroMQ begins with."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


@pytest.mark.parametrize(
    ("said", "has_ended", "answer"),
    [
        (b"", False, Answer(Kind.SILENT)),
        (b"", True, Answer(Kind.ENDED)),
        (greeting(b"NULL"), False, Answer(Kind.PLAIN)),
        (greeting(b"CURVE"), True, Answer(Kind.CURVE)),
        (greeting(b"GSSAPI"), False, Answer(Kind.OTHER)),
        (greeting(b"NULL")[:11], True, Answer(Kind.OTHER)),
        (SSH, False, Answer(Kind.OTHER, "SSH-2.0-OpenSSH_9.2")),
        (b"HTTP/1.1 400 Bad Request\r\nServer: x", True, Answer(Kind.OTHER, "HTTP/1.1 400 Bad Request")),
        (b"\x16\x03\x01\x02", True, Answer(Kind.OTHER)),
        (b"x" * GREETING_BYTES, False, Answer(Kind.OTHER, "x" * 60)),
        (b"evil\x1b[2Jtext", False, Answer(Kind.OTHER, "evil")),
    ],
)
def test_what_somebody_says_is_understood(said: bytes, has_ended: bool, answer: Answer) -> None:
    """Of text that is not ours as much is repeated as cannot harm a terminal."""
    assert understood_untrusted(said, has_ended=has_ended) == answer


# -- when somebody is asked ------------------------------------------------------------------------------


class Watch:
    """Handshakes as a test tells them."""

    def __init__(self) -> None:
        """Begin with none."""
        self.news: list[Outcome] = []

    def outcomes(self) -> list[Outcome]:
        """Return them once."""
        news, self.news = self.news, []
        return news


class Contact:
    """A first contact, its clock, and what the other side answers."""

    def __init__(self, kind: Kind, *, has_key: bool = False, words: str = "") -> None:
        """Begin at time 0."""
        self.now_s = 0.0
        self.num_asked = 0
        self.answer = Answer(kind, words)
        self.contact = FirstContact(
            Address("tcp://10.0.0.1:4711"),
            Watch(),  # type: ignore[arg-type]
            has_key=has_key,
            clock=lambda: self.now_s,
            ask=self._ask,
        )

    def _ask(self, _address: Address) -> Answer:
        self.num_asked += 1
        return self.answer

    def look(self, *news: Outcome, after_s: float = 0.0) -> str:
        """Let time pass, let this happen, and return what is told."""
        self.now_s += after_s
        self.contact.watch.outcomes = lambda: list(news)  # type: ignore[method-assign]
        return self.contact.look()


def test_nobody_is_asked_while_nobody_is_there_or_all_is_well() -> None:
    """A trainer may be started last."""
    one = Contact(Kind.SILENT)
    assert one.look(after_s=1000.0) == ""
    assert one.look(Outcome.CONNECTED) == ""
    assert one.look(Outcome.SUCCEEDED, after_s=first_contact.SILENCE_S - 0.1) == ""
    assert (one.num_asked, one.contact.is_made) == (0, True)


def test_a_connection_that_leads_nowhere_is_asked_about() -> None:
    """A mail server is taken for an old ZeroMQ, and then nothing ever happens."""
    one = Contact(Kind.SILENT)
    one.look(Outcome.CONNECTED)
    assert "says nothing" in one.look(after_s=first_contact.SILENCE_S)
    assert one.look(Outcome.CONNECTED, Outcome.BROKEN_OFF, Outcome.HUNG_UP) == ""
    assert one.look(after_s=first_contact.ASK_AGAIN_S - 1.0) == ""
    assert "says nothing" in one.look(after_s=1.0)
    assert one.num_asked == 2


def test_who_is_gone_when_asked_is_asked_again_at_the_next_sign_of_him() -> None:
    """A trainer that is just ending, and after it one with another key."""
    one = Contact(Kind.NOBODY, has_key=True)
    assert one.look(Outcome.BROKEN_OFF) == ""
    one.answer = Answer(Kind.CURVE)
    assert "another one" in one.look(Outcome.BROKEN_OFF, after_s=0.1)


@pytest.mark.parametrize(
    ("kind", "has_key", "told"),
    [
        (Kind.OTHER, False, "another service, which says 'SSH'"),
        (Kind.OTHER, True, "another service, which says 'SSH'"),
        (Kind.CURVE, False, "this process has no swarm key"),
        (Kind.PLAIN, True, "it has no swarm key"),
    ],
)
def test_what_cannot_come_right_ends_the_process(kind: Kind, has_key: bool, told: str) -> None:
    """With address, cause and cure."""
    one = Contact(kind, has_key=has_key, words="SSH")
    with pytest.raises(UserError, match=rf"^tcp://10\.0\.0\.1:4711: no handshake .*{told}.*\(--"):
        one.look(Outcome.HUNG_UP)


def test_where_zeromq_gives_up_nobody_waits() -> None:
    """Even if whoever was there has gone."""
    with pytest.raises(UserError, match=r"no handshake .*\(--key\)"):
        Contact(Kind.NOBODY).look(Outcome.MISMATCHED)


# -- real services ---------------------------------------------------------------------------------------


@contextmanager
def service(talk: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Serve connections with `talk`, each in its turn; they stay open until the end unless `talk` closes them."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                    talk(taken[-1])
                except OSError:
                    return

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield Address(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
    server.join(10.0)
    for each in taken:
        each.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for less; what answers here answers at once."""
    monkeypatch.setattr(first_contact, "SILENCE_S", 0.1)
    monkeypatch.setattr(probe, "PATIENCE_S", 0.3)


@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
@pytest.mark.parametrize("banner", [SSH, MAIL], ids=["ssh", "mail"])
def test_a_service_that_speaks_first(key: SwarmKey | None, banner: bytes) -> None:
    """It was dialled in silence, for ever."""
    with service(lambda taken: taken.sendall(banner)) as address, Switchboard(key=key) as comer:
        comer.dial(address, is_first=True)
        comer.send(address, numbered(1))
        with pytest.raises(UserError, match="another service, which says") as caught:
            poll_until(lambda _: False, comer)
    assert address in str(caught.value)
    assert banner.decode().strip() in str(caught.value)


@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
def test_a_web_server(key: SwarmKey | None) -> None:
    """It waits for a question."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server, Switchboard(key=key) as comer:
        running = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        running.start()
        comer.dial(Address(f"tcp://127.0.0.1:{server.server_address[1]}"), is_first=True)
        try:
            with pytest.raises(UserError, match=r"another service, which says '(HTTP|<)"):
                poll_until(lambda _: False, comer)
        finally:
            server.shutdown()
            running.join(10.0)


@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
def test_a_service_that_says_nothing(key: SwarmKey | None) -> None:
    """It may be a trainer that hangs: the process goes on trying, and says so."""
    with service(lambda _: None) as address, Switchboard(key=key) as comer, capture_logs() as records:
        comer.dial(address, is_first=True)
        poll_until(lambda _: bool(records), comer)
    assert [(record["event"], record["peer"]) for record in records] == [("no handshake", address)]
    assert "says nothing" in records[0]["reason"]


def test_a_path(tmp_path: Path) -> None:
    """What listens on it is asked in the same way."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as taken:
                taken.sendall(SSH)

        server = threading.Thread(target=answer, daemon=True)
        server.start()
        assert probe.probe(Address(f"ipc://{path}")) == Answer(Kind.OTHER, SSH.decode().strip())
        server.join(10.0)
    assert probe.probe(Address(f"ipc://{path}.gone")) == Answer(Kind.NOBODY)


@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
def test_our_own_listener_is_known_for_what_it_is(any_port: Address, key: SwarmKey | None) -> None:
    """Or the advice about the key would be wrong."""
    with Switchboard(key=key) as board:
        address = board.bind("coordinator", any_port)
        assert probe.probe(address) == Answer(Kind.PLAIN if key is None else Kind.CURVE)
