"""The command ``nextham``: thin sub-commands, each a call or two of the library.

Errors that a user can act on are printed as one sentence, without a traceback, and the exit status
is 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase.calculators.calculator import (
    BadConfiguration,
    CalculatorError,
    PropertyNotImplementedError,
)

from ase_nextham import __version__
from ase_nextham.cli_training import add_commands, report
from ase_nextham.data import LCAOData
from ase_nextham.files import replacing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; the exit status."""
    options = _parser().parse_args(arguments)
    warnings.showwarning = _print_warning
    _print_remarks()
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
        RuntimeError,
        CalculatorError,
        PropertyNotImplementedError,
        BadConfiguration,
    ) as err:
        if options.traceback:
            raise
        print(f"nextham: error: {err}", file=sys.stderr)
        return 1
    return 0


def _print_warning(message, category, filename, lineno, file=None, line=None):
    print(f"nextham: {message}", file=sys.stderr)


_WORDS = {"overlap": "overlap", "h0": "H(0)", "hamiltonian": "Hamiltonian", "position": "r"}


def _print_remarks() -> None:
    """What the library tells through its logger, as lines on standard error."""
    logger = logging.getLogger("ase_nextham")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.handlers[0].setFormatter(logging.Formatter("nextham: %(message)s"))


# --- sub-commands --------------------------------------------------------------------------------


def _predict(options) -> None:
    from ase_nextham.calculator import NextHAMCalculator
    from ase_nextham.converters import write
    from ase_nextham.description import contents
    from ase_nextham.structure_files import read_structure

    atoms = read_structure(options.structure)
    calc = NextHAMCalculator(
        options.model,
        h0=options.h0,
        device=options.device,
        **_given(options, "pseudo_dir", "orbital_dir", "nspin", "moments"),
    )
    data = calc.get_data(atoms)
    write(options.output, data, format=options.to)
    print(f"{options.output}: {contents(data)} of {atoms.get_chemical_formula('metal')}")
    spread = calc.get_spread(atoms)
    if spread is not None:
        print(spread.in_words())


def _bands(options) -> None:
    from ase_nextham import bands, plot
    from ase_nextham.converters import read

    data = read(_one_or_several(options.data), format=options.from_, **_reading(options))
    nelectrons = data.electron_count()
    path = data.atoms.cell.bandpath(options.path, npoints=options.npoints, pbc=data.atoms.pbc)
    named = _hamiltonians(data, options.hamiltonian)
    curves = []
    for label, matrix in named.items():
        structure = bands.band_structure(
            matrix,
            data.overlap,
            path,
            nelectrons=nelectrons,
            atoms=data.atoms,
            kpts=tuple(options.kpts),
            width=options.width,
            progress=sys.stderr.isatty(),
        )
        gap = bands.band_gap(structure.energies, nelectrons, matrix.spin)
        print(
            f"{label}: Fermi level {structure.reference:.4f} eV, gap along the path "
            + ("none: a metal" if gap is None else str(gap))
        )
        curves.append((structure, label))
    if options.output:
        with replacing(options.output) as temporary:
            curves[-1][0].write(temporary)
        print(f"{options.output}: bands of {curves[-1][1]}; see `ase band-structure`")
    if options.plot:
        _save(plot.plot_bands(curves), options.plot)


def _optics(options) -> None:
    from ase_nextham import optics, plot
    from ase_nextham.converters import read

    data = read(_one_or_several(options.data), format=options.from_, **_reading(options))
    start, stop, number = options.omega
    omega = np.linspace(start, stop, round(number))
    named = _hamiltonians(data, options.hamiltonian)
    curves = []
    for label, matrix in named.items():
        sigma = optics.optical_conductivity(
            data,
            omega,
            tuple(options.kpts),
            method=options.method,
            hamiltonian=matrix,
            eta=options.eta,
        )
        curves.append((sigma, label))
    sigma, label = curves[-1]
    if options.output:
        names = [f"{part}_{a}{b}" for a in "xyz" for b in "xyz" for part in ("Re", "Im")]
        columns = [part for row in sigma for s in row for part in (s.real, s.imag)]
        header = f"optical conductivity of {label} in S/m\nomega_eV," + ",".join(names)
        table = np.column_stack([omega, *columns])
        with replacing(options.output) as temporary:
            np.savetxt(temporary, table, fmt="%.8e", delimiter=",", header=header)
        print(f"{options.output}: {len(omega)} energies")
    if options.plot:
        _save(plot.plot_optical_conductivity(omega, curves), options.plot)


