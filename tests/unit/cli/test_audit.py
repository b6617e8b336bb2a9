"""I8: the custody log can be checked by the operator and by anybody with sha256sum."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3

import pytest

from quaymaster.model import State
from unit.cli.conftest import Scene


@pytest.fixture
def logged(scene: Scene) -> Scene:
    for path in (b"a", b"=b\nc", b"c\xff"):
        scene.fail(scene.queue(path), State.PARKED, "permission-denied", "no")
    return scene


def damage(scene: Scene, statement: str) -> None:
    with sqlite3.connect(scene.store.path) as connection:
        connection.execute(statement)
    connection.close()


def test_an_unbroken_log_says_how_long_it_is_and_what_its_head_is(logged: Scene) -> None:
    answer = logged.run("audit", "verify")
    assert answer.code == 0
    assert answer.out.startswith("3 entries, unbroken; head 3:")
    assert logged.run("audit", "verify", "--head", answer.out.split()[-1]).code == 0
    assert logged.run("audit", "verify", "--json").json["ok"] is True


def test_an_empty_log_is_unbroken(scene: Scene) -> None:
    assert scene.run("audit", "verify").out == "0 entries, unbroken\n"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE custody SET body = replace(body, 'no', 'yes') WHERE seq = 2",
        "DELETE FROM custody WHERE seq = 1",
        "UPDATE custody SET seq = 9 - seq WHERE seq IN (2, 3)",
    ],
)
def test_an_edit_a_deletion_and_a_reordering_exit_with_3(logged: Scene, statement: str) -> None:
    damage(logged, statement)
    answer = logged.run("audit", "verify")
    assert answer.code == 3
    assert "The custody log is broken at entry" in answer.err
    assert logged.run("audit", "verify", "--json").json["ok"] is False


def test_a_cut_off_end_shows_against_a_head_noted_before(logged: Scene) -> None:
    head = logged.run("audit", "verify").out.split()[-1]
    damage(logged, "DELETE FROM custody WHERE seq = 3")
    assert logged.run("audit", "verify").code == 0
    answer = logged.run("audit", "verify", "--head", head)
    assert answer.code == 3
    assert "Entry 3 of the custody log is missing: its end was cut off" in answer.err


def test_a_log_rewritten_from_the_start_shows_against_a_head_noted_before(logged: Scene) -> None:
    answer = logged.run("audit", "verify", "--head", "2:" + "0" * 64)
    assert answer.code == 3
    assert "Entry 2 of the custody log is not what it was" in answer.err


def test_a_head_that_is_none_is_wrong_usage(logged: Scene) -> None:
    assert logged.run("audit", "verify", "--head", "latest").code == 2


def test_the_export_can_be_checked_with_nothing_but_sha256(logged: Scene) -> None:
    previous = "0" * 64
    lines = logged.run("audit", "export").out.splitlines()
    assert len(lines) == 3
    for line in lines:
        entry = json.loads(line)
        body = hashlib.sha256(entry["body"].encode()).hexdigest()
        assert entry["sha256"] == hashlib.sha256(f"{previous}\n{body}\n".encode()).hexdigest()
        previous = entry["sha256"]
    assert bytes.fromhex(json.loads(json.loads(lines[2])["body"])["path_hex"]) == b"c\xff"


def test_csv_has_a_row_for_each_entry_and_no_formulas(logged: Scene) -> None:
    rows = list(csv.DictReader(io.StringIO(logged.run("audit", "export", "--format", "csv").out)))
    assert [row["path"] for row in rows] == ["a", "'=b\\nc", "c\\xff"]
    assert {row["kind"] for row in rows} == {"parked"}
    assert json.loads(rows[0]["details"])["code"] == "permission-denied"
