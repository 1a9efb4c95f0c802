"""Compiled loops over the points of one block, for :mod:`.integral`.

Shapes: a block has ``npoints`` points and the orbitals of several images of atoms, one after
another; orbital mu at point p is ``phi[mu * npoints + p]``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_compiled = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


@_compiled
def evaluate(
    points,
    fractions,
    cell,
    shape,
    center,
    v,
    weighted,
    own,
    image_atom,
    image_position,
    species,
    table_start,
    table,
    first_shell,
    shells,
    size,
    spacing,
    cutoff,
    ordered,
    position,
    weight,
    local,
    interval,
    radial,
    harmonics,
    phi,
    kept,
    column,
):
    """Evaluate the orbitals of the images ``own`` at the points of one block.

    With ``weighted``, points with v >= 0 come first, and orbitals are multiplied by sqrt|v|. The
    two groups of points then fill two matrices, one after the other in ``phi``.

    Returns
    -------
    tuple
        How many images have points in reach (listed in ``kept``; their first orbitals in
        ``column``), and how many points have v >= 0.
    """
    npoints = points.size
    positive = _order(points, v, weighted, ordered, weight)
    _place(ordered[:npoints], fractions, cell, shape, center, position)
    nkept = 0
    column[0] = 0
    for image in own:
        kind = species[image_atom[image]]
        limit = (cutoff[kind] - 1e-10) ** 2
        x, y, z = image_position[image, 0], image_position[image, 1], image_position[image, 2]
        for p in range(npoints):
            dx, dy, dz = position[0, p] - x, position[1, p] - y, position[2, p] - z
            if dx * dx + dy * dy + dz * dz < limit:
                kept[nkept] = image
                column[nkept + 1] = column[nkept] + size[kind]
                nkept += 1
                break
    norbitals = column[nkept]
    for group in range(2):
        begin, end = (0, positive) if group == 0 else (positive, npoints)
        if begin == end:
            continue
        for a in range(nkept):
            image = kept[a]
            kind = species[image_atom[image]]
            first = norbitals * begin + column[a] * (end - begin)
            last = norbitals * begin + column[a + 1] * (end - begin)
            _orbitals(
                position[:, begin:end],
                image_position[image],
                weight[begin:end],
                shells[first_shell[kind] : first_shell[kind + 1]],
                table[table_start[kind] : table_start[kind + 1]],
                spacing[kind],
                cutoff[kind],
                local,
                interval,
                radial,
                harmonics,
                phi[first:last],
            )
    return nkept, positive


@_compiled
def scale(phi, scaled, norbitals, npoints, v, ordered, weight):
    """Multiply by sqrt|v|, with the points of v >= 0 in a first matrix; returns their number."""
    positive = 0
    for p in range(npoints):
        value = v[ordered[p]]
        weight[p] = np.sqrt(abs(value))
        if value >= 0:
            positive += 1
    first, second = 0, norbitals * positive
    for mu in range(norbitals):
        for p in range(npoints):
            value = phi[mu * npoints + p] * weight[p]
            if v[ordered[p]] >= 0:
                scaled[first] = value
                first += 1
            else:
                scaled[second] = value
                second += 1
    return positive


@_compiled
def scatter(product, kept, column, image_atom, image_shift, start, key, place, radix, result):
    """Add the upper triangle of ``product`` to the blocks of pairs, where there are such pairs."""
    reach = (radix - 1) // 2
    for a in range(kept.size):
        i = image_atom[kept[a]]
        low, high = start[i], start[i + 1]
        for b in range(a, kept.size):
            code = image_atom[kept[b]]
            inside = True
            for axis in range(3):
                step = image_shift[kept[b], axis] - image_shift[kept[a], axis]
                inside &= abs(step) <= reach
                code = code * radix + step + reach
            if not inside:
                continue
            p = low + np.searchsorted(key[low:high], code)
            if p == high or key[p] != code:
                continue
            columns = column[b + 1] - column[b]
            for mu in range(column[a + 1] - column[a]):
                target = place[p] + mu * columns
                row = column[a] + mu
                if a != b:
                    for nu in range(columns):
                        result[target + nu] += product[row, column[b] + nu]
                    continue
                for nu in range(columns):
                    if nu >= mu:
                        result[target + nu] += product[row, column[b] + nu]
                    else:
                        result[target + nu] += product[column[b] + nu, row]


@_compiled
def complete(result, weight, summed, offset, rows, columns, reverse):
    """Multiply the blocks that were summed by ``weight``, and fill in their transposes."""
    for component in range(result.shape[0]):
        for p in range(summed.size):
            if not summed[p]:
                continue
            q = reverse[p]
            for mu in range(rows[p]):
                for nu in range(columns[p]):
                    value = weight * result[component, offset[p] + mu * columns[p] + nu]
                    result[component, offset[p] + mu * columns[p] + nu] = value
                    if p != q:
                        result[component, offset[q] + nu * rows[p] + mu] = value


@_compiled
def fold(half, gradient, summed, offset, rows, columns, reverse):
    """The transpose of :func:`complete` without its factor: add to each block its partner's."""
    for p in range(summed.size):
        q = reverse[p]
        if not summed[p] or p == q:
            continue
        for mu in range(rows[p]):
            for nu in range(columns[p]):
                half[offset[p] + mu * columns[p] + nu] += gradient[offset[q] + nu * rows[p] + mu]


