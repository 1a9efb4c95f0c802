"""What README and the examples say is what the code does."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the example data in it, as a user has it who follows README."""
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_in_readme_runs(workplace):
    code = "\n".join(blocks("python"))
    assert code
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_commands_in_readme_run(workplace, monkeypatch):
    lines = [line[2:] for line in "".join(blocks("console")).splitlines() if line.startswith("$ ")]
    assert any(line.startswith("nextham ") for line in lines)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "export":
            for name, value in (word.split("=") for word in words[1:]):
                monkeypatch.setenv(name, value)
            continue
        assert words[0] == "nextham"
        run = subprocess.run(
            [sys.executable, "-m", "ase_nextham.cli", *words[1:]], capture_output=True, text=True
        )
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run_and_are_short(path, workplace):
    assert len(path.read_text().splitlines()) <= 40
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
