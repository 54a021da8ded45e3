"""The files of a folder that somebody else made, whose files may be links (a hub's cache has links only)."""

from pathlib import Path

from steps.files.errors import StoreError


def folder_files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted; a link to a file counts as that file.

    Raises StoreError for a link that leads nowhere, for one to a folder, whose files would not be found, and for one out
    of the folder: what lies there was never meant to be stored. A snapshot's links into its own hub cache are none.
    """
    homes = _homes(folder.resolve())
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.is_file():
            kind = (
                "a folder; put the folder itself there" if path.is_dir() else "nothing; complete the folder"
            )
            raise StoreError(f"{path} is a link to {path.readlink()}, which is {kind}")
        if path.is_file():
            target = path.resolve()
            if path.is_symlink() and not any(target.is_relative_to(home) for home in homes):
                raise StoreError(
                    f"{path} is a link to {target}, out of the folder; put the file itself there, or remove the link"
                )
            files.append(path)
    return files


def _homes(folder: Path) -> list[Path]:
    """Where links of a folder may lead: into itself, and from `models--x/snapshots/y` into `models--x/blobs`."""
    snapshots = folder.parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        return [folder, snapshots.parent / "blobs"]
    return [folder]
