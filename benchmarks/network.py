"""Our network at the paper's width: time and memory against the number of bonds, on one thread.

    python benchmarks/network.py
    python benchmarks/network.py --device cuda

One expert with random weights, in float32, on crystals with 4s2p2d1f orbitals (27 an atom) and 92
bonds an atom within 8 Angstrom. "time" is that of the processor (of the clock for a GPU), the best
of three; "all pairs" has blocks for every pair, "on site" only for those of the first window,
[0, 1) Angstrom. "memory" is what the process (or the GPU) takes at most beyond what stood before
the call, "process" all of it, with Python, torch and H(0). "slope" is d log / d log bonds from the
row before: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from ase import Atoms

from ase_nextham import AtomPairs, Basis, LCAOData, LCAOMatrix
from ase_nextham.model.ensemble import Ensemble
from ase_nextham.model.network import Architecture

SHELLS = (0, 0, 0, 0, 1, 1, 2, 2, 3)
REPEATS = [(1, 1, 1), (3, 1, 1), (11, 1, 1), (11, 3, 1), (11, 5, 2), (11, 6, 5)]


def crystal(repeat: tuple[int, int, int]) -> LCAOData:
    """A simple cubic crystal, a bit disordered, with random numbers for S and H(0)."""
    from ase.neighborlist import neighbor_list

    rng = np.random.default_rng(0)
    atoms = Atoms("Ga", cell=[2.83] * 3, pbc=True).repeat(repeat)
    atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
    i, j, R = neighbor_list("ijS", atoms, 7.0)
    own = np.arange(len(atoms))
    pairs, _ = AtomPairs.sort(
        np.append(i, own), np.append(j, own), np.concatenate([R, np.zeros((len(own), 3), int)])
    )
    values = rng.normal(size=27 * 27 * len(pairs))
    matrix = LCAOMatrix(Basis({"Ga": SHELLS}), ("Ga",) * len(atoms), pairs, "unpolarised", values)
    return LCAOData(atoms, overlap=matrix, h0=matrix)


def measure(repeat: tuple[int, int, int], device: str) -> dict[str, float]:
    """One row, measured in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ensemble = Ensemble(Architecture(), SHELLS, (0, 8)).eval().to(device)
    (expert,) = ensemble.experts
    graph = ensemble.graph([crystal(repeat)]).to(device)
    portion = int(2**30 / ensemble.bytes_per_bond)
    on_site = graph.distance < 1

    def run(wanted: torch.Tensor) -> float:
        start = clock(device)
        with torch.inference_mode():
            for found in expert(graph, wanted, portion=portion):
                expert.part.to_blocks(found.irreps)
        return clock(device) - start

    before = memory(device)
    run(torch.ones_like(on_site))
    peak = memory(device)
    return {
        "bonds": len(graph.bonds),
        "all": min(run(torch.ones_like(on_site)) for _ in range(3)),
        "onsite": min(run(on_site) for _ in range(3)),
        "memory": peak - before,
        "process": peak,
    }


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def memory(device: str) -> float:
    """Largest so far, in MB."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return torch.cuda.max_memory_allocated() / 1e6


def slope(rows: list[dict], name: str) -> str:
    if len(rows) < 2 or min(row[name] for row in rows[-2:]) <= 0:
        return ""
    before, now = rows[-2:]
    return f"{math.log(now[name] / before[name]) / math.log(now['bonds'] / before['bonds']):.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--row", type=int, help="measure one row and print it as JSON")
    arguments = parser.parse_args()
    if arguments.row is not None:
        print(json.dumps(measure(REPEATS[arguments.row], arguments.device)))
        sys.exit()
    print("  bonds  all pairs/s  slope  on site/s  memory/MB  slope  process/MB")
    rows: list[dict] = []
    for k in range(len(REPEATS)):
        command = [sys.executable, __file__, "--row", str(k), "--device", arguments.device]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(output))
        row = rows[-1]
        print(
            f"{row['bonds']:7d} {row['all']:12.3f} {slope(rows, 'all'):>6} {row['onsite']:10.3f}"
            f" {row['memory']:10.0f} {slope(rows, 'memory'):>6} {row['process']:11.0f}",
            flush=True,
        )
