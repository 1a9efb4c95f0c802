"""The sub-commands of ``nextham`` that make data sets and train: thin, as those of :mod:`.cli`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ase_nextham.tasks import Outcome


def add_commands(commands) -> None:
    """Add the sub-commands to those of ``nextham``."""
    dataset = commands.add_parser("dataset", help="data sets to train on")
    actions = dataset.add_subparsers(required=True, metavar="ACTION")
    _add_build(actions)
    info = actions.add_parser("info", help="elements, sizes, and |H - H(0)| of a data set")
    info.set_defaults(run=_info)
    info.add_argument("dataset", metavar="SET")
    _add_perturb(actions)
    _add_label(actions)
    train = commands.add_parser("train", help="a model from a data set; resumes")
    train.set_defaults(run=_train)
    train.add_argument("config", metavar="train.toml")
    _add_evaluate(commands)


def _add_build(actions) -> None:
    build = actions.add_parser(
        "build", help="from runs, archives or files with H; resumable, and more can be added"
    )
    build.set_defaults(run=_build)
    build.add_argument("sources", nargs="+", metavar="SRC", help="folder, archive or file")
    build.add_argument("-o", "--output", required=True, metavar="SET", help="folder of the set")
    build.add_argument("--from", dest="from_", help="format of the sources (else recognised)")
    build.add_argument("--h0", choices=["native"], help="compute H(0) instead of reading it")
    build.add_argument(
        "--spinor-h0",
        choices=["native"],
        help="with spin-orbit coupling, for runs without: dH is the same but for little",
    )
    build.add_argument(
        "--nkpts", type=int, default=16, help="k-points whose eigenvectors are kept (16)"
    )
    build.add_argument(
        "--densities",
        metavar="DIR",
        help="folder of converged densities, NAME.npz, NAME.cube or ABACUS's file below NAME, for "
        "samples that are there, too; else those that ABACUS left with the runs",
    )
    _add_work(build)
    _add_files(build)


def _add_perturb(actions) -> None:
    perturb = actions.add_parser("perturb", help="displaced and strained copies of a crystal")
    perturb.set_defaults(run=_perturb)
    perturb.add_argument("structure", help="POSCAR, cif, STRU ...")
    perturb.add_argument("-n", "--number", type=int, required=True)
    perturb.add_argument("-o", "--output", required=True, metavar="DIR")
    perturb.add_argument(
        "--displacement", type=float, default=0.05, help="of atoms, at most, in Angstrom (0.05)"
    )
    perturb.add_argument("--strain", type=float, default=0.02, help="largest component (0.02)")
    perturb.add_argument(
        "--cell", choices=["primitive", "conventional", "as given"], default="primitive"
    )
    perturb.add_argument("--supercell", nargs=3, type=int, default=(1, 1, 1), metavar="N")
    perturb.add_argument("--seed", type=int, default=0)


def _add_label(actions) -> None:
    label = actions.add_parser(
        "label", help="H(0) and self-consistent H of structures by ABACUS, resumable"
    )
    label.set_defaults(run=_label)
    label.add_argument("structures", metavar="DIR", help="folder of structures, or one file")
    label.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the runs")
    mesh = label.add_mutually_exclusive_group()
    mesh.add_argument("--kpts", nargs=3, type=int, metavar="N", help="k mesh")
    mesh.add_argument("--density", type=float, default=3.0, help="k-points per 1/Angstrom (3)")
    label.add_argument("--nspin", type=int, choices=[1, 4], default=1)
    label.add_argument("--timeout", type=float, help="seconds for one run of ABACUS")
    _add_work(label)
    _add_files(label)


def _add_evaluate(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="errors of a model, in matrices and bands")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("model", metavar="MODEL", help="folder, default, or h0 for none")
    evaluate.add_argument("dataset", metavar="SET")
    chosen = evaluate.add_mutually_exclusive_group()
    chosen.add_argument("--names", nargs="+", metavar="NAME", help="samples; * and ? stand for any")
    chosen.add_argument("--split", metavar="FILE", help="a split of the set")
    evaluate.add_argument("--part", default="validation", help="of the split (validation)")
    evaluate.add_argument(
        "--density", type=float, default=3.0, help="k-points per 1/Angstrom for bands (3)"
    )
    evaluate.add_argument("--device", default="cpu", help="of the network: cpu, cuda (cpu)")
    evaluate.add_argument("-o", "--output", metavar="FILE", help="report to write, as JSON")
    evaluate.add_argument("--figures", metavar="DIR", help="folder for pictures")
    _add_files(evaluate)


def _add_work(command: argparse.ArgumentParser) -> None:
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="structures at a time")


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pseudo-dir", help="folder of pseudopotentials")
    command.add_argument("--orbital-dir", help="folder of numerical orbitals")


def _folders(options) -> dict:
    given = {"pseudo_dir": options.pseudo_dir, "orbital_dir": options.orbital_dir}
    return {name: folder for name, folder in given.items() if folder is not None}


def _build(options) -> None:
    from functools import partial

    from ase_nextham.converters import read
    from ase_nextham.h0.native.engine import NativeH0
    from ase_nextham.training.dataset_build import build
    from ase_nextham.training.dataset_sources import from_paths

    folders = _folders(options)
    threads = 1 if options.jobs > 1 else None
    engine = partial(NativeH0, **folders, position=False, threads=threads)
    outcome = build(
        from_paths(
            options.sources,
            partial(read, format=options.from_, **folders),
            _holds_structure,
        ),
        options.output,
        h0=engine(nspin=1) if options.h0 else None,
        spinor_h0=engine(nspin=4) if options.spinor_h0 else None,
        nkpts=options.nkpts,
        densities=options.densities,
        jobs=options.jobs,
        progress=sys.stderr.isatty(),
    )
    report(outcome, options.output, "samples")


def _holds_structure(path: Path) -> bool:
    from ase_nextham.converters import guess_format

    try:
        guess_format(path)
    except ValueError:
        return False
    return True


def _info(options) -> None:
    from ase_nextham.training.dataset import Dataset
    from ase_nextham.training.dataset_statistics import describe, statistics

    found = statistics(Dataset(options.dataset), progress=sys.stderr.isatty())
    print(f"{options.dataset}: data set\n{describe(found)}")


def _perturb(options) -> None:
    from ase_nextham.structure_files import read_structure
    from ase_nextham.training.perturb import perturbed, write_structures

    copies = perturbed(
        read_structure(options.structure),
        options.number,
        displacement=options.displacement,
        strain=options.strain,
        cell=options.cell,
        supercell=options.supercell,
        seed=options.seed,
    )
    name = Path(options.structure).stem
    write_structures(copies, options.output, name)
    print(f"{options.output}: {len(copies)} structures of {len(copies[0])} atoms")


def _label(options) -> None:
    from ase_nextham.structure_files import read_structure
    from ase_nextham.training.label import label

    path = Path(options.structures)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    if not files:
        raise ValueError(f"{path}: there are no structures in this folder")
    timeout = {} if options.timeout is None else {"timeout": options.timeout}
    outcome = label(
        {file.stem: read_structure(str(file)) for file in files},
        options.output,
        kpts=options.kpts or options.density,
        nspin=options.nspin,
        jobs=options.jobs,
        progress=sys.stderr.isatty(),
        **_folders(options),
        **timeout,
    )
    report(outcome, options.output, "structures")


def _train(options) -> None:
    from ase_nextham.training.config import TrainConfig
    from ase_nextham.training.run import train

    result = train(TrainConfig.read(options.config))
    ended = "finished" if result.finished else "interrupted, goes on when started again"
    print(f"{result.folder}: step {result.step} of {result.steps}, {ended}")
    if result.best is not None:
        print(f"best validation: {result.best}")
    if result.model is not None:
        print(f"{result.model}: model")


def _evaluate(options) -> None:
    from ase_nextham.training.dataset import Dataset
    from ase_nextham.training.evaluate import evaluate

    dataset = Dataset(options.dataset)
    model = None if options.model == "h0" else options.model
    reading = {"device": options.device, **_folders(options)}
    found = evaluate(
        model,
        dataset,
        names=options.names,
        split=options.split,
        part=options.part,
        kpts=options.density,
        progress=sys.stderr.isatty(),
        **reading,
    )
    print(found)
    if options.output:
        found.write(options.output)
        print(f"{options.output}: report")
    if options.figures:
        from ase_nextham.training.figures import write_figures

        for path in write_figures(found, options.figures, dataset, model, **reading):
            print(f"{path}: picture")


def report(outcome: Outcome, target: str, what: str) -> None:
    """Print what came of many tasks.

    Raises
    ------
    ValueError
        If one failed, with the reasons.
    """
    for name, remarks in outcome.remarks.items():
        for remark in remarks:
            print(f"nextham: {name}: {remark}", file=sys.stderr)
    done, skipped, failed = len(outcome.done), len(outcome.skipped), len(outcome.failed)
    print(f"{target}: {done} {what} done, {skipped} there already, {failed} failed")
    if failed:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in outcome.failed.items())
        raise ValueError(f"{failed} of {done + skipped + failed} {what} failed:\n{reasons}")
