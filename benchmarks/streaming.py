"""Conversion of an ABACUS run that is larger than memory, beside conversion in memory.

    python benchmarks/streaming.py [GB] [TARGET ...]

A supercell of the GaAs of examples/data (spin-orbit coupling) is written as the folder of an ABACUS
run whose H(R) alone has about GB gigabytes (by default 0.3) of legacy text; S(R) and r(R) come on
top. It is then converted to each TARGET (by default native, deeph, and abacus in new text) by
``convert_streaming`` and, unless that would need more memory than there is, by ``convert``, each in
a process of its own. Printed are seconds, MB of matrix files a second, the largest resident memory
of the process, and whether all numbers are the same. Files lie beside each other in a temporary
folder of TMPDIR, in which there must be room for some ten times GB.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import h5py
import numpy as np
from numpy import ndarray

from ase_nextham import hdf5
from ase_nextham.converters.stream_abacus import spooled_records
from ase_nextham.data import LCAOData
from ase_nextham.h0.filenames import matrix_files
from ase_nextham.h0.folder_writer import abacus_order, write_runs
from ase_nextham.matrix import AtomPairs, ranges

EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "GaAs_soc.h5"
PER_CELL = 17.6e6
"""Bytes of H(R) of one cell of the example, as text of 13 digits."""

TARGETS = {
    "native": ("native", {}),
    "deeph": ("deeph", {}),
    "abacus": ("abacus", {"layout": "new text"}),
}

IN_A_PROCESS = """
import json, resource, sys, time
from ase_nextham.converters import convert
from ase_nextham.converters.streaming import convert_streaming
how, source, target, format, options = json.loads(sys.argv[1])
begin, cpu = time.perf_counter(), time.process_time()
if how == "streaming":
    convert_streaming(source, target, format, **options)
else:
    convert(source, target, "abacus", format, write_options=options)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.perf_counter() - begin, time.process_time() - cpu, usage.ru_maxrss]))
