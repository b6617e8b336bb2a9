"""Listing a destination: every object of users, whatever its name, and nothing else; all or an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from contract.places import DirectoryPlace, Keys, Place, S3Place, bytes_of, deliver
from quaymaster.destinations.base import OWN, Put
from quaymaster.errors import DestinationMissing, Unreachable
from quaymaster.errors import PermissionDenied as Denied
from quaymaster.keys import escape
from servers.faultproxy import FaultProxy, Request, Reset, Response, unavailable
from servers.pages import Pages
from servers.seaweed import Seaweed


@dataclass(frozen=True)
class Wrong(Keys):
    secret_key: str = "another"


_TOKENS = {False: "1000", True: "2000"}
"""Of a page in the middle of a listing, as Pages gives them."""

NAMES = ["a", "run/b", "run/deep/er/c", "run2/d", "with space/é ü", escape(b"not\xffutf8/new\nline"), "q%25/&<>'\"+"]


def test_every_name_comes_back(place: Place) -> None:
    destination = place.make()
    put = {name: deliver(destination, name, bytes_of(number + 1)) for number, name in enumerate(NAMES)}
    found = {stored.key: stored for stored in destination.listing()}
    assert set(found) == set(NAMES)
    for name, stored in put.items():
        assert (found[name].size, found[name].etag) == (stored.size, stored.etag)
        assert found[name].mtime > 0


@pytest.mark.parametrize("beginning", ["", "run", "run/", "run/deep", "run/deep/er/c", "with space/", "nothing/"])
def test_a_prefix_is_of_characters_not_of_folders(place: Place, beginning: str) -> None:
    destination = place.make()
    for name in NAMES:
        deliver(destination, name, b"x")
    assert {stored.key for stored in destination.listing(beginning)} == {
        name for name in NAMES if name.startswith(beginning)
    }


def test_what_is_ours_alone_or_unfinished_is_left_out(place: Place) -> None:
    destination = place.make()
    deliver(destination, "a", b"x")
    deliver(destination, f"{OWN}custody/host/1", b"head")
    upload = destination.begin(Put("b", 20 << 20))
    upload.write(bytes_of(6 << 20))
    assert [stored.key for stored in destination.listing()] == ["a"]
    assert [stored.key for stored in destination.listing(f"{OWN}custody/")] == [f"{OWN}custody/host/1"]
    upload.abort()


def test_thousands_are_listed_in_pages(s3: S3Place) -> None:
    names = [f"n{number:05d}" for number in range(1_203)]
    for name in names:
        s3.overwrite(name, b"")
    assert sorted(stored.key for stored in s3.make().listing("n")) == names


def test_a_listing_that_breaks_off_is_an_error(s3: S3Place, seaweed: Seaweed) -> None:
    s3.overwrite("a", b"x")
    with FaultProxy(seaweed.http_endpoint) as proxy:
        destination = s3.with_settings(endpoint_url=proxy.endpoint)
        proxy.inject("*", request=unavailable(0), times=100)
        with pytest.raises(Unreachable):
            list(destination.listing())


def test_both_ways_to_a_bucket_list_and_look_the_same(s3: S3Place) -> None:
    """Without the AWS library where the key pair is configured, with it elsewhere."""
    for number, name in enumerate(NAMES):
        deliver(s3.make(), name, bytes_of(number + 1), metadata={"quaymaster-note": "é %"})
    plain, library = s3.make(), s3.with_settings(credentials=None)
    listed = sorted(plain.listing(), key=lambda stored: stored.key)
    assert listed == sorted(library.listing(), key=lambda stored: stored.key)
    assert [stored.key for stored in listed] == sorted(NAMES)
    for name in [*NAMES, "nothing"]:
        assert plain.stat(name) == library.stat(name)
    assert plain.stat("q%25/&<>'\"+") is not None


@pytest.mark.parametrize("way", ["plain", "library"])
@pytest.mark.parametrize(
    ("bucket", "credentials", "error"), [("nowhere", Keys, DestinationMissing), (None, Wrong, Denied)]
)
def test_no_bucket_and_no_access_are_told_apart_from_nothing_there(
    s3: S3Place, way: str, bucket: str | None, credentials: type[Keys], error: type[Exception]
) -> None:
    named = {"credentials": "archive" if way == "plain" else None, "bucket": bucket or s3.settings.bucket}
    destination = s3.make(settings=replace(s3.settings, **named), credentials=credentials)
    with pytest.raises(error):
        list(destination.listing())
    with pytest.raises(error):
        destination.stat("a")


def cut(request: Request, response: Response) -> None:
    response.body = response.body[: len(response.body) * 2 // 3]


def error_inside(request: Request, response: Response) -> None:
    response.body = b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"


def without_token(request: Request, response: Response) -> None:
    response.body = re.sub(rb"<NextContinuationToken>.*</NextContinuationToken>", b"", response.body)


def reset(request: Request, response: Response) -> None:
    response.cut = 0.5


def failed(request: Request, response: Response) -> None:
    response.status, response.body = 500, b""


@pytest.mark.parametrize("fault", [cut, error_inside, without_token, reset, failed])
def test_a_listing_cut_off_in_the_middle_is_an_outage_and_never_an_end(
    s3: S3Place, fault: Callable[[Request, Response], None]
) -> None:
    with Pages(5_000) as server, FaultProxy(server.endpoint) as proxy:
        destination = s3.with_settings(endpoint_url=proxy.endpoint, prefix="")
        assert len(list(destination.listing())) == 5_000
        last = fault is not without_token  # the last page has none
        proxy.inject("*", response=fault, times=99, only=lambda r: r.query.get("continuation-token") == [_TOKENS[last]])
        found = []
        with pytest.raises(Unreachable):
            found.extend(stored.key for stored in destination.listing())
        assert 0 < len(found) < 5_000


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(s3: S3Place, seaweed: Seaweed) -> None:
    s3.overwrite("a", b"x")
    with FaultProxy(seaweed.http_endpoint) as proxy:
        destination = s3.with_settings(endpoint_url=proxy.endpoint)
        assert destination.stat("a") is not None
        proxy.inject("HeadObject", request=hang_up)
        assert destination.stat("a") is not None


def hang_up(request: Request) -> None:
    raise Reset


def test_a_long_listing_stays_within_bounds_of_memory() -> None:
    """Whatever the number of keys: pages are fetched ahead of who looks at them, but only so many."""
    few, many = (grown(number) for number in (20_000, 120_000))
    print(f"resident: {few >> 20} MiB more for 20,000 keys, {many >> 20} MiB more for 120,000")
    assert many < few + (8 << 20)


@pytest.mark.soak
def test_a_million_keys_stay_within_bounds_of_memory() -> None:
    few, many = (grown(number) for number in (20_000, 1_000_000))
    print(f"resident: {few >> 20} MiB more for 20,000 keys, {many >> 20} MiB more for 1,000,000")
    assert many < few + (8 << 20)


_LISTS = """
import re, sys, time
from contract.places import Keys, Settings
from quaymaster.destinations.s3 import S3
import http.client
def peak():
    # Not ru_maxrss, which an exec inherits from whoever forked.
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
before = peak()
settings = Settings(prefix="", endpoint_url=sys.argv[1])
number = 0
for stored in S3(settings, credentials=Keys, emit=print).listing():
    number += 1
    if number == 1:
        time.sleep(0.5)  # who looks is slower than the server
assert number == int(sys.argv[2]), number
print(peak() - before)
"""


def grown(number: int) -> int:
    """Bytes by which a process grows that lists so many keys."""
    with Pages(number) as server:
        done = subprocess.run(
            [sys.executable, "-c", _LISTS, server.endpoint, str(number)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_directory_that_is_gone_is_an_error_not_an_empty_listing(ext4: DirectoryPlace) -> None:
    os.rmdir(ext4.path)
    with pytest.raises(DestinationMissing):
        list(ext4.make().listing())


def test_links_lead_nowhere(ext4: DirectoryPlace) -> None:
    os.makedirs(f"{ext4.path}/real")
    os.symlink("/etc", f"{ext4.path}/elsewhere")
    os.symlink("/etc/passwd", f"{ext4.path}/real/passwd")
    deliver(ext4.make(), "real/a", b"x")
    assert [stored.key for stored in ext4.make().listing()] == ["real/a"]
