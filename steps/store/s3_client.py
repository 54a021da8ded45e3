"""What every request to S3 shares: where, how often tried, and errors that say what to do.

Credentials come from boto3's usual chain (environment, shared files, container, instance) and are never read, kept or
printed here.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import s3transfer.exceptions
import urllib3.exceptions
from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore import UNSIGNED
from botocore.config import Config
from botocore.parsers import ResponseParserError

from artifacts_schema.run_configs import StoreConfig
from steps.files.errors import ConfigError, DamagedError, StoreError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_ABSENT = {"404", "NoSuchKey", "NotFound"}
# What botocore does not try again by itself though it can succeed: bytes damaged on their way, an answer that was lost
# after the work was done, others who wrote at the same moment.
_AGAIN = {
    "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "ConditionalRequestConflict",
    "OperationAborted", "IncompleteBody", "MalformedXML", "InvalidPart", "NoSuchUpload",
}  # fmt: skip
# Faults after the first byte of an answer, where botocore's own retries have ended.
_BROKEN = (
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.FlexibleChecksumError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    s3transfer.exceptions.RetriesExceededError,
    s3transfer.exceptions.S3DownloadFailedError,
    ConnectionError,
    TimeoutError,
    DamagedError,
)
_REACH_S = 60.0  # a server of one's own that is started again answers within this
_TRIES = (
    4  # of what botocore has given up or does not judge; each of them is tried `store.attempts` times inside
)
_FAILURES = (
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    urllib3.exceptions.HTTPError,
    Boto3Error,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True)
class Location:
    """A bucket, and the prefix below which everything of one project lies ("" or without slashes at its ends)."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, root: str) -> "Location":
        """From `s3://bucket/prefix`. Raises ConfigError for anything else."""
        bucket, _, prefix = root.removeprefix(SCHEME).partition("/")
        prefix = prefix.strip("/")
        if not root.startswith(SCHEME) or not _BUCKET.fullmatch(bucket) or ".." in prefix.split("/"):
            # The text is not repeated: somebody may have put keys into it.
            raise ConfigError("store.root must be a folder or s3://bucket/prefix, without keys or host in it")
        return cls(bucket, prefix)

    def key(self, name: str) -> str:
        """The object key of a name inside the store."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        return SCHEME + "/".join(filter(None, (self.bucket, self.prefix)))


def make_client(config: StoreConfig, location: Location) -> Any:
    """A client with adaptive retries and time-outs. Its signature also covers the bodies it sends.

    Raises StoreError when no server answers at the endpoint, and ConfigError as `connect`.
    """
    # A server of one's own rarely has a wildcard DNS entry for buckets.
    common = Config(s3={"addressing_style": "path" if _own_server(config) else "auto"})
    _require_answer(config, location, common)
    return connect(
        config,
        common.merge(
            Config(
                connect_timeout=min(10.0, config.timeout_s),
                read_timeout=config.timeout_s,
                retries={"mode": "adaptive", "total_max_attempts": config.attempts},
                max_pool_connections=16,
            )
        ),
    )


def connect(config: StoreConfig, settings: Config) -> Any:
    """A client of the server that configuration, environment or AWS's own files name.

    Raises ConfigError, without the text, for an address that is none or that holds a password: errors repeat addresses.
    """
    try:
        client = boto3.session.Session().client("s3", endpoint_url=config.endpoint, config=settings)
        is_refused = "@" in urlsplit(client.meta.endpoint_url).netloc
    except botocore.exceptions.BotoCoreError:  # a region that is none, and the like
        raise
    except ValueError:
        is_refused = True
    if is_refused:
        raise ConfigError(
            "the endpoint (store.endpoint, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or endpoint_url in AWS's configuration "
            "file) must be http(s)://host[:port], without user and password; give keys by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or in a profile"
        )
    return client


def _require_answer(config: StoreConfig, location: Location, common: Config) -> None:
    """Say at once when nobody answers, and raise StoreError when that does not change for `_REACH_S`. The client itself is
    silent for minutes: it is meant for a server that goes away in the midst of work, not for one that was never there.

    Any answer will do, a refusal and an overloaded server's, too: the client knows what to do with it. The question is
    not signed.
    """
    probe = connect(
        config,
        common.merge(
            Config(
                signature_version=UNSIGNED,
                connect_timeout=min(3.0, config.timeout_s),
                read_timeout=min(5.0, config.timeout_s),
                retries={"total_max_attempts": 1},
            )
        ),
    )
    until, wait_s = time.monotonic() + _REACH_S, 0.5
    for number in range(1, config.attempts + 1):
        try:
            probe.head_bucket(Bucket=location.bucket)
        except (botocore.exceptions.ConnectionError, botocore.exceptions.ReadTimeoutError) as error:
            if number == config.attempts or time.monotonic() > until:
                raise explain(error, "finding the server", location) from error
            if number == 1:
                logger.warning(
                    "%s; asking again for up to %.0f s",
                    explain(error, "finding the server", location),
                    _REACH_S,
                )
        except _FAILURES:
            return
        else:
            return
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 8.0)


def _own_server(config: StoreConfig) -> bool:
    return bool(
        config.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )


def is_absent(error: botocore.exceptions.ClientError) -> bool:
    """True when the answer was that there is no such key."""
    return error.response.get("Error", {}).get("Code") in _ABSENT


def code_of(error: BaseException) -> str:
    """The server's error code, or the class of a failure on this side."""
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response.get("Error", {}).get("Code", "unknown"))
    return type(error).__name__


