"""What arrives expands, with the stock tools, to exactly what landed: everywhere, in every form (PRODUCT P1 to P9)."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import stat
from collections.abc import Callable

import pytest
import zstandard

from bench.data import MIB, csv, fastq, json_lines, make, noise
from quaymaster.model import Compression
from servers.seaweed import Seaweed
from system.bucket import Bucket
from system.conftest import Home, quoted
from system.evidence import expanded_sha256, file_sha256, sha256
from system.service import Service, until

Serve = Callable[..., Service]

SMALL = {"run1/reads.txt": b"ACGT" * 1000, "empty": b"", "a b/\N{SNOWMAN}.txt": b"snow" * 9}
SUFFIXES = {"zstd": ".zst", "gzip": ".gz"}


def compressing(form: str) -> str:
    """Everything above 1 MiB, quickly."""
    return f'compress = {{ format = "{form}", level = 1, min_size = "1MiB" }}'


def land_of_every_kind(home: Home) -> dict[str, str]:
    """Small files, one to compress, and one of several parts even when compressed: path -> SHA-256."""
    for name, content in SMALL.items():
        home.land(name, content)
    make(home.landing / "run1/large.fastq", fastq, 24 * MIB)
    make(home.landing / "measured.csv", csv, 3 * MIB)
    return {name: file_sha256(home.landing / name) for name in [*SMALL, "run1/large.fastq", "measured.csv"]}


@pytest.mark.parametrize("form", ["none", "zstd", "gzip"])
def test_a_directory_gets_every_byte(home: Home, serve: Serve, form: str) -> None:
    expected = land_of_every_kind(home)
    os.chmod(home.landing / "measured.csv", 0o640)
    service = serve(home.config(compressing(form) if form != "none" else ""))
    service.until_done(len(expected))
    suffix = SUFFIXES.get(form, "")
    for name, digest in expected.items():
        copy = home.archive / (name + (suffix if name not in SMALL else ""))
        assert expanded_sha256(copy) == digest
        source = (home.landing / name).stat()
        assert copy.stat().st_mtime_ns == source.st_mtime_ns
        assert stat.S_IMODE(copy.stat().st_mode) == stat.S_IMODE(source.st_mode)
    assert len(home.arrived()) == len(expected)
    assert not home.leftovers()
    service.stop()


@pytest.mark.parametrize(("form", "tls"), [("none", True), ("zstd", False), ("gzip", True)])
def test_a_bucket_gets_every_byte_and_says_whose_they_are(
    home: Home, serve: Serve, bucket: Bucket, seaweed: Seaweed, form: str, tls: bool
) -> None:
    assert seaweed.tls is not None
    secure = f"endpoint_url = {quoted(seaweed.endpoint)}\nca_bundle = {quoted(seaweed.tls.ca_file)}" if tls else ""
    watch = compressing(form) if form != "none" else ""
    service = serve(home.config(watch, bucket.destination(more=secure)))
    expected = land_of_every_kind(home)
    service.until_done(len(expected))
    suffix = SUFFIXES.get(form, "")
    copies = {name + (suffix if name not in SMALL else ""): name for name in expected}
    assert set(bucket.objects()) == set(copies)
    for key, name in copies.items():
        copy = home.folder / "back" / key
        copy.parent.mkdir(parents=True, exist_ok=True)
        bucket.download(key, copy)
        assert expanded_sha256(copy) == expected[name]
        source = (home.landing / name).stat()
        assert bucket.metadata(key) == {
            "quaymaster-sha256": expected[name],
            "quaymaster-size": str(source.st_size),
            "quaymaster-mtime": str(source.st_mtime_ns),
            "quaymaster-mode": "0644",
            "quaymaster-compression": form if name not in SMALL else "none",
        }
        (delivery,) = service.deliveries(name)
        assert delivery.proof.source.sha256 == expected[name]
        assert delivery.proof.stored_digests.sha256 == file_sha256(copy)
    assert bucket.uploads() == []
    service.stop()


def test_without_trust_in_its_authority_nothing_is_sent(
    home: Home, serve: Serve, bucket: Bucket, seaweed: Seaweed
) -> None:
    service = serve(home.config("", bucket.destination(more=f"endpoint_url = {quoted(seaweed.endpoint)}")))
    home.land("secret", b"not for everybody")
    (job,) = until(lambda: [job for job in service.jobs() if job.error_code])
    assert "certificate" in job.error.lower()
    assert bucket.objects(own=True) == {}


def test_beside_its_source(home: Home, serve: Serve) -> None:
    """PRODUCT P9. The copies are not taken for new files, neither now nor after a restart."""
    config = home.config(f'destinations = ["beside"]\n{compressing("zstd")}', '[destination.beside]\ntype = "beside"\n')
    service = serve(config)
    make(home.landing / "deep.fastq", fastq, 3 * MIB)
    home.land("small.txt", b"stays as it is")
    service.until_done(2)
    service.stop()
    service.start()
    home.land("later.txt", b"so that the first scan is over when this is done")
    service.until_done(3)
    assert sorted(os.listdir(home.landing)) == ["deep.fastq", "deep.fastq.zst", "later.txt", "small.txt"]
    assert expanded_sha256(home.landing / "deep.fastq.zst") == file_sha256(home.landing / "deep.fastq")
    assert sorted(job.version.path for job in service.jobs()) == [b"deep.fastq", b"later.txt", b"small.txt"]
    service.stop()


@pytest.mark.parametrize("form", ["zstd", "gzip"])
def test_compression_begins_above_exactly_ten_mebibytes(home: Home, serve: Serve, form: str) -> None:
    service = serve(home.config(f'compress = "{form}"'))
    text = b"".join(piece for _, piece in zip(range(14), csv(), strict=False))
    limit = 10 * MIB
    home.land("at-limit.csv", text[:limit])
    home.land("above.csv", text[: limit + 1])
    service.until_done(2)
    assert set(home.arrived()) == {b"at-limit.csv", b"above.csv" + SUFFIXES[form].encode()}
    assert (home.archive / "at-limit.csv").stat().st_size == limit
    assert expanded_sha256(home.archive / f"above.csv{SUFFIXES[form]}") == sha256(text[: limit + 1])
    (delivery,) = service.deliveries("at-limit.csv")
    assert delivery.proof.compression is Compression.NONE
    assert str(limit) in delivery.proof.compression_note
    service.stop()


def test_what_is_compressed_already_goes_as_it_is_and_the_record_says_why(home: Home, serve: Serve) -> None:
    service = serve(home.config(compressing("zstd")))
    reads = b"".join(piece for _, piece in zip(range(8), json_lines(), strict=False))
    files = {
        "log.json.gz": (gzip.compress(reads, 1, mtime=0), "gzip"),
        "log.json.zst": (zstandard.ZstdCompressor(level=1).compress(reads), "zstd"),
        "noise.bin": (b"".join(piece for _, piece in zip(range(2), noise(), strict=False)), "does not compress"),
        "photo.jpg": (b"\xff\xd8\xff\xe0" + bytes(2 * MIB), "JPEG"),
    }
    for name, (content, _) in files.items():
        assert len(content) > MIB
        home.land(name, content)
    service.until_done(len(files))
    assert home.arrived() == {name.encode(): content for name, (content, _) in files.items()}
    for name, (_, why) in files.items():
        code, proof = service.cli("prove", str(home.landing / name))
        assert code == 0
        (delivery,) = proof["deliveries"]
        assert delivery["compression"] == "none"
        assert why in delivery["compression_note"]
    service.stop()


def test_one_variable_turns_compression_off_everywhere(home: Home, serve: Serve) -> None:
    service = serve(home.config(compressing("zstd")), QUAYMASTER_DISABLE_COMPRESSION="true")
    make(home.landing / "reads.fastq", fastq, 2 * MIB)
    service.until_done(1)
    assert list(home.arrived()) == [b"reads.fastq"]
    assert file_sha256(home.archive / "reads.fastq") == file_sha256(home.landing / "reads.fastq")
    service.stop()


def test_read_back_and_digests_for_older_records(home: Home, serve: Serve, bucket: Bucket) -> None:
    watch = f'verify = "readback"\ndigests = ["md5", "sha1", "blake2b"]\n{compressing("gzip")}'
    service = serve(home.config(watch, bucket.destination()))
    small, large = b"old records" * 100, home.landing / "large.fastq"
    home.land("small", small)
    make(large, fastq, 30 * MIB)  # about 6 MiB compressed: two parts
    service.until_done(2)
    for name, content in (("small", small), ("large.fastq", large.read_bytes())):
        (delivery,) = service.deliveries(name)
        proof = delivery.proof
        assert "readback" in proof.stored.evidence
        stored = bucket.content(proof.stored.key)
        for digests, data in ((proof.source, content), (proof.stored_digests, stored)):
            assert digests.sha256 == sha256(data)
            assert dict(digests.others) == {
                name: hashlib.new(name, data).hexdigest() for name in ("md5", "sha1", "blake2b")
            }
    service.stop()


def test_every_proof_can_be_followed_to_the_object(home: Home, serve: Serve, bucket: Bucket) -> None:
    """What ``prove`` prints is what the server says of the object, and the custody log's own chain holds."""
    service = serve(home.config("", bucket.destination()))
    home.land("run/one", b"one")
    service.until_done(1)
    code, proof = service.cli("prove", str(home.landing / "run/one"))
    assert code == 0
    (delivery,) = proof["deliveries"]
    answer = bucket.client.head_object(Bucket=bucket.name, Key=bucket.prefix + delivery["key"], ChecksumMode="ENABLED")
    assert delivery["etag"] == answer["ETag"].strip('"')
    assert delivery["checksum"] == f"SHA256:{answer['ChecksumSHA256']}"
    assert base64.b64decode(answer["ChecksumSHA256"]).hex() == delivery["sha256"] == sha256(b"one")
    assert proof["custody"][-1]["body"].count('"kind":"delivered"') == 1
    with service.store() as store:
        assert store.custody_broken_at() is None
    service.stop()
    code, later = service.cli("prove", str(home.landing / "run/one"))  # also while the service is stopped
    assert (code, later["deliveries"]) == (0, proof["deliveries"])
