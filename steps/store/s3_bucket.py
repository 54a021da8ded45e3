"""What the S3 store does with names inside its bucket, whatever they mean: send, fetch, read, write, list, remove.

Every request goes through `s3_client.attempt`. Names are relative to the location's prefix.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from tqdm import tqdm

from artifacts_schema.run_configs import StoreConfig
from steps.files.errors import DamagedError, StoreError
from steps.store.base import Entry
from steps.store.files import HashingWriter
from steps.store.s3_client import Location, attempt, code_of, make_client

SHOWN_BYTES = 64 << 20  # larger transfers show a progress bar
TRANSFER = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=8)


# What a store writes: objects, documents, work files, and the marker of its layout.
_NAME = re.compile(r"objects/([0-9a-f]{2})/\1[0-9a-f]{62}|documents/.+\.json|work/.+|layout\.json", re.DOTALL)


class Bucket:
    """A bucket below a prefix. No request is made before it is used; raises StoreError that says what to do."""

    def __init__(self, config: StoreConfig) -> None:
        self.location = Location.parse(config.root)
        self._config = config
        self._extra: dict[str, str] = {}
        if config.encryption != "none":
            self._extra["ServerSideEncryption"] = config.encryption
        if config.kms_key is not None:
            self._extra["SSEKMSKeyId"] = config.kms_key

    @cached_property
    def client(self) -> Any:
        """boto3's S3 client; made on first use. Raises StoreError when no server answers."""
        return make_client(self._config, self.location)

    def attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """See `s3_client.attempt`."""
        return attempt(what, self.location, action)

    def require(self) -> None:
        """Raise StoreError unless the bucket exists. Some servers make a missing one when something is written.

        Asked as a listing below the prefix, the least that credentials of a store may do; HEAD needs all of the bucket.
        """
        below = {"Bucket": self.location.bucket, "Prefix": self.location.key(""), "MaxKeys": 1}
        self.attempt("finding the bucket", lambda: self.client.list_objects_v2(**below))

    def head(self, name: str) -> Any:
        """The answer to HEAD, or None when there is no such name."""
        try:
            return self.attempt(f"asking for {name}", lambda: self.client.head_object(**self._address(name)))
        except botocore.exceptions.ClientError:
            return None

    def send(self, name: str, path: Path, what: str, *, sha256: str | None = None) -> None:
        """Send a file; boto3 adds a checksum, the server refuses bytes that do not fit it. `what` is for errors.

        `sha256` is kept beside it for names that do not say it themselves; `fetch_file` then verifies it.
        """
        size = path.stat().st_size
        extra: dict[str, Any] = dict(self._extra)
        if sha256 is not None:
            extra["Metadata"] = {"sha256": sha256}

        def upload() -> None:
            with _bar("upload", size) as tick:
                self.client.upload_file(
                    str(path),
                    **self._address(name),
                    ExtraArgs=extra,
                    Callback=tick,
                    Config=TRANSFER,
                )

        self.attempt(what, upload)
        found = self.head(name)
        if found is None or found["ContentLength"] != size:
            raise StoreError(f"{what} in {self.location}: the server does not show all {size} bytes of it")

    def fetch(self, name: str, target: HashingWriter, size: int = 0) -> None:
        """Write a name's bytes to `target`, once and in order. To be called within `attempt`."""
        with _bar("download", size) as tick:
            self.client.download_fileobj(
                **self._address(name), Fileobj=target, Callback=tick, Config=TRANSFER
            )

    def fetch_file(self, name: str, path: Path) -> None:
        """A file with a name's bytes; it appears when it is complete and its hash is that it was sent with.

        Raises StoreError when there is no such name, DamagedError when the hash is wrong every time.
        """
        path.parent.mkdir(parents=True, exist_ok=True)

        def download() -> None:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
                partial = Path(folder) / "file"
                expected = self.client.head_object(**self._address(name))["Metadata"].get("sha256", "none")
                with partial.open("wb") as file:
                    target = HashingWriter(file)
                    self.fetch(name, target)
                if expected != target.sha256:
                    raise DamagedError(f"{name} does not have the hash it was sent with")
                partial.replace(path)

        try:
            self.attempt(f"fetching {name}", download)
        except botocore.exceptions.ClientError as error:
            raise StoreError(f"{name} is not in {self.location}") from error

    def write(self, name: str, data: bytes, **condition: str) -> None:
        """Write a few bytes. With a condition, a refusal passes through as the ClientError it is."""
        extra = self._extra | condition | {"ContentType": "application/json"}
        self.attempt(
            f"writing {name}", lambda: self.client.put_object(**self._address(name), Body=data, **extra)
        )

    def read(self, name: str, check: Callable[[bytes], str]) -> tuple[str, str] | None:
        """What `check` makes of a name's bytes, and the ETag; None when there is no such name.

        Read again, and in the end raised, when `check` raises DamagedError.
        """

        def get() -> tuple[str, str]:
            answer = self.client.get_object(**self._address(name))
            return check(answer["Body"].read()), answer["ETag"]

        try:
            found: tuple[str, str] = self.attempt(f"reading {name}", get)
            return found
        except botocore.exceptions.ClientError:
            return None

    def list(self, prefix: str) -> Iterator[Entry]:
        """Names that start with `prefix`, in order. Raises DamagedError for a listing with names that no store writes.

        A listing has no checksum: a name that is damaged on its way can look like another one. Who removes things because
        of what is *not* listed must find everything that is.
        """
        arguments = {"Bucket": self.location.bucket, "Prefix": self.location.key(prefix)}
        while True:
            answer = self.attempt(f"listing {prefix}", lambda: self._page(**arguments))
            now = _server_time(answer)
            for item in answer.get("Contents", ()):
                age = (now - item["LastModified"]).total_seconds()
                yield Entry(self._name(item["Key"]), item["Size"], age)
            if not answer["IsTruncated"]:
                return
            # A continuation token says nothing to us: damaged, it would skip names unnoticed.
            arguments["StartAfter"] = answer["Contents"][-1]["Key"]

    def _page(self, **arguments: str) -> Any:
        try:
            answer = self.client.list_objects_v2(**arguments)
        except ValueError as error:  # botocore's, for numbers and dates that are none
            raise DamagedError("the listing cannot be read") from error
        keys = [item["Key"] for item in answer.get("Contents", ())]
        names = [self._name(key) for key in keys if key.startswith(arguments["Prefix"])]
        foreign = [key for key in keys if not _NAME.fullmatch(self._name(key))]
        if foreign:
            raise DamagedError(f"the key {foreign[0]!r} is none that a store writes")
        if len(set(names)) < len(keys):
            raise DamagedError("a key is listed twice, or without the prefix that was asked for")
        if any(item["LastModified"].tzinfo is None for item in answer.get("Contents", ())):
            raise DamagedError("a date is none of S3's")
        if bool(answer.get("IsTruncated")) != bool(answer.get("NextContinuationToken")):
            raise DamagedError("a page says that the listing ends and that it goes on")
        return answer

    def _name(self, key: str) -> str:
        return str(key).removeprefix(self.location.key(""))

    def remove(self, name: str) -> None:
        """Remove a name; it is no error when there is none."""
        self.attempt(f"removing {name}", lambda: self.client.delete_object(**self._address(name)))

    def uploads(self) -> Iterator[tuple[str, str, float]]:
        """A store's uploads in parts that nobody has ended: name, the upload's id, seconds since it began.

        No listing shows them. Others below the prefix, such as Metaflow's own, are left out.
        """
        start = self.location.key("")
        arguments = {"Bucket": self.location.bucket, "Prefix": start}
        while True:
            answer = self.attempt(
                "listing unfinished uploads", lambda: self.client.list_multipart_uploads(**arguments)
            )
            now = _server_time(answer)
            for item in answer.get("Uploads", ()):
                name = item["Key"].removeprefix(start)
                if name.startswith(("objects/", "work/")):
                    yield name, item["UploadId"], (now - item["Initiated"]).total_seconds()
            if not answer.get("IsTruncated"):
                return
            # SeaweedFS gives the second marker only.
            for marker in ("KeyMarker", "UploadIdMarker"):
                arguments[marker] = answer.get(f"Next{marker}", "")

    def abort_upload(self, name: str, upload: str) -> None:
        """Remove the parts of an unfinished upload; it is no error when there is none."""

        def abort() -> None:
            try:
                self.client.abort_multipart_upload(**self._address(name), UploadId=upload)
            except botocore.exceptions.ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise

        self.attempt(f"removing an unfinished upload of {name}", abort)

    def _address(self, name: str) -> dict[str, str]:
        return {"Bucket": self.location.bucket, "Key": self.location.key(name)}


def _server_time(answer: Any) -> datetime:
    text = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if not text:
        return datetime.now(UTC)
    try:  # a proxy may have added one of its own, which HTTP joins with a comma; the first has a fixed length
        return parsedate_to_datetime(text[:29]).astimezone(UTC)
    except (TypeError, ValueError) as error:
        raise DamagedError(
            f"the server's Date is {text!r}, expected one like 'Sun, 06 Nov 1994 08:49:37 GMT'"
        ) from error


@contextmanager
def _bar(description: str, size: int) -> Iterator[Callable[[int], Any]]:
    """A progress bar on standard error for transfers that take their time."""
    if size < SHOWN_BYTES:
        yield lambda _: None
        return
    with tqdm(total=size, desc=description, unit="B", unit_scale=True, mininterval=1.0) as bar:
        yield bar.update
