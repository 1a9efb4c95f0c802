"""The opcodes of pickle, interpreted without importing or calling anything.

A pickle is a program for a small stack machine. Its dangerous words are those that name a global
(``GLOBAL``, ``STACK_GLOBAL``, ``INST``, ``EXT``) and those that call it (``REDUCE``, ``NEWOBJ``,
``OBJ``, ``BUILD``, ...). Here a global is two words of text, :class:`Global`; "calling" one looks
it up in a table of our own functions (:mod:`~ase_nextham.inert_pickle.calls`), and what is not in
the table is refused or becomes a :class:`Record` of what was asked. Nothing is ever looked up in
``sys.modules``, and no attribute is set on anything but a record.

:func:`pickletools.genops` splits the bytes into opcodes and arguments; it executes nothing and
checks every length against the bytes that are there. The loop does not recurse.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pickletools import genops
from typing import BinaryIO

MAX_OPCODES = 10_000_000
"""Opcodes in one file; the largest honest files have some 100 000, and each may make an object."""

MAX_DEPTH = 3
"""Torch files within pickles within torch files: tensors in a plain pickle are one deep."""

_FREE = 64 * 2**20  # bytes that a file of any size may ask for beyond its own
_EXPANSION = 32
# bytes that opcodes cost beside what they read: containers, and entries of the memo
_COST = dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "FROZENSET"), 200)
_COST |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 100)
_COST |= dict.fromkeys(("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "GLOBAL"), 200)

_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}

# Safety does not rest on these names, since nothing is called in any case: a file that has them
# was made to attack, and whoever opens it should be told.
_HOSTILE = frozenset(
    ("asyncio", "builtins", "code", "codeop", "commands", "ctypes", "importlib", "inspect", "io")
    + ("marshal", "multiprocessing", "nt", "ntpath", "os", "pathlib", "pickle", "pip", "platform")
    + ("popen2", "posix", "posixpath", "pty", "runpy", "shutil", "signal", "site", "socket")
    + ("subprocess", "sys", "tempfile", "threading", "timeit", "urllib", "webbrowser")
)
_HARMLESS_BUILTINS = frozenset(
    ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int")
    + ("list", "object", "range", "set", "slice", "str", "tuple", "type")
)


class PickleError(ValueError):
    """A pickle that is damaged, or asks for something that is refused."""


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names: two words, never the thing itself."""

    module: str
    name: str

    def __str__(self):
        return shown(f"{self.module}.{self.name}")


@dataclass(eq=False)
class Record:
    """An object of a class that is not known here: what the pickle says of it, and no code.

    Parameters
    ----------
    module, name
        Its class, or the function that would have returned it.
    args, kwargs
        What this would have been called with.
    state
        Mostly the ``__dict__`` of the object; None if the pickle sets none.
    items, elements
        Entries of subclasses of dict, and of list or set.
    """

    module: str
    name: str
    args: tuple = ()
    kwargs: Mapping = field(default_factory=dict)
    state: object = None
    items: dict = field(default_factory=dict)
    elements: list = field(default_factory=list)

    def __repr__(self):
        return f"Record({shown(f'{self.module}.{self.name}')})"


@dataclass(eq=False)
class Context:
    """What all pickles of one file share: its name for messages, what is allowed, and limits.

    Parameters
    ----------
    where
        The file, for messages.
    nbytes
        Its size, to which all allocations are compared.
    records
        Beginnings of names of modules whose classes may become a :class:`Record`, or ``"any"``.
    """

    where: str
    nbytes: int
    records: Sequence[str] | str = ()
    depth: int = 0
    opcodes: int = 0
    allocated: int = 0

    def error(self, reason: str) -> PickleError:
        """An error that names the file."""
        return PickleError(f"{self.where}: {reason}")

    def spend(self, nbytes: int, purpose: str) -> None:
        """Account for memory beyond the file's own bytes, before it is allocated."""
        self.allocated += nbytes
        limit = _FREE + _EXPANSION * self.nbytes
        if self.allocated > limit:
            raise self.error(
                f"{purpose} would need {self.allocated} bytes in all, but the file has only "
                f"{self.nbytes}: refused"
            )

    def allows_record(self, module: str, name: str) -> bool:
        """Whether an unknown class may stand as a record."""
        if module == "builtins" and name in _HARMLESS_BUILTINS:
            return self.records == "any"
        if module.split(".")[0] in _HOSTILE:
            return False
        return self.records == "any" or any(module.startswith(start) for start in self.records)


