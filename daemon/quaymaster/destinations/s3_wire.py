"""The one place that speaks to the AWS library: a client made at first use, and its exceptions as ours.

boto3 gives the client; its transfer manager is not used: the requests are the low-level operations, and the manager
would bring a second opinion about parts, retries and checksums. boto3 is imported when the first request is made,
so that an idle service stays small.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol

from quaymaster import __version__
from quaymaster.destinations.s3_line import WIDEST, Lines, Road
from quaymaster.destinations.s3_signature import Credentials, Keys
from quaymaster.errors import (
    ConfigError,
    Conflict,
    DestinationMissing,
    IntegrityError,
    NameRefused,
    NotSupported,
    OutOfSpace,
    PermanentError,
    PermissionDenied,
    TemporaryError,
    TransferError,
    Unreachable,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


def moment(text: Any) -> Any:
    """A time in an answer. botocore's own way, which understands every form, takes most of the time of a listing."""
    if isinstance(text, str) and text.endswith("Z"):
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass
    if isinstance(text, str) and text.endswith(" GMT"):
        try:
            return parsedate_to_datetime(text)
        except ValueError:
            pass
    from botocore.utils import parse_timestamp

    return parse_timestamp(text)


class Settings(Protocol):
    """What the configuration says of an S3 destination (config.S3Destination)."""

    @property
    def name(self) -> str: ...
    @property
    def bucket(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    @property
    def endpoint_url(self) -> str | None: ...
    @property
    def region(self) -> str | None: ...
    @property
    def credentials(self) -> str | None: ...
    @property
    def ca_bundle(self) -> str | None: ...
    @property
    def addressing(self) -> str: ...
    @property
    def part_size(self) -> int: ...
    @property
    def checksum(self) -> str: ...
    @property
    def storage_class(self) -> str | None: ...
    @property
    def sse(self) -> str | None: ...
    @property
    def sse_kms_key(self) -> str | None: ...
    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def read_timeout(self) -> float: ...


class AbsentError(PermanentError):
    """There is no object under the key."""


class Raced(Conflict):
    """Two writers met at the key (409): the server asks to look again."""


class UploadGone(Unreachable):
    """The multipart upload is not known (any more): completed by a request whose reply was lost, or aborted."""


class Busy(Unreachable):
    """The server asks for patience."""

    def __init__(self, message: str, advice: str = "", retry_after: float = 0) -> None:
        super().__init__(message, advice)
        self.retry_after = retry_after


class Expired(PermissionDenied):
    """The credentials have run out: what they allowed will be allowed again when they are renewed."""


class ClockError(TemporaryError):
    """The server refuses the request's time: it works again as soon as the clock is right."""


# S3 API reference, "Error responses"; the X… codes are MinIO's. HEAD has no body: there the status is all there is.
_MISSING = frozenset({"NoSuchBucket", "InvalidBucketName"})
_DENIED = frozenset(
    {
        "AccessDenied", "AccountProblem", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId", "InvalidSecurity",
        "InvalidToken", "NotSignedUp", "SignatureDoesNotMatch", "TokenRefreshRequired", "401", "403",
    }
)  # fmt: skip
_EXPIRED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_DAMAGED = frozenset(
    {
        "BadDigest", "InvalidDigest", "InvalidPart", "InvalidPartOrder", "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip
_FULL = frozenset(
    {"InsufficientStorage", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "507"}
)
_NAMES = frozenset({"KeyTooLong", "KeyTooLongError", "InvalidObjectName", "XMinioInvalidObjectName"})
_UNSUPPORTED = frozenset({"EntityTooLarge", "MethodNotAllowed", "NotImplemented", "405", "501"})
_BUSY = frozenset(
    {
        "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown",
        "ThrottlingException", "TooManyRequests", "429",
    }
)  # fmt: skip


class Wire:
    """Requests to one bucket. Thread-safe."""

    def __init__(self, settings: Settings, *, credentials: Callable[[], Credentials | None], connections: int) -> None:
        self.settings = settings
        self.place = settings.endpoint_url or "AWS"
        self._credentials = credentials
        self._connections = connections
        self._client: S3Client | None = None
        self._keys: Callable[[], Keys | None] = lambda: None
        self._ca_bundle: str | None = None
        self._lines: Lines[int] | None = None
        self._lock = threading.Lock()

    def where(self, key: str = "") -> str:
        return f"s3://{self.settings.bucket}{'/' if key else ''}{key} at {self.place}"

    def call(self, operation: str, key: str = "", told: str | None = None, /, **parameters: Any) -> dict[str, Any]:
        """One request, without retries. ``key`` is the whole key (empty for requests about the bucket); ``told`` is
        the key that errors name in its place, where it means nothing to an operator."""
        if key:
            parameters["Key"] = key
        if isinstance(parameters.get("Body"), bytes):
            # bytes would be wrapped into a file: another copy, a wait for "100 Continue", and 16 KiB a write.
            parameters["Body"] = bytearray(parameters["Body"])
        with self.translated(key if told is None else told):
            answer: dict[str, Any] = getattr(self._connected(), operation)(Bucket=self.settings.bucket, **parameters)
            return answer

    @contextmanager
    def translated(self, key: str = "") -> Iterator[None]:
        """Whatever the library raises inside, as the error of ours that says what to do about it."""
        try:
            yield
        except TransferError:
            raise
        except ConfigError as error:
            told = f"No usable credentials for {self.where(key)}: {error}"
            raise PermissionDenied(told, "Then retry the job") from None
        except Exception as error:
            ours = self._translate(error, self.where(key))
            if ours is None:
                raise
            if isinstance(ours, PermissionDenied):
                self.close()  # rotated credentials are read again at the next request
            try:
                raise ours from None
            finally:
                del (
                    ours
                )  # else it and this frame keep each other, and the body that was sent, until the collector comes

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            lines, self._lines = self._lines, None
        # Requests still running on them end on their own: close() only empties the pool.
        if client is not None:
            client.close()
        if lines is not None:
            lines.close()

    def lines(self) -> Lines[int] | None:
        """The short way for bytes; None where only the library knows one. Raises TransferError."""
        with self.translated():
            client = self._connected()
            with self._lock:
                if self._lines is None and (road := self._road(client)) is not None:
                    self._lines = Lines(road, min(WIDEST, self._connections))
                return self._lines

    def _road(self, client: S3Client) -> Road | None:
        """As the library resolves the bucket; nothing is asked."""
        import ssl
        from urllib.parse import urlsplit
        from urllib.request import getproxies, proxy_bypass

        from botocore.httpsession import get_cert_path

        params = {"Bucket": self.settings.bucket, "Key": "k"}
        if self._keys() is None:
            return None
        url = urlsplit(client.generate_presigned_url("put_object", Params=params))
        host, secure = url.hostname or "", url.scheme == "https"
        if not url.path.endswith("/k") or (getproxies() and not proxy_bypass(host)):
            return None
        tls = None
        if secure:
            tls = ssl.create_default_context(cafile=self._ca_bundle or get_cert_path(True))
        return Road(
            host=host,
            port=url.port or (443 if secure else 80),
            named=url.netloc.rpartition("@")[2],
            path=url.path.removesuffix("k"),
            region=client.meta.region_name,
            keys=self._keys,
            tls=tls,
            connect_timeout=self.settings.connect_timeout,
            read_timeout=self.settings.read_timeout,
        )

    def refused(self, status: int, headers: Mapping[str, str], key: str, body: bytes = b"") -> TransferError:
        """What an answer without the library means."""
        reply = {"HTTPStatusCode": status, "HTTPHeaders": headers}
        ours = refused({"Error": error_in(body), "ResponseMetadata": reply}, self.where(key), self._credential_source())
        if isinstance(ours, PermissionDenied):
            self.close()  # rotated credentials are read again at the next request
        return ours

    def _connected(self) -> S3Client:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> S3Client:
        import boto3.session
        import botocore.session
        from botocore.config import Config

        settings = self.settings
        ca_bundle = settings.ca_bundle
        if ca_bundle:
            require_certificates(ca_bundle)
        given = self._credentials()
        addressing: Any = settings.addressing
        if addressing == "auto" and settings.endpoint_url:
            addressing = "path"  # a name per bucket needs wildcard DNS, which few self-hosted endpoints have
        config = Config(
            # Checksums are ours to choose per endpoint, and never trailers: several servers store their framing.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": False, "addressing_style": addressing},
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=self._connections,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            tcp_keepalive=True,
            user_agent_extra=f"quaymaster/{__version__}",
        )
        core = botocore.session.get_session()
        self._ca_bundle = ca_bundle or core.get_config_variable("ca_bundle")
        self._keys = _keys_of(given, core)
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=moment)
        return boto3.session.Session(botocore_session=core).client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region or ("us-east-1" if settings.endpoint_url else None),
            verify=ca_bundle,
            aws_access_key_id=given.access_key if given else None,
            aws_secret_access_key=given.secret_key if given else None,
            aws_session_token=given.session_token if given else None,
            config=config,
        )

    def _translate(self, error: Exception, where: str) -> TransferError | None:
        """None: not an error of the library or the network, but a fault of ours, which must not be disguised."""
        import botocore.exceptions as aws
        import urllib3.exceptions as http
        from botocore.parsers import ResponseParserError

        source = self._credential_source()
        if isinstance(error, aws.ClientError):
            return refused(error.response, where, source)
        if isinstance(error, aws.SSLError | http.SSLError | OSError) and untrusted(error):
            return PermanentError(
                f"The certificate of {where} is not trusted",
                "If the endpoint has its own certificate authority, set ca_bundle to its PEM file",
            )
        if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError | aws.NoAuthTokenError):
            return PermissionDenied(f"No credentials for {where} ({source})", "Provide them, then retry the job")
        if isinstance(error, aws.CredentialRetrievalError | aws.TokenRetrievalError | aws.SSOError | aws.LoginError):
            return PermissionDenied(f"The credentials for {where} cannot be obtained ({source})", "Renew them")
        lost = ConnectionError | TimeoutError  # on the short way, and while a body is read
        known = aws.HTTPClientError | aws.ConnectionError | aws.IncompleteReadError | aws.MetadataRetrievalError
        if isinstance(error, lost | known):
            return Unreachable(f"{where} cannot be reached ({reason(error)})", "It is tried again")
        if isinstance(error, http.HTTPError | ResponseParserError | OSError | EOFError):
            return Unreachable(f"{where} did not give a proper answer ({reason(error)})", "It is tried again")
        if isinstance(error, aws.BotoCoreError | ValueError):
            return PermanentError(f"{where} cannot be used: {error}", "Correct the destination in the configuration")
        return None

    def _credential_source(self) -> str:
        name = self.settings.credentials
        return f"credentials {name!r}" if name else "the AWS credential chain"