@_compiled
def gather(product, kept, column, image_atom, image_shift, start, key, place, radix, blocks):
    """The transpose of :func:`scatter`: fill ``product`` from the blocks of pairs.

    An upper triangle: what belongs below the diagonal is added to its mirror image.
    """
    reach = (radix - 1) // 2
    product[:] = 0
    for a in range(kept.size):
        i = image_atom[kept[a]]
        low, high = start[i], start[i + 1]
        for b in range(a, kept.size):
            code = image_atom[kept[b]]
            inside = True
            for axis in range(3):
                step = image_shift[kept[b], axis] - image_shift[kept[a], axis]
                inside &= abs(step) <= reach
                code = code * radix + step + reach
            if not inside:
                continue
            p = low + np.searchsorted(key[low:high], code)
            if p == high or key[p] != code:
                continue
            columns = column[b + 1] - column[b]
            for mu in range(column[a + 1] - column[a]):
                source = place[p] + mu * columns
                for nu in range(columns):
                    if a == b and nu < mu:
                        product[column[a] + nu, column[a] + mu] += blocks[source + nu]
                    else:
                        product[column[a] + mu, column[b] + nu] = blocks[source + nu]


@_compiled
def _order(points, v, weighted, ordered, weight):
    """Copy the indices of the points, those of positive v first; returns how many these are."""
    npoints = points.size
    if not weighted:
        for p in range(npoints):
            ordered[p] = points[p]
            weight[p] = 1.0
        return npoints
    first, last = 0, npoints
    for p in range(npoints):
        value = v[points[p]]
        if value >= 0:
            at = first
            first += 1
        else:
            last -= 1
            at = last
        ordered[at] = points[p]
        weight[at] = np.sqrt(abs(value))
    return first


@_compiled
def _place(ordered, fractions, cell, shape, center, position):
    """Cartesian positions of grid points, in the image of the cell that is next to ``center``."""
    for p in range(ordered.size):
        rest = ordered[p]
        k = rest % shape[2]
        rest //= shape[2]
        j = rest % shape[1]
        i = rest // shape[1]
        for axis in range(3):
            position[axis, p] = 0.0
        for c in range(3):
            x = i * fractions[0, c] + j * fractions[1, c] + k * fractions[2, c]
            x -= np.rint(x - center[c])
            for axis in range(3):
                position[axis, p] += x * cell[c, axis]


