"""[mirror.NAME], and a mirror that the environment configures (PRODUCT M1, S5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from quaymaster.config import load
from quaymaster.errors import ConfigError

BUCKET = """
[destination.store]
type = "s3"
bucket = "models"
[destination.folder]
type = "directory"
path = "/srv/copies"
"""
WATCH = '[watch.incoming]\npath = "/srv/in"\ndestinations = ["store"]\n'


def problems(tmp_path: Path, mirror: str, more: str = "") -> list[str]:
    file = tmp_path / "q.toml"
    file.write_text(f"{BUCKET}{more}[mirror.models]\n{mirror}\n")
    try:
        load(str(file), {})
    except ConfigError as error:
        return [problem.removeprefix(str(tmp_path)) for problem in error.problems]
    return []


def test_a_configuration_of_mirrors_alone_is_one(tmp_path: Path) -> None:
    assert problems(tmp_path, 'source = "store"\npath = "/srv/models"') == []


@pytest.mark.parametrize(
    ("mirror", "said"),
    [
        ('path = "/m"', "[mirror.models] source: is missing; write"),
        ('path = "/m"\nsource = "stor"', "did you mean store?"),
        ('path = "/m"\nsource = "folder"', "is no bucket"),
        ('path = "/m"\nsource = "store"\nlayuot = "name"', "did you mean layout?"),
        ('path = "/m"\nsource = "store"\nlayout = "flat"', '"name/version" or "name"'),
        ('path = "/m"\nsource = "store"\nmarker = "a/b"', "is not a file name"),
        ('path = "/m"\nsource = "store"\nprefix = "../x"', "prefix"),
        ('path = "/m"\nsource = "store"\novms_url = "http://h:1"', "[mirror.models] ovms_url: is used only with"),
        ('path = "/m"\nsource = "store"\nlayout = "name"\novms_config = "/c.json"', "] ovms_config: of OpenVINO"),
        ('path = "/m"\nsource = "store"\non_release = ["echo"]', "is no absolute path"),
        ('path = "/m"\nsource = "store"\nkeep_versions = 0', "too small"),
        ('path = "/srv/in/models"\nsource = "store"', "lies inside the directory of incoming"),
        ('path = "/srv"\nsource = "store"', "the directory of incoming lies inside"),
        ('path = "/srv/copies/x"\nsource = "store"', "lies inside the directory of folder"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(tmp_path: Path, mirror: str, said: str) -> None:
    found = problems(tmp_path, mirror, WATCH)
    assert any(said in line for line in found), found
    assert all(line.startswith("/q.toml:") for line in found)


def test_names_are_of_a_watch_or_of_a_mirror(tmp_path: Path) -> None:
    found = problems(tmp_path, 'path = "/m"\nsource = "store"', WATCH.replace("incoming", "models"))
    assert any("there is a watch models too" in line for line in found)


def test_the_environment_alone_configures_a_mirror() -> None:
    given = {
        "QUAYMASTER_MIRROR_BUCKET": "models", "QUAYMASTER_MIRROR_ENDPOINT_URL": "https://s3.example.org",
        "QUAYMASTER_MIRROR_KEEP_VERSIONS": "3", "QUAYMASTER_MIRROR_REQUIRE_PROOF": "true",
        "QUAYMASTER_MIRROR_EXCLUDE": '["*.md"]', "QUAYMASTER_MIRROR_INTERVAL": "5s", "QUAYMASTER_STATE_DIR": "/state",
        "QUAYMASTER_MIRROR_PREFIX": "prod", "PATH": "/bin",
    }  # fmt: skip
    config = load("/does/not/exist.toml", given)
    mirror = config.mirrors["mirror"]
    assert (mirror.path, mirror.prefix, mirror.keep_versions, mirror.require_proof) == ("/models", "prod", 3, True)
    assert (mirror.exclude, mirror.interval, config.service.state_dir) == (("*.md",), 5.0, "/state")
    source = config.destinations[mirror.source]
    assert source.type == "s3"
    assert source.endpoint_url == "https://s3.example.org"


def test_a_wrong_variable_is_named() -> None:
    given = {"QUAYMASTER_MIRROR_BUCKET": "models", "QUAYMASTER_MIRROR_KEEP_VERSION": "3"}
    with pytest.raises(ConfigError) as caught:
        load("/does/not/exist.toml", given)
    (line,) = caught.value.problems
    assert line.startswith("environment variable QUAYMASTER_MIRROR_KEEP_VERSION: [mirror.mirror] keep_version: ")
    assert "did you mean keep_versions?" in line
