"""Least-privilege policies for the bucket of a store.

| role | may |
|---|---|
| runner | read, write and list below the project's prefix; remove checkpoints, probes and its own leases only |
| reader | read and list: drawing pictures, comparing runs; and tell the collector that it does |
| collector | what a reader may, and remove, unfinished uploads included: `snapfusion collect --delete` |

Nobody may read, write or list outside the prefix, change the bucket, its policy or its versions; what a collector may
see of other projects are the names of what is being uploaded. A run that is taken over by somebody else can therefore
not remove weights or records. It can overwrite them: who finds an object damaged writes it again, and no condition
tells one from the other. A bucket that keeps versions keeps what was overwritten; `keep_versions` says how.
With a key of one's own (`store.kms_key`) a role may use it as far as reading and writing objects needs.

A server must take the key for the prefix when it judges whether a missing key may be called missing, as Amazon's and
SeaweedFS do; one that answers 403 instead is told of by `store.check()`, before any work.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

Role = Literal["runner", "reader", "collector"]
ROLES: tuple[Role, ...] = ("runner", "reader", "collector")
_KEY = re.compile(r"arn:(?P<partition>[a-z-]+):kms:(?P<region>[a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PATTERN = re.compile(r"[*?$]")


def policy(
    bucket: str,
    prefix: str,
    role: Role,
    *,
    principals: Sequence[str] = (),
    partition: str = "aws",
    kms_key: str | None = None,
) -> dict[str, Any]:
    """An IAM policy for `role` on `s3://bucket/prefix`; with `principals` (ARNs) a bucket policy that grants it to them.

    `kms_key` is the ARN of the key that encrypts the bucket's objects. Raises ValueError for anything else, and with
    principals: a bucket policy cannot grant rights on a key; and for names in which a policy reads more than a name.
    """
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"expected the name of one bucket, found {bucket!r}")
    if _PATTERN.search(prefix):
        raise ValueError(
            f"the prefix {prefix!r} holds *, ? or $, which a policy reads as a pattern: it would open other prefixes; "
            "name the project's own"
        )
    below = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    statements = _statements(role, f"arn:{partition}:s3:::{bucket}", below)
    if kms_key is not None:
        statements.append(_use_of_key(kms_key, bucket_policy=bool(principals)))
    granted = {"Principal": {"AWS": list(principals)}} if principals else {}
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", **granted, **statement} for statement in statements],
    }


def _statements(role: Role, arn: str, below: str) -> list[dict[str, Any]]:
    """What a role may do with the bucket `arn`, under the prefix `below`."""
    scratch = [f"{arn}/{below}documents/{name}/*" for name in ("probes", "leases/use")]
    statements: list[dict[str, Any]] = [
        {
            "Sid": "List",
            "Action": ["s3:ListBucket"],
            "Resource": [arn],
            "Condition": {"StringLike": {"s3:prefix": [f"{below}*"]}},
        },
        {"Sid": "Read", "Action": ["s3:GetObject"], "Resource": [f"{arn}/{below}*"]},
    ]
    if role == "runner":
        statements += [
            {
                "Sid": "Write",
                "Action": ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
                "Resource": [f"{arn}/{below}*"],
            },
            {
                "Sid": "RemoveScratch",
                "Action": ["s3:DeleteObject"],
                "Resource": [f"{arn}/{below}work/*", *scratch],
            },
        ]
    if role == "reader":
        # Whatever works says so, for the collector to see; the probe asks the server for conditional writes.
        tell = {"Sid": "TellOfUse", "Action": ["s3:PutObject", "s3:DeleteObject"], "Resource": scratch}
        statements.append(tell)
    if role == "collector":
        statements += [
            {
                "Sid": "Remove",
                "Action": ["s3:DeleteObject", "s3:AbortMultipartUpload"],
                "Resource": [f"{arn}/{below}*"],
            },
            {
                "Sid": "ListUploads",
                "Action": ["s3:ListBucketMultipartUploads"],
                "Resource": [arn],
                "Condition": {"StringLike": {"s3:prefix": [f"{below}*"]}},
            },
            {
                # For servers that do not tell a policy the prefix of this request. SeaweedFS knows no ...IfExists.
                "Sid": "ListUploadsWithoutPrefix",
                "Action": ["s3:ListBucketMultipartUploads"],
                "Resource": [arn],
                "Condition": {"Null": {"s3:prefix": "true"}},
            },
            {
                "Sid": "Lease",
                "Action": ["s3:PutObject"],
                "Resource": [f"{arn}/{below}documents/{name}/*" for name in ("probes", "leases")],
            },
        ]
    return statements


def _use_of_key(kms_key: str, *, bucket_policy: bool) -> dict[str, Any]:
    """What S3 asks of the key in the user's name: decrypting what is read, and with it the parts of a large upload."""
    found = _KEY.fullmatch(kms_key)
    if found is None:
        raise ValueError(
            f"the key must be given as arn:aws:kms:<region>:<account>:key/<id>, found {kms_key!r}; an alias grants nothing"
        )
    if bucket_policy:
        raise ValueError("a bucket policy cannot grant rights on a key: leave out the principals, or the key")
    domain = "amazonaws.com.cn" if found["partition"] == "aws-cn" else "amazonaws.com"
    return {
        "Sid": "UseKey",
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": [kms_key],
        # Through S3 only: with the key alone nobody decrypts what he got elsewhere.
        "Condition": {"StringEquals": {"kms:ViaService": f"s3.{found['region']}.{domain}"}},
    }


PICKLES = (
    "Metaflow pickles its artifacts: whoever may write where METAFLOW_DATASTORE_SYSROOT_S3 lies runs code at everybody who "
    "resumes a run or reads it there. This policy opens only what lies below its own prefix: let that root lie "
    "outside of it, in a bucket or below a prefix that only those may write to whose code you would run.\n"
)


def keep_versions(bucket: str, prefix: str, days: int = 30) -> str:
    """What the bucket's owner does once so that nothing that a run overwrites is lost within `days`."""
    below = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    rule = {
        "ID": f"snapfusion {below}",
        "Status": "Enabled",
        "Filter": {"Prefix": below},
        "NoncurrentVersionExpiration": {"NoncurrentDays": days},
        "Expiration": {"ExpiredObjectDeleteMarker": True},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    }
    return (
        f"These credentials remove no weights and no records, but a runner's can overwrite them. Make the bucket keep "
        f"versions, and drop old ones after {days} days (the second command replaces the bucket's lifecycle rules; what "
        "the collector removes takes room until then):\n"
        f"aws s3api put-bucket-versioning --bucket {bucket} --versioning-configuration Status=Enabled\n"
        f"aws s3api put-bucket-lifecycle-configuration --bucket {bucket} --lifecycle-configuration "
        f"'{json.dumps({'Rules': [rule]})}'\n"
    )
