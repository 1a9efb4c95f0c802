"""How many edges a second training gets through, in how much memory, and what loading costs.

    python benchmarks/training_throughput.py [--data SET] [--device cpu] [--steps 4] [--batch 2]

Without SET, a data set of random crystals of GaAs (two atoms, some 400 pairs within 8 Angstrom) is
made in a temporary folder. Two networks are trained for some steps each: a small one with a single
window, and the paper's with its four windows and one more; an edge counts once for each window,
because every expert works on all of them. ``kept`` has all samples as tensors in memory, ``read``
reads and prepares each one again, which happens in a thread beside the step. ``waiting`` is the
share of time in which a step waits for its data. Each line is a process of its own; on cpu it uses
one thread, and times are the median over steps after the first two.
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
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

NETWORKS = {
    "small": {
        "windows": [0, 8],
        "features": "16x0e+8x1o+8x1e+8x2e+4x2o+4x3o+4x4e",
        "layers": 2,
        "gaussians": 16,
        "invariants": 32,
    },
    "paper": {},
}


def random_set(folder: Path) -> Path:
    """A data set of four random crystals."""
    from ase_nextham.testing import random_lcao
    from ase_nextham.training.dataset_build import build
    from ase_nextham.training.dataset_sources import Source

    sources = [Source(f"GaAs_{seed}", partial(random_lcao, seed)) for seed in range(4)]
    failed = build(sources, folder / "set", nkpts=4).failed
    if failed:
        raise SystemExit(f"the data set could not be made: {failed}")
    return folder / "set"


def measured(data: str, network: str, memory: float, device: str, steps: int, batch: int) -> dict:
    """What the table shows of a network."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    from ase_nextham.training.config import TrainConfig
    from ase_nextham.training.dataset import Dataset
    from ase_nextham.training.distributed import Processes, chosen_device
    from ase_nextham.training.loop import Trainer
    from ase_nextham.training.models import new_model

    config = TrainConfig.from_dict(
        {
            "data": {"path": data, "memory": memory},
            "model": NETWORKS[network],
            "optimiser": {"batch": batch, "micro_batch": 1 if device == "cpu" else 0},
        }
    )
    samples, group = Dataset(data), Processes(0, 1, chosen_device(device))
    model = new_model(config.model, samples, 0)
    trainer = Trainer(config, model, samples, samples.subset([]), group)
    trainer.begin(scales=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    edges, seconds, cpu, waited = [], [], [], []
    for step in range(steps + 2):
        start, own, idle = time.perf_counter(), time.process_time(), trainer.loader.waited
        trainer.advance()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - own)
        waited.append(trainer.loader.waited - idle)
        some = [trainer.examples[int(k)].graph for k in trainer.sampler.samples(step)]
        edges.append(sum(map(len, some)) * len(trainer.module.experts))
    trainer.loader.close()
    rates = [np.array(edges[2:]) / np.array(spent[2:]) for spent in (seconds, cpu)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if trainer.processes.device.type == "cuda":
        before, peak = 0.0, torch.cuda.max_memory_allocated() / 2**20
    return {
        "edges": float(np.median(rates[0])),
        "edges_cpu": float(np.median(rates[1])),
        "seconds": float(np.median(seconds[2:])),
        "waiting": sum(waited[2:]) / sum(seconds[2:]),
        "before": before,
        "peak": peak,
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder of a data set")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2, help="structures in a step")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(*json.loads(given.one))))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or str(random_set(Path(folder)))
        print(f"{'network':9}{'samples':9}{'edges/s':>9}{'edges/CPU s':>13}{'s/step':>8}", end="")
        print(f"{'waiting':>9}{'memory before':>15}{'peak (MB)':>11}")
        rates = {}
        for network in NETWORKS:
            for samples, memory in (("kept", 4.0), ("read", 1e-9)):
                task = [data, network, memory, given.device, given.steps, given.batch]
                command = [sys.executable, __file__, "--one", json.dumps(task)]
                output = subprocess.run(command, capture_output=True, text=True)
                if output.returncode:
                    raise SystemExit(output.stderr)
                row = json.loads(output.stdout.splitlines()[-1])
                rates[network, samples] = row["edges"]
                print(
                    f"{network:9}{samples:9}{row['edges']:9.0f}{row['edges_cpu']:13.0f}"
                    f"{row['seconds']:8.2f}{100 * row['waiting']:8.1f}%{row['before']:15.0f}"
                    f"{row['peak']:11.0f}",
                    flush=True,
                )
        for network in NETWORKS:
            ratio = rates[network, "kept"] / rates[network, "read"]
            print(f"{network}: keeping samples is {ratio:.2f} times as fast as reading them")


if __name__ == "__main__":
    main()
