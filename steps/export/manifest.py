"""A bundle's manifest, read back, and whether the bundle still is what it says. Imports no torch."""

from pathlib import Path

from artifacts_schema.bundle import BundleManifest
from steps.files.disk import file_sha256
from steps.files.errors import ExportError


def read_manifest(folder: Path) -> tuple[BundleManifest, str]:
    """The manifest of the bundle in `folder` and its text. Raises ExportError when there is none that can be read."""
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        return BundleManifest.from_json(text), text
    except (OSError, ValueError) as error:
        raise ExportError(f"expected a bundle with manifest.json in {folder}: {error}") from error


def check_files(folder: Path, manifest: BundleManifest) -> None:
    """Raises ExportError for the first file that the manifest names and that is missing or changed."""
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ExportError(f"the bundle {folder} lacks {name}; export it again")
        found = file_sha256(path)
        if found != expected.sha256:
            raise ExportError(f"{path}: expected the hash {expected.sha256}, found {found}; export it again")
