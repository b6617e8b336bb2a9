"""One part of a large object to the server (UploadPart, S3 API reference), on the short way where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from quaymaster.destinations.s3_line import put_head
from quaymaster.destinations.s3_sums import HEADERS
from quaymaster.destinations.s3_wire import Wire
from quaymaster.errors import Unreachable


def send_part(wire: Wire, key: str, upload_id: str, number: int, body: memoryview, digest: Mapping[str, str]) -> str:
    """Returns the ETag of the part. ``key`` is the whole key; ``digest`` is what lets the server check the body
    (Sums.parameters). Raises TransferError."""
    lines = wire.lines()
    signer = lines.signer() if lines else None
    if lines is None or signer is None:
        # The library takes no view; it copies.
        part = {"UploadId": upload_id, "PartNumber": number, "Body": bytearray(body), **digest}
        return str(wire.call("upload_part", key, **part)["ETag"])
    headers = {HEADERS[name]: value for name, value in digest.items()}
    query = f"partNumber={number}&uploadId={quote(upload_id, safe='-._~')}"
    with wire.translated(key):
        answer = lines.put(put_head(lines.road, signer, key, len(body), headers, query), body)
    if answer.status != 200:
        raise wire.refused(answer.status, answer.headers, key, answer.body)
    if not (etag := answer.headers.get("etag", "")):
        raise Unreachable(f"{wire.where(key)} did not give a proper answer (no ETag)", "It is tried again")
    return etag
