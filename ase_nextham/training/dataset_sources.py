"""Where samples come from: data in memory, files, folders and archives of any readable format.

Formats are not known here: whoever builds a data set says how a path is read, and how one is told
that holds a structure (``ase_nextham.converters`` has both).
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

from ase_nextham.data import LCAOData

ARCHIVES = (".tar.xz", ".tar.gz", ".tar.bz2", ".tar", ".tgz", ".zip")
"""Endings of archives."""

_DEPTH = 4  # folders below one that is given
_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Source:
    """One structure with its operators.

    Parameters
    ----------
    name
        Of the sample, and of its file in a data set.
    read
        Function that gives the operators. A plain function or ``functools.partial`` can be sent
        to other processes.
    path
        What is read, or None for data in memory: the density of a run is looked for there.
    """

    name: str
    read: Callable[[], LCAOData]
    path: Path | None = None

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"the name {self.name!r} of a sample must be letters, digits, '_', '+', '.' and "
                "'-', because a file is named after it"
            )

    @contextmanager
    def opened(self) -> Iterator[list[Source]]:
        """Itself: what :meth:`Archive.opened` is for archives."""
        yield [self]


@dataclass(frozen=True)
class Archive:
    """A packed folder with one structure or several.

    Parameters
    ----------
    path
        Of the archive.
    read, holds_structure
        As in :func:`from_paths`.
    """

    path: Path
    read: Callable[[Path], LCAOData]
    holds_structure: Callable[[Path], bool]

    @property
    def name(self) -> str:
        """Name without the ending: of the sample, if there is one; else the names begin so."""
        return _stem(self.path)

    @contextmanager
    def opened(self) -> Iterator[list[Source]]:
        """The structures in it, unpacked to a temporary folder for the time of the block.

        Raises
        ------
        ValueError
            If it is damaged, holds names that lead out of the folder, or holds no structure.
        OSError
            If there is no space for it.
        """
        with tempfile.TemporaryDirectory(prefix="nextham-unpacked-") as folder:
            root = Path(folder)
            _unpack(self.path, root)
            found = list(_structures(root, self.holds_structure, _DEPTH))
            if not found:
                raise ValueError(f"{self.path}: no structure of a known format is in it")
            names = [self.name]
            if len(found) > 1:
                inner = ["-".join(_plain(path).relative_to(root).parts) for path in found]
                names = [f"{self.name}-{one}" for one in inner]
            yield [
                Source(name, _Read(self.read, path), path)
                for name, path in zip(names, found, strict=True)
            ]


@dataclass(frozen=True)
class _Read:
    read: Callable[[Path], LCAOData]
    path: Path

    def __call__(self) -> LCAOData:
        return self.read(self.path)


def from_paths(
    paths: Iterable[str | os.PathLike],
    read: Callable[[Path], LCAOData],
    holds_structure: Callable[[Path], bool],
) -> list[Source | Archive]:
    """Sources of files, folders and archives.

    Parameters
    ----------
    paths
        Files or folders of one structure each, archives (:data:`ARCHIVES`), or folders with any
        number of these.
    read
        Function of a path: the operators in it, ``ase_nextham.converters.read`` for example.
    holds_structure
        Function of a path: whether ``read`` takes it for one structure.

    Returns
    -------
    list
        Sources named after their files and folders, without suffix.

    Raises
    ------
    FileNotFoundError
        If there is no such path.
    ValueError
        If there is nothing, or two structures have the same name.

    Notes
    -----
    A path that cannot be read is a source as well: it fails when it is read, and does not stop the
    others.
    """
    sources: dict[str, tuple[Path, Source | Archive]] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        for one in list(_members(path, holds_structure, _DEPTH)) or [path]:
            if _is_archive(one):
                source = Archive(one, read, holds_structure)
            else:
                source = Source(_plain(one.resolve()).name, _Read(read, one), one)
            if source.name in sources:
                raise ValueError(
                    f"{sources[source.name][0]} and {one} would both be the sample "
                    f"{source.name!r}; rename one of them"
                )
            sources[source.name] = one, source
    if not sources:
        raise ValueError("there is nothing to read: no path was given")
    return [source for _, source in sources.values()]


def _members(path: Path, holds_structure: Callable[[Path], bool], depth: int) -> Iterator[Path]:
    """Archives and structures at and below a path."""
    if _is_archive(path) or holds_structure(path):
        yield path
    elif path.is_dir() and depth:
        for child in sorted(path.iterdir()):
            if not child.name.startswith("."):
                yield from _members(child, holds_structure, depth - 1)


def _structures(path: Path, holds_structure: Callable[[Path], bool], depth: int) -> Iterator[Path]:
    return (one for one in _members(path, holds_structure, depth) if not _is_archive(one))


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def _stem(path: Path) -> str:
    ending = max((e for e in ARCHIVES if path.name.lower().endswith(e)), key=len)
    return path.name[: -len(ending)]


def _plain(path: Path) -> Path:
    """A path without the suffix of a file."""
    return path.with_suffix("") if path.is_file() else path


def _unpack(path: Path, folder: Path) -> None:
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    _check_space(path, info.file_size, folder)
                    archive.extract(info, folder)  # drops what leads out of the folder
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    _check_space(path, member.size, folder)
                    archive.extract(member, folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, LZMAError, zlib.error) as err:
        raise ValueError(f"{path}: the archive is damaged or not safe to unpack: {err}") from err


def _check_space(path: Path, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            f"{path} does not fit into {folder.parent}: the next file in it has {size / 1e9:.1f} "
            f"GB, and {free / 1e9:.1f} GB are free; set TMPDIR to a folder with more space"
        )


__all__ = ["ARCHIVES", "Archive", "Source", "from_paths"]