@dataclass(frozen=True)
class Table:
    """What a pickle may ask for.

    Parameters
    ----------
    calls
        Our own functions ``f(context, *args)`` by (module, name), run in place of the named one.
    values
        Globals that may appear without being called: torch dtypes, storage types.
    fill
        Function of (context, object, state) for ``BUILD`` on what ``calls`` returned.
    """

    calls: Mapping[tuple[str, str], Callable]
    values: Callable[[str, str], bool]
    fill: Callable[[Context, object, object], None]


def shown(text: object) -> str:
    """Text of a file for a message: printable, and short."""
    word = text if isinstance(text, str) and text.isprintable() else ascii(text)[:200]
    return word if len(word) <= 80 else word[:77] + "..."


def run(
    file: BinaryIO,
    context: Context,
    table: Table,
    persistent: Callable[[object], object] | None = None,
) -> object:
    """The object that the pickle at the position of ``file`` describes.

    Parameters
    ----------
    file
        Anything with ``read``, ``readline`` and ``tell``; left behind the end of the pickle.
    persistent
        What a persistent id stands for; without it they are refused.

    Raises
    ------
    PickleError
        If the pickle is damaged, or asks for what the table does not have.
    """
    machine = _Machine(context, table, persistent)
    at = 0
    try:
        for opcode, argument, position in genops(file):
            at = position
            context.opcodes += 1
            if context.opcodes > MAX_OPCODES:
                raise context.error(f"more than {MAX_OPCODES} pickle opcodes: refused")
            if opcode.name == "STOP":
                return machine.result()
            if opcode.name in _COST:
                context.spend(_COST[opcode.name], "objects")
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                machine.push(argument)
            else:
                handler(machine, argument)
    except PickleError:
        raise
    except (ValueError, IndexError, OverflowError, TypeError, struct.error) as err:
        # TypeError: an opcode on an object of a kind that it does not work on
        raise context.error(f"damaged pickle near byte {at}: {shown(str(err))}") from err
    raise context.error("damaged pickle: it has no end")


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self, context: Context, table: Table, persistent):
        self.context, self.table, self.persistent = context, table, persistent
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, object] = {}  # a dict: an index of 2**31 costs one entry, no more

    def result(self):
        if len(self.stack) != 1 or self.marks:
            raise ValueError("it ends with more or less than one object on its stack")
        return self.stack.pop()

    def push(self, value):
        self.stack.append(value)

    def since_mark(self) -> list:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def mark(self, _):
        self.marks.append(self.stack)
        self.stack = []

    def pop(self, _):
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    # --- memo --------------------------------------------------------------------------------

    def get(self, index):
        if index not in self.memo:
            raise ValueError(f"it refers to an object {index} that it has not made")
        self.stack.append(self.memo[index])

    def put(self, index):
        if index < 0:
            raise ValueError("negative index of the memo")
        self.memo[index] = self.stack[-1]

    def memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    # --- containers --------------------------------------------------------------------------

    def tuple_of(self, n: int):
        if len(self.stack) < n:
            raise IndexError("its stack is empty")
        self.stack[-n:] = [tuple(self.stack[-n:])]

    def extend(self, values: Sequence):
        target = self.stack[-1]
        if isinstance(target, Record):
            target = target.elements
        if not isinstance(target, list):
            raise TypeError(f"it appends to a {type(target).__name__}")
        target.extend(values)

    def update(self, values: Sequence):
        target = self.stack[-1]
        if isinstance(target, Record):
            target = target.items
        if not isinstance(target, dict):
            raise TypeError(f"it sets items of a {type(target).__name__}")
        if len(values) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[hashable(self.context, key)] = value

    def add(self, _):
        values = self.since_mark()
        target = self.stack[-1]
        if not isinstance(target, set):
            raise TypeError(f"it adds to a {type(target).__name__}")
        target.update(hashable(self.context, value) for value in values)

    def dictionary(self, _):
        values = self.since_mark()
        self.push({})
        self.update(values)

    # --- globals and what is done with them --------------------------------------------------

    def find(self, module: object, name: object):
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("the name of a global is not text")
        first, dot, rest = module.partition(".")
        module = _OLD_NAMES.get(first, first) + dot + rest
        if module.startswith("numpy._core"):
            module = "numpy.core" + module[len("numpy._core") :]
        known = (module, name) in self.table.calls or self.table.values(module, name)
        if not known and not self.context.allows_record(module, name):
            raise self.context.error(
                f"this pickle asks for {shown(f'{module}.{name}')}, which is refused; nothing in "
                "the file was run"
            )
        return Global(module, name)

    def call(self, function: object, args: object, kwargs: Mapping | None = None):
        if not isinstance(function, Global):
            raise TypeError(f"it calls a {type(function).__name__}")
        if not isinstance(args, tuple):
            raise TypeError("the arguments of a call are not a tuple")
        own = self.table.calls.get((function.module, function.name))
        if own is not None and not kwargs:
            return own(self.context, *args)
        if not self.context.allows_record(function.module, function.name):
            raise self.context.error(f"this pickle asks to call {function}, which is refused")
        return Record(function.module, function.name, args, dict(kwargs or {}))

    def stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.find(module, name))

    def reduce(self, _):
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    def new_with_keywords(self, _):
        kwargs, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(kwargs, dict):
            raise TypeError("the keywords of a call are not a dict")
        self.stack.append(self.call(cls, args, kwargs))

    def inst(self, name: str):
        args = tuple(self.since_mark())
        self.stack.append(self.call(self.find(*name.split(" ", 1)), args))

    def obj(self, _):
        cls, *args = self.since_mark()
        self.stack.append(self.call(cls, tuple(args)))

    def build(self, _):
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        else:
            self.table.fill(self.context, target, state)

    def persistent_id(self, identifier: object):
        if self.persistent is None:
            raise self.context.error("this pickle refers to data outside itself, which is refused")
        self.stack.append(self.persistent(identifier))

    def refuse(self, _):
        raise self.context.error(
            "this pickle uses the extension registry or buffers outside itself, which is refused"
        )

    def protocol(self, number: int):
        if number > 5:
            raise ValueError(f"pickle protocol {number}; known are 0 to 5")


def hashable(context: Context, key: object):
    """A key, if hashing it is safe: nested tuples can take exponential time."""
    simple = (str, bytes, int, float, type(None), Global, Record)  # records by identity
    parts = key if isinstance(key, tuple) else (key,)
    if all(isinstance(part, simple) for part in parts):
        return key
    raise context.error(f"a {type(key).__name__} as key of a dict or member of a set: refused")


_HANDLERS: Mapping[str, Callable[[_Machine, object], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.since_mark() and None,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "DICT": _Machine.dictionary,
    "FROZENSET": lambda machine, _: machine.push(
        frozenset([hashable(machine.context, value) for value in machine.since_mark()])
    ),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "ADDITEMS": _Machine.add,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GLOBAL": lambda machine, name: machine.push(machine.find(*name.split(" ", 1))),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_id,
    "BINPERSID": lambda machine, _: machine.persistent_id(machine.stack.pop()),
    "EXT1": _Machine.refuse,
    "EXT2": _Machine.refuse,
    "EXT4": _Machine.refuse,
    "NEXT_BUFFER": _Machine.refuse,
    "READONLY_BUFFER": _Machine.refuse,
}
"""What opcodes do; those that are not here push their argument: numbers, text, bytes."""
