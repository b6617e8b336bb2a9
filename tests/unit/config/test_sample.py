"""The configuration that is shipped works, shows every setting, and tells the truth about defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quaymaster.config import (
    BesideDestination,
    Compress,
    DirectoryDestination,
    Hook,
    Limits,
    Mirror,
    S3Destination,
    Service,
    Watch,
)

SAMPLE = Path(__file__).parents[3] / "etc" / "quaymaster.toml"


@pytest.fixture
def shipped() -> str:
    return SAMPLE.read_text()


@pytest.fixture
def uncommented(shipped) -> str:
    return re.sub(r"(?m)^#(?=[a-z_]+ = |\[)", "", shipped)


def test_it_loads_as_shipped(site, shipped):
    assert site.load(shipped).watches.keys() == {"incoming"}


def test_it_loads_with_everything_uncommented(site, uncommented):
    config = site.load(uncommented)
    assert config.watches.keys() == {"incoming", "sequencer"}
    assert {destination.type for destination in config.destinations.values()} == {"directory", "s3", "beside"}
    assert config.mirrors.keys() == {"models"}
    assert config.watches["sequencer"].compress == Compress(format="zstd")


def test_what_it_calls_a_default_is_one(site, shipped, uncommented):
    examples = set()
    for comment, key in re.findall(r"((?:^# .*\n)+)#?([a-z_]+) = ", shipped, re.MULTILINE):
        if "(example" in comment:
            examples.add(key)
    assert {"host", "marker", "region"} <= examples
    before, after = site.load(shipped), site.load(uncommented)
    for old, new in (
        (before.service, after.service),
        (before.limits, after.limits),
        (before.watches["incoming"], after.watches["incoming"]),
        (S3Destination(name="bucket", bucket="lab-archive"), after.destinations["bucket"]),
        (Mirror(name="models", source="bucket", path="/srv/models"), after.mirrors["models"]),
    ):
        assert old.model_dump(exclude=examples) == new.model_dump(exclude=examples)


def test_every_setting_is_in_it(shipped):
    shown = set(re.findall(r"(?m)^#?([a-z_]+) = ", shipped))
    tables = (Service, Limits, S3Destination, DirectoryDestination, BesideDestination)
    models = (*tables, Watch, Compress, Hook, Mirror)
    assert {name for model in models for name in model.model_fields} - {"name", "after_dir"} <= shown
