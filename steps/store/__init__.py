"""The content-addressed store: objects, documents, work folders; bytes only."""

from pathlib import Path

from artifacts_schema.run_configs import StoreConfig
from steps.store.base import Mirror, Store, get_bytes, put_folder
from steps.store.local import LocalStore

__all__ = ["LocalStore", "Mirror", "Store", "get_bytes", "local_folder", "open_store", "put_folder"]


def open_store(config: StoreConfig, project_root: Path) -> Store:
    """The store the configuration names; relative folders are taken from the project root.

    Raises StoreError for a layout that this program does not read; on S3 that takes one request.
    """
    if config.root.startswith("s3:"):
        from steps.store.s3 import S3Store  # boto3 takes a while to import

        store = S3Store(config, local_folder(config, project_root))
        store.require_layout()
        return store
    return LocalStore(local_folder(config, project_root))


def local_folder(config: StoreConfig, project_root: Path) -> Path:
    """Where the store keeps its files on this machine."""
    return project_root / (config.local if config.root.startswith("s3:") else config.root)
