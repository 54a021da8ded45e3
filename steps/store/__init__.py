"""The content-addressed store and the stage cache."""

from pathlib import Path

from artifacts_schema.config import StoreConfig
from steps.store.base import Store, get_bytes, put_folder
from steps.store.local import LocalStore

__all__ = ["LocalStore", "Store", "get_bytes", "open_store", "put_folder"]


def open_store(config: StoreConfig, project_root: Path) -> Store:
    """The store the configuration names; a relative root is taken from the project root."""
    return LocalStore(project_root / config.root)
