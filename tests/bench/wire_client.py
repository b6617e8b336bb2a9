"""One side of bench_wire.py in a process of its own: ``python -m bench.wire_client SIDE CASE ENDPOINT PATH [CA]``.

SIDE is ``boto3``, or ``moving`` or ``whole`` with the digest that the server is sent (``moving-crc64nvme``); CASE is
``large`` (one file) or ``small`` (a directory of files). Prints the seconds and the CPU seconds of sending alone,
without those of starting; of ``moving`` also without those of the digests of the content, which are made before.
"""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from quaymaster.destinations import crc64
from quaymaster.destinations.base import Parcel, Put
from quaymaster.destinations.s3 import S3
from quaymaster.destinations.s3_probe import RANKS
from quaymaster.model import Compression, Digests, Stored
from quaymaster.pipeline import codec

BUCKET, GROUP = "bench", 250


@dataclass(frozen=True)
class Keys:
    access_key: str = "testkey"
    secret_key: str = "testsecret"
    session_token: str | None = None


@dataclass(frozen=True)
class Settings:
    endpoint_url: str
    ca_bundle: str | None
    name: str = "bench"
    bucket: str = BUCKET
    prefix: str = ""
    region: str | None = "us-east-1"
    credentials: str | None = "bench"
    addressing: str = "path"
    part_size: int = 16 << 20
    checksum: str = "sha256"
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0


def ours(case: str, endpoint: str, path: str, ca: str | None, moving: bool, checksum: str) -> Callable[[], None]:
    # A sink cannot be probed: it keeps nothing, so it refuses nothing. This says that it honours everything.
    pins = {name: ranks[0] for name, ranks in RANKS.items()} | {"remove": "denied", "checksum": checksum}
    if checksum == "crc64nvme":
        pins |= dict.fromkeys(("put_checked", "put_proof", "part_checked", "parts_proof"), checksum)
    settings = Settings(endpoint, ca, checksum=checksum)
    s3 = S3(settings, credentials=Keys, emit=lambda event: None, pins=pins)
    size = os.stat(path).st_size
    for warm in (1, settings.part_size + 1):  # loads the libraries, as the first deliveries of a service do
        upload = s3.begin(Put(f"warm-{os.getpid()}-{warm}", warm))
        upload.write(bytes(warm))
        upload.publish(Digests(warm, hashlib.sha256(bytes(warm)).hexdigest()), {})
    known: dict[str, Digests] = {}
    if moving:
        paths = [path] if case == "large" else [f"{path}/{name}" for name in os.listdir(path)]
        known = {path: digests_of(path) for path in paths}

    def large() -> None:
        # A key that is taken would not be written to, and the sink remembers which are.
        upload = s3.begin(Put(f"large-{os.getpid()}", size, {"quaymaster-mode": "0644"}, tells_crc=True))
        with open(path, "rb", buffering=0) as file:
            layout, _ = codec.choose_layout(Compression.NONE, size, waiting=0, cpus=os.cpu_count() or 1, threads=1)
            recipe = codec.Recipe(Compression.NONE, layout=layout, known=known.get(path), crc=True)
            encoded = codec.encode(functools.partial(file.read, codec.PIECE), upload.write, recipe, size=size)
        assert upload.publish(encoded.stored, {}).evidence.removesuffix("-parts") == checksum

    def small() -> None:
        names = sorted(os.listdir(path))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(group, [names[start : start + GROUP] for start in range(0, len(names), GROUP)]))

    def group(names: list[str]) -> None:
        parcels = []
        for name in names:
            with open(f"{path}/{name}", "rb", buffering=0) as file:
                body = file.read()
            digests = known.get(f"{path}/{name}") or codec.digests(body, ())
            parcels.append(Parcel(Put(name, len(body), {"quaymaster-sha256": digests.sha256}), body, digests))
        outcomes = [outcome for _, outcome in s3.put_all(parcels, lambda: False)]
        assert len(outcomes) == len(names)
        assert all(isinstance(each, Stored) for each in outcomes), outcomes[:3]

    return large if case == "large" else small


def digests_of(path: str) -> Digests:
    sha256, crc, size = hashlib.sha256(), 0, 0
    with open(path, "rb", buffering=0) as file:
        while data := file.read(codec.PIECE):
            sha256.update(data)
            crc, size = crc64.crc64nvme(data, crc), size + len(data)
    return Digests(size, sha256.hexdigest(), crc64nvme=crc)


def boto3_default(case: str, endpoint: str, path: str, ca: str | None) -> Callable[[], None]:
    """As anybody writes it who reads its documentation."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", verify=ca,
        aws_access_key_id=Keys.access_key, aws_secret_access_key=Keys.secret_key,
    )  # fmt: skip

    def small() -> None:
        def put(name: str) -> None:
            client.upload_file(f"{path}/{name}", BUCKET, name)

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(put, os.listdir(path)))

    return (lambda: client.upload_file(path, BUCKET, "large")) if case == "large" else small


def main(side: str, case: str, endpoint: str, path: str, ca: str | None = None) -> None:
    what, _, checksum = side.partition("-")
    if what == "boto3":
        act = boto3_default(case, endpoint, path, ca)
    else:
        act = ours(case, endpoint, path, ca, what == "moving", checksum)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    act()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Not ru_maxrss, which includes the memory that the parent had before exec.
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    print(f"{seconds:.6f} {cpu:.3f} {peak}")


if __name__ == "__main__":
    main(*sys.argv[1:])
