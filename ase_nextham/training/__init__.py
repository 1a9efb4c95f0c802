"""From crystals to a trained model: structures, labels, data sets.

Structures are displaced and strained by :mod:`~ase_nextham.training.perturb`, computed by
:mod:`~ase_nextham.training.label`, gathered by :mod:`~ase_nextham.training.dataset_build` and read
one by one through :class:`~ase_nextham.training.dataset.Dataset`.
"""
