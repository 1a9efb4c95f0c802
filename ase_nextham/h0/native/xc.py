"""The exchange-correlation potential of PBE, with the constants and thresholds of ABACUS.

The gradient correction of a density n gives two things at each point: a potential v and a vector
h, of which the divergence is still to be subtracted (:mod:`.potential` does it with FFTs). What
ABACUS does where the density nearly vanishes differs between ``nspin 1`` and the others, and a
basis of orbitals feels it; :class:`Rules` says how.

Formulas: J. P. Perdew, K. Burke, M. Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), with the local
part of J. P. Perdew, Y. Wang, Phys. Rev. B 45, 13244 (1992). Densities are in Bohr^-3; the
functions of one point give Hartree, as the papers do, the functions of a grid Ry, as the rest of
this folder.

Derivatives of v and h are those of the same formulas at a complex argument, ``f'(x) = Im f(x + i
eps x) / (eps x)`` with a step of 1e-20, of which not even rounding is left.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy import ndarray

from ase_nextham.h0.native.threads import in_threads

_KF = (3 * math.pi**2) ** (1 / 3)
_RS = (3 / (4 * math.pi)) ** (1 / 3)
_KAPPA, _MU = 0.804, 0.2195149727645171
_BETA = 0.06672455060314922
_GAMMA = (1 - math.log(2)) / math.pi**2
_GAMMA_ROUNDED = 0.0310910
# a, a1, b1 ... b4 of Perdew and Wang: unpolarised, fully polarised, spin stiffness
_PW_0 = (0.0310910, 0.21370, 7.5957, 3.5876, 1.6382, 0.49294)
_PW_1 = (0.0155450, 0.20548, 14.1189, 6.1977, 3.3662, 0.62517)
_PW_A = (0.0168870, 0.11125, 10.3570, 3.6231, 0.88026, 0.49671)
_F2_0 = 1.709921  # f''(0) of the spin interpolation, as rounded by ABACUS
_ZETA_MAX = 1 - 1e-6
_STEP = 1e-20  # into the complex plane, relative

_compiled = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
_inlined = njit(cache=True, nogil=True, fastmath=True, error_model="numpy", inline="always")


class Rules(NamedTuple):
    """Where ABACUS drops terms, by ``nspin``.

    Parameters
    ----------
    gamma
        The constant gamma of the correlation gradient, which one of its routines rounds.
    total
        Whether the thresholds of the gradient correction are those of one density (``nspin 1``)
        rather than of two spins.
    magnetization
        Least |m| at which there is a local spin splitting, in Bohr^-3.
    """

    gamma: float
    total: bool
    magnetization: float

    @classmethod
    def of(cls, nspin: int) -> Rules:
        """The rules of ``nspin`` 1, 2 or 4."""
        return {
            1: cls(_GAMMA, True, 0.0),
            2: cls(_GAMMA_ROUNDED, False, 0.0),
            4: cls(_GAMMA_ROUNDED, False, 1e-10),
        }[nspin]


@_inlined
def _perdew_wang(rs, root, c):
    """G(rs) and rs dG/drs of the Perdew-Wang interpolation with constants ``c``."""
    a, a1, b1, b2, b3, b4 = c
    q = 2 * a * root * (b1 + root * (b2 + root * (b3 + root * b4)))
    dq = a * root * (b1 + root * (2 * b2 + root * (3 * b3 + root * 4 * b4)))
    logarithm = np.log(1 + 1 / q)
    g = -2 * a * (1 + a1 * rs) * logarithm
    dg = -2 * a * a1 * rs * logarithm + 2 * a * (1 + a1 * rs) * dq / (q * (q + 1))
    return g, dg


@_compiled
def local_density(n: float) -> tuple[float, float]:
    """Energy per electron and potential of the unpolarised electron gas, in Hartree."""
    k = _KF * n ** (1 / 3)
    rs = _RS * _KF / k
    ec, dec = _perdew_wang(rs, np.sqrt(rs), _PW_0)
    ex = -0.75 / math.pi * k
    return ex + ec, 4 / 3 * ex + ec - dec / 3


@_compiled
def _correlation_spin(rs, zeta):
    """Correlation of the polarised gas: energy per electron, potentials up and down; Hartree."""
    root = math.sqrt(rs)
    e0, d0 = _perdew_wang(rs, root, _PW_0)
    e1, d1 = _perdew_wang(rs, root, _PW_1)
    ea, da = _perdew_wang(rs, root, _PW_A)
    up, down = (1 + zeta) ** (1 / 3), (1 - zeta) ** (1 / 3)
    norm = 1 / (2 ** (4 / 3) - 2)
    f = norm * ((1 + zeta) * up + (1 - zeta) * down - 2)
    df = norm * 4 / 3 * (up - down)
    z3 = zeta**3
    z4 = z3 * zeta
    # the table's "a" is minus the spin stiffness
    stiff = -f * (1 - z4) / _F2_0
    e = e0 + ea * stiff + (e1 - e0) * f * z4
    de = d0 + da * stiff + (d1 - d0) * f * z4
    dz = -ea / _F2_0 * (df * (1 - z4) - 4 * f * z3) + (e1 - e0) * (df * z4 + 4 * f * z3)
    v = e - de / 3
    return e, v + (1 - zeta) * dz, v - (1 + zeta) * dz


@_compiled
def local_density_spin(n: float, zeta: float) -> tuple[float, float, float]:
    """Energy per electron and potentials of both spins of the polarised electron gas; Hartree."""
    third = n ** (1 / 3)
    ec, vc_up, vc_down = _correlation_spin(_RS / third, zeta)
    # per electron of one spin
    vx_up = -_KF / math.pi * third * (1 + zeta) ** (1 / 3)
    vx_down = -_KF / math.pi * third * (1 - zeta) ** (1 / 3)
    ex = 3 / 8 * ((1 + zeta) * vx_up + (1 - zeta) * vx_down)
    return ex + ec, vx_up + vc_up, vx_down + vc_down


@_compiled
def exchange_gradient(n: float, g2: float) -> tuple[float, float, float]:
    """What the gradient adds to the exchange of an unpolarised density.

    Parameters
    ----------
    n, g2
        The density and the square of its gradient.

    Returns
    -------
    tuple
        e, the energy per volume; de/dn; and (de/dg)/g with the length g of the gradient; Hartree.
    """
    k = _KF * n ** (1 / 3)
    s2 = g2 / (2 * k * n) ** 2
    ex = -0.75 / math.pi * k
    d = 1 / (1 + _MU / _KAPPA * s2)
    enhancement = _MU * s2 * d
    slope = 2 * _MU * d * d  # of the enhancement with s, divided by s
    v1 = 4 / 3 * ex * (enhancement - slope * s2)
    return n * ex * enhancement, v1, ex * slope / (4 * k * k * n)


@_inlined
def _correlation_gradient(n, k, ec, g2, phi, gamma):
    """h(n, zeta, g) of PBE and its derivatives with t^2, ec and phi, and dt^2/dg2 * n."""
    ks2 = 4 * k / math.pi
    phi3 = phi**3
    scale = 1 / (4 * phi * phi * ks2 * n)
    u = scale * g2 / n
    expo = np.exp(-ec / (gamma * phi3))
    a = _BETA / gamma / (expo - 1)
    q = a * u
    d = 1 / (1 + q + q * q)
    x = 1 + _BETA / gamma * u * (1 + q) * d
    h = gamma * phi3 * np.log(x)
    h_u = _BETA * phi3 * (1 + 2 * q) * d * d / x
    h_a = -_BETA * phi3 * u * u * q * (2 + q) * d * d / x
    a_ec = a * a * expo / (_BETA * phi3)
    h_phi = (3 * h - 2 * u * h_u - 3 * ec * h_a * a_ec) / phi
    return h, u * h_u, h_a * a_ec, h_phi, 2 * scale * h_u


@_compiled
def correlation_gradient(n: float, g2: float, gamma: float) -> tuple[float, float, float]:
    """What the gradient adds to the correlation of an unpolarised density.

    Arguments and results as of :func:`exchange_gradient`, with the constant gamma.
    """
    k = _KF * n ** (1 / 3)
    rs = _RS * _KF / k
    ec, dec = _perdew_wang(rs, np.sqrt(rs), _PW_0)
    h, uh, h_ec, _, v2 = _correlation_gradient(n, k, ec, g2, 1.0, gamma)
    return n * h, h - 7 / 3 * uh - h_ec * dec / 3, v2


@_compiled
def correlation_gradient_spin(
    n: float, zeta: float, g2: float, gamma: float
) -> tuple[float, float, float, float]:
    """What the gradient adds to the correlation of a polarised density.

    Returns
    -------
    tuple
        e, the energy per volume; its derivatives with the densities up and down; and (de/dg)/g
        with the length g of the gradient of the total density; Hartree.
    """
    k = _KF * n ** (1 / 3)
    ec, v_up, v_down = _correlation_spin(_RS * _KF / k, zeta)
    up, down = (1 + zeta) ** (1 / 3), (1 - zeta) ** (1 / 3)
    phi = 0.5 * (up * up + down * down)
    dphi = (1 / up - 1 / down) / 3
    h, uh, h_ec, h_phi, v2 = _correlation_gradient(n, k, ec, g2, phi, gamma)
    common = h - 7 / 3 * uh
    v1_up = common + h_ec * (v_up - ec) + h_phi * dphi * (1 - zeta)
    v1_down = common + h_ec * (v_down - ec) - h_phi * dphi * (1 + zeta)
    return n * h, v1_up, v1_down, v2


def unpolarised_potential(n: ndarray, gradient: ndarray, rules: Rules, threads: int = 1) -> None:
    """Potential of a density without spin, in place.

    Parameters
    ----------
    n
        Density with core, shape (npoints,); becomes the potential v in Ry.
    gradient
        Its gradient, shape (3, npoints); becomes the vector h, whose divergence is to be
        subtracted from v, in Ry Bohr.
    """
    in_threads(_unpolarised, n.size, threads, n, gradient, rules.gamma, rules.total)


def unpolarised_slopes(
    n: ndarray, gradient: ndarray, rules: Rules, threads: int = 1
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray]:
    """First derivatives of what :func:`unpolarised_potential` gives.

    Parameters
    ----------
    n, gradient
        Density with core, shape (npoints,), and its gradient g, shape (3, npoints).

    Returns
    -------
    tuple of ndarray
        dv/dn; x of ``dv/dg = x g``; y of ``dh/dn = y g``; s and t of ``dh/dg = s + t g g^T``; in
        Ry and powers of Bohr, each of shape (npoints,). x and y differ in sign where ABACUS takes
        the absolute value of a density below zero, and are the same elsewhere.
    """
    slopes = np.zeros((5, n.size))
    in_threads(_unpolarised_slopes, n.size, threads, n, gradient, rules.gamma, rules.total, slopes)
    return tuple(slopes)


def respond(
    n: ndarray,
    change: ndarray,
    gradient: ndarray,
    slopes: tuple[ndarray, ndarray, ndarray, ndarray, ndarray],
    threads: int = 1,
) -> None:
    """Change of v and h with the density, in place.

    Parameters
    ----------
    n, change
        Change of the density, shape (npoints,), and its gradient, shape (3, npoints); become the
        changes of v and h to first order.
    gradient, slopes
        As :func:`unpolarised_slopes` takes and gives them.
    """
    in_threads(_respond, n.size, threads, n, change, gradient, *slopes)


def collinear_potential(
    n: ndarray,
    m: ndarray,
    gradient: ndarray,
    gradient_m: ndarray,
    rules: Rules,
    threads: int = 1,
) -> None:
    """Potential of a density with collinear spin, in place.

    Parameters
    ----------
    n, m
        Density with core, and spin density (up minus down), shape (npoints,); become the average
        of the potentials of both spins and half of their difference, in Ry.
    gradient, gradient_m
        Gradients of n and m, shape (3, npoints); become the vectors h, whose divergences are to
        be subtracted, in Ry Bohr.

    Notes
    -----
    With ``nspin 4`` ABACUS leaves out the whole gradient correction of the splitting where
    ``|m| <= 1e-12``. Here the vector h is kept, which changes nothing that orbitals feel.
    """
    in_threads(
        _collinear, n.size, threads, n, m, gradient, gradient_m, rules.gamma, rules.magnetization
    )


@_inlined
def _corrected(density, g2, total):
    """Whether exchange and correlation have a gradient correction at a point."""
    if total:
        both = abs(density) > 1e-6 and g2 >= 1e-10
        return both, both
    # each spin has half of density and gradient
    return density > 2e-10 and g2 > 4e-20, density > 1e-6 and g2 > 1e-20


@_compiled
def _unpolarised(start, stop, n, gradient, gamma, total):
    for p in range(start, stop):
        density = n[p]
        g2 = gradient[0, p] ** 2 + gradient[1, p] ** 2 + gradient[2, p] ** 2
        magnitude = abs(density)
        v = factor = 0.0
        if magnitude > 1e-10:
            v = local_density(magnitude)[1]
            exchange, correlation = _corrected(density, g2, total)
            if exchange:
                _, v1, v2 = exchange_gradient(magnitude, g2)
                v += v1
                factor += v2
            if correlation:
                _, v1, v2 = correlation_gradient(magnitude, g2, gamma)
                v += v1
                factor += v2
        n[p] = 2 * v
        for axis in range(3):
            gradient[axis, p] *= 2 * factor


@_compiled
def _unpolarised_slopes(start, stop, n, gradient, gamma, total, slopes):
    for p in range(start, stop):
        magnitude, sign = abs(n[p]), 1.0 if n[p] > 0 else -1.0
        if magnitude <= 1e-10:
            continue
        g2 = gradient[0, p] ** 2 + gradient[1, p] ** 2 + gradient[2, p] ** 2
        step, step_g2 = _STEP * magnitude, _STEP * g2
        moved, moved_g2 = complex(magnitude, step), complex(g2, step_g2)
        dv = local_density(moved)[1].imag / step
        dv_g2 = factor = dfactor = dfactor_g2 = 0.0
        exchange, correlation = _corrected(n[p], g2, total)
        if exchange:
            _, v1, v2 = exchange_gradient(moved, complex(g2, 0))
            dv += v1.imag / step
            dfactor += v2.imag / step
            _, v1, v2 = exchange_gradient(complex(magnitude, 0), moved_g2)
            dv_g2 += v1.imag / step_g2
            factor += v2.real
            dfactor_g2 += v2.imag / step_g2
        if correlation:
            _, v1, v2 = correlation_gradient(moved, complex(g2, 0), gamma)
            dv += v1.imag / step
            dfactor += v2.imag / step
            _, v1, v2 = correlation_gradient(complex(magnitude, 0), moved_g2, gamma)
            dv_g2 += v1.imag / step_g2
            factor += v2.real
            dfactor_g2 += v2.imag / step_g2
        slopes[0, p] = 2 * sign * dv
        slopes[1, p] = 4 * dv_g2
        slopes[2, p] = 2 * sign * dfactor
        slopes[3, p] = 2 * factor
        slopes[4, p] = 4 * dfactor_g2


@_compiled
def _respond(start, stop, n, change, gradient, dv_n, dv_g, dh_n, s, t):
    for p in range(start, stop):
        along = 0.0
        for axis in range(3):
            along += gradient[axis, p] * change[axis, p]
        density = n[p]
        n[p] = dv_n[p] * density + dv_g[p] * along
        for axis in range(3):
            change[axis, p] = s[p] * change[axis, p] + gradient[axis, p] * (
                dh_n[p] * density + t[p] * along
            )


@_compiled
def _collinear(start, stop, n, m, gradient, gradient_m, gamma, least_m):
    for p in range(start, stop):
        total, spin = n[p], m[p]
        g2 = g2_up = g2_down = 0.0
        for axis in range(3):
            a, b = gradient[axis, p], gradient_m[axis, p]
            g2 += a * a
            g2_up += (a + b) ** 2
            g2_down += (a - b) ** 2
        v_up = v_down = w_up = w_down = x_up = x_down = c = 0.0
        magnitude = abs(total)
        if magnitude > 1e-10:
            zeta = max(-1.0, min(1.0, spin / magnitude))
            _, v_up, v_down = local_density_spin(magnitude, zeta)
        # exchange of one spin is half of that of twice its density
        if total > 1e-10:
            if total + spin > 2e-10 and g2_up > 4e-20:
                _, w_up, x_up = exchange_gradient(total + spin, g2_up)
            if total - spin > 2e-10 and g2_down > 4e-20:
                _, w_down, x_down = exchange_gradient(total - spin, g2_down)
        if total > 1e-6 and g2 > 1e-20 and abs(spin / total) <= 1 + 1e-10:
            zeta = max(-_ZETA_MAX, min(_ZETA_MAX, spin / total))
            _, c_up, c_down, c = correlation_gradient_spin(total, zeta, g2, gamma)
            w_up += c_up
            w_down += c_down
        n[p] = v_up + v_down + w_up + w_down
        split = 0.0
        if abs(spin) > least_m:
            split += v_up - v_down
        if abs(spin) > 1e-2 * least_m:
            split += w_up - w_down
        m[p] = split
        for axis in range(3):
            h_up = x_up * (gradient[axis, p] + gradient_m[axis, p])
            h_down = x_down * (gradient[axis, p] - gradient_m[axis, p])
            gradient[axis, p] = h_up + h_down + 2 * c * gradient[axis, p]
            gradient_m[axis, p] = h_up - h_down
