"""Least-privilege policies for the bucket of a store.

| role | may |
|---|---|
| runner | read, write and list below the project's prefix; remove checkpoints and probes only |
| reader | read and list: drawing pictures, comparing runs |
| collector | what a reader may, and remove: `python -m steps.store.collect --delete` |

Nobody may read, write or list outside the prefix, change the bucket, its policy or its versions. A run that is taken
over by somebody else can therefore not remove weights or records. It can overwrite them: a run writes old objects again,
so that nobody collects them, and no condition tells that from damage. A bucket that keeps versions keeps what was
overwritten; `keep_versions` says how.

A server must take the key for the prefix when it judges whether a missing key may be called missing, as Amazon's and
SeaweedFS do; one that answers 403 instead is told of by `store.check()`, before any work.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

Role = Literal["runner", "reader", "collector"]
ROLES: tuple[Role, ...] = ("runner", "reader", "collector")


def policy(
    bucket: str, prefix: str, role: Role, *, principals: Sequence[str] = (), partition: str = "aws"
) -> dict[str, Any]:
    """An IAM policy for `role` on `s3://bucket/prefix`; with `principals` (ARNs) a bucket policy that grants it to them."""
    arn = f"arn:{partition}:s3:::{bucket}"
    below = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
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
                "Resource": [f"{arn}/{below}work/*", f"{arn}/{below}documents/probes/*"],
            },
        ]
    if role == "collector":
        statements += [
            {"Sid": "Remove", "Action": ["s3:DeleteObject"], "Resource": [f"{arn}/{below}*"]},
            # A document that came into use while it was being removed is written back; removals are announced.
            {
                "Sid": "PutBack",
                "Action": ["s3:PutObject"],
                "Resource": [f"{arn}/{below}documents/*", f"{arn}/{below}work/.removals/*"],
            },
        ]
    granted = {"Principal": {"AWS": list(principals)}} if principals else {}
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", **granted, **statement} for statement in statements],
    }


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
