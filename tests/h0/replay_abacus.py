"""Stands in for ABACUS: checks the input it is given and answers as the real one once did.

Usage: ``python replay_abacus.py RECORDING [FAULT]``, in a folder with INPUT, STRU and KPT.

RECORDING holds the INPUT, STRU and KPT of a run of the real ABACUS, its OUT.h0, what it printed
(``abacus.out``) and, for versions without ``calculation get_hs``, what it printed when asked for
that (``refusal.out``) and its exit status then (``refusal.status``). Input that differs from the
recorded one is an error of the caller and ends with status 99. FAULT is a key of :data:`FAULTS`:
how to fail instead. The calculations asked for are noted in a file ``calls``.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


def keywords(path):
    lines = Path(path).read_text().splitlines()[1:]
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


def words(path):
    result = []
    for word in Path(path).read_text().split():
        try:
            result.append(float(word))
        except ValueError:
            result.append(word)
    return result


def same(a, b):
    return abs(a - b) < 1e-9 if isinstance(a, float) and isinstance(b, float) else a == b


def reject(reason):
    print(f"the input differs from the recorded one: {reason}", file=sys.stderr)
    sys.exit(99)


def compare(recording, given):
    recorded = keywords(recording / "INPUT")
    for folder in ("pseudo_dir", "orbital_dir"):
        if not Path(given[folder]).is_dir():
            reject(f"{folder} of INPUT is not a folder")
        recorded[folder] = given[folder]  # they lay elsewhere then
    if given["calculation"] == "get_hs" and recorded["calculation"] == "scf":
        recorded["calculation"] = "get_hs"
        del recorded["scf_nmax"]
    if given != recorded:
        reject(f"INPUT is {given}, not {recorded}")
    for name in ("STRU", "KPT"):
        ours, theirs = words(name), words(recording / name)
        if len(ours) != len(theirs) or not all(map(same, ours, theirs)):
            reject(f"{name} is {' '.join(map(str, ours))}, not {' '.join(map(str, theirs))}")


def replay(recording):
    given = keywords("INPUT")
    with open("calls", "a") as calls:
        calls.write(given["calculation"] + "\n")
    compare(recording, given)
    if given["calculation"] == "get_hs" and (recording / "refusal.out").exists():
        sys.stdout.write((recording / "refusal.out").read_text())
        sys.exit(int((recording / "refusal.status").read_text()))
    sys.stdout.write((recording / "abacus.out").read_text())
    shutil.copytree(recording / "OUT.h0", "OUT.h0")


def crash(recording):
    """Die after the first lines of the log."""
    replay(recording)
    for matrix in Path("OUT.h0").glob("*.csr"):
        matrix.unlink()
    print("Program received signal SIGSEGV: Segmentation fault", file=sys.stderr)
    sys.exit(139)


def quiet(recording):
    """What 3.8 does when it does not like something: a notice and status 0."""
    replay(recording)
    shutil.rmtree("OUT.h0")
    line = " !!!!!!!!!!!!!!!!!!\n"
    print(f"{line}      NOTICE      \n{line} \n Something wrong during read_atom_positions.")
    print(f" CHECK IN FILE : OUT.h0/warning.log\n \n{line}      NOTICE      \n{line}")


def unknown(recording):
    """What 3.11 says to a keyword that it does not know."""
    line = " " + 57 * "-"
    print(" THE PARAMETER NAME 'frobnicate' IS INCORRECT!")
    print(
        f"\n{line}\n                         !NOTICE!                         \n{line}\n \n"
        " Bad parameter, please check the input parameters in file INPUT\n"
        " CHECK IN FILE : OUT.h0/warning.log"
    )
    sys.exit(1)


def truncated(recording):
    """Stop in the middle of H(R), as on a full disk, and say nothing."""
    replay(recording)
    for matrix in Path("OUT.h0").glob("*[hH][rR]*.csr"):
        content = matrix.read_bytes()
        matrix.write_bytes(content[: len(content) // 2])


def lacking(recording):
    """Write no r(R)."""
    replay(recording)
    (Path("OUT.h0") / "rr.csr").unlink()


def hang(recording):
    """Start a child and wait with it; ``pids`` tells who they are."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path("pids").write_text(f"{os.getpid()} {child.pid}")
    print("ITER 1", flush=True)
    time.sleep(60)


FAULTS = {
    function.__name__: function for function in (crash, quiet, unknown, truncated, lacking, hang)
}

if __name__ == "__main__":
    act = FAULTS[sys.argv[2]] if len(sys.argv) > 2 else replay
    act(Path(sys.argv[1]))
