"""The files of a folder that somebody else made, whose files may be links (a hub's cache has links only)."""

from pathlib import Path

from steps.files.errors import StoreError


def folder_files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted; a link to a file counts as that file.

    Raises StoreError for a link that leads nowhere, and for one to a folder, whose files would not be found.
    """
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.is_file():
            kind = (
                "a folder; put the folder itself there" if path.is_dir() else "nothing; complete the folder"
            )
            raise StoreError(f"{path} is a link to {path.readlink()}, which is {kind}")
        if path.is_file():
            files.append(path)
    return files