"""


class Supercell:
    """``data.repeated(repeat)``, its blocks made when they are asked for."""

    def __init__(self, data: LCAOData, repeat: tuple[int, int, int]):
        self.data = data
        natoms, npairs = len(data.atoms), len(data.pairs)
        cells = np.indices(repeat).reshape(3, -1).T
        R, inside = np.divmod(cells[:, None] + data.pairs.R, repeat)
        cell_of_j = np.ravel_multi_index(np.moveaxis(inside, -1, 0), repeat)
        i = (np.arange(len(cells))[:, None] * natoms + data.pairs.i).ravel()
        j = (cell_of_j * natoms + data.pairs.j).ravel()
        # grouped by species, as ABACUS has them
        symbols = data.symbols * len(cells)
        self.order = np.argsort(symbols, kind="stable")
        place = np.argsort(self.order)
        self.pairs, where = AtomPairs.sort(place[i], place[j], R.reshape(-1, 3))
        self.old_pair = where % npairs
        self.origin = (cells @ data.atoms.cell.array)[where // npairs]
        self.operators = {"overlap": data.overlap, "hamiltonian": data.best_hamiltonian()}
        self.operators |= {
            f"position {axis}": r for axis, r in zip("xyz", data.position, strict=True)
        }
        none = AtomPairs([], [], np.zeros((0, 3), int))
        names = tuple(symbols[a] for a in self.order)
        hollow = {
            name: replace(m, symbols=names, pairs=none, data=m.data[..., :0])
            for name, m in self.operators.items()
        }
        self.hollow = replace(
            data,
            atoms=data.atoms.repeat(repeat)[self.order],
            overlap=hollow["overlap"],
            h0=None,
            hamiltonian=hollow["hamiltonian"],
            position=tuple(hollow[f"position {axis}"] for axis in "xyz"),
            nelectrons=None,
        )

    def blocks(self, name: str, p: ndarray) -> ndarray:
        """Blocks of some pairs, one after another."""
        old, matrix = self.old_pair[p], self.operators[name]
        elements = ranges(matrix.offsets[old], np.diff(matrix.offsets)[old])
        data = matrix.data[..., elements]
        if name.startswith("position"):
            shift = self.origin[p, "xyz".index(name[-1])]
            sizes = np.diff(matrix.offsets)[old]
            data = data + np.repeat(shift, sizes) * self.data.overlap.data[elements]
        return data

    def write(self, folder: Path) -> None:
        """Write the folder of an ABACUS run, as legacy text."""
        order, images = abacus_order(self.hollow)
        assert (order == np.arange(len(order))).all()
        # atoms of the example are inside its cell, and so they are in the supercell
        assert not images.any()
        write_runs(
            folder,
            self.hollow,
            lambda named: spooled_records(named, self.pairs, self.blocks),
            "legacy text",
        )


def repeat_for(gigabytes: float) -> tuple[int, int, int]:
    """The most cubic supercell with about so many gigabytes of H(R)."""
    number = max(round(gigabytes * 1e9 / PER_CELL), 1)
    a = max(round(number ** (1 / 3)), 1)
    b = max(round((number / a) ** (1 / 2)), 1)
    return a, b, max(round(number / a / b), 1)


def same_content(a: Path, b: Path) -> bool:
    """Whether two files or folders hold the same."""
    if a.is_dir():
        names = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
        others = sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
        return names == others and all(same_content(a / n, b / n) for n in names)
    if a.suffix != ".h5":
        return filecmp.cmp(a, b, shallow=False)
    with h5py.File(a) as x, h5py.File(b) as y:
        names, others = [], []
        x.visit(names.append)
        y.visit(others.append)
        return names == others and all(same_dataset(x[n], y[n]) for n in names)


def same_dataset(a, b) -> bool:
    """Whether two datasets hold the same numbers, compared a million at a time."""
    if not isinstance(a, h5py.Dataset) or not a.shape:
        return dict(a.attrs) == dict(b.attrs)
    step, length = 10**6, a.shape[-1]
    return a.shape == b.shape and all(
        np.array_equal(a[..., n : n + step], b[..., n : n + step]) for n in range(0, length, step)
    )


def available_memory() -> int:
    """Bytes that a process can have, what the page cache would give up included."""
    found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    return 1024 * int(found[1])


def measured(how: str, source: Path, target: Path, format: str, options: dict) -> list[float]:
    """Seconds, seconds of CPU and kilobytes of memory."""
    arguments = json.dumps([how, str(source), str(target), format, options])
    command = [sys.executable, "-c", IN_A_PROCESS, arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(gigabytes: float, targets: list[str]) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "source"
        cell = Supercell(hdf5.read(EXAMPLE), repeat_for(gigabytes))
        cell.write(source)
        files = {
            file.operator: file.path.stat().st_size for file in matrix_files(source / "OUT.ABACUS")
        }
        size = sum(files.values())
        print(
            f"{len(cell.hollow.atoms)} atoms, {len(cell.pairs)} pairs; "
            + ", ".join(f"{name} {n / 1e6:.0f} MB" for name, n in files.items())
        )
        in_memory = 4 * size < available_memory()
        if not in_memory:
            print("in memory it does not fit, so that there is nothing to compare with")
        head = f"{'target':<8}{'':<12}{'seconds':>9}{'CPU':>8}{'MB/s':>7}{'memory / MB':>13}"
        print(f"{head}  same")
        for name in targets:
            format, options = TARGETS[name]
            results = {}
            for how in ("streaming", "in memory")[: 1 + in_memory]:
                results[how] = folder / f"{how}{'.h5' if format == 'native' else ''}"
                wall, cpu, kilobytes = measured(how, source, results[how], format, options)
                same = ""
                if how == "in memory":
                    same = "yes" if same_content(*results.values()) else "NO"
                print(
                    f"{name:<8}{how:<12}{wall:9.1f}{cpu:8.1f}{size / wall / 1e6:7.1f}"
                    f"{kilobytes / 1024:13.0f}  {same}",
                    flush=True,
                )
            for path in results.values():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 0.3, sys.argv[2:] or list(TARGETS))
