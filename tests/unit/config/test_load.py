"""What the files say is what is in effect, and where it says so is known."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quaymaster.config import (
    BesideDestination,
    Compress,
    DirectoryDestination,
    Limits,
    S3Destination,
    Service,
    Watch,
    load,
    to_json,
    to_toml,
)
from quaymaster.config.machine import Machine

MIB, GIB = 1 << 20, 1 << 30

CONTRACT = """\
[service]
state_dir   = "/state"
staging_dir = "/staging"
[limits]
memory = "25%"
files  = 30
compress_threads = "auto"
[destination.archive]
type = "s3"
bucket = "lab-archive"
prefix = "raw/"
endpoint_url = "http://127.0.0.1:8333"
credentials = "archive"
tags = { project = "genomics", "cost centre" = "42" }
[destination.nas]
type = "directory"
path = "/mnt/nas/archive/"
[destination.beside]
type = "beside"
[watch.sequencer]
path = "/srv/sequencer"
include = ["*.fastq"]
settle = "5s"
compress = { format = "zstd", level = 19, min_size = "1MiB" }
destinations = ["archive", "nas"]
key = "{host}/{path}"
verify = "readback"
digests = ["sha256", "md5"]
after = "move:/srv/done"
stage = true
[watch.notes]
path = "/srv/notes"
compress = "gzip"
destinations = ["beside"]
"""

SMALLEST = '[destination.out]\ntype = "directory"\npath = "/out"\n[watch.in]\npath = "/in"\ndestinations = ["out"]\n'


def test_every_setting_arrives(site):
    config = site.load(CONTRACT)
    assert config.service == Service(state_dir="/state", staging_dir="/staging", host=socket.gethostname())
    assert config.limits == Limits(memory=2 * GIB, files=30, parts=8, compress_threads=3)
    assert config.destinations == {
        "archive": S3Destination(
            name="archive",
            bucket="lab-archive",
            prefix="raw/",
            endpoint_url="http://127.0.0.1:8333",
            credentials="archive",
            tags={"project": "genomics", "cost centre": "42"},
        ),
        "nas": DirectoryDestination(name="nas", path="/mnt/nas/archive"),
        "beside": BesideDestination(name="beside"),
    }
    assert config.watches == {
        "sequencer": Watch(
            name="sequencer",
            path="/srv/sequencer",
            include=("*.fastq",),
            settle=5.0,
            compress=Compress(format="zstd", level=19, min_size=MIB),
            destinations=("archive", "nas"),
            key="{host}/{path}",
            verify="readback",
            digests=("md5",),
            after="move",
            after_dir="/srv/done",
            stage=True,
        ),
        "notes": Watch(
            name="notes", path="/srv/notes", compress=Compress(format="gzip"), destinations=("beside",), key="{path}"
        ),
    }
    assert config.sources == (str(site.main),)
    assert not config.compression_disabled


def test_without_parallel_there_is_one_of_everything(site):
    limits = site.load('[limits]\nparallel = false\nfiles = 30\nmemory = "64MiB"\n' + SMALLEST).limits
    assert (limits.files, limits.parts, limits.compress_threads, limits.memory) == (1, 1, 1, 64 * MIB)


def test_the_defaults_are_those_of_the_product(site):
    config = site.load(SMALLEST)
    assert config.service.model_dump() == {
        "state_dir": "/var/lib/quaymaster",
        "staging_dir": "/var/cache/quaymaster",
        "host": socket.gethostname(),
        "stop_timeout": 30.0,
    }
    assert config.limits.model_dump() == {
        "memory": 2 * GIB,
        "files": 20,
        "parts": 8,
        "compress_threads": 3,
        "parallel": True,
        "bandwidth": {"default": None, "windows": ()},
        "staging": None,
        "staging_free": GIB,
    }
    assert config.watches["in"].model_dump() == {
        "name": "in",
        "path": "/in",
        "destinations": ("out",),
        "include": (),
        "exclude": (),
        "ignore": (),
        "mode": "auto",
        "poll_interval": 10.0,
        "rescan_interval": 900.0,
        "settle": None,
        "settle_closed": 1.0,
        "settle_per_gib": 0.0,
        "marker": None,
        "sentinel": None,
        "hang_after": 30.0,
        "fetchers": 1,
        "uploaders": 1,
        "priority": 0,
        "order": "oldest",
        "compress": None,
        "never_compress": (),
        "profile": None,
        "unit": None,
        "unit_depth": 1,
        "unit_pattern": None,
        "unit_complete": (),
        "unit_complete_any": (),
        "unit_idle": None,
        "unit_open_max": 3 * 86400.0,
        "upload": "file",
        "after_unit": True,
        "key": "{watch}/{path}",
        "verify": "checksum",
        "digests": (),
        "after": "keep",
        "after_dir": None,
        "after_grace": 0.0,
        "after_hooks": (),
        "on_change": "replace",
        "stage": None,
        "hard_links": False,
    }
    assert Compress(format="zstd").model_dump() == {
        "format": "zstd",
        "level": 6,
        "min_size": 10 * MIB,
        "timeout": 300.0,
    }
    assert S3Destination(name="s", bucket="lab").model_dump(exclude={"name", "type", "bucket"}, exclude_none=True) == {
        "prefix": "",
        "addressing": "auto",
        "part_size": 16 * MIB,
        "checksum": "sha256",
        "tags": {},
        "connect_timeout": 10.0,
        "read_timeout": 60.0,
        "bandwidth": {"windows": ()},
    }


@pytest.mark.parametrize("text", ['compress = "none"', "compress = false", 'settle = "auto"', 'stage = "auto"'])
def test_the_words_for_a_default(site, text):
    assert site.load(SMALLEST + text).watches["in"] == site.load(SMALLEST).watches["in"]


def test_compress_is_a_word_or_a_table(site):
    word = site.load(SMALLEST + 'compress = "zstd"')
    table = site.load(SMALLEST + '[watch.in.compress]\nformat = "zstd"\n')
    assert word.watches == table.watches
    assert word.digest == table.digest
    assert word.where("watch", "in", "compress", "format") == f"{site.main}:7"
    assert table.where("watch", "in", "compress", "format") == f"{site.main}:8"


@pytest.mark.parametrize(
    ("percent", "machine", "expected"),
    [("50%", 8 * GIB, 4 * GIB), ("12.5 %", 8 * GIB, GIB), ("100%", 3 * MIB * 100, 300 * MIB), ("1%", GIB, 16 * MIB)],
)
def test_memory_as_a_share(site, percent, machine, expected):
    site.write(SMALLEST + f'[limits]\nmemory = "{percent}"\n')
    assert load(str(site.main), {}, Machine(machine, 4)).limits.memory == expected


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (64, 4)])
def test_compress_threads_leave_half_the_processors(site, cpus, threads):
    site.write(SMALLEST)
    assert load(str(site.main), {}, Machine(GIB, cpus)).limits.compress_threads == threads


@pytest.mark.parametrize("value", ["true", "1", "yes", "on", "TRUE"])
def test_the_environment_turns_compression_off(site, value):
    config = site.load(CONTRACT, environ={"QUAYMASTER_DISABLE_COMPRESSION": value})
    assert config.compression_disabled
    assert config.digest != site.load(CONTRACT).digest
    assert "# QUAYMASTER_DISABLE_COMPRESSION is set: nothing is compressed" in to_toml(config)


@pytest.mark.parametrize("value", ["false", "0", "no", "off", ""])
def test_the_environment_leaves_compression_on(site, value):
    assert not site.load(CONTRACT, environ={"QUAYMASTER_DISABLE_COMPRESSION": value}).compression_disabled


def test_drop_ins_are_merged_in_the_order_of_their_names(site):
    config = site.load(
        CONTRACT,
        **{
            "20-b": "[limits]\nfiles = 7\n[watch.sequencer]\ninclude = ['*.bam']\n",
            "10-a": "[limits]\nfiles = 5\nparts = 2\n\n[watch.sequencer.compress]\nlevel = 3\n",
            ".hidden": "this is no TOML",
        },
    )
    watch = config.watches["sequencer"]
    assert (config.limits.files, config.limits.parts) == (7, 2)
    assert watch.include == ("*.bam",)  # replaced, not appended
    assert watch.compress == Compress(format="zstd", level=3, min_size=MIB)  # merged
    assert config.sources == (str(site.main), str(site.drop_in("10-a")), str(site.drop_in("20-b")))
    assert config.where("limits", "files") == f"{site.drop_in('20-b')}:2"
    assert config.where("limits", "parts") == f"{site.drop_in('10-a')}:3"
    assert config.where("limits", "memory") == f"{site.main}:5"
    assert config.where("watch", "sequencer", "compress", "level") == f"{site.drop_in('10-a')}:6"
    assert config.where("watch", "sequencer", "compress", "format") == f"{site.main}:24"


def test_a_value_replaces_a_table_with_all_that_was_in_it(site):
    config = site.load(CONTRACT, a='[watch.sequencer]\ncompress = "gzip"\n')
    assert config.watches["sequencer"].compress == Compress(format="gzip")
    assert config.where("watch", "sequencer", "compress", "level") == "default"


def test_only_drop_ins_describe_watches(site):
    assert site.load("# see conf.d\n", site=SMALLEST).watches.keys() == {"in"}


def test_a_file_with_a_byte_order_mark_and_windows_line_ends(site):
    config = site.load("\ufeff" + SMALLEST.replace("\n", "\r\n"))
    assert config.where("watch", "in", "path") == f"{site.main}:5"


def test_nothing_can_be_changed_afterwards(site):
    config = site.load(CONTRACT)
    for part in (config, config.service, config.limits, config.watches["notes"], config.destinations["nas"]):
        with pytest.raises(ValidationError, match="frozen"):
            part.__class__.__setattr__(part, next(iter(type(part).model_fields)), "x")


def test_the_digest_is_of_what_is_in_effect_not_of_the_text(site):
    plain = site.load(SMALLEST)
    assert len(plain.digest) == 64
    assert site.load("# a comment\n" + SMALLEST + 'verify = "checksum"\n').digest == plain.digest
    assert site.load(SMALLEST + 'verify = "readback"\n').digest != plain.digest
    assert site.load(SMALLEST + 'after = "move:/a"\n').digest != site.load(SMALLEST + 'after = "move:/b"\n').digest


def test_effective_names_every_key_and_its_origin(site):
    found = {key: (value, where) for key, value, where in site.load(CONTRACT).effective()}
    assert found["watch.sequencer.settle"] == (5.0, f"{site.main}:23")
    assert found["watch.sequencer.after"] == ("move:/srv/done", f"{site.main}:29")
    assert found["watch.sequencer.compress.level"] == (19, f"{site.main}:24")
    assert found["watch.sequencer.compress.timeout"] == (300.0, "default")
    assert found["destination.archive.region"] == (None, "default")
    assert not any(key.endswith((".name", ".after_dir")) for key in found)


def test_the_printed_configuration_loads_to_the_same(site, tmp_path):
    config = site.load(CONTRACT)
    text = to_toml(config)
    assert f"# read from {site.main}" in text
    again = site.load(text)
    assert again.digest == config.digest
    assert again.watches == config.watches
    assert again.destinations == config.destinations


def test_json_is_for_programs(site):
    found = json.loads(to_json(site.load(CONTRACT)))
    assert {"key": "limits.memory", "value": 2 * GIB, "where": f"{site.main}:5"} in found["settings"]
    assert found["compression_disabled"] is False


def test_the_printed_configuration_says_where_each_line_comes_from(site):
    lines = {line.split(" = ")[0]: line.rpartition("# ")[2] for line in to_toml(site.load(SMALLEST)).splitlines()}
    assert lines["path"] == f"{site.main}:5"
    assert lines["poll_interval"] == "default"
    assert "# marker is not set" in lines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_configuration_errors(site, data):
    problems = site.problems_if_any(data)
    assert problems != []
    assert all("\n" not in line for line in problems or ())


_VALUES = st.recursive(
    st.one_of(
        st.booleans(), st.integers(-(10**30), 10**30), st.text(max_size=12), st.sampled_from(["nan", "inf"]).map(float)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    sorted({*Service.model_fields, *Limits.model_fields, *S3Destination.model_fields, *Watch.model_fields, "zzz", ""})
)
_TABLE = st.dictionaries(_KEYS, _VALUES, max_size=6)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "service": st.one_of(_TABLE, _VALUES),
            "limits": _TABLE,
            "destination": st.one_of(
                _VALUES,
                st.dictionaries(
                    st.sampled_from(["a", "b", "é"]),
                    st.tuples(_TABLE, st.sampled_from(["s3", "directory", "beside", "x"])).map(
                        lambda pair: pair[0] | {"type": pair[1]}
                    ),
                    max_size=2,
                ),
            ),
            "watch": st.one_of(_VALUES, st.dictionaries(st.sampled_from(["a", "b", "\n"]), _TABLE, max_size=2)),
        },
    )
)
def test_no_values_raise_anything_but_configuration_errors(site, tables):
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in tables.items()) or "x = 1"
    problems = site.problems_if_any(text)
    assert problems != []
    assert all("\n" not in line and line.startswith(f"{site.main}:") for line in problems or ())
