"""P5: a destination whose bytes are followed by CRC-64/NVME, on the real service and a real S3 server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest

from quaymaster.destinations import crc64
from system.bucket import Bucket
from system.conftest import Home
from system.service import Service

MIB = 1 << 20


@pytest.mark.parametrize("compress", ["", 'compress = { format = "zstd", level = 1, min_size = "1MiB" }'])
def test_every_byte_is_accounted_for_with_crc_as_well(
    home: Home, serve: Callable[..., Service], bucket: Bucket, compress: str
) -> None:
    watch = f'destinations = ["archive"]\n{compress}'
    service = serve(home.config(watch, bucket.destination(more='checksum = "crc64nvme"')))
    # Half of it shrinks; what remains still needs several parts.
    content = {"large": os.urandom(11 * MIB) + bytes(4 * MIB), "small": os.urandom(10_000), "empty": b""}
    for name, data in content.items():
        home.land(name, data)
    service.until_done(3)
    for name, data in content.items():
        (delivery,) = service.deliveries(name)
        proof = delivery.proof
        held = bucket.content(proof.stored.key)
        assert proof.stored.evidence == "crc64nvme"
        assert proof.stored.checksum == f"CRC64NVME:{crc64.text(crc64.crc64nvme(held))}"
        assert proof.source.sha256 == hashlib.sha256(data).hexdigest()
        assert proof.stored_digests.sha256 == hashlib.sha256(held).hexdigest()
        assert bucket.metadata(proof.stored.key)["quaymaster-sha256"] == proof.source.sha256
    service.stop()
    for level in ("listing", "checksum", "readback"):
        assert service.cli("verify", "--level", level)[0] == 0
    (large,) = service.deliveries("large")
    key, held = large.proof.stored.key, bucket.content(large.proof.stored.key)
    metadata = {"quaymaster-sha256": large.proof.source.sha256}
    bucket.client.put_object(
        Bucket=bucket.name, Key=bucket.prefix + key, Body=held[:-1] + bytes([held[-1] ^ 1]), Metadata=metadata,
        ChecksumAlgorithm="CRC64NVME",
    )  # fmt: skip
    code, said = service.cli("verify", "--level", "checksum")
    assert code == 3
    assert [(fault["what"], "checksum" in fault["text"]) for fault in said["faults"]] == [("changed", True)]
