"""The content-addressed store and the stage cache."""

from pathlib import Path

from artifacts_schema.config import StoreConfig
from steps.store.base import Mirror, Store, get_bytes, put_folder
from steps.store.local import LocalStore

__all__ = ["LocalStore", "Mirror", "Store", "get_bytes", "open_store", "put_folder"]


def open_store(config: StoreConfig, project_root: Path) -> Store:
    """The store the configuration names; relative folders are taken from the project root."""
    if config.root.startswith("s3:"):
        from steps.store.s3 import S3Store  # boto3 takes a while to import

        return S3Store(config, project_root / config.local)
    return LocalStore(project_root / config.root)
