"""A server that answers one question, and quickly: the listing of a bucket of so many keys, in pages of 1,000."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_PAGE = 1_000
_ONE = (
    "<Contents><Key>run%04d/lane%02d/sample_%08d_R1.fastq</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
    "<ETag>&quot;9dd4e461268c8034f5c8564e155c67a6&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass>"
    "</Contents>"
)


class Pages:
    """Tokens are the number of the page's first key. Signatures are not looked at."""

    def __init__(self, number: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query)
                body = page(int(asked.get("continuation-token", ["0"])[0]), number)
                self.send_response_only(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Pages:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="pages")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def page(first: int, number: int) -> bytes:
    """The objects from ``first`` on, of ``number`` in all, as S3 writes them."""
    last = min(first + _PAGE, number)
    objects = "".join([_ONE % (n // 10_000, n // 100 % 100, n, n) for n in range(first, last)])
    more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < number else ""
    head = f"<Name>bench</Name><Prefix></Prefix><KeyCount>{last - first}</KeyCount><MaxKeys>{_PAGE}</MaxKeys>"
    truncated = "true" if more else "false"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{head}<EncodingType>url</EncodingType><IsTruncated>{truncated}</IsTruncated>{more}{objects}</ListBucketResult>"
    ).encode()
