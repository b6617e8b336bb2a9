"""The mail script of the packages: what it hands to sendmail, and to a mail server, for an event."""

from __future__ import annotations

import email
import email.policy
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "packaging/examples/hook-mail"
EVENT = {
    "schema": 1, "id": "log:7:parked", "event": "parked", "host": "lab1", "watch": "w", "path": "caf\\xe9\nBcc: all@x",
    "text": "w/caf\u00e9\nBcc: all@x is parked: no", "error": "no",
}  # fmt: skip


def run(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    sendmail = folder / "sendmail"
    sendmail.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/arguments\ncat > {folder}/mail\nexit {status}\n')
    sendmail.chmod(0o755)
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *arguments],
        input=json.dumps(EVENT),
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOOK_MAIL_SENDMAIL": str(sendmail)},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_an_event_becomes_a_mail_with_one_line_for_people(tmp_path: Path) -> None:
    assert run(tmp_path, "--from", "quay@lab", "root", "admin@example.org").returncode == 0
    assert (tmp_path / "arguments").read_text().split() == ["-i", "-f", "quay@lab", "--", "root", "admin@example.org"]
    mail = email.message_from_bytes((tmp_path / "mail").read_bytes(), policy=email.policy.default)
    assert mail["Subject"] == "[lab1] parked: w/café Bcc: all@x is parked: no"
    assert (mail["To"], mail["Bcc"], mail["X-Quaymaster-Id"]) == ("root, admin@example.org", None, "log:7:parked")
    assert '"caf\\\\xe9\\nBcc: all@x"' in mail.get_content()


def test_what_sendmail_says_of_itself_is_the_answer(tmp_path: Path) -> None:
    assert run(tmp_path, "root", status=75).returncode == 75
    assert run(tmp_path, "--smtp", "127.0.0.1:1", "root").stderr.startswith("hook-mail: ")
    assert run(tmp_path, "--", "-oQ/tmp").returncode == 2
    assert run(tmp_path).returncode == 2


def test_a_mail_server_gets_the_same_mail(tmp_path: Path) -> None:
    """RFC 5321, as far as a client that wants nothing special goes."""
    said: list[str] = []

    def serve(listening: socket.socket) -> None:
        with listening.accept()[0] as connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 lab1\r\n")
            mail = False
            for text in (line.decode().rstrip("\r\n") for line in lines):
                said.append(text)
                begins, ends = text.lower() == "data", text.lower() == "quit"
                mail = begins or (mail and text != ".")
                if begins or not mail:
                    connection.sendall(b"354 go on\r\n" if begins else b"221 bye\r\n" if ends else b"250 lab1\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        done = run(tmp_path, "--smtp", f"127.0.0.1:{listening.getsockname()[1]}", "--from", "quay@lab", "root")
        assert (done.returncode, done.stderr) == (0, "")
        thread.join(60)
    assert [line.lower() for line in said if line.lower().startswith(("mail", "rcpt"))] == [
        "mail from:<quay@lab>", "rcpt to:<root>",
    ]  # fmt: skip
    assert "X-Quaymaster-Id: log:7:parked" in said
    assert not (tmp_path / "mail").exists(), "sendmail was called too"