def _keys_of(given: Credentials | None, core: Any) -> Callable[[], Keys | None]:
    """What is given, or what the AWS chain has at that moment: it renews what expires."""
    if given is not None:
        fixed = Keys(given.access_key, given.secret_key, given.session_token)
        return lambda: fixed

    def current() -> Keys | None:
        found = core.get_credentials()
        if found is None:
            return None
        frozen = found.get_frozen_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    return current


def error_in(body: bytes) -> dict[str, str]:
    """Code and message of an error's text ("Error responses", S3 API reference); empty where it tells none."""
    told = dict.fromkeys(("Code", "Message"), "")
    if body:
        from xml.etree import ElementTree

        try:
            # Entities are not expanded from outside by this parser, and an answer is of bounded size.
            root = ElementTree.fromstring(body)  # noqa: S314
        except ElementTree.ParseError:
            return told
        for element in root.iter():
            name = element.tag.rpartition("}")[2]
            if name in told:
                told[name] = element.text or ""
    return told


def refused(response: Any, where: str, source: str) -> TransferError:
    """What an error reply of the server means."""
    details = response.get("Error", {})
    reply = response.get("ResponseMetadata", {})
    code, status = str(details.get("Code", "")), int(reply.get("HTTPStatusCode", 0))
    said = _said(code, str(details.get("Message", "")), status)
    known = {code, str(status)}
    if known & _SKEWED:
        return ClockError(f"{where} refuses the time of this host", "Set the clock (timedatectl, chrony)")
    if known & _MISSING:
        return DestinationMissing(f"There is no bucket for {where}", "Create it or correct the configuration")
    if known & _DAMAGED:
        return IntegrityError(f"{where} received other bytes than were sent ({said})", "They are sent again")
    if code == "NoSuchUpload":
        return UploadGone(f"The upload to {where} is not known to the server any more", "It is begun again")
    if known & _FULL:
        return OutOfSpace(f"{where} is full ({said})", "Free space or raise the quota; it is tried again")
    if known & _NAMES:
        return NameRefused(f"{where} does not take this name ({said})", "Shorten or rename the file, or change key")
    if code in _BUSY or "429" in known or (status >= 500 and not known & _UNSUPPORTED):
        return Busy(f"{where} cannot answer now ({said})", "It is tried again", _retry_after(reply))
    if known & _UNSUPPORTED:
        return NotSupported(
            f"{where} does not support what is asked ({said})", "Try it out: quaymaster check --destinations"
        )
    if known & _DENIED:
        advice = f"Check {source} and what they may do on this bucket, and that s3:ListBucket is among it"
        return (Expired if code in _EXPIRED else PermissionDenied)(f"{where} refuses access ({said})", advice)
    if status == 409:
        return Raced(f"Another writer is at {where} ({said})", "It is looked at again")
    if status == 412:
        return Conflict(f"{where} is not as it was ({said})")
    if status == 404:
        return AbsentError(f"There is nothing under {where}")
    if status == 301 or code in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ):
        return PermanentError(f"{where} is in another region ({said})", "Set region of this destination")
    return PermanentError(f"{where} refuses the request ({said})", "Correct the cause, then retry the job")


