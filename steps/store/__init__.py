"""The content-addressed store and the stage cache."""

from pathlib import Path

from artifacts_schema.config import StoreConfig
from steps.store.base import Mirror, Store, get_bytes, put_folder
from steps.store.layout import check_layout
from steps.store.local import LocalStore

__all__ = ["LocalStore", "Mirror", "Store", "get_bytes", "local_folder", "open_store", "put_folder"]


def open_store(config: StoreConfig, project_root: Path, *, any_layout: bool = False) -> Store:
    """The store the configuration names; relative folders are taken from the project root.

    Raises StoreError for a layout that this program does not read, unless `any_layout`, which is for a migration. On S3
    that takes one request.
    """
    if config.root.startswith("s3:"):
        from steps.store.s3 import S3Store  # boto3 takes a while to import

        store = S3Store(config, local_folder(config, project_root), any_layout=any_layout)
        if not any_layout:
            check_layout(store)
        return store
    return LocalStore(local_folder(config, project_root), any_layout=any_layout)


def local_folder(config: StoreConfig, project_root: Path) -> Path:
    """Where the store keeps its files on this machine."""
    return project_root / (config.local if config.root.startswith("s3:") else config.root)
