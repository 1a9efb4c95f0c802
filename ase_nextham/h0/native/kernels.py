"""Compiled loops over the blocks of matrices; imported only when H(0) is computed."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True)
def add_product(product, first, pair, offsets, matrix):
    """Add blocks of one dense matrix to the blocks of a real matrix in pairs of atoms.

    Parameters
    ----------
    product
        Shape (rows, columns).
    first
        For rows and columns each, where blocks begin, and the end: two arrays.
    pair
        Pair that each block belongs to, shape (row blocks, column blocks); negative: none.
    offsets
        Where each pair begins in ``matrix``.
    matrix
        Shape (size,).
    """
    rows, columns = first
    for a in range(len(rows) - 1):
        for b in range(len(columns) - 1):
            if pair[a, b] < 0:
                continue
            place = offsets[pair[a, b]]
            for x in range(rows[a], rows[a + 1]):
                for y in range(columns[b], columns[b + 1]):
                    matrix[place] += product[x, y]
                    place += 1


@njit(cache=True, nogil=True)
def add_spinor_product(product, first, pair, offsets, matrix):
    """As :func:`add_product`, for V_0 + i W.sigma and a complex matrix of spinors.

    Parameters
    ----------
    product
        V_0, W_x, W_y, W_z, shape (4, rows, columns).
    offsets
        Where each pair would begin without spin.
    matrix
        With the index 2 * orbital + spin, shape (4 * size,).
    """
    rows, columns = first
    for a in range(len(rows) - 1):
        for b in range(len(columns) - 1):
            if pair[a, b] < 0:
                continue
            width = 2 * (columns[b + 1] - columns[b])
            up = 4 * offsets[pair[a, b]]
            for x in range(rows[a], rows[a + 1]):
                down = up + width
                for n, y in enumerate(range(columns[b], columns[b + 1])):
                    v, wx, wy, wz = (
                        product[0, x, y],
                        product[1, x, y],
                        product[2, x, y],
                        product[3, x, y],
                    )
                    matrix[up + 2 * n] += complex(v, wz)
                    matrix[up + 2 * n + 1] += complex(wy, wx)
                    matrix[down + 2 * n] += complex(-wy, wx)
                    matrix[down + 2 * n + 1] += complex(v, -wz)
                up += 2 * width


@njit(cache=True, nogil=True)
def finish_real(matrix, scalar, starts, layout, factor):
    """Add real blocks, change units and fill in the other half of the pairs.

    Parameters
    ----------
    matrix
        Blocks of all pairs, those of ``half`` computed, shape (size,).
    scalar
        What is to be added to some of these pairs, blocks one after another.
    starts
        Where the block of each pair begins in ``scalar``, or a negative number.
    layout
        (offsets, rows, columns, half, reverse) of all pairs.
    factor
        By which everything is multiplied.
    """
    offsets, rows, columns, half, reverse = layout
    for p in half:
        here, there, source = offsets[p], offsets[reverse[p]], starts[p]
        for x in range(rows[p]):
            for y in range(columns[p]):
                value = matrix[here + x * columns[p] + y]
                if source >= 0:
                    value += scalar[source + x * columns[p] + y]
                matrix[here + x * columns[p] + y] = factor * value
        if p != reverse[p]:
            for x in range(rows[p]):
                for y in range(columns[p]):
                    matrix[there + y * rows[p] + x] = matrix[here + x * columns[p] + y]


@njit(cache=True, nogil=True)
def finish_spinor(matrix, up, down, starts, layout, factor):
    """As :func:`finish_real` for spinors, with what is added to spin up and to spin down."""
    offsets, rows, columns, half, reverse = layout
    for p in half:
        here, there, source = 4 * offsets[p], 4 * offsets[reverse[p]], starts[p]
        height, width = 2 * rows[p], 2 * columns[p]
        if source >= 0:
            for x in range(rows[p]):
                for y in range(columns[p]):
                    place = here + 2 * x * width + 2 * y
                    matrix[place] += up[source + x * columns[p] + y]
                    matrix[place + width + 1] += down[source + x * columns[p] + y]
        for place in range(here, here + height * width):
            matrix[place] *= factor
        if p != reverse[p]:
            for x in range(height):
                for y in range(width):
                    matrix[there + y * height + x] = matrix[here + x * width + y].conjugate()
