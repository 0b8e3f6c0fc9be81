"""The CUDA C++ sources are here in an installed package, and in ``kernels/`` in a checkout."""
