"""How fast the output of ABACUS becomes DeepH's: this package and DeepH-dock.

    python benchmarks/deeph_conversion.py [--dock PYTHON] [--data FOLDER]

H(R), S(R) and r(R) of GaAs and MoS2 with spin-orbit coupling, text of ABACUS 3.x, are converted to
the new DeepH format, and to the old one that DeepH-dock does not write from ABACUS. Each program
works in a process of its own on one core with the files in the page cache; the best of several
runs counts, in seconds of CPU time. MB are those of the text. PYTHON is an interpreter that has
DeepH-dock (package ``deepx-dock``, which needs Python 3.12), by default this one. FOLDER is
``shared/data`` with ``abacus/scf/GaAs_soc_zero.tar.xz``, ``orbital`` and ``pseudo``, by default
beside the repository.

The last table has many copies of GaAs converted by one process and by two, in seconds of wall time
from start to end, the start of the processes included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from ase_nextham.converters import convert, convert_many

DATA = Path(__file__).parents[2] / "shared" / "data"
CRYSTALS = ("GaAs_soc_zero", "MoS2_soc_zero")
REPEATS = 5
COPIES = 24

DOCK = """
import shutil, sys, time
try:
    from deepx_dock.convert.abacus.translate_abacus_to_deeph import AbacusDatasetTranslator
except ImportError as error:
    print("not installed:", error)
    raise SystemExit
source, target, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
best = float("inf")
for _ in range(repeats):
    shutil.rmtree(target, ignore_errors=True)
    start = time.process_time()
    translator = AbacusDatasetTranslator(source, target, export_r=True, n_jobs=1, n_tier=-1)
    translator.transfer_all_abacus_to_deeph()
    best = min(best, time.process_time() - start)
print("seconds", best)
"""


def unpacked(data: Path, name: str, folder: Path) -> Path:
    """The run of a crystal, with its overlap in the same folder, where DeepH-dock looks for it."""
    with tarfile.open(data / "abacus" / "scf" / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    run = folder / name / "scf"
    for path in (folder / name / "get_hs" / "OUT.ABACUS").glob("data-SR*"):
        shutil.copy(path, run / "OUT.ABACUS")
    return run


def seconds_of_ours(run: Path, target: Path, format: str, options: dict) -> float:
    """CPU time of the fastest of several conversions."""
    times = []
    for _ in range(REPEATS):
        shutil.rmtree(target, ignore_errors=True)
        start = time.process_time()
        convert(run, target, "abacus", format, **options)
        times.append(time.process_time() - start)
    return min(times)


def seconds_of_dock(python: str, run: Path, target: Path) -> float | str:
    """CPU time of DeepH-dock's fastest conversion, or why there is none."""
    command = [python, "-c", DOCK, str(run), str(target), str(REPEATS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    if lines[-1].startswith("seconds") and list(target.rglob("hamiltonian.h5")):
        return float(lines[-1].split()[1])
    return lines[-1]


def compare(run: Path, name: str, python: str, folder: Path, options: dict) -> None:
    """Print the table of one crystal."""
    size = sum(path.stat().st_size for path in run.rglob("*.csr")) / 1e6
    deeph = seconds_of_ours(run, folder / "ours", "deeph", options)
    without_position = options | {"only": ["overlap", "hamiltonian"]}
    rows = {
        "ase_nextham": deeph,
        "DeepH-dock": seconds_of_dock(python, run, folder / "dock"),
        "ase_nextham, old format": seconds_of_ours(
            run, folder / "old", "deeph-legacy", without_position
        ),
    }
    print(f"\n{name}: H, S and r, {size:.1f} MB")
    print(f"{'':<24}{'seconds':>9}{'MB/s':>7}")
    for program, seconds in rows.items():
        if isinstance(seconds, str):
            print(f"{program:<24}{'-':>9}{'-':>7}   {seconds}")
        else:
            ratio = f"{seconds / deeph:9.1f} x our time"
            print(f"{program:<24}{seconds:9.3f}{size / seconds:7.0f}{ratio}")


def scaling(run: Path, folder: Path, options: dict) -> None:
    """Print how much sooner two processes are ready than one."""
    for n in range(COPIES):
        copy = folder / "many" / f"{n:02}"
        (copy / "OUT.ABACUS").mkdir(parents=True)
        for path in (*run.glob("*"), *run.glob("OUT.ABACUS/*")):
            if path.is_file():
                (copy / path.relative_to(run)).symlink_to(path)
    size = COPIES * sum(path.stat().st_size for path in run.rglob("*.csr")) / 1e6
    print(f"\n{COPIES} copies of GaAs, {size:.0f} MB, on {os.cpu_count()} cores")
    print(f"{'jobs':<24}{'seconds':>9}{'MB/s':>7}")
    for jobs in (1, 2):
        target = folder / f"jobs {jobs}"
        start = time.perf_counter()
        sources = sorted((folder / "many").iterdir())
        batch = convert_many(sources, target, "abacus", target_format="deeph", jobs=jobs, **options)
        seconds = time.perf_counter() - start
        assert len(batch.done) == COPIES, batch.failed
        print(f"{jobs:<24}{seconds:9.2f}{size / seconds:7.0f}")
        shutil.rmtree(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dock", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--data", default=DATA, type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"the reference data is not at {arguments.data}; say where with --data")
    folders = {f"{kind}_dir": str(arguments.data / kind) for kind in ("pseudo", "orbital")}
    read_options = {"read_options": folders}
    with tempfile.TemporaryDirectory() as scratch:
        runs = {}
        for crystal in CRYSTALS:
            place = Path(scratch) / crystal
            place.mkdir()
            runs[crystal] = unpacked(arguments.data, crystal, place)
            compare(runs[crystal], crystal, arguments.dock, place, read_options)
        scaling(runs["GaAs_soc_zero"], Path(scratch), read_options)
