"""A shard's tar headers, distrusted: each member lies behind the one before it and within the file."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from steps.files.errors import DataError

_BLOCK = 512  # tar's unit
_EXTENSION_BYTES = 8 << 10  # long names and pax headers are read whole, and searched in quadratic time
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
# What tarfile raises for damaged headers: not only errors of its own.
_UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, LookupError, OverflowError, RecursionError)


class _Header(tarfile.TarInfo):
    """A header whose size makes sense; before Python 3.11.14 tarfile follows a negative one for ever (CVE-2025-8194)."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """See tarfile. Raises ReadError for a negative size, or that of an extension which no writer needs."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENSIONS and header.size > _EXTENSION_BYTES):
            raise tarfile.ReadError(f"the header of {header.name!r} says {header.size} bytes")
        return header


@contextmanager
def open_shard(path: Path) -> Iterator[tarfile.TarFile]:
    """The uncompressed tar file at `path`. Raises DataError, naming it, for what cannot be read within the block."""
    try:
        with tarfile.open(path, mode="r:", tarinfo=_Header) as tar:
            yield tar
    except _UNREADABLE as error:
        raise DataError(
            f"shard {path} is truncated or no uncompressed tar file ({error}); write or download it again"
        ) from error


def members_of(path: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member, in order. Raises tarfile.ReadError for one that is not within the file, and for a missing end."""
    size, end = path.stat().st_size, 0
    for member in tar:
        # The size in a pax header replaces the one that _Header has seen. A sparse file is longer than what is stored.
        stored = member.size if member.isreg() and not member.issparse() else 0
        if not end < member.offset_data <= member.offset_data + stored <= tar.offset <= size:
            raise tarfile.ReadError(f"{member.name!r} does not lie within the file")
        end = tar.offset
        yield member
    # tarfile takes a cut or damaged header for the end; a whole archive ends in a block of zeros.
    with path.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"no end mark at byte {end}")
