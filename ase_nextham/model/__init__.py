"""The network: the correction dH from H(0), by the paper's method and by the released one.

:mod:`angular` has spherical harmonics and 3j symbols, :mod:`irreps` turns blocks of matrices
into irreps and back, :mod:`released` evaluates the networks whose weights are published. With
``h0.native`` this is the only folder that imports torch.
"""
