"""``quaymaster sync`` and ``quaymaster report``: one pass, with a configuration or without, beside the service and
beside another pass, against a real S3 server and directories (PRODUCT I1-I5)."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from quaymaster.model import State
from quaymaster.service.lock import Lock
from quaymaster.store.db import FILE_NAME
from servers.faultproxy import FaultProxy, Request, Response, flip
from system.bucket import Bucket
from system.conftest import Home, quoted
from system.faulty_filesystem import FaultyFilesystem, reason_to_skip
from system.service import COMMAND, Service, until

Serve = Callable[..., Service]
MIB = 1 << 20
NAMES = [b"plain.bin", b"run/deep/a b.txt", b"not\xffutf8", b"new\nline", b"empty", b"q%25.bin", b"run/x\\y", b"-0"]


class Pass:
    """Calls ``quaymaster sync`` as a person does, with everything below the test's folder."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.endpoint = ""
        """Instead of the bucket's own."""
        self.config = home.folder / "quaymaster.toml"
        self.environment = {**os.environ, "STATE_DIRECTORY": str(home.folder / "own"), "LC_ALL": "C.UTF-8"}
        self.environment["XDG_CACHE_HOME"] = str(home.folder / "cache")

    def configure(self, text: str) -> None:
        self.config.write_text(text)

    def start(self, *arguments: str | bytes, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, "sync", *arguments], env=self.environment | {"QUAYMASTER_CONFIG": str(self.config)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=more.pop("stdin", subprocess.DEVNULL), **more,
        )  # fmt: skip

    def text(self, *arguments: str | bytes, given: bytes = b"") -> tuple[int, str, str]:
        process = self.start(*arguments, stdin=subprocess.PIPE)
        out, err = process.communicate(given, timeout=120)
        return process.returncode, out.decode(), err.decode()

    def __call__(self, *arguments: str | bytes, given: bytes = b"") -> tuple[int, dict[str, Any]]:
        code, out, err = self.text(*arguments, "--json", given=given)
        assert out, err
        found: dict[str, Any] = json.loads(out)
        print(code, {key: value for key, value in found.items() if value}, err)
        assert "Traceback" not in err
        return code, found

    def bare(self, bucket: Bucket, *arguments: str) -> tuple[int, dict[str, Any]]:
        return self(*self.to(bucket), *arguments)

    def to(self, bucket: Bucket) -> list[str]:
        """DIR and TARGET."""
        target = f"s3://{bucket.name}/{bucket.prefix}"
        return [
            str(self.home.landing), target, "--endpoint-url", self.endpoint or bucket.endpoint,
            "--credentials", bucket.credentials
        ]  # fmt: skip


@pytest.fixture
def sync(home: Home) -> Pass:
    return Pass(home)


def land(home: Home, contents: Mapping[bytes, bytes]) -> None:
    """Files that nobody has touched for an hour."""
    for name, content in contents.items():
        old(home.land(name, content))


def old(path: bytes | str | Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))


