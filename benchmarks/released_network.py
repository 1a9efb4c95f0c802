"""Time and memory of the published networks: this package's evaluation beside the published code.

    python benchmarks/released_network.py [--repeat N] [--peer VERSION=FOLDER ...]

The graph is that of the cubic cell of GaAs, repeated N times along z: all pairs of atoms within
8 Angstrom, each atom with itself, too; H(0) is random, as time does not depend on it. One network
of each published set (``main`` and ``v1.1``) is constructed at its full size and evaluated without
gradients in single precision on one thread, each in a process of its own; the best of several
calls counts. ``before`` is the memory of the process when the network stands, ``peak`` the most
that it ever had.

FOLDER is a checkout of the published code of that version, DavidYin94/NextHAM or
DavidYin94/NextHAM_V1_1_Inference, with its dependencies installed. With it, both get the weights
that the published code was initialised with, and the results of both are compared with ours in
double precision. Without, what it took on a quiet machine of this class stands in its place, and
the weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

VERSIONS = ("main", "v1.1")
CUTOFF = 8.0  # Angstrom
REPEATS = 5
RECORDED = {  # construction in s, s for 1000 edges, memory before and peak in MB
    "main": {"construction": 47.0, "seconds": 2.9, "before": 700.0, "peak": 4000.0},
    "v1.1": {"construction": 96.0, "seconds": 6.8, "before": 900.0, "peak": 2400.0},
}


def megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def graph(repeat: int):
    """H(0), vectors, sources and targets of all edges, and the number of atoms."""
    import numpy as np
    import torch
    from ase.build import bulk
    from ase.neighborlist import neighbor_list

    atoms = bulk("GaAs", "zincblende", a=5.653, cubic=True).repeat((1, 1, repeat))
    source, target, vectors = neighbor_list("ijD", atoms, CUTOFF, self_interaction=True)
    h0 = np.random.default_rng(0).standard_normal((len(source), 5832), np.float32)
    arrays = (h0, vectors.astype(np.float32), source.astype(int), target.astype(int))
    return *(torch.from_numpy(array) for array in arrays), len(atoms)


def measured(network, evaluate, construction: float, repeat: int):
    """What the table shows of a network, and its last result."""
    import torch

    inputs = graph(repeat)
    before, best = megabytes(), float("inf")
    with torch.no_grad():
        for _ in range(REPEATS):
            start = time.process_time()
            result = evaluate(network, *inputs)
            best = min(best, time.process_time() - start)
    edges = len(inputs[0])
    row = {"construction": construction, "seconds": best * 1000 / edges, "before": before}
    return row | {"peak": megabytes(), "edges": edges}, [x.detach() for x in result[:2]]


def measure_ours(version: str, repeat: int, exchange: Path) -> dict:
    """Our network, with the weights that are in a folder, or random ones."""
    import torch

    torch.set_num_threads(1)
    from ase_nextham.model import released

    start = time.process_time()
    shapes = {name: p.shape for name, p in released.ReleasedNetwork(version).named_parameters()}
    construction = time.process_time() - start
    if (exchange / "weights.pt").exists():
        weights = torch.load(exchange / "weights.pt", weights_only=True)
    else:
        torch.manual_seed(0)
        weights = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    network = released.load(version, weights)
    row, result = measured(network, lambda net, *x: net(*x[:4]), construction, repeat)
    if (exchange / "result.pt").exists():
        theirs = torch.load(exchange / "result.pt", weights_only=True)
        exact = released.load(version, weights, torch.float64)(*graph(repeat)[:4])
        row["errors"] = [
            max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(x, exact, strict=True))
            for x in (result, theirs)
        ]
    return row


def measure_peer(version: str, repeat: int, exchange: Path, folder: Path) -> dict:
    """The published code; leaves its weights and results behind for ours."""
    sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    from nets.nextham import graph_attention_transformer_nonlinear_materials_ham_soc as build

    from ase_nextham.model.released_layout import blocks

    torch.manual_seed(0)
    irreps = "+".join(f"1x{l}{'e' if parity > 0 else 'o'}" for (l, parity), _ in blocks())
    start = time.process_time()
    network = build(
        irreps_in="64x0e", irreps_edge=irreps, radius=CUTOFF, trace_out_len=81, use_w2v=False
    ).eval()
    construction = time.process_time() - start

    def evaluate(net, h0, vectors, source, target, natoms):
        nothing = torch.zeros(natoms, dtype=torch.int64)
        return net(h0, natoms, source, target, vectors, nothing, nothing)

    row, result = measured(network, evaluate, construction, repeat)
    torch.save(network.state_dict(), exchange / "weights.pt")
    torch.save(result, exchange / "result.pt")
    return row


def run(version: str, repeat: int, exchange: str, folder: str | None = None) -> dict:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--measure", version, exchange, folder or ""]
    command += ["--repeat", str(repeat)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def report(version: str, ours: dict, theirs: dict, recorded: bool) -> None:
    """Some lines of the table."""
    print(f"{version}, {ours['edges']} edges")
    for name, row in (("ours", ours), ("recorded" if recorded else "published", theirs)):
        print(
            f"{'':6s}{name:12s}{row['construction']:14.2f}{row['seconds']:16.2f}"
            f"{row['before']:12.0f}{row['peak']:12.0f}"
        )
    ratios = [theirs[key] / ours[key] for key in ("construction", "seconds", "before", "peak")]
    print(
        f"{'':6s}{'ratio':12s}{ratios[0]:14.1f}{ratios[1]:16.1f}{ratios[2]:12.1f}{ratios[3]:12.1f}"
    )
    if "errors" in ours:
        print(
            f"{'':6s}error of single precision, relative to the largest number: "
            f"ours {ours['errors'][0]:.1e}, published {ours['errors'][1]:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--peer", action="append", default=[], metavar="VERSION=FOLDER")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        version, exchange, folder = arguments.measure
        if folder:
            row = measure_peer(version, arguments.repeat, Path(exchange), Path(folder))
        else:
            row = measure_ours(version, arguments.repeat, Path(exchange))
        print(json.dumps(row))
        return
    peers = dict(peer.split("=", 1) for peer in arguments.peer)
    print(
        f"{'':18s}{'construct (s)':>14s}{'s / 1000 edges':>16s}{'before (MB)':>12s}"
        f"{'peak (MB)':>12s}"
    )
    for version in VERSIONS:
        with tempfile.TemporaryDirectory() as exchange:
            theirs = RECORDED[version]
            if version in peers:
                theirs = run(version, arguments.repeat, exchange, peers[version])
            ours = run(version, arguments.repeat, exchange)
            report(version, ours, theirs, version not in peers)


if __name__ == "__main__":
    main()