def _convert(options) -> None:
    from ase_nextham.converters import check_conversion, convert

    *sources, target = options.paths
    if not sources:
        raise ValueError("convert needs a source and a target: nextham convert SRC [SRC ...] DST")
    choices = {
        "only": None if options.only is None else options.only.split(","),
        "spin": options.spin,
        "read_options": _reading(options) | _given(options, "hamiltonian"),
        "write_options": _given(options, "layout", "energy_zero", "kpts", "exact_below", "kind"),
    }
    if options.each:
        _convert_each(options, sources, target, choices)
        return
    if options.jobs != 1:
        raise ValueError("--jobs is for many structures at once: give --each, too")
    source = _one_or_several(sources)
    formats = {"source_format": options.from_, "target_format": options.to}
    if options.check:
        for name, error in check_conversion(source, target, **formats, **choices).items():
            text = f"{_WORDS[name]}: eigenvalues at random k-points change by {error.all:.1e} eV"
            if error.occupied is not None:
                text += f", occupied ones by {error.occupied:.1e} eV"
            print(text)
        print(f"{target}: not written, because this was a check")
        return
    result = convert(source, target, **formats, **choices)
    held = ", ".join(_WORDS[name] for name in result.operators)
    print(f"{target}: {held} of {result.atoms.get_chemical_formula('metal')}")


def _convert_each(options, sources: Sequence[str], target: str, choices: Mapping) -> None:
    from ase_nextham.converters import convert_many

    if options.to is None:
        raise ValueError("many structures at once need the format of the results: --to FORMAT")
    if options.check:
        raise ValueError("--check is for one structure: leave out --each")
    outcome = convert_many(
        sources,
        target,
        options.from_,
        target_format=options.to,
        jobs=options.jobs,
        progress=sys.stderr.isatty(),
        **choices,
    )
    report(outcome, target, "structures")


def _import_checkpoint(options) -> None:
    from ase_nextham.model.published import import_checkpoint

    info, unused = import_checkpoint(
        options.files, options.output, **_given(options, "pseudo_dir", "orbital_dir")
    )
    for path, names in unused.items():
        if names:
            listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            print(f"{path}: {len(names)} entries never reach the result: {listed}")
    version = info.hyperparameters["version"]
    print(f"{options.output}: model of the published weights {version!r}")


def _info(options) -> None:
    from ase_nextham.converters import guess_format, read
    from ase_nextham.description import describe, describe_matrices
    from ase_nextham.prediction import model_folder

    for path in options.paths:
        folder = model_folder(path)
        if (folder / "model.json").is_file():
            from ase_nextham.description import describe_model

            print(describe_model(folder))
            continue
        name = guess_format(path) if options.from_ is None else options.from_
        if name == "abacus" and Path(path).is_file():
            print(describe_matrices(path))
        else:
            data = read(path, format=name, **_reading(options))
            print(f"{path}: {name} format\n{describe(data)}")


# --- what they share -----------------------------------------------------------------------------