def attempt(what: str, location: Location, action: Callable[[], Result]) -> Result:
    """Call `action`, and again after a fault on the way (botocore only retries until an answer's first byte).

    Raises StoreError saying what was tried; an answer that a key does not exist passes through as it is.
    """
    wait_s = 0.1
    for number in range(1, _TRIES + 1):
        try:
            return action()
        except botocore.exceptions.ClientError as error:
            if is_absent(error) or code_of(error) == "PreconditionFailed":
                raise
            if code_of(error) not in _AGAIN or number == _TRIES:
                raise explain(error, what, location) from error
            failure: Exception = error
        except _BROKEN as error:
            if number == _TRIES:
                raise explain(error, what, location) from error
            failure = error
        except _FAILURES as error:
            cause = error.__cause__ or error.__context__
            if number == _TRIES or not _is_passing(error, cause):
                raise explain(error, what, location) from error
            failure = error
        logger.warning("%s failed (%s), try %d of %d follows", what, code_of(failure), number + 1, _TRIES)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 5.0)
    raise AssertionError("unreachable")


def _is_passing(error: BaseException, cause: BaseException | None) -> bool:
    """The transfer manager wraps what happened: look at the cause."""
    if isinstance(cause, botocore.exceptions.ClientError):
        return code_of(cause) in _AGAIN
    return isinstance(error, RetriesExceededError) or isinstance(cause, _BROKEN)


_NO_ANSWER = "the server does not answer; check store.endpoint or AWS_ENDPOINT_URL_S3"
_POLICY = (
    "`snapfusion s3` prints what a run needs (with store.kms_key: --kms-key); a bucket may also demand a certain "
    "store.encryption"
)
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist; create it or correct store.root",
    "AccessDenied": f"these credentials may not do that; {_POLICY}",
    "403": f"these credentials may not do that, or are wrong; {_POLICY}",
    "InvalidAccessKeyId": "the server does not know this access key; check AWS_ACCESS_KEY_ID and the endpoint",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; get a new one",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "NoCredentialsError": "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile",
    "PartialCredentialsError": "the credentials are incomplete; set both keys",
    "EndpointConnectionError": _NO_ANSWER,
    "ConnectTimeoutError": _NO_ANSWER,
    "ReadTimeoutError": _NO_ANSWER,
    "NoRegionError": "there is no region; set AWS_DEFAULT_REGION",
    "DamagedError": "what arrived is not what was stored, every time",
    "FlexibleChecksumError": "what arrived is not what was stored, every time",
    "QuotaExceeded": "the bucket is full; free some and resume",
}


def explain(error: BaseException, what: str, location: Location) -> StoreError:
    """A StoreError that says what was tried, what came back and what to do. Never holds keys or signatures."""
    code = code_of(error)
    advice = _ADVICE.get(code)
    if advice is None:
        detail: Any = error
        if isinstance(error, botocore.exceptions.ClientError):
            detail = error.response.get("Error", {}).get("Message", "")
        # A signed URL must never reach a log.
        advice = re.sub(r"\?\S+", "?...", str(detail)) or "see the server's log"
    elif isinstance(error, DamagedError):
        advice = f"{advice} ({error})"
    # boto3 compares the server's checksum first, where the server keeps one.
    damaged = isinstance(error, DamagedError | botocore.exceptions.FlexibleChecksumError)
    kind = DamagedError if damaged else StoreError
    return kind(f"{what} in {location} failed: {code}: {advice}")
