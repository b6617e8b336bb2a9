"""Requests without the AWS library: signed as that library signs them, pages read as an XML parser reads them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from html import escape as as_xml
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from contract.places import Keys, Settings
from quaymaster.destinations import s3_listing, s3_plain
from quaymaster.destinations.s3_listing import Ahead, Listed, Page, UnreadableError
from quaymaster.errors import Unreachable
from servers.pages import page as synthetic

NOON = 1_790_000_000.0
KEYS = [
    "",
    "plain",
    "with space/é ü",
    "q%25/&<>'\"+=?#",
    "a//b/../c",
    "~-._",
    "run%0Aline",
    "*()!'",
    "\u4e2d\U0001f600",
]


@dataclass(frozen=True)
class Temporary(Keys):
    session_token: str | None = "token/with+signs=="


@pytest.mark.parametrize("keys", [Keys(), Temporary()])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("prefix", KEYS)
def test_requests_are_signed_as_the_aws_library_signs_them(
    key: str, prefix: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, str, dict[str, str]]] = []

    def exchange(self: object, method: str, target: str, headers: dict[str, str], *_: object) -> s3_plain.Answer:
        sent.append((method, target, headers))
        return s3_plain.Answer(200, {}, b"")

    monkeypatch.setattr(s3_plain.Plain, "_exchange", exchange)
    plain = s3_plain.Plain(Settings("", "https://s3.example.org:8333"), lambda: keys, clock=lambda: NOON)
    plain.head(key, "there", {"versionId": prefix} if prefix else {})
    plain.get("there", {"list-type": "2", "prefix": prefix, "continuation-token": "1/+=="})
    for method, target, headers in sent:
        headers = dict(headers)
        ours = headers.pop("authorization")
        headers.pop("User-Agent")
        assert ours == signature_of(method, f"https://s3.example.org:8333{target}", headers, keys)


def signature_of(method: str, url: str, headers: dict[str, str], keys: Keys) -> str:
    path, _, query = url.partition("?")
    request = AWSRequest(method, path, headers, params=None)
    request.url = url if query else path
    signer = S3SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.session_token), "s3", "us-east-1")
    request.context["timestamp"] = headers["x-amz-date"]
    text = signer.string_to_sign(request, signer.canonical_request(request))
    signed = signer.signed_headers(signer.headers_to_sign(request))
    given = f"Credential={signer.scope(request)}, SignedHeaders={signed}"
    return f"AWS4-HMAC-SHA256 {given}, Signature={signer.signature(text, request)}"


def document(objects: list[Listed], *, quotes: str = "&quot;", more: str = "", encoded: bool = True) -> bytes:
    inside = "".join(
        f"<Contents><ETag>{quotes}{o.etag}{quotes}</ETag><Key>{quote(o.key) if encoded else as_xml(o.key)}</Key>"
        f"<Size>{o.size}</Size><LastModified>2026-01-02T03:04:05.678Z</LastModified>"
        "<Owner><ID>x</ID></Owner></Contents>"
        for o in objects
    )
    said = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
    said += f"<NextContinuationToken>{as_xml(more)}</NextContinuationToken>" if more else ""
    said += "<EncodingType>url</EncodingType>" if encoded else ""
    return f"<?xml version='1.0'?><ListBucketResult xmlns='urn:x'>{said}{inside}</ListBucketResult>\n".encode()


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30)
listed = st.builds(
    Listed, names, st.integers(0, 1 << 50), st.from_regex("[0-9a-f]{32}(-[0-9]{1,4})?", fullmatch=True),
    st.just(1767323045.678),
)  # fmt: skip


@given(st.lists(listed, max_size=5), st.sampled_from(["&quot;", "&#34;", '"', ""]), st.sampled_from(["", "a/+=="]))
def test_every_name_comes_out_of_a_page_as_it_went_in(objects: list[Listed], quotes: str, more: str) -> None:
    body = document(objects, quotes=quotes, more=more)
    assert s3_listing._quickly(body) is not None, "what servers send is read at once"
    assert s3_listing.page(body) == s3_listing._thoroughly(body) == Page(objects, more)


@pytest.mark.parametrize("key", ["a&b", "<Key>x</Key>", "]]>", "a+b %41"])
def test_names_that_a_server_does_not_encode_are_read_by_the_parser(key: str) -> None:
    one = Listed(key, 3, "ab", 1767323045.678)
    assert s3_listing.page(document([one], encoded=False)).objects == [one]


def test_unusual_documents_are_left_to_the_parser() -> None:
    one = Listed("a", 3, "ab", 1767323045.678)
    body = document([one])
    for old, new in [(b"<Key>", b"<Key xml:space='preserve'>"), (b"<Key>a<", b"<Key><![CDATA[a]]><"),
                     (b"<Size>3<", b"<Size> 3 <"), (b"'?>", b"'?><!-- <Contents></Contents> -->")]:  # fmt: skip
        assert s3_listing.page(body.replace(old, new)).objects == [one], new


@pytest.mark.parametrize("percent", range(0, 100, 3))
def test_half_a_page_is_no_page(percent: int) -> None:
    body = synthetic(0, 20)
    with pytest.raises(UnreadableError):
        s3_listing.page(body[: len(body) * percent // 100])


@pytest.mark.parametrize(
    "body",
    [b"<Error><Code>InternalError</Code></Error>", b"<html></html>", b"{}", b"<ListBucketResult></ListBucketResult>",
     b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
     b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents></ListBucketResult>"],
)  # fmt: skip
def test_what_is_no_page_is_never_taken_for_an_empty_one(body: bytes) -> None:
    with pytest.raises(UnreadableError):
        s3_listing.page(body)


def test_pages_are_fetched_ahead_and_only_so_many() -> None:
    asked: list[str] = []
    full = threading.Event()

    def fetch(token: str, after: str) -> Page:
        asked.append(token)
        if len(asked) == s3_listing._AHEAD:
            full.set()
        return Page([], str(len(asked)) if len(asked) < 50 else "")

    pages = iter(Ahead(fetch, "there"))
    assert full.wait(10)
    for thread in threading.enumerate():
        if thread.name == "listing":
            thread.join(10)
    assert len(asked) == s3_listing._AHEAD, "nobody has looked at one yet"
    assert len(list(pages)) == len(asked) == 50


def test_a_listing_that_repeats_itself_ends() -> None:
    with pytest.raises(Unreachable, match="repeats itself"):
        list(Ahead(lambda token, after: Page([], "same"), "there"))


@pytest.mark.parametrize(
    ("changed", "environ", "usable"),
    [({}, {}, True), ({"credentials": None}, {}, False), ({"endpoint_url": None}, {}, False),
     ({"addressing": "virtual"}, {}, False), ({}, {"HTTPS_PROXY": "http://proxy:3128"}, False),
     ({}, {"AWS_CA_BUNDLE": "/ca.pem"}, False), ({"ca_bundle": "/own.pem"}, {"AWS_CA_BUNDLE": "/ca.pem"}, True),
     ({"endpoint_url": "http://"}, {}, False)],
)  # fmt: skip
def test_whatever_only_the_aws_library_knows_is_left_to_it(
    changed: dict[str, str | None], environ: dict[str, str], usable: bool
) -> None:
    settings = Settings(**{"prefix": "", "endpoint_url": "https://s3.example.org", **changed})  # type: ignore[arg-type]
    assert s3_plain.usable(settings, environ) is usable
