"""The libraries whose arrays go through DLPack: how each makes and reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from . import capsules

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (*map(np.dtype, (np.float64, np.float32, np.float16)), BFLOAT16)


class Library(NamedTuple):
    """`make` gives an array of the library over the memory of one of NumPy, and `read` the other
    way round; JAX copies what is strided or does not begin on 64 bytes."""

    name: str
    kind: type
    make: Callable[[np.ndarray], Any]
    read: Callable[[Any], np.ndarray]

    def address(self, array: Any) -> int:
        return self.read(array).ctypes.data

    def given(self, given: dict[str, Any], *names: str) -> dict[str, Any]:
        """Arguments by name with the arrays, or those of them that are named, of the library."""
        chosen = {name: given[name] for name in names} if names else given
        arrays = {name: v for name, v in chosen.items() if isinstance(v, np.ndarray)}
        return given | {name: self.make(array) for name, array in arrays.items()}


def needed(name: str) -> Any:
    """A module, without which a test is skipped, but not on CI."""
    return __import__(name) if os.environ.get("CI") else pytest.importorskip(name)


def torch() -> Library:
    torch = needed("torch")

    def make(array: np.ndarray) -> Any:
        if array.dtype == BFLOAT16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def read(tensor: Any) -> np.ndarray:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(BFLOAT16)
        return tensor.numpy()

    return Library("torch", torch.Tensor, make, read)


def jax() -> Library:
    jax = needed("jax")
    return Library("jax", jax.Array, jax.numpy.asarray, np.asarray)


def strict() -> Library:
    strict = needed("array_api_strict")
    return Library("strict", type(strict.zeros(1)), strict.from_dlpack, np.from_dlpack)


NUMPY = Library("numpy", np.ndarray, lambda array: array, np.asarray)
FOREIGN = Library("foreign", capsules.Foreign, capsules.Foreign, lambda found: found.array)
MINIMAL = NUMPY._replace(name="minimal", make=capsules.Exporter)
"""It has no namespace that could make arrays of it, so NumPy's come back."""

LIBRARIES = {
    "torch": torch,
    "jax": jax,
    "strict": strict,
    "foreign": lambda: FOREIGN,
    "minimal": lambda: MINIMAL,
}


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("library", names, indirect=True)


asked_for_versions = pytest.mark.skipif(
    tuple(map(int, np.__version__.split(".")[:2])) < (2, 1),
    reason="NumPy asks for capsules of DLPack 1.0, and so for memory to write on, from 2.1 on",
)
every_library = of(*LIBRARIES)
PAIRS = [
    (name, dtype)
    for name in LIBRARIES
    for dtype in (FLOATS[:2] if name == "strict" else FLOATS)  # the array API has no others
]
every_dtype = pytest.mark.parametrize(("library", "dtype"), PAIRS, indirect=["library"], ids=str)


@contextmanager
def library_of(name: str) -> Iterator[Library]:
    with ExitStack() as stack:
        if name == "jax":
            jax = needed("jax")
            stack.enter_context(jax.enable_x64(True))
            stack.enter_context(jax.default_device(jax.devices("cpu")[0]))  # whatever GPU it has
        yield LIBRARIES[name]()


def assert_read(library: Library, actual: Any, desired: Any) -> None:
    """A result is of the library, and has the dtype, the shape and the bits of NumPy's."""
    scalar = library.kind is np.ndarray and np.ndim(desired) == 0
    assert isinstance(actual, np.generic if scalar else library.kind)
    found, desired = library.read(actual), np.asarray(desired)
    assert found.dtype == desired.dtype
    np.testing.assert_array_equal(found, desired, strict=True)