def _one_or_several(paths: Sequence[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _reading(options) -> dict:
    return _given(options, "step", "pseudo_dir", "orbital_dir", "sample", "reference")


def _given(options, *names: str) -> dict:
    """Those of the options that were given: what is not for a format is refused there."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _hamiltonians(data: LCAOData, which: str) -> dict:
    held = {"h0": ("H(0)", data.h0), "hamiltonian": ("H", data.hamiltonian)}
    named = {
        label: matrix
        for key, (label, matrix) in held.items()
        if matrix is not None and which in (key, "all")
    }
    if not named:
        from ase_nextham.description import contents

        raise ValueError(f"the data holds {contents(data)}, no {which}")
    return named


def _save(figure, target: str) -> None:
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=200)
    print(f"{target}: picture")


# --- arguments -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nextham", description="Hamiltonians in atomic orbitals: predict, convert, use."
    )
    parser.add_argument("--version", action="version", version=f"ase_nextham {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_predict(commands)
    _add_bands_and_optics(commands)
    _add_convert(commands)
    _add_import_checkpoint(commands)
    add_commands(commands)
    info = commands.add_parser("info", help="what a file, a folder or a model holds")
    info.set_defaults(run=_info)
    info.add_argument("paths", nargs="+", metavar="PATH")
    _add_source_arguments(info)
    return parser


def _add_predict(commands) -> None:
    predict = commands.add_parser("predict", help="the Hamiltonian of a structure")
    predict.set_defaults(run=_predict)
    predict.add_argument("structure", help="STRU, POSCAR, cif ...: what ASE reads, too")
    predict.add_argument(
        "--model", help="folder of a model, or default, which comes along; without one: H(0)"
    )
    predict.add_argument("--device", default="cpu", help="of the network: cpu, cuda (cpu)")
    predict.add_argument(
        "--h0", default="auto", help="native, abacus, or a path to stored H(0) (auto)"
    )
    _add_species_arguments(predict)
    predict.add_argument(
        "--nspin", type=int, choices=[1, 2, 4], help="as in ABACUS (4 where there is spin-orbit)"
    )
    predict.add_argument(
        "--moments", choices=["zero", "initial", "abacus39_auto"], help="of the atoms (zero)"
    )
    predict.add_argument("-o", "--output", required=True, help="file or folder to write")
    predict.add_argument("--to", help="its format (else guessed from the name)")


def _add_bands_and_optics(commands) -> None:
    for name, run, text in (
        ("bands", _bands, "bands along a path, Fermi level and gap"),
        ("optics", _optics, "optical conductivity"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        command.add_argument("data", nargs="+", help="native file or folder(s) of one structure")
        _add_source_arguments(command)
        command.add_argument("--hamiltonian", choices=["h0", "hamiltonian", "all"], default="all")
        command.add_argument(
            "--kpts", nargs=3, type=int, metavar="N", default=(8, 8, 8), help="k mesh (8 8 8)"
        )
        command.add_argument("-o", "--output", help="file of numbers to write")
        command.add_argument("--plot", help="picture to write (PNG, PDF, SVG)")
        if name == "bands":
            command.add_argument("--path", help="special points, for example LGXWG")
            command.add_argument("--npoints", type=int, default=200, help="k-points on the path")
            command.add_argument("--width", type=float, default=0.05, help="smearing in eV")
        else:
            command.add_argument(
                "--omega",
                nargs=3,
                type=float,
                default=(0.1, 10, 201),
                metavar=("FROM", "TO", "NUMBER"),
                help="photon energies in eV",
            )
            command.add_argument("--eta", type=float, default=0.1, help="broadening in eV")
            command.add_argument("--method", choices=["pyatb", "kubo"], default="pyatb")


def _add_convert(commands) -> None:
    convert = commands.add_parser("convert", help="from one format to another")
    convert.set_defaults(run=_convert)
    convert.add_argument("paths", nargs="+", metavar="PATH", help="source(s), then the target")
    _add_source_arguments(convert)
    convert.add_argument("--only", help="operators to keep, for example h0,overlap")
    convert.add_argument(
        "--spin",
        choices=["up", "down", "collinear", "spinor"],
        help="one channel of collinear Hamiltonians, or more spin than there is",
    )
    convert.add_argument(
        "--hamiltonian",
        choices=["dft", "predicted"],
        help="which one of a DeepH folder with both",
    )
    convert.add_argument(
        "--energy-zero",
        choices=["kept", "standardized"],
        help="for DeepH: H, or H - mu S with mu = <H, S> / <S, S>, which is noted",
    )
    convert.add_argument(
        "--kpts",
        nargs=3,
        type=int,
        metavar="N",
        help="mesh of the orthogonalisation (Wannier90) or of the wave functions (nextham-pth)",
    )
    convert.add_argument(
        "--kind", choices=["training", "inference"], help="of a sample of nextham-pth"
    )
    convert.add_argument(
        "--exact-below",
        type=float,
        metavar="EV",
        help="for Wannier90: keep bands below this energy, so that a coarse mesh is enough",
    )
    convert.add_argument(
        "--check",
        action="store_true",
        help="a dry run: write, read back, compare eigenvalues at random k-points, leave nothing",
    )
    convert.add_argument(
        "--each",
        action="store_true",
        help="every source is a structure of its own (or a folder of them), the target a folder "
        "of results; those that are there already are skipped",
    )
    convert.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, with --each")
    convert.add_argument("--to", help="format of the target (else guessed from its name)")
    convert.add_argument(
        "--layout",
        choices=["legacy text", "new text", "binary"],
        help="of matrices in an ABACUS folder (legacy text, for PYATB and ABACUS up to 3.10)",
    )


def _add_import_checkpoint(commands) -> None:
    checkpoint = commands.add_parser(
        "import-checkpoint", help="a model of the published weights of NextHAM"
    )
    checkpoint.set_defaults(run=_import_checkpoint)
    checkpoint.add_argument(
        "files", nargs="+", metavar="FILE", help="four files, by window of distances"
    )
    checkpoint.add_argument("-o", "--output", required=True, help="folder of the model")
    _add_species_arguments(checkpoint)


def _add_source_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--from", dest="from_", help="format of the source (else recognised)")
    command.add_argument("--step", type=int, help="ionic step of an ABACUS run, counted from 0")
    command.add_argument("--sample", type=int, help="which one of a HamGNN file, counted from 0")
    command.add_argument(
        "--reference", help="for NextHAM predictions (.pth): S and H(0) of the same structure"
    )
    _add_species_arguments(command)


def _add_species_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pseudo-dir", help="folder of pseudopotentials")
    command.add_argument("--orbital-dir", help="folder of numerical orbitals")


if __name__ == "__main__":
    sys.exit(main())
