"""train.toml: what is read, what is refused, and what is written back."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ase_nextham.model.density_network import DensityArchitecture
from ase_nextham.model.network import Architecture
from ase_nextham.potential_head.apply import COUNTS, EXPONENTS
from ase_nextham.training.config import DensityConfig, ModelConfig, TrainConfig
from ase_nextham.training.loss import Weights
from ase_nextham.training.models import _ARCHITECTURE

MINIMAL = '[data]\npath = "mini"\n'


def read(tmp_path, text: str) -> TrainConfig:
    path = tmp_path / "train.toml"
    path.write_text(text)
    return TrainConfig.read(path)


def test_a_path_is_all_that_is_needed(tmp_path):
    config = read(tmp_path, MINIMAL)
    assert config.data.path == str(tmp_path / "mini")
    assert config.run.folder == str(tmp_path / "training")
    assert config.optimiser.learning_rate == 5e-4


def test_defaults_are_those_of_the_paper():
    config = TrainConfig.from_dict({"data": {"path": "mini"}})
    architecture, weights = Architecture(), Weights()
    for name in _ARCHITECTURE:
        assert getattr(config.model, name) == getattr(architecture, name), name
    for name in ("real", "low", "high", "coupling", "trace"):
        assert getattr(config.loss, name) == getattr(weights, name), name
    assert config.model.windows[:5] == (0, 1, 2, 4, 6)


def test_what_is_written_is_read_as_the_same(tmp_path):
    text = (
        MINIMAL + 'train = ["*_[0-2]", "a\\"b"]\n[optimiser]\nepochs = 3\n[run]\nprogress = false\n'
    )
    config = read(tmp_path, text)
    written = config.to_toml({"torch": "2.4"})
    assert written.startswith("# torch: 2.4\n")
    assert TrainConfig.from_dict(tomllib.loads(written)) == config
    assert config.data.train == ("*_[0-2]", 'a"b')


def test_integers_are_numbers(tmp_path):
    assert read(tmp_path, MINIMAL + "[optimiser]\nepochs = 3\n").optimiser.epochs == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\n", r"unknown table 'optimizer'; did you mean 'optimiser'\?"),
        ("[optimiser]\nlearningrate = 1e-3\n", r"'learningrate' .* did you mean 'learning_rate'"),
        ("[loss]\nqqqqq = 1\n", r"unknown key 'qqqqq' in \[loss\]; known: norm, real"),
        ("[optimiser]\nbatch = 1.5\n", r"\[optimiser\] batch must be an integer, not float 1.5"),
        ("[optimiser]\nbatch = true\n", r"\[optimiser\] batch must be an integer, not bool True"),
        ("[optimiser]\nbatch = '1'\n", r"\[optimiser\] batch must be an integer, not str '1'"),
        ("[optimiser]\nbatch = 0\n", r"\[optimiser\] batch must be above 0, not 0"),
        ("[optimiser]\nbatch = 4\nmicro_batch = 3\n", "4 is not a multiple of micro_batch = 3"),
        ("[optimiser]\nclip = nan\n", r"\[optimiser\] clip must be finite"),
        ("[optimiser]\naverage = 1.0\n", r"average is from 0 to below 1, not 1.0"),
        ("[loss]\nnorm = 'L1'\n", r"\[loss\] norm is one of squared, absolute, not 'L1'"),
        ("[loss]\ntrace = 1\n", r"\[loss\] trace is from 0 to below 1"),
        ("[loss]\nreal = -1\n", r"\[loss\] real must be at least 0, not -1"),
        ("[model]\nwindows = 8\n", r"\[model\] windows must be a list, not int 8"),
        ("[model]\nwindows = ['a']\n", r"\[model\] windows\[0\] must be a number, not str 'a'"),
        ("run = 3\n[data]\npath='x'\n", None),
        ("[run]\nseed = -1\n", r"\[run\] seed must be at least 0"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, text, message):
    if message is None:
        content, message = text, r"\[run\] must be a table, not int 3"
    else:
        content = MINIMAL + text
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "train.toml") in str(caught.value)


def test_a_table_that_is_needed_is_missed(tmp_path):
    with pytest.raises(ValueError, match=r"the table \[data\] is missing"):
        read(tmp_path, "[loss]\n")
    with pytest.raises(ValueError, match=r"\[data\] path is missing"):
        read(tmp_path, "[data]\n")


def test_text_that_is_not_toml_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not TOML"):
        read(tmp_path, "[data\n")


def test_absolute_paths_stay(tmp_path):
    config = TrainConfig.from_dict({"data": {"path": "/a/b"}, "model": {"start": "c"}})
    moved = config.relative_to(Path("/d"))
    assert moved.data.path == "/a/b"
    assert moved.model.start == "/d/c"
    assert ModelConfig().start is None


# --- heads ---------------------------------------------------------------------------------------

DENSITY = MINIMAL + '[model]\nhead = "density"\n'


def test_defaults_of_the_density_head_are_those_of_its_networks():
    config, architecture = DensityConfig(), DensityArchitecture(counts=(1,), scalars=1)
    for name in ("network", "hidden", "layers", "cutoff"):
        assert getattr(config, name) == getattr(architecture, name), name
    assert config.counts == COUNTS["density"]
    assert config.exponents == EXPONENTS


def test_a_run_of_the_density_head_is_written_without_the_keys_of_pairs(tmp_path):
    text = DENSITY + '[density]\nmembers = 2\npseudo_dir = "upf"\nexponents = [0.2, 5]\n'
    config = read(tmp_path, text)
    assert config.density.pseudo_dir == str(tmp_path / "upf")
    assert config.density.exponents == (0.2, 5.0)
    content = tomllib.loads(config.to_toml())
    assert TrainConfig.from_dict(content) == config
    assert content.keys() == {"data", "model", "density", "optimiser", "run"}
    assert content["model"] == {"head": "density", "xc": "PBE", "citation": ""}
    assert "density" not in read(tmp_path, MINIMAL).to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "[model]\nhead = 'potential'\n", r"head is one of pairs, density, not 'pot"),
        (DENSITY + "layers = 2\n", r"\[model\] layers is for .*'pairs', but this one is 'density'"),
        (DENSITY + "[loss]\nkpts = 2\n", r"\[loss\] kpts is for .*'pairs', but this one"),
        (MINIMAL + "[density]\nmembers = 1\n", r"\[density\] members is for .*'density', but this"),
        (DENSITY + "[optimiser]\nprecision = 'bfloat16'\n", r"precision = 'bfloat16' is not for"),
        (DENSITY + "[density]\nnetwork = 'deep'\n", r"network is one of linear, two-layer, trans"),
        (DENSITY + "[density]\nmembers = 0\n", r"\[density\] members must be above 0"),
        (DENSITY + "[density]\nridge = -1\n", r"\[density\] ridge must be at least 0"),
        (DENSITY + "[density]\nfolds = 1\n", r"\[density\] folds must be true or false"),
        (DENSITY + "[density]\nexponents = [8, 0.2]\n", "exponents are a smallest and a largest"),
        (DENSITY + "[density]\nexponents = [8]\n", "exponents are a smallest and a largest"),
        (DENSITY + "[density]\ncounts = [2, 3]\n", r"counts = \[2, 3\] .* none above the first"),
        (DENSITY + "[density]\ncounts = []\n", r"counts = \[\] must be at least 1"),
    ],
)  # fmt: skip
def test_mistakes_about_heads_are_named(tmp_path, text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read(tmp_path, text)
