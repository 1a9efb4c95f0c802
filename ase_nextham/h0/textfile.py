"""Text files: read whatever their encoding; and any file written completely or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def read_text(path: str | os.PathLike) -> str:
    """The text of a file; bytes that are not UTF-8 (in comments, mostly) become U+FFFD."""
    return Path(path).read_bytes().decode("utf-8", errors="replace")


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file under a temporary name beside it, then rename it; text becomes UTF-8."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
