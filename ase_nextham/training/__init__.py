"""From crystals to a trained model: structures, labels, data sets.

Structures are displaced and strained by :mod:`~ase_nextham.training.perturb`, computed by
:mod:`~ase_nextham.training.label`, gathered by :mod:`~ase_nextham.training.dataset_build` and read
one by one through :class:`~ase_nextham.training.dataset.Dataset`.

:func:`ase_nextham.training.run.train` trains a model as a
:class:`~ase_nextham.training.config.TrainConfig` says: :mod:`~ase_nextham.training.example` makes
tensors of samples, :mod:`~ase_nextham.training.objective` is the network with its
:mod:`~ase_nextham.training.loss`, :mod:`~ase_nextham.training.loop` goes from step to step.
"""
