"""Files: text of any encoding is read, and what is written is complete or not there at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read_text(path: str | os.PathLike) -> str:
    """The text of a file; bytes that are not UTF-8 (in comments, mostly) become U+FFFD."""
    return Path(path).read_bytes().decode("utf-8", errors="replace")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A file name to write to, which takes the place of ``path`` when the block ends well.

    It has the name of ``path``, in a folder of its own beside it, so that libraries that look at
    the suffix see the right one. After an error nothing is left and ``path`` is as before.

    Raises
    ------
    FileNotFoundError
        If the folder of ``path`` does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a whole file by :func:`replacing`; text becomes UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder to write to, which becomes ``path`` when the block ends well.

    After an error nothing is left.

    Raises
    ------
    FileExistsError
        If ``path`` is there already and is not an empty folder.
    """
    path = Path(path)
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes it private
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_free(path: str | os.PathLike) -> None:
    """Raise what :func:`replacing_folder` would, before any work is done."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; choose another folder")
