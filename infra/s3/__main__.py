"""Prints a least-privilege policy as JSON and, on standard error, how the bucket keeps what a runner overwrites.

snapfusion s3 --bucket my-bucket --prefix my-project --role runner > policy.json
aws iam put-role-policy --role-name snapfusion --policy-name store --policy-document file://policy.json
"""

import argparse
import json
import sys
from collections.abc import Sequence

from infra.s3.policy import PICKLES, ROLES, keep_versions, policy


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="snapfusion s3", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--prefix", required=True, help="the part of store.root after the bucket")
    parser.add_argument("--role", choices=ROLES, default="runner")
    parser.add_argument("--principal", action="append", default=[], help="ARN; makes it a bucket policy")
    parser.add_argument(
        "--kms-key", help="ARN of the key, with encryption by a key of your own (store.kms_key)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        found = policy(
            options.bucket,
            options.prefix,
            options.role,
            principals=options.principal,
            kms_key=options.kms_key,
        )
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=2))
    sys.stderr.write(PICKLES + keep_versions(options.bucket, options.prefix))
    return 0


if __name__ == "__main__":
    sys.exit(main())