def _said(code: str, message: str, status: int) -> str:
    """The server's own words on one short line. Some servers quote what was signed: then the code only."""
    words = "" if code in _DENIED else re.sub(r"\s+", " ", message).strip()[:200]
    return ": ".join(word for word in (code or str(status), words) if word)


def _retry_after(reply: Mapping[str, Any]) -> float:
    """The Retry-After header in seconds (RFC 9110, 10.2.3); its date form counts as not given."""
    value = str(reply.get("HTTPHeaders", {}).get("retry-after", ""))
    return float(value) if value.isdigit() else 0.0


def untrusted(error: BaseException) -> bool:
    """Whether certificate verification is what failed; a mere reset is not it."""
    import ssl

    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def require_certificates(path: str) -> None:
    """The library would only fail later, with a message of OpenSSL's, as if the server were away."""
    import ssl

    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        reason = (
            "it holds no certificate in PEM form" if isinstance(error, ssl.SSLError | ValueError) else error.strerror
        )
        raise PermanentError(
            f"The CA file {path} cannot be used ({reason})", "Correct it, or ca_bundle, then retry the job"
        ) from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what is behind it, which the library buries in several ways."""
    seen: set[int] = set()
    cause: object = error
    while isinstance(cause, BaseException) and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        inner = getattr(cause, "kwargs", {}).get("error") if hasattr(cause, "kwargs") else None
        cause = inner or getattr(cause, "reason", None) or cause.__cause__ or cause.__context__


def reason(error: Exception) -> str:
    """The kind of failure without the library's long sentence (which repeats the URL)."""
    import ssl

    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError) and cause.reason:
            words = str(cause.reason).replace("_", " ").lower()
            return f"TLS failed: {words}" + ("; is it http?" if words == "wrong version number" else "")
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    name = re.sub(r"(Error|Exception)$", "", type(error).__name__)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
