"""``quaymaster prove``: the proof is printed whole, and any contradiction in it is found."""

from __future__ import annotations

import os
import sqlite3

import pytest

from quaymaster.model import State
from quaymaster.store.custody import link


@pytest.fixture
def delivered(scene):
    scene.deliver(scene.enqueue(scene.land()), disposal="deleted")
    (scene.watched / "a.fastq").unlink()
    return scene


def prove(scene, *more: str):
    return scene.run("prove", f"{scene.watched}/a.fastq", *more)


def edit(scene, statement: str) -> None:
    """What somebody with a database tool could do."""
    connection = sqlite3.connect(scene.state / "quaymaster.db")
    with connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()


def test_everything_that_proves_a_delivery_is_printed_though_the_file_is_gone(delivered) -> None:
    answer = prove(delivered)
    assert (answer.code, answer.err) == (0, "")
    facts = dict(
        line.strip().split("  ", 1)
        for line in answer.out.splitlines()
        if line.startswith("  ") and "  " in line.strip()
    )
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["source size"] == "400 bytes"
    assert facts["source sha256"] == "4e9ce95e0e54c0dfd58915e69b673a3700406c300e7b6cf377192fb29d14b952"
    assert facts["source md5"] == "ab" * 16
    assert facts["compression"] == "zstd"
    assert facts["destination"] == "archive"
    assert facts["key"] == "sequencer/a.fastq.zst"
    assert facts["stored size"] == "200 bytes"
    assert facts["stored sha256"].startswith("f310dc90")
    assert (facts["etag"], facts["version"], facts["checksum"]) == ("12:34", "v1", "sha256:00ff")
    assert facts["evidence"] == "readback"
    assert facts["delivered"].startswith("2023-11-14T")
    assert facts["source after"].startswith("deleted 20")
    for entry in delivered.store.history(delivered.job(1)):
        assert f"  {entry.seq} {entry.sha256} {entry.body}\n" in answer.out


def test_json_holds_the_chain_byte_for_byte(delivered) -> None:
    body = prove(delivered, "--json").json
    assert body["fault"] == ""
    (delivery,) = body["deliveries"]
    assert delivery["sha256"] == "4e9ce95e0e54c0dfd58915e69b673a3700406c300e7b6cf377192fb29d14b952"
    assert delivery["evidence"] == "readback"
    first, second = body["custody"]
    assert first["sha256"] == link("0" * 64, first["body"])
    assert second["sha256"] == link(first["sha256"], second["body"])


def test_every_version_of_a_file_has_its_proof(scene) -> None:
    scene.deliver(scene.enqueue(scene.land()))
    scene.deliver(scene.enqueue(scene.land(content=b"GATTACA")), content=b"GATTACA")
    out = prove(scene).out
    assert "delivery 1 of 2 (job 1)" in out
    assert "delivery 2 of 2 (job 2)" in out
    assert out.count("replaced since by a newer version") == 1


def test_a_newer_version_that_is_not_delivered_is_told(scene) -> None:
    scene.deliver(scene.enqueue(scene.land()))
    scene.park(scene.enqueue(scene.land(content=b"GATTACA")))
    answer = prove(scene)
    assert answer.code == 0
    assert "note: its newest version is parked" in answer.out


def test_a_file_that_was_not_delivered_has_no_proof_but_a_state(scene) -> None:
    scene.fail(scene.queue(), State.WAITING, "unreachable", "nobody answers", retry_at=1e10)
    answer = prove(scene)
    assert answer.code == 1
    assert answer.out == ""
    assert "a.fastq has not been delivered; it is waiting until 2286-11-20" in answer.err
    assert "nobody answers" in answer.err
    body = prove(scene, "--json")
    assert (body.code, body.json["deliveries"], body.json["jobs"][0]["state"]) == (1, [], "waiting")


def test_an_unknown_file_and_the_watch_itself_have_no_proof(scene) -> None:
    answer = prove(scene)
    assert (answer.code, answer.out) == (1, "")
    assert "has not been delivered; it is not in the queue" in answer.err
    answer = scene.run("prove", str(scene.watched))
    assert answer.code == 1
    assert "is the directory of the watch sequencer. Name a file" in answer.err


def test_a_directory_does_not_borrow_the_proofs_of_its_files(scene) -> None:
    scene.deliver(scene.enqueue(scene.land(b"run/a.fastq")))
    assert scene.run("prove", f"{scene.watched}/run").code == 1


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE custody SET body = replace(body, '\"size\":400', '\"size\":401') WHERE seq = 1", "broken at entry 1"),
        ("UPDATE custody SET sha256 = lower(hex(zeroblob(32))) WHERE seq = 2", "broken at entry 2"),
        ("DELETE FROM custody WHERE seq = 1", "broken at entry 1"),
        ("UPDATE ledger SET source_sha256 = lower(hex(zeroblob(32)))", "is not what the custody log says"),
        ("UPDATE ledger SET key = 'elsewhere'", "is not what the custody log says"),
    ],
)
def test_any_edit_of_the_records_makes_exit_code_3(delivered, statement: str, said: str) -> None:
    assert prove(delivered).code == 0
    edit(delivered, statement)
    answer = prove(delivered)
    assert answer.code == 3
    assert said in answer.err
    assert prove(delivered, "--json").json["fault"]


def test_a_break_elsewhere_in_the_log_is_found_too(delivered) -> None:
    delivered.store.note("service-started", {"version": "1"})
    edit(delivered, "UPDATE custody SET body = replace(body, '1', '2') WHERE seq = 3")
    answer = prove(delivered)
    assert answer.code == 3
    assert "broken at entry 3" in answer.err


def test_names_that_are_no_text_have_their_proof(scene) -> None:
    name = b"\xff\n\x1b[2J"
    scene.deliver(scene.enqueue(scene.land(name)))
    answer = scene.run("prove", os.path.join(os.fsencode(scene.watched), name))
    assert answer.code == 0
    assert "\\xff\\n\\x1b[2J (watch sequencer)" in answer.out
    assert all(c == "\n" or c.isprintable() for c in answer.out)