def odd(size: int = 3_000) -> dict[bytes, bytes]:
    return {name: name * (size // len(name)) for name in NAMES} | {b"empty": b""}


def counts(found: Mapping[str, Any]) -> dict[str, int]:
    names = ("sent", "adopted", "skipped", "left", "writing", "failed")
    return {name: found[name] for name in names if found[name]}


def content_moved(proxy: FaultProxy) -> list[tuple[str, str]]:
    """Requests that carry the bytes of users' objects."""
    moving = [seen for seen in proxy.seen if seen[0] in ("PutObject", "UploadPart", "GetObject")]
    return [(what, path) for what, path in moving if path.count("/") > 1 and "/.quaymaster-" not in path]


def setting(home: Home, watch: str = "", destinations: str = "") -> str:
    return home.config(watch, destinations)


# -- one pass --


def test_a_directory_is_brought_up_to_date_in_a_bucket_without_any_configuration(
    home: Home, sync: Pass, bucket: Bucket
) -> None:
    contents = odd() | {b"large.bin": random.Random(1).randbytes(20 * MIB)}
    land(home, contents)
    code, found = sync.bare(bucket, "--dry-run")
    assert (code, found["steps"] != [], bucket.objects(own=True)) == (0, True, {}), "a dry run touched the bucket"
    assert not (home.folder / "own").exists(), "a dry run touched the state directory"
    with FaultProxy(bucket.endpoint) as proxy:
        sync.endpoint = proxy.endpoint
        code, found = sync.bare(bucket)
        assert (code, counts(found)) == (0, {"sent": len(contents)})
        total = sum(map(len, contents.values()))
        assert (found["files"], found["bytes_in"], found["bytes_out"]) == (len(contents), total, total)
        assert sum(bucket.objects().values()) == total
        assert bucket.content("large.bin") == contents[b"large.bin"]
        assert bucket.content("not%FFutf8") == contents[b"not\xffutf8"]
        before = len(proxy.seen)
        code, found = sync.bare(bucket)
        assert (code, counts(found)) == (0, {"skipped": len(contents)})
        assert proxy.seen[before:] == [], "the ledger alone tells that nothing has changed"
        old(home.land("plain.bin", b"another"))
        code, found = sync.bare(bucket)
        assert (code, counts(found)) == (0, {"sent": 1, "skipped": len(contents) - 1})
        assert bucket.content("plain.bin") == b"another"


def test_a_watch_is_brought_up_to_date_compressed_and_in_every_destination(
    home: Home, sync: Pass, bucket: Bucket
) -> None:
    watch = 'destinations = ["archive", "far"]\ncompress = { format = "zstd", level = 1, min_size = "4KiB" }'
    directory = f'[destination.archive]\ntype = "directory"\npath = {quoted(home.archive)}\n'
    sync.configure(setting(home, watch, directory + bucket.destination("far")))
    land(home, {b"reads.fastq": b"ACGT" * 50_000, b"small": b"x"})
    code, found = sync("landing")
    assert (code, counts(found)) == (0, {"sent": 2})
    assert sorted(home.arrived()) == [b"reads.fastq.zst", b"small"]
    assert sorted(bucket.objects()) == ["reads.fastq.zst", "small"]
    assert found["bytes_out"] == 2 * (bucket.objects()["reads.fastq.zst"] + 1)
    assert found["ratio"] == pytest.approx(2 * 200_001 / found["bytes_out"])
    assert {"scan", "compare", "send"} <= set(found["stages"])
    code, out, _ = sync.text()
    assert (code, "2 unchanged" in out) == (0, True)


def test_lists_types_and_names_with_every_byte_narrow_it(home: Home, sync: Pass) -> None:
    sync.configure(setting(home))
    land(home, odd() | {b"a.fastq": b"1", b"a.vcf": b"2", b"run/b.txt": b"3", b"run/c.vcf": b"4"})
    listed = [b"new\nline", b"not\xffutf8", os.fsencode(home.landing) + b"/empty", b"nobody", b"run"]
    code, found = sync("landing", "--files-from", "-", "-0", given=b"\0".join(listed) + b"\0")
    assert (code, counts(found)) == (1, {"sent": 3, "failed": 2})
    assert sorted(home.arrived()) == [b"empty", b"new\nline", b"not\xffutf8"]
    texts = sorted(failure["text"] for failure in found["failures"])
    assert texts[0].endswith("landing/nobody does not exist")
    assert "run is a directory: name it with --dirs-from" in texts[1]
    code, found = sync("landing", "--type", "fastq", "txt", "--dry-run")
    assert (code, sorted(os.path.basename(step["path"]) for step in found["steps"])) == (
        0,
        ["a b.txt", "a.fastq", "b.txt"],
    )
    (home.folder / "list").write_bytes(b"run\nrun/deep\n")
    code, found = sync("landing", "--dirs-from", str(home.folder / "list"), "--type", "vcf,txt")
    assert (code, counts(found)) == (0, {"sent": 3})
    assert {b"run/b.txt", b"run/c.vcf", b"run/deep/a b.txt"} <= set(home.arrived())
    assert b"run/x\\y" not in home.arrived()


def test_what_is_still_being_written_is_counted_and_left(home: Home, sync: Pass) -> None:
    sync.configure(setting(home, 'settle = "60s"'))
    land(home, {b"whole": b"1", b"open": b"2"})
    home.land("fresh", b"3")
    with open(home.landing / "open", "ab"):
        old(home.landing / "open")
        code, found = sync("landing")
    assert (code, counts(found)) == (1, {"sent": 1, "writing": 2})
    assert home.arrived() == {b"whole": b"1"}


def test_force_sends_again_and_replaces_its_own_object_only(home: Home, sync: Pass, bucket: Bucket) -> None:
    sync.configure(setting(home, "", bucket.destination()))
    land(home, {b"a": b"1", b"b": b"2"})
    assert sync("landing")[0] == 0
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "b", Body=b"somebody else's")
    with FaultProxy(bucket.endpoint) as proxy:
        sync.configure(setting(home, "", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        code, found = sync("landing", "--force")
        puts = [path for operation, path in proxy.seen if operation == "PutObject" and path.endswith("/a")]
    assert (code, counts(found)) == (1, {"sent": 1, "failed": 1})
    assert (len(puts), found["failures"][0]["code"]) == (1, "conflict")
    assert bucket.content("b") == b"somebody else's"
    assert sync("landing")[1]["failed"] == 1, "a parked file is tried again, and stays a failure"


def test_the_staging_space_is_reckoned_before_anything_is_touched(home: Home, sync: Pass) -> None:
    free = shutil.disk_usage(home.folder).free
    sync.configure(setting(home, "stage = true").replace('"1MiB"', f'"{free - 50 * MIB}B"'))
    with open(home.land("huge", b""), "r+b") as file:
        file.truncate(200 * MIB)
    old(home.landing / "huge")
    code, _, err = sync.text("landing")
    assert (code, "staging may need 209,715,200 bytes at once" in err, "limits.staging" in err) == (1, True, True), err
    assert home.arrived() == {}
    service = Service(sync.config.read_text(), home.folder)
    assert service.jobs() == [], "something was queued"


# -- what is there already --


def multipart(bucket: Bucket, key: str, content: bytes, part: int) -> None:
    """As another program does it, without any metadata."""
    client, where = bucket.client, {"Bucket": bucket.name, "Key": bucket.prefix + key}
    number = client.create_multipart_upload(**where)["UploadId"]
    parts = []
    for index, start in enumerate(range(0, len(content), part), 1):
        answer = client.upload_part(**where, UploadId=number, PartNumber=index, Body=content[start : start + part])
        parts.append({"PartNumber": index, "ETag": answer["ETag"]})
    client.complete_multipart_upload(**where, UploadId=number, MultipartUpload={"Parts": parts})


def test_what_another_program_put_there_is_adopted_and_not_sent_again(home: Home, sync: Pass, bucket: Bucket) -> None:
    contents = odd() | {b"large.bin": random.Random(2).randbytes(20 * MIB)}
    land(home, contents)
    for name, content in contents.items():
        key = name.decode("utf-8", "surrogateescape")
        key = {"not\udcffutf8": "not%FFutf8", "new\nline": "new%0Aline", "q%25.bin": "q%2525.bin"}.get(key, key)
        key = key.replace("\\", "%5C")
        if name == b"large.bin":
            multipart(bucket, key, content, 8 * MIB)
        else:
            bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + key, Body=content)
    with FaultProxy(bucket.endpoint) as proxy:
        sync.configure(setting(home, "", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        code, found = sync("landing")
        assert (code, counts(found)) == (0, {"adopted": len(contents)})
        assert content_moved(proxy) == []
        service = Service(sync.config.read_text(), home.folder)
        assert service.cli("verify")[0] == 0
        assert sync("landing")[1]["skipped"] == len(contents)
    for name, content in contents.items():
        (delivery,) = service.deliveries(name)
        assert delivery.proof.source.sha256 == hashlib.sha256(content).hexdigest()
    evidence = {service.deliveries(name)[0].proof.stored.evidence for name in contents}
    assert evidence <= {"etag-md5", "etag-md5-parts", "sha256"}
    assert service.deliveries(b"large.bin")[0].proof.stored.evidence == "etag-md5-parts"


@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
@pytest.mark.parametrize("failing", ["fsync", "fsyncdir"])
@pytest.mark.parametrize("name", ["reads.fastq", "reads.fastq.gz"])
def test_a_copy_of_another_program_counts_only_when_it_is_on_the_disk(
    home: Home, sync: Pass, failing: str, name: str
) -> None:
    """Its source may be removed next; a power cut must not take the copy."""
    content = b"ACGT" * 50_000
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        home.archive = filesystem.seen
        sync.configure(setting(home, 'compress = "gzip"' if name.endswith(".gz") else ""))
        land(home, {b"reads.fastq": content})
        (home.archive / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        filesystem.fail(**{failing: "EIO"})
        code, found = sync("landing")
        assert (code, found.get("adopted", 0)) == (1, 0)
        filesystem.fail()
        shutil.rmtree(home.folder / "state")  # it is compared anew, not sent
        code, found = sync("landing")
        assert (code, counts(found)) == (0, {"adopted": 1})


def test_an_object_that_is_another_one_is_a_conflict_and_stays(home: Home, sync: Pass, bucket: Bucket) -> None:
    sync.configure(setting(home, "", bucket.destination()))
    land(home, {b"longer": b"ours", b"same-size": b"ours", b"free": b"ours"})
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "longer", Body=b"theirs, longer")
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "same-size", Body=b"them")
    for _ in range(2):
        code, found = sync("landing")
        assert (code, found["failed"], found["sent"] + found["skipped"]) == (1, 2, 1)
        assert {failure["code"] for failure in found["failures"]} == {"conflict"}
    assert bucket.content("longer") == b"theirs, longer"
    assert bucket.content("same-size") == b"them"


def test_an_object_changed_by_somebody_else_is_never_overwritten(home: Home, sync: Pass, bucket: Bucket) -> None:
    sync.configure(setting(home, "", bucket.destination()))
    land(home, {b"a": b"first"})
    assert sync("landing")[0] == 0
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "a", Body=b"theirs")
    old(home.land("a", b"second version"))
    code, found = sync("landing")
    assert (code, counts(found), found["failures"][0]["code"]) == (1, {"failed": 1}, "conflict")
    assert bucket.content("a") == b"theirs"


def test_with_a_lost_state_directory_nothing_is_uploaded_again(home: Home, sync: Pass, bucket: Bucket) -> None:
    contents = odd() | {f"many/{n}".encode(): os.urandom(100 + n) for n in range(60)}
    contents[b"large.bin"] = random.Random(3).randbytes(12 * MIB)
    contents[b"reads.fastq"] = b"ACGT" * 100_000
    more = 'compress = { format = "gzip", level = 1, min_size = "64KiB" }'
    land(home, contents)
    sync.configure(setting(home, more, bucket.destination()))
    assert sync("landing")[0] == 0
    shutil.rmtree(home.folder / "state")
    with FaultProxy(bucket.endpoint) as proxy:
        sync.configure(setting(home, more, bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        code, found = sync("landing")
        assert (code, counts(found)) == (0, {"adopted": len(contents)})
        assert len([path for operation, path in proxy.seen if path.strip("/") == bucket.name]) == 1, "one listing"
        assert content_moved(proxy) == []
    service = Service(sync.config.read_text(), home.folder)
    assert service.deliveries(b"reads.fastq")[0].proof.compression == "gzip"


def test_a_database_lost_alone_is_an_error_that_names_rebuild(home: Home, sync: Pass) -> None:
    sync.configure(setting(home))
    land(home, {b"a": b"1"})
    assert sync("landing")[0] == 0
    for path in (home.folder / "state").glob("quaymaster.db*"):
        path.unlink()
    code, _, err = sync.text("landing")
    assert (code, "quaymaster rebuild" in err) == (1, True)
    assert subprocess.run([*COMMAND, "rebuild", "--config", sync.config], capture_output=True).returncode == 0
    assert counts(sync("landing")[1]) == {"skipped": 1}


# -- what goes wrong --


def test_keys_that_are_refused_fail_alone(home: Home, sync: Pass, bucket: Bucket) -> None:
    land(home, {b"good": b"1", b"secret": b"2"})
    with FaultProxy(bucket.endpoint) as proxy:
        sync.configure(setting(home, "", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        denied = Response(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        proxy.inject("PutObject", request=lambda _: denied, times=99, only=lambda r: r.path.endswith("/secret"))
        code, found = sync("landing")
    assert (code, counts(found)) == (1, {"sent": 1, "failed": 1})
    assert found["failures"][0]["code"] == "permission-denied"
    sync.configure(setting(home, "", bucket.destination()))
    assert counts(sync("landing")[1]) == {"sent": 1, "skipped": 1}


def test_a_destination_that_does_not_answer_fails_for_now_and_stays_queued(home: Home, sync: Pass) -> None:
    home.archive.rename(home.folder / "away")
    sync.configure(setting(home))
    land(home, {b"a": b"1"})
    code, found = sync("landing")
    assert (code, counts(found)) == (1, {"failed": 1})
    (home.folder / "away").rename(home.archive)
    assert counts(sync("landing")[1]) == {"sent": 1}


def test_files_that_cannot_be_read_fail_alone(home: Home, sync: Pass) -> None:
    sync.configure(setting(home))
    land(home, {b"good": b"1", b"linked": b"2"})
    os.link(home.landing / "linked", home.folder / "elsewhere")
    home.landing.chmod(0o777)  # others may have made the link
    os.symlink("good", home.landing / "link")
    code, found = sync("landing")
    assert (code, counts(found)) == (1, {"sent": 1, "failed": 1})
    assert "hard links" in found["failures"][0]["text"]


def test_wrong_calls_say_what_is_wrong(home: Home, sync: Pass) -> None:
    sync.configure(setting(home))
    for arguments, said in [
        (["nobody"], "There is no watch nobody"),
        ([str(home.landing), str(home.folder / "nowhere")], "is no directory"),
        ([str(home.landing), str(home.landing)], "it would take its own copies"),
        ([str(home.landing), "s3://"], "is not a bucket name"),
        (["landing", "--compress", "zstd"], "is for a directory without a configuration"),
        (["landing", "--files-from", "/nowhere"], "cannot be read"),
        (["landing", str(home.archive), "x"], "too many places"),
    ]:
        code, _, err = sync.text(*arguments)
        assert (code, said in err, "Traceback" in err) == (2, True, False), (arguments, err)


def test_bytes_that_arrive_as_others_end_with_their_own_status(home: Home, sync: Pass, bucket: Bucket) -> None:
    land(home, {b"good": b"1" * 1_000, b"damaged": b"2" * 1_000})

    def damage(request: Request) -> None:
        request.body = flip(request.body)

    with FaultProxy(bucket.endpoint) as proxy:
        sync.configure(setting(home, "", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        proxy.inject("PutObject", request=damage, times=99, only=lambda r: r.path.endswith("/damaged"))
        code, found = sync("landing")
    assert (code, counts(found)) == (3, {"sent": 1, "failed": 1})
    assert found["failures"][0]["code"] == "integrity"
    assert sorted(bucket.objects()) == ["good"]


DENIED = Response(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")


def test_objects_that_may_not_be_looked_at_fail_alone_and_are_no_conflict(
    home: Home, sync: Pass, bucket: Bucket
) -> None:
    contents = {f"{n:02}".encode(): b"%02d" % n * 50 for n in range(40)}
    land(home, contents)
    for name, content in contents.items():
        bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + name.decode(), Body=content)
    with FaultProxy(bucket.endpoint) as proxy:
        sync.configure(setting(home, "", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        proxy.inject("HeadObject", request=lambda _: DENIED, times=9999, only=lambda r: r.path.endswith("/07"))
        code, found = sync("landing")
        assert (code, counts(found)) == (1, {"adopted": 39, "failed": 1})
        assert found["failures"][0]["code"] == "permission-denied", "nobody knows whether it is another one"
        proxy.clear()
        code, found = sync("landing")
        assert (code, found["failed"], found["skipped"]) == (0, 0, 39), "recognised by who sends it"
    assert {name: bucket.content(name.decode()) for name in contents} == contents


@pytest.mark.parametrize("files", [3, 40])
def test_a_prefix_that_may_not_be_listed_is_never_an_empty_one(
    home: Home, sync: Pass, bucket: Bucket, files: int
) -> None:
    """Few files are asked about one by one, many by a listing."""
    contents = {f"{n:02}".encode(): b"%02d" % n * 50 for n in range(files)}
    land(home, contents)
    for name, content in contents.items():
        bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + name.decode(), Body=content)
    before = bucket.objects()
    with FaultProxy(bucket.endpoint) as proxy:
        sync.configure(setting(home, "", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        looks = ("HeadObject",) if files == 3 else ("GetObject",)
        for operation in looks:
            proxy.inject(operation, request=lambda _: DENIED, times=9999, only=lambda r: "versioning" not in r.query)
        code, found = sync("landing", "--dry-run")
        assert (code, counts(found), found["steps"]) == (1, {"failed": 1}, [])
        assert "archive cannot be looked at" in found["failures"][0]["text"]
        sync("landing")
    assert bucket.objects() == before
    assert {name: bucket.content(name.decode()) for name in contents} == contents


def test_a_watch_that_goes_away_in_the_middle_fails_and_the_rest_goes_when_it_is_back(
    home: Home, sync: Pass, bucket: Bucket
) -> None:
    contents = {f"{n:02}.bin".encode(): random.Random(n).randbytes(200_000) for n in range(30)}
    land(home, contents)
    away = home.folder / "elsewhere"
    gone: list[str] = []

    def go(request: Request) -> None:
        if not gone:
            gone.append(request.path)
            home.landing.rename(away)

    with FaultProxy(bucket.endpoint) as proxy:
        sync.configure(setting(home, "", bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")))
        proxy.inject("PutObject", request=go, times=99, only=lambda r: "/.quaymaster-" not in r.path)
        code, found = sync("landing", "--workers", "2")
    assert (code, found["sent"] + found["failed"]) == (1, len(contents)), found["failures"][:3]
    assert {failure["code"] for failure in found["failures"]} <= {"source-unavailable", "source-vanished"}
    assert found["failed"] >= len(contents) - 6
    away.rename(home.landing)
    sync.configure(setting(home, "", bucket.destination()))
    code, after = sync("landing")
    assert (code, after["failed"]) == (0, 0)
    assert {key: bucket.content(key) for key in bucket.objects()} == {n.decode(): c for n, c in contents.items()}


def test_copies_beside_their_sources_are_made_once_and_recognised_without_the_ledger(home: Home, sync: Pass) -> None:
    more = 'compress = { format = "zstd", level = 1, min_size = "4KiB" }'
    beside = '[destination.archive]\ntype = "beside"\n'
    contents = {f"run/{n:02}.fastq".encode(): b"ACGT" * 5_000 + b"%d" % n for n in range(40)} | {b"small": b"x"}
    land(home, contents)
    sync.configure(setting(home, more, beside))
    code, found = sync("landing", "--dry-run")
    assert (code, len(found["steps"])) == (0, len(contents))
    code, found = sync("landing")
    assert (code, counts(found)) == (0, {"sent": 40, "left": 1})
    names = sorted(path.name for path in (home.landing / "run").iterdir())
    assert names == sorted(f"{n:02}.fastq{end}" for n in range(40) for end in ("", ".zst"))
    assert counts(sync("landing")[1]) == {"skipped": len(contents) + 40}
    shutil.rmtree(home.folder / "state")
    for path in (home.landing / "run").iterdir():
        old(path)
    code, found = sync("landing")
    assert found["adopted"] == 40, counts(found)
    assert sorted(path.name for path in (home.landing / "run").iterdir())[:2] == ["00.fastq", "00.fastq.zst"]
    assert {os.fsencode(path.name): path.read_bytes() for path in home.landing.glob("small*")} == {b"small": b"x"}


@pytest.mark.parametrize("days", [2, -2])
def test_a_clock_that_is_days_off_neither_sends_again_nor_leaves_out(home: Home, sync: Pass, days: int) -> None:
    land(home, odd())
    sync.configure(setting(home))
    clock = home.folder / "clock"

    def at(offset: float) -> tuple[int, dict[str, int]]:
        clock.write_text(str(offset))
        tests = str(Path(__file__).parent.parent)
        done = subprocess.run(
            [sys.executable, "-m", "system.clock_jumps", str(clock), "sync", "landing", "--json"],
            env=sync.environment | {"QUAYMASTER_CONFIG": str(sync.config), "PYTHONPATH": tests},
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr
        return done.returncode, counts(json.loads(done.stdout))

    assert at(days * 86_400) == (0, {"sent": len(NAMES)})
    assert at(0) == (0, {"skipped": len(NAMES)})
    assert at(-days * 86_400) == (0, {"skipped": len(NAMES)})
    old(home.land("plain.bin", b"another"))
    assert at(-days * 86_400) == (0, {"sent": 1, "skipped": len(NAMES) - 1})
    shutil.rmtree(home.folder / "state")
    assert at(days * 86_400) == (0, {"adopted": len(NAMES)})
    assert home.arrived() == odd() | {b"plain.bin": b"another"}


def test_a_listed_path_that_is_under_no_watch_is_one_failure_and_the_others_go(home: Home, sync: Pass) -> None:
    other = home.folder / "other"
    other.mkdir()
    second = f'[watch.second]\npath = {quoted(other)}\ndestinations = ["archive"]\nsettle = "0.4s"\n'
    sync.configure(setting(home) + second)
    land(home, {b"good": b"1"})
    listed = [os.fsencode(home.landing) + b"/good", b"/nowhere/new\nline\xff", os.fsencode(other) + b"/there"]
    old_one = other / "there"
    old_one.write_bytes(b"2")
    old(old_one)
    code, found = sync("landing", "--files-from", "-", "-0", given=b"\0".join(listed))
    assert (code, counts(found)) == (1, {"sent": 1, "failed": 2})
    assert {failure["code"] for failure in found["failures"]} == {"not-watched"}
    assert "is under no watch" in found["failures"][0]["text"]
    assert "is not in watch landing" in found["failures"][1]["text"]
    code, found = sync("--files-from", "-", "-0", given=b"\0".join(listed))
    assert (code, counts(found)) == (1, {"sent": 1, "skipped": 1, "failed": 1})
    assert sorted(home.arrived()) == [b"good", b"second/there"]


# -- at the same time --


def test_broken_off_in_the_middle_it_goes_on_where_it_stopped(home: Home, sync: Pass, bucket: Bucket) -> None:
    contents = {f"{n:02}.bin".encode(): random.Random(n).randbytes(6 * MIB) for n in range(12)}
    land(home, contents)
    sync.configure(setting(home, "", bucket.destination()))
    process = sync.start("landing", "--workers", "2")
    until(lambda: len(bucket.objects()) >= 2, what="two files sent")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, b"Traceback" in err) == (130, False)
    assert err.endswith(b"interrupted: the same command goes on where it stopped\n")
    before = len(bucket.objects())
    assert before < len(contents)
    code, found = sync("landing")
    assert (code, found["sent"] + found["skipped"]) == (0, len(contents))
    assert found["sent"] >= len(contents) - before - 2
    assert {key: hashlib.sha256(bucket.content(key)).digest() for key in bucket.objects()} == {
        name.decode(): hashlib.sha256(content).digest() for name, content in contents.items()
    }
    assert (bucket.uploads(), home.leftovers()) == ([], [])


@contextmanager
def halted(home: Home, service: Service) -> Iterator[None]:
    """The service stands still, but not in the middle of a commit. Anything else that is mounted on this machine makes
    it scan, however rarely it was told to."""

    def stands_still() -> bool:
        os.kill(service.pid, signal.SIGSTOP)
        try:
            with closing(sqlite3.connect(home.folder / "state" / FILE_NAME, timeout=0, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(service.pid, signal.SIGCONT)
            return False
        return True

    until(stands_still, what="it commits nothing")
    try:
        yield
    finally:
        os.kill(service.pid, signal.SIGCONT)


def test_next_to_the_service_it_follows_what_the_service_sends(home: Home, serve: Serve, sync: Pass) -> None:
    service = serve(setting(home, 'mode = "poll"\npoll_interval = "1h"\nrescan_interval = "1h"'))
    until(lambda: service.watch()["state"] == "watching", what="the first scan is over")
    with halted(home, service):
        land(home, odd())
        process = sync.start("landing")
        assert process.stderr is not None
        told = next(line for line in process.stderr if b"in the hands" in line)
    assert f"in the hands of process {service.pid}" in told.decode()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, b"%d sent" % len(NAMES) in out) == (0, True), out + err
    assert service.states()[State.DONE] == len(NAMES)
    service.stop()
    assert counts(sync("landing")[1]) == {"skipped": len(NAMES)}


def test_when_the_service_ends_it_takes_its_place(home: Home, serve: Serve, sync: Pass, bucket: Bucket) -> None:
    broken = True
    with FaultProxy(bucket.endpoint) as proxy:
        far = bucket.destination(more=f"endpoint_url = {quoted(proxy.endpoint)}")
        service = serve(setting(home, 'mode = "poll"\npoll_interval = "1h"\nrescan_interval = "1h"', far))
        until(lambda: service.watch()["state"] == "watching", what="the first scan is over")
        proxy.inject("PutObject", request=lambda _: Response(503), times=9999, only=lambda _: broken)
        land(home, odd())
        process = sync.start("landing", "--patience", "100")
        until(lambda: service.jobs(states=(State.WAITING,)), what="a file has failed")
        service.stop()
        broken = False
        _, err = process.communicate(timeout=60)
    assert (process.returncode, b"goes on in its place" in err) == (0, True), err
    assert len(bucket.objects()) == len(NAMES)


def test_two_passes_at_once_send_each_file_once(home: Home, sync: Pass) -> None:
    contents = {f"{n}".encode(): random.Random(n).randbytes(200_000) for n in range(120)}
    land(home, contents)
    sync.configure(setting(home))
    both = [sync.start("landing", "--json", "--workers", "2") for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    found = [json.loads(out) for out, _ in answers]
    for one in found:
        assert one["sent"] + one["skipped"] + one["adopted"] == len(contents), counts(one)
    assert home.arrived() == contents
    service = Service(sync.config.read_text(), home.folder)
    assert all(len(service.deliveries(name)) == 1 for name in contents)


def test_a_pass_waits_for_the_database_of_one_that_has_only_just_begun(home: Home, sync: Pass) -> None:
    land(home, odd())
    state = home.folder / "state"
    state.mkdir(mode=0o700)
    sync.configure(setting(home))
    other = Lock(str(state))
    second = sync.start("landing", "--json")
    time.sleep(1)
    assert second.poll() is None
    other.release()  # it ended without having made one
    out, err = second.communicate(timeout=60)
    assert (second.returncode, json.loads(out)["sent"]) == (0, len(NAMES)), err


# -- report --


def test_report_tells_each_directorys_state_and_what_would_be_saved(home: Home, sync: Pass) -> None:
    import gzip

    packed = gzip.compress(b"ACGT" * 100)
    land(home, {
        b"all/a.fastq.gz": packed, b"none/a.txt": b"1", b"none/fake.gz": b"no gzip", b"both/a.vcf": b"1",
        b"both/a.vcf.gz": packed, b"mixed/a.txt": b"1", b"mixed/b.txt.gz": packed, b"big/r.fastq": b"ACGT" * 2_000,
        b"both/.x.part": b"left out",
    })  # fmt: skip
    sync.configure(setting(home, 'compress = { format = "gzip", min_size = "1KiB" }'))
    run = [*COMMAND, "report", "--config", str(sync.config), "--json"]
    done = subprocess.run(run, capture_output=True, check=True)
    found = json.loads(done.stdout)
    by_name = {os.path.basename(one["path"]): one for one in found["directories"]}
    assert {name: one["standing"] for name, one in by_name.items()} == {
        "all": "ALL_COMPRESSED", "none": "ALL_UNCOMPRESSED", "both": "ALL_BOTH", "mixed": "MIXED",
        "big": "ALL_UNCOMPRESSED",
    }  # fmt: skip
    assert (by_name["none"]["uncompressed"], by_name["none"]["uncompressed_bytes"]) == (2, 8)
    assert by_name["big"]["would_save"] == found["would_save"] == 6_000  # 4:1 assumed
    assert sync("landing")[0] == 0
    seen = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)["would_save"]
    assert 6_000 < seen < 8_000, "now by the ratio that was seen"
    people = subprocess.run([*COMMAND, "report", str(home.landing)], capture_output=True, text=True, check=True)
    assert "1 ALL_BOTH, 1 ALL_COMPRESSED, 2 ALL_UNCOMPRESSED, 1 MIXED" in people.stdout
