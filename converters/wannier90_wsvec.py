"""``_wsvec.dat``: to which images Wannier90 counts the elements between two functions.

H_mn(R) is an average over all R that the mesh of k-points cannot tell apart. Wannier90 (since 3.0,
unless ``use_ws_distance = .false.``) gives it to those R + T for which function n is closest to m,
in equal shares, and its band structures are those of::

    O_mn(k) = sum_R 1 / degeneracy(R) sum_T 1 / number_of_T  exp(2 pi i k.(R + T)) O_mn(R)

The file has a comment line and, for each R, m and n, a line with these five, one with the number of
T, and T line by line.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from ase_nextham.matrix import ranges

from .wannier90_text import WannierText


def on_closest_images(path: str | os.PathLike, text: WannierText) -> WannierText:
    """The operators with the elements where a ``_wsvec.dat`` file says they belong.

    Raises
    ------
    ValueError
        If the file is damaged or was written for other operators.
    """
    path = Path(path)
    comment, _, body = path.read_bytes().partition(b"\n")
    if b"use_ws_distance=.true." not in comment:
        return text
    n = text.hamiltonian.shape[1]
    elements = len(text.R) * n * n
    try:
        numbers = np.array(body.split(), np.int64)
    except (ValueError, OverflowError) as err:
        raise ValueError(f"{path}: expected integers after the first line ({err})") from err
    heads, counts = [], []
    place = 0
    for _ in range(elements):
        count = int(numbers[place + 5]) if place + 5 < len(numbers) else 0
        if count < 1 or place + 6 + 3 * count > len(numbers):
            raise ValueError(
                f"{path}: the images of {len(heads)} elements, but the file beside it has "
                f"{elements} elements; were both written together?"
            )
        heads.append(place)
        counts.append(count)
        place += 6 + 3 * count
    heads, counts = np.array(heads), np.array(counts)
    table = numbers[heads[:, None] + np.arange(5)]
    T = numbers[ranges(heads + 6, 3 * counts)].reshape(-1, 3)
    where = {tuple(R): point for point, R in enumerate(text.R.tolist())}
    point = np.array([where.get(tuple(row), -1) for row in table[:, :3].tolist()])
    m, k = table[:, 3] - 1, table[:, 4] - 1
    bad = (point < 0) | (m < 0) | (m >= n) | (k < 0) | (k >= n)
    if place != len(numbers) or bad.any() or np.abs(T).max() > 10**6:
        raise ValueError(f"{path}: has other elements than the file beside it")
    element = np.repeat(np.arange(elements), counts)
    target = text.R[point[element]] + T
    R, to = np.unique(target, axis=0, return_inverse=True)

    def spread(operator: np.ndarray) -> np.ndarray:
        result = np.zeros((len(R), n, n), complex)
        values = operator[point, m, k] / counts
        np.add.at(result, (to, m[element], k[element]), values[element])
        return result

    position = text.position
    if position is not None:
        position = np.stack([spread(r) for r in position])
    return replace(text, R=R, hamiltonian=spread(text.hamiltonian), position=position)


__all__ = ["on_closest_images"]
