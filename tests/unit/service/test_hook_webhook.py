"""O4: a request is signed, ends in its time, and follows nobody; what the other side answers is bounded."""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from quaymaster.config import read_token
from quaymaster.service.hooks.answer import Answer
from quaymaster.service.hooks.webhook import Webhook
from servers.tls import Authority

SECRET = "0123456789abcdef"
BODY = b'{"event":"parked"}'


class Receiver:
    """Answers each connection with what ``answer`` does to it, once the whole request is there."""

    def __init__(self, answer: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> None:
        self._answer, self._tls = answer, tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.requests: list[bytes] = []
        self.done = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            request = b""
            while BODY not in request:
                if not (piece := connection.recv(65536)):
                    return
                request += piece
            self.requests.append(request)
            self._answer(connection)
        except OSError:
            pass
        finally:
            connection.close()
            self.done.set()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # whoever waits in accept() keeps it open else
        self._listening.close()


@contextmanager
def receiving(answer: str | Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    say = (lambda connection: connection.sendall(answer.encode())) if isinstance(answer, str) else answer
    receiver = Receiver(say, tls)
    try:
        yield receiver
    finally:
        receiver.close()


def webhook(
    port: int, timeout: float = 60, scheme: str = "http", ca: str | None = None, secret: bool = True
) -> Webhook:
    return Webhook(
        lambda: f"{scheme}://127.0.0.1:{port}/hook?site=lab",
        (lambda: SECRET) if secret else None,
        ca_file=ca,
        connect_timeout=10,
        timeout=timeout,
        clock=lambda: 1234567.9,
    )


def send(hook: Webhook) -> Answer:
    return hook.send("parked", "log:7:parked", BODY)


def test_the_request_is_signed_so_that_the_receiver_can_tell_whose_and_how_old_it_is() -> None:
    with receiving("HTTP/1.1 204 No Content\r\n\r\n") as receiver:
        assert send(webhook(receiver.port)) == Answer()
    head, _, body = receiver.requests[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert first == "POST /hook?site=lab HTTP/1.1"
    expected = hmac.new(SECRET.encode(), b"1234567." + body, hashlib.sha256).hexdigest()
    assert headers["x-quaymaster-signature"] == f"sha256={expected}"
    assert headers["x-quaymaster-timestamp"] == "1234567"
    assert (headers["x-quaymaster-event"], headers["x-quaymaster-id"]) == ("parked", "log:7:parked")
    assert headers["content-type"] == "application/json"


def test_without_a_secret_nothing_is_signed() -> None:
    with receiving("HTTP/1.1 200 OK\r\n\r\n") as receiver:
        assert send(webhook(receiver.port, secret=False)) == Answer()
    assert b"signature" not in receiver.requests[0].lower()


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("500 Oh\r\nContent-Length: 4\r\n\r\nno\r\n", Answer("it answered with status 500: no")),
        ("410 Gone\r\nContent-Length: 0\r\n\r\n", Answer("it answered with status 410", gone=True)),
        ("429 Slow\r\nRetry-After: 120\r\n\r\n", Answer("it answered with status 429", retry_after=120)),
        ("503 No\r\nRetry-After: 99999\r\n\r\n", Answer("it answered with status 503", retry_after=900)),
    ],
)
def test_only_2xx_says_that_it_was_taken(said: str, answer: Answer) -> None:
    with receiving(f"HTTP/1.1 {said}") as receiver:
        assert send(webhook(receiver.port)) == answer


def test_redirects_are_not_followed() -> None:
    with receiving("HTTP/1.1 200 OK\r\n\r\n") as other:
        said = f"HTTP/1.1 307 There\r\nLocation: http://127.0.0.1:{other.port}/\r\nContent-Length: 0\r\n\r\n"
        with receiving(said) as receiver:
            assert "redirects are not followed" in send(webhook(receiver.port)).error
        assert other.requests == []


@pytest.mark.parametrize("head", ["", "HTTP/1.1 500 Oh\r\n\r\n"])
def test_an_answer_that_drips_ends_in_its_time(head: str) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(head.encode())
        while True:
            connection.sendall(b"X")
            time.sleep(0.05)

    with receiving(drip) as receiver:
        began = time.monotonic()
        answer = send(webhook(receiver.port, timeout=1.0))
        assert time.monotonic() - began < 30
        assert answer.error


def test_an_endless_answer_is_not_read() -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 500 Oh\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with receiving(flood) as receiver:
        answer = send(webhook(receiver.port))
        assert len(answer.error) < 300
        assert receiver.done.wait(60)


def test_nobody_there_and_no_answer_are_told() -> None:
    with receiving("HTTP/1.1 200 OK\r\n\r\n") as receiver:
        port = receiver.port
    assert "could not be reached (Connection refused)" in send(webhook(port)).error
    with receiving(lambda connection: time.sleep(60)) as receiver:
        assert send(webhook(receiver.port, timeout=0.5)).error == "no answer within 0.5 s"
    with receiving("what?\r\n\r\n") as receiver:
        assert "could not be reached" in send(webhook(receiver.port)).error


def test_a_stop_cuts_it_off_at_once() -> None:
    with receiving(lambda connection: time.sleep(60)) as receiver:
        hook, answers = webhook(receiver.port, timeout=600), []
        thread = threading.Thread(target=lambda: answers.append(send(hook)))
        thread.start()
        deadline = time.monotonic() + 60
        while not receiver.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        hook.cut_off()
        thread.join(60)
        assert answers[0].cut
        assert send(hook).cut


def test_the_certificate_must_be_trusted(tmp_path: Path) -> None:
    authority = Authority(str(tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.cert_file, authority.key_file)
    with receiving("HTTP/1.1 200 OK\r\n\r\n", context) as receiver:
        assert "its certificate cannot be trusted" in send(webhook(receiver.port, scheme="https")).error
        assert receiver.requests == []
        assert send(webhook(receiver.port, scheme="https", ca=authority.ca_file)) == Answer()
        assert "could not be reached" in send(webhook(receiver.port, scheme="https", ca="/no/such")).error


def test_a_secret_that_is_missing_is_told_and_nothing_is_sent(tmp_path: Path) -> None:
    with receiving("HTTP/1.1 200 OK\r\n\r\n") as receiver:
        hook = Webhook(
            lambda: f"http://127.0.0.1:{receiver.port}/", lambda: read_token(str(tmp_path / "none"), {}),
            ca_file=None, connect_timeout=10, timeout=10,
        )  # fmt: skip
        assert "does not exist" in send(hook).error
        assert receiver.requests == []
