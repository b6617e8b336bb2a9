"""Listing a destination: every object of users, whatever its name, and nothing else; all or an error."""

from __future__ import annotations

import os

import pytest

from contract.places import DirectoryPlace, Place, S3Place, bytes_of, deliver
from quaymaster.destinations.base import OWN, Put
from quaymaster.errors import DestinationMissing, Unreachable
from quaymaster.keys import escape
from servers.faultproxy import FaultProxy, unavailable
from servers.seaweed import Seaweed

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
