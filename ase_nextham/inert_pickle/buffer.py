"""The bytes of a file, mapped rather than read, and the directory of a zip archive in them."""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from ase_nextham.inert_pickle.interpreter import Context, shown

Buffer = bytes | mmap.mmap
"""What all readers here work on: both can be sliced, and given to ``numpy.frombuffer``."""


def mapped(path: str | os.PathLike) -> Buffer:
    """The content of a file, read only where it is used.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@dataclass(frozen=True)
class Entry:
    """One file in an archive.

    Parameters
    ----------
    content
        Its bytes as they stand there: a view, nothing is copied.
    size
        Bytes that it has when decompressed.
    """

    content: memoryview
    size: int
    compressed: bool


def zip_directory(context: Context, buffer: Buffer) -> Mapping[str, Entry]:
    """The entries of a zip archive; each lies inside the file, and no name stands twice."""
    try:
        with zipfile.ZipFile(_File(buffer)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, ValueError, OSError) as err:
        raise context.error(f"a damaged or incomplete zip archive: {shown(str(err))}") from err
    except (NotImplementedError, RuntimeError, UnicodeError, OverflowError) as err:
        raise context.error(f"a zip archive of an unknown kind: {shown(str(err))}") from err
    entries: dict[str, Entry] = {}
    for info in infos:
        if info.filename in entries:
            raise context.error(f"entry {shown(info.filename)} stands twice in the archive")
        entries[info.filename] = _entry(context, buffer, info)
    return entries


def _entry(context: Context, buffer: Buffer, info: zipfile.ZipInfo) -> Entry:
    name, begin = shown(info.filename), info.header_offset
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise context.error(f"entry {name} is encrypted or compressed in an unknown way")
    if begin < 0 or begin + 30 > len(buffer) or buffer[begin : begin + 4] != b"PK\x03\x04":
        raise context.error(f"entry {name} is not where the archive says")
    begin += 30 + sum(struct.unpack("<2H", buffer[begin + 26 : begin + 30]))
    end = begin + info.compress_size
    if end > len(buffer):
        raise context.error(f"entry {name} reaches beyond the end of the file")
    compressed = info.compress_type == zipfile.ZIP_DEFLATED
    if not compressed and info.compress_size != info.file_size:
        raise context.error(f"entry {name} has two sizes")
    return Entry(memoryview(buffer)[begin:end], info.file_size, compressed)


def _File(buffer: Buffer):
    if isinstance(buffer, bytes):
        return BytesIO(buffer)
    buffer.seek(0)
    return _Seekable(buffer)


class _Seekable:
    """What zipfile asks of a file, of a memory map."""

    def __init__(self, buffer: mmap.mmap):
        self.read, self.tell, self._seek = buffer.read, buffer.tell, buffer.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        self._seek(offset, whence)
        return self.tell()
