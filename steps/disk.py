"""Room on the disk, asked for before anything is written."""

import os
import shutil
from pathlib import Path

from steps.errors import DiskFullError


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raises DiskFullError unless `needed` bytes are free where `folder` lies; `what` says what needs them."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{what} needs about {needed / (1 << 20):.1f} MiB in {folder}, {free / (1 << 20):.1f} MiB are free; "
            "free some or use another disk, and try again"
        )


def used_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; one that goes away meanwhile counts as nothing."""
    used = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                used += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return used
