"""Package list. Everything else is declared in setup.cfg.

The top-level folder ``converters/`` is installed as ``ase_nextham.converters``.
"""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["ase_nextham", "ase_nextham.*"])
    + ["ase_nextham." + name for name in find_packages(include=["converters", "converters.*"])],
    package_dir={"ase_nextham.converters": "converters"},
    package_data={"ase_nextham": ["default_model/*"]},
)
