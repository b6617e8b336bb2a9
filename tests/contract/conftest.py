"""The places that the contract is held against: two local filesystems, and a real S3 server with and without TLS."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing

import pytest

from contract.places import BUCKET, AskedPlace, DirectoryPlace, Place, S3Place, Settings
from servers.seaweed import Seaweed
from servers.tls import Authority


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    directory = tmp_path_factory.mktemp("seaweed")
    with Seaweed(directory / "data", Authority(str(directory / "tls"))) as server:
        server.make_bucket(BUCKET)
        yield server
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return hashlib.sha256(f"{os.getpid()} {request.node.nodeid}".encode()).hexdigest()[:16] + "/"


@pytest.fixture
def s3(seaweed: Seaweed, prefix: str) -> Iterator[S3Place]:
    with closing(S3Place(seaweed, Settings(prefix, seaweed.http_endpoint))) as place:
        yield place


@pytest.fixture
def s3_tls(seaweed: Seaweed, prefix: str) -> Iterator[S3Place]:
    assert seaweed.tls is not None
    settings = Settings(prefix, seaweed.endpoint, ca_bundle=seaweed.tls.ca_file)
    with closing(S3Place(seaweed, settings)) as place:
        yield place


@pytest.fixture
def s3_crc(seaweed: Seaweed, prefix: str) -> Iterator[S3Place]:
    """With bytes followed by CRC-64/NVME."""
    with closing(S3Place(seaweed, Settings(prefix, seaweed.http_endpoint, checksum="crc64nvme"))) as place:
        yield place


@pytest.fixture
def ext4(tmp_path_factory: pytest.TempPathFactory) -> DirectoryPlace:
    return DirectoryPlace(str(tmp_path_factory.mktemp("destination")))


@pytest.fixture
def tmpfs() -> Iterator[DirectoryPlace]:
    path = tempfile.mkdtemp(dir="/dev/shm")
    yield DirectoryPlace(path)
    shutil.rmtree(path)


@pytest.fixture
def asked(tmp_path_factory: pytest.TempPathFactory) -> AskedPlace:
    return AskedPlace(str(tmp_path_factory.mktemp("destination")))


@pytest.fixture(params=["ext4", "tmpfs", "asked", "s3", "s3_tls", "s3_crc"])
def place(request: pytest.FixtureRequest) -> Place:
    chosen: Place = request.getfixturevalue(request.param)
    return chosen
