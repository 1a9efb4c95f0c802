"""Read and write the formats of other programs, and the native file, as ``LCAOData``.

:data:`FORMATS` names them, :func:`read` and :func:`write` take any of them, :func:`convert` goes
from one to another, :func:`convert_many` does so for many structures.
"""

from .batch import convert_many
from .conversion import BandError, Converted, check_conversion, convert
from .registry import FORMATS, guess_format, read, write

__all__ = [
    "FORMATS",
    "BandError",
    "Converted",
    "check_conversion",
    "convert",
    "convert_many",
    "guess_format",
    "read",
    "write",
]
