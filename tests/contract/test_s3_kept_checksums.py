"""What a server keeps of objects that other programs put there proves their bytes: when they are read, when they are
mirrored, and when a file here is compared with them (PRODUCT M1, I2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.places import PART, S3Place
from quaymaster.config import Mirror
from quaymaster.config.bandwidth import Bandwidth
from quaymaster.destinations import checksums
from quaymaster.destinations.s3 import S3
from quaymaster.errors import IntegrityError
from quaymaster.mirror.download import Download
from quaymaster.mirror.plan import Listed, tag_of
from quaymaster.mirror.release import Ground
from quaymaster.model import FileVersion, Identity, Job, State, Stored
from quaymaster.pipeline.bandwidth import Meter, Traffic
from quaymaster.pipeline.budget import Pool
from quaymaster.pipeline.etag import Told
from servers.faultproxy import FaultProxy, Request, Response, flip
from servers.seaweed import Seaweed

KEY = "m/1/model.bin"
CONTENT = {"one piece": random.Random(1).randbytes(100_000), "parts": random.Random(2).randbytes(2 * PART + 9)}
WHOLE = [("one piece", name) for name in ("CRC64NVME", "CRC32C", "CRC32", "SHA1", "SHA256")]
WHOLE += [("parts", name) for name in ("CRC64NVME", "CRC32C", "CRC32")]
"""Of SHA-1 and SHA-256 of an object in parts, a server keeps no more than the digest of the parts' digests."""


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.http_endpoint) as between:
        yield between


@pytest.fixture(params=WHOLE, ids=lambda case: " ".join(case))
def case(request: pytest.FixtureRequest, s3: S3Place) -> tuple[bytes, str]:
    """The content of an object of somebody else, of which the server keeps one checksum of the whole."""
    form, algorithm = request.param
    put(s3, CONTENT[form], algorithm, parts=form == "parts")
    return CONTENT[form], algorithm


def put(s3: S3Place, content: bytes, algorithm: str, *, parts: bool, whole: bool = True) -> None:
    where = {"Bucket": s3.settings.bucket, "Key": s3.settings.prefix + KEY}
    if not parts:
        s3.client.put_object(**where, Body=content, ChecksumAlgorithm=algorithm)
        return
    kind = "FULL_OBJECT" if whole else "COMPOSITE"
    begun = s3.client.create_multipart_upload(**where, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    upload = {**where, "UploadId": begun["UploadId"]}
    done = []
    for number, at in enumerate(range(0, len(content), PART), start=1):
        part = s3.client.upload_part(
            **upload, PartNumber=number, Body=content[at : at + PART], ChecksumAlgorithm=algorithm
        )
        sums = {name: value for name, value in part.items() if name == f"Checksum{algorithm}"}
        done.append({"PartNumber": number, "ETag": part["ETag"], **(sums if kind == "COMPOSITE" else {})})
    s3.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})


def held(destination: S3) -> Stored:
    found = destination.stat(KEY)
    assert found is not None
    return found


def damage(request: Request, response: Response) -> None:
    response.body = flip(response.body)


def test_its_checksum_is_told_and_computed_from_its_bytes(s3: S3Place, case: tuple[bytes, str]) -> None:
    content, algorithm = case
    stored = held(s3.make())
    running = checksums.of_whole(stored.checksum)
    assert running is not None
    running.update(content[:70_000])
    running.update(memoryview(content)[70_000:])
    assert f"{algorithm}:{running.text()}" == stored.checksum
    assert running.evidence == algorithm.lower()


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_bit_that_flips_while_it_is_read_is_noticed(
    s3: S3Place, proxy: FaultProxy, case: tuple[bytes, str], at_once: int
) -> None:
    far = s3.with_settings(endpoint_url=proxy.endpoint)
    with far.read(held(far), at_once) as pieces:
        assert b"".join(pieces) == case[0]
    proxy.inject("GetObject", response=damage)
    with pytest.raises(IntegrityError, match="other bytes than are stored"), far.read(held(far), at_once) as pieces:
        b"".join(pieces)


@pytest.fixture
def download(s3: S3Place, proxy: FaultProxy, tmp_path: Path) -> Callable[[], tuple[bytes, str]]:
    """The mirrored file's content, and what proved it."""
    far = s3.with_settings(endpoint_url=proxy.endpoint)
    mirror = Mirror(name="models", source="store", path=str(tmp_path), disk_free="1MiB", trust_etag=False)
    bounds = SimpleNamespace(memory=Pool(1 << 30), traffic=Traffic(Meter(Bandwidth())))
    ground = Ground(str(tmp_path), "models", lambda: "token", lambda: 1e9)

    def run() -> tuple[bytes, str]:
        stored = held(far)
        tag = tag_of(stored.etag, stored.size)
        version = FileVersion("models", KEY.encode(), Identity(tag, stored.size, 0))
        job = Job(7, version, State.RUNNING, None, 0, 0, None, "", "", 0.0, None, None)
        work = Download(mirror, far, ground, bounds, lambda: False, "boot", 1 << 20)  # type: ignore[arg-type]
        done, _ = work.run(job, Listed(KEY.encode(), stored, tag), lambda *_: None)
        return (tmp_path / ".qm-mirror-models/objects/7.file").read_bytes(), done.evidence

    return run


def test_a_mirror_takes_it_by_its_checksum_and_never_with_a_bit_flipped(
    proxy: FaultProxy, case: tuple[bytes, str], download: Callable[[], tuple[bytes, str]]
) -> None:
    content, algorithm = case
    proxy.inject("GetObject", response=damage)
    with pytest.raises(IntegrityError, match="arrived with"):
        download()
    assert download() == (content, algorithm.lower())


def test_of_the_parts_checksums_the_bytes_cannot_be_told(
    s3: S3Place, download: Callable[[], tuple[bytes, str]]
) -> None:
    """They are proven by the parts' MD5s, as far as the size of the parts can be guessed."""
    for algorithm in ("CRC32", "SHA256"):
        put(s3, CONTENT["parts"], algorithm, parts=True, whole=False)
        stored = held(s3.make())
        assert stored.checksum.endswith("-3")
        assert checksums.of_whole(stored.checksum) is None
        assert download() == (CONTENT["parts"], "etag-md5-parts")


def test_a_file_here_is_recognised_by_a_checksum_that_tells_enough(s3: S3Place, case: tuple[bytes, str]) -> None:
    """One of 32 bits does not: the ETag is asked, then."""
    content, algorithm = case
    told = Told.by(held(s3.make()))
    assert told is not None
    evidence = told.compare(iter([content, b""]).__next__)[1]
    weak = "etag-md5-parts" if len(content) > PART else "etag-md5"
    assert evidence == (algorithm.lower() if algorithm in ("CRC64NVME", "SHA1", "SHA256") else weak)
    assert told.compare(iter([flip(content), b""]).__next__)[1] == ""
