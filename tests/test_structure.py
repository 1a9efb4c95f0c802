"""The house: imports point down only, the package stays light, and a wheel holds what it should."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FLOORS = {
    "units": 0,
    "files": 0,
    "tasks": 0,
    "basis": 1,
    "inert_pickle": 1,
    "matrix": 1,
    "data": 1,
    "hdf5": 2,
    "bands": 2,
    "comparison": 2,
    "optics": 2,
    "plot": 2,
    "expansion": 2,
    "h0": 3,
    "model": 3,
    "calculator": 4,
    "potential_head": 4,
    "prediction": 4,
    "description": 4,
    "training": 4,
    "cli": 5,
    "cli_training": 5,
    "converters": 5,
    "structure_files": 5,
    "testing": 5,
}
"""Every module or folder of the package may import from lower floors and from its own."""

SIBLINGS_THAT_MUST_NOT_MEET = {("h0", "model"), ("model", "h0")}


def modules(root: Path) -> dict[Path, str]:
    """Source files, and the module or folder directly below ase_nextham that they belong to."""
    files = {}
    for path in (root / "ase_nextham").rglob("*.py"):
        first = path.relative_to(root / "ase_nextham").parts[0].removesuffix(".py")
        if first != "__init__":
            files[path] = first
    files |= dict.fromkeys((root / "converters").rglob("*.py"), "converters")
    return files


def imported(path: Path) -> set[str]:
    """Modules directly below ase_nextham that a file imports, at any place in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("ase_nextham.")}


def test_imports_point_down_only(root):
    faults = []
    for path, module in modules(root).items():
        if module not in FLOORS:
            faults.append(f"{path.name}: module {module!r} has no floor in the table")
            continue
        for name in imported(path) & FLOORS.keys() - {module}:
            if FLOORS[name] > FLOORS[module] or (module, name) in SIBLINGS_THAT_MUST_NOT_MEET:
                faults.append(
                    f"{path.name}: {module} (floor {FLOORS[module]}) imports {name} "
                    f"(floor {FLOORS[name]})"
                )
    assert not faults, "\n".join(faults)


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["torch", "h5py", "matplotlib", "pyatb", "mpi4py", "abacuslite", "spglib"]
    code = f"import sys, ase_nextham; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_folder_with_init_is_installed_and_imports(root):
    folders = [p.parent for p in (root / "ase_nextham").rglob("__init__.py")]
    folders += [p.parent for p in (root / "converters").rglob("__init__.py")]
    for folder in folders:
        name = ".".join(folder.relative_to(root).parts)
        importlib.import_module(name if name.startswith("ase_nextham") else f"ase_nextham.{name}")


@pytest.mark.slow
def test_the_wheel_installs_one_package_and_no_other(root, tmp_path):
    # a copy, because a build leaves a folder behind that would ship modules deleted since
    sources = tmp_path / "sources"
    names = ["setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    sources.mkdir()
    for name in names:
        (sources / name).write_bytes((root / name).read_bytes())
    for folder in ("ase_nextham", "converters", "examples", "tests", "benchmarks"):
        for path in (*(root / folder).rglob("*.py"), *(root / folder).glob("default_model/*")):
            target = sources / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", tmp_path]
    subprocess.run(command, cwd=sources, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in files if ".dist-info/" not in name}
    assert tops == {"ase_nextham"}
    expected = {p.relative_to(root / "ase_nextham") for p in (root / "ase_nextham").rglob("*.py")}
    expected |= {p.relative_to(root) for p in (root / "converters").rglob("*.py")}
    expected |= {Path("default_model") / name for name in ("model.json", "expert_0.safetensors")}
    assert {f"ase_nextham/{path}" for path in expected} <= set(files)