@_compiled
def _orbitals(
    position,
    atom,
    weight,
    shells,
    table,
    spacing,
    cutoff,
    local,
    interval,
    radial,
    harmonics,
    phi,
):
    """All orbitals of one atom at some points, times the weight of each point."""
    npoints = weight.size
    nshells = shells.size
    limit = (cutoff - 1e-10) ** 2
    near = 0
    for p in range(npoints):
        dx, dy, dz = position[0, p] - atom[0], position[1, p] - atom[1], position[2, p] - atom[2]
        r2 = dx * dx + dy * dy + dz * dz
        r = np.sqrt(r2)
        scale = 1 / max(r, 1e-9)
        local[0, p] = dx * scale
        local[1, p] = dy * scale
        local[2, p] = dz * scale
        n = int(r / spacing)
        local[3, p] = r - n * spacing
        local[4, p] = weight[p]
        interval[0, p] = n * 4 * nshells
        if r2 < limit:
            interval[1, near] = p
            near += 1
    if near < npoints:
        for k in range(nshells):
            for p in range(npoints):
                radial[k, p] = 0
    for q in range(near):
        p = interval[1, q]
        t, w = local[3, p], local[4, p]
        c0 = interval[0, p]
        c1, c2, c3 = c0 + nshells, c0 + 2 * nshells, c0 + 3 * nshells
        for k in range(nshells):
            value = table[c2 + k] + t * table[c3 + k]
            radial[k, p] = w * (table[c0 + k] + t * (table[c1 + k] + t * value))
    _harmonics(local, npoints, shells.max(), harmonics)
    mu = 0
    for k in range(nshells):
        l = shells[k]
        for m in range(2 * l + 1):
            for p in range(npoints):
                phi[mu + p] = radial[k, p] * harmonics[l * l + m, p]
            mu += npoints


@_compiled
def _harmonics(local, npoints, lmax, y):
    """Real harmonics of unit vectors ``local[:3]`` in ABACUS's order and sign, rows l^2 + m.

    ``(x + i y)^m`` times polynomials in z, by the recursion of the normalised Legendre functions;
    these parts stand in rows behind the harmonics.
    """
    legendre = (lmax + 1) ** 2
    cosine = 2 * legendre
    sine = cosine + lmax + 1
    for p in range(npoints):
        y[cosine, p] = 1
        y[sine, p] = 0
    for m in range(1, lmax + 1):
        for p in range(npoints):
            a, b = y[cosine + m - 1, p], y[sine + m - 1, p]
            y[cosine + m, p] = local[0, p] * a - local[1, p] * b
            y[sine + m, p] = local[0, p] * b + local[1, p] * a
    start = np.sqrt(0.25 / np.pi)
    for m in range(lmax + 1):
        if m:
            start *= np.sqrt((2 * m + 1) / (2 * m))
        sign = np.sqrt(2.0) * (1 - 2 * (m % 2))
        for l in range(m, lmax + 1):
            row = legendre + l * (lmax + 1) + m
            if l == m:
                for p in range(npoints):
                    y[row, p] = start
            elif l == m + 1:
                factor = np.sqrt(2 * m + 3.0)
                for p in range(npoints):
                    y[row, p] = factor * local[2, p] * y[row - lmax - 1, p]
            else:
                factor = np.sqrt((4 * l * l - 1) / (l * l - m * m))
                other = factor * np.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1))
                for p in range(npoints):
                    y[row, p] = (
                        factor * local[2, p] * y[row - lmax - 1, p]
                        - other * y[row - 2 * lmax - 2, p]
                    )
            if m == 0:
                for p in range(npoints):
                    y[l * l, p] = y[row, p]
                continue
            for p in range(npoints):
                value = sign * y[row, p]
                y[l * l + 2 * m - 1, p] = value * y[cosine + m, p]
                y[l * l + 2 * m, p] = value * y[sine + m, p]


@_compiled
def pairs_of_blocks(first, index, image_atom, image_shift, start, key, radix, found):
    """Which pairs of images of each block are pairs of the result.

    Rows of ``found`` are: block, position of both images in the list of the block, and the number
    of the half pair. With no room only counts.

    Returns
    -------
    int
        How many there are.
    """
    reach = (radix - 1) // 2
    count = 0
    for block in range(first.size - 1):
        for a in range(first[block], first[block + 1]):
            i = image_atom[index[a]]
            low, high = start[i], start[i + 1]
            for b in range(a, first[block + 1]):
                code = image_atom[index[b]]
                inside = True
                for axis in range(3):
                    step = image_shift[index[b], axis] - image_shift[index[a], axis]
                    inside &= abs(step) <= reach
                    code = code * radix + step + reach
                if not inside:
                    continue
                p = low + np.searchsorted(key[low:high], code)
                if p == high or key[p] != code:
                    continue
                if found.shape[0]:
                    found[count, 0] = block
                    found[count, 1] = a - first[block]
                    found[count, 2] = b - first[block]
                    found[count, 3] = p
                count += 1
    return count
