"""What ``--json`` prints is what the description of the API says: one set of schemas for both, held by real output."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from quaymaster.service.api.openapi import SCHEMAS


def judged(name: str | dict[str, Any], answer: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}"} if isinstance(name, str) else name
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": {"schemas": SCHEMAS}, **schema}
    errors = [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in
              jsonschema_rs.validator_for(whole).iter_errors(answer.json)]  # fmt: skip
    assert not errors


@pytest.fixture
def full(scene):
    """A delivered, a parked, a waiting, a running and a queued file, one with a name that is no text."""
    scene.deliver(scene.enqueue(scene.land()))
    scene.park(scene.queue(b"parked \xff"))
    scene.start(scene.queue(b"running"))
    scene.queue(b"queued")
    return scene


def test_every_form_that_both_have(full) -> None:
    judged("Status", full.run("status", "--json"))
    jobs = SCHEMAS["Jobs"]
    judged({**jobs, "required": ["jobs", "more"]}, full.run("jobs", "--json"))
    for number in (1, 2, 3, 4):
        judged("JobInFull", full.run("jobs", str(number), "--json"))
    file = SCHEMAS["File"]["properties"]
    for name in (b"a.fastq", b"parked \xff", b"running", b"unknown", b""):
        judged(file["why"], full.run("why", bytes(full.watched) + b"/" + name, "--json"))
    judged(file["prove"], full.run("prove", f"{full.watched}/a.fastq", "--json"))
    for action in ("pause", "resume", "rescan"):
        judged("Steered", full.run(action, "--json"))


def test_the_schemas_tell_what_is_wrong(full) -> None:
    answer = full.run("status", "--json")
    broken = answer.out.replace('"oldest_open"', '"oldest"')
    assert broken != answer.out
    answer.out = broken
    with pytest.raises(AssertionError, match="oldest_open"):
        judged("Status", answer)
