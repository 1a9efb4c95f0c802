"""Sums over the grid of one structure, on a processor or a graphics processor."""

from __future__ import annotations

from dataclasses import dataclass

from ase.calculators.calculator import CalculatorSetupError
from numpy import ndarray

from ase_nextham.h0.native.structure import Structure


@dataclass(frozen=True, eq=False)
class GridSums:
    """Matrix elements of potentials, and their transpose, for the direct pairs of a structure.

    Parameters
    ----------
    structure
        Whose orbitals are integrated.
    device, dtype
        As of :class:`~ase_nextham.h0.native.engine.NativeH0`.
    threads
        Threads to work with, if on a processor.
    progress
        Whether to report on standard error.
    """

    structure: Structure
    device: str
    dtype: str
    threads: int
    progress: bool

    def integral(self, potential: ndarray, dtype: str | None = None) -> ndarray:
        """From potentials in Ry, shape (n, n1, n2, n3), to elements in Ry, (n, nelements).

        Parameters
        ----------
        dtype
            Another one than :attr:`dtype`.
        """
        arguments = (potential, *self.structure.grid_arguments())
        options = {"dtype": dtype or self.dtype, "progress": self.progress}
        if self.device == "cpu":
            from ase_nextham.h0.native.integral import grid_integral

            return grid_integral(*arguments, threads=self.threads, **options)
        torch = _torch_version(self.device)
        try:
            return torch.grid_integral_torch(*arguments, device=self.device, **options)
        except ValueError as error:
            raise CalculatorSetupError(str(error)) from error

    def transposed(self, shape: tuple[int, int, int], gradient: ndarray) -> ndarray:
        """From derivatives with elements, (nelements,), to those with a potential at each point.

        Always in double precision.
        """
        arguments = (gradient, shape, *self.structure.grid_arguments())
        if self.device == "cpu":
            from ase_nextham.h0.native.integral import grid_integral_transpose

            return grid_integral_transpose(*arguments, threads=self.threads)
        return _torch_version(self.device).grid_integral_transpose_torch(
            *arguments, device=self.device
        )


def _torch_version(device: str):
    try:
        from ase_nextham.h0.native import integral_torch
    except ImportError as error:
        raise CalculatorSetupError(
            f"device={device!r} needs the package torch: pip install torch"
        ) from error
    return integral_torch
