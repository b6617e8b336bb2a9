"""``quaymaster doctor``: does this machine give the service what it needs?"""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from quaymaster.cli import show
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.service.doctor import Finding
    from quaymaster.service.sandbox import Unit

_DEFAULT_USER = "quaymaster"


@click.command("doctor")
@click.option("--user", metavar="NAME", help="Look with the eyes of this user; else the unit's, if you are root.")
@in_session
def command(session: Session, user: str | None) -> int:
    """Check all that the service needs from this machine, and say how to mend what is wrong.

    The configuration; whether the service's user can read each watch and write where it must; the unit, with the
    drop-in it lacks; file systems and the limits of inotify; clock and free space; the queue's integrity; and each
    destination, where a probe is written, read back and removed. As root it looks as the service's own user, whom it
    lets see less. Exit code 1 if something failed.

    \b
    Examples:
      quaymaster doctor
      quaymaster doctor --config /etc/quaymaster/lab.toml
      quaymaster doctor --json | jq '.findings[] | select(.state == "failed")'
    """
    found: list[Finding] = []
    for finding in _examine(session, user):
        found.append(finding)
        if not session.json:
            _print(finding)
    states = [finding.state for finding in found]
    if session.json:
        print(show.as_json({"healthy": "failed" not in states, "findings": [f.as_dict() for f in found]}))
    else:
        failed, warned = states.count("failed"), states.count("warning")
        print(f"{show.count(len(found), 'check')}: {failed} failed, {show.count(warned, 'warning')}")
    return 1 if "failed" in states else 0


def _print(finding: Finding) -> None:
    word = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}[finding.state]
    print(f"{word}  {show.plain(finding.check)}: {show.plain(finding.text)}")
    for line in finding.fix.splitlines():
        print(f"         {show.plain(line)}")
    sys.stdout.flush()


def _examine(session: Session, user: str | None) -> Iterator[Finding]:
    from quaymaster.service import doctor, sandbox

    try:
        config = session.config()
    except ConfigError as error:
        for problem in error.problems[:-1]:
            yield doctor.Finding("config", "failed", *doctor.split(problem))
        return
    many = [show.count(len(config.watches), "watch", "watches"), show.count(len(config.destinations), "destination")]
    yield doctor.Finding("config", "ok", f"{', '.join(config.sources)}: {' and '.join(many)}")
    unit = sandbox.read_unit(sandbox.unit_name(session.config_path))
    yield from doctor.sandboxed(config, unit)
    account = _account(user, unit)
    if account is None:
        yield from doctor.Doctor(config, unit=unit).findings()
        return
    yield from doctor.secrets(config, unit)
    with sandbox.credentials_for(unit, account.pw_uid) as environment:
        yield from _as_user(account, config, unit, environment)


def _account(user: str | None, unit: Unit | None) -> pwd.struct_passwd | None:
    """Whose eyes to look with; None: our own."""
    if os.geteuid() != 0:
        if user and user != pwd.getpwuid(os.geteuid()).pw_name:
            raise UsageError("Only root can look with another user's eyes", "Run it as root, or leave --user out")
        return None
    name = user or (unit.user if unit else "") or _DEFAULT_USER
    try:
        return pwd.getpwnam(name)
    except KeyError:
        if user or unit:
            raise UsageError(f"There is no user {name}", "Create it, or name another with --user") from None
        return None


def _as_user(
    account: pwd.struct_passwd, config: Config, unit: Unit | None, environment: dict[str, str]
) -> Iterable[Finding]:
    """The findings of a child process that has become that user, as they come."""
    from quaymaster.service.doctor import Doctor, Finding

    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.initgroups(account.pw_name, account.pw_gid)
            os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
            os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
            os.environ.update(environment, HOME=account.pw_dir)
            with open(writing, "w", encoding="utf-8") as pipe:
                for finding in Doctor(config, unit=unit).findings():
                    pipe.write(json.dumps(finding.as_dict()) + "\n")
                    pipe.flush()
            status = 0
        except BaseException as error:
            with open(2, "w", closefd=False) as stream:
                stream.write(f"quaymaster: doctor could not go on: {type(error).__name__}: {error}\n")
        finally:
            os._exit(status)  # a thread may hang in a dead mount
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        for line in pipe:
            yield Finding(**json.loads(line))
    _, status = os.waitpid(child, 0)
    if status:
        yield Finding(
            "doctor", "failed", "some checks could not be made", "Run it with QUAYMASTER_DEBUG=1 and report it"
        )
