"""Arrays on the emulated device, and what CuPy can do with them, by NumPy.

Names, parameters and their order are CuPy's; a test compares them with those of CuPy.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ptxemu
from . import memory

# numpy's function of the same name: CuPy's parameters
FUNCTIONS = {
    "all": "a, axis=None, out=None, keepdims=False",
    "any": "a, axis=None, out=None, keepdims=False",
    "argmax": "a, axis=None, dtype=None, out=None, keepdims=False",
    "argsort": "a, axis=-1, kind=None",
    "bincount": "x, weights=None, minlength=None",
    "clip": "a, a_min, a_max, out=None",
    "concatenate": "tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
    "count_nonzero": "a, axis=None",
    "cumsum": "a, axis=None, dtype=None, out=None",
    "max": "a, axis=None, out=None, keepdims=False",
    "mean": "a, axis=None, dtype=None, out=None, keepdims=False",
    "min": "a, axis=None, out=None, keepdims=False",
    "repeat": "a, repeats, axis=None",
    "searchsorted": "a, v, side='left', sorter=None",
    "sort": "a, axis=-1, kind=None",
    "stack": "tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
    "sum": "a, axis=None, dtype=None, out=None, keepdims=False",
    "take": "a, indices, axis=None, out=None",
    "where": "condition, x=None, y=None",
}
# The size of their results is known on the device alone: the host waits for it.
WAITING = {
    "flatnonzero": "a",
    "nonzero": "a",
    "unique": (
        "ar, return_index=False, return_inverse=False, return_counts=False, axis=None, *, "
        "equal_nan=True"
    ),
}
UFUNCS = tuple(
    """
    absolute add bitwise_and bitwise_or bitwise_xor ceil divide equal exp exp2 expm1 floor
    floor_divide greater greater_equal invert isfinite isinf isnan left_shift less less_equal
    log log1p log2 logaddexp logical_and logical_not logical_or maximum minimum mod multiply
    negative not_equal power right_shift sign sqrt square subtract tanh
    """.split()  # noqa: SIM905
)
METHODS = {
    "all": "axis=None, out=None, keepdims=False",
    "any": "axis=None, out=None, keepdims=False",
    "argmax": "axis=None, out=None, dtype=None, keepdims=False",
    "argsort": "axis=-1, kind=None",
    "astype": "dtype, order='K', casting=None, subok=None, copy=True",
    "clip": "min=None, max=None, out=None",
    "copy": "order='C'",
    "cumsum": "axis=None, dtype=None, out=None",
    "max": "axis=None, out=None, keepdims=False",
    "mean": "axis=None, dtype=None, out=None, keepdims=False",
    "min": "axis=None, out=None, keepdims=False",
    "repeat": "repeats, axis=None",
    "sum": "axis=None, dtype=None, out=None, keepdims=False",
    "take": "indices, axis=None, out=None",
}
# Views where they can be
VIEWS = {
    "ravel": "order='C'",
    "reshape": "*shape, order='C', copy=None",
    "squeeze": "axis=None",
    "swapaxes": "axis1, axis2",
    "transpose": "*axes",
}
ATTRIBUTES = ["dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "strides"]
OPERATORS = {
    "add": "add",
    "and": "bitwise_and",
    "eq": "equal",
    "floordiv": "floor_divide",
    "ge": "greater_equal",
    "gt": "greater",
    "le": "less_equal",
    "lshift": "left_shift",
    "lt": "less",
    "matmul": "matmul",
    "mod": "mod",
    "mul": "multiply",
    "ne": "not_equal",
    "or": "bitwise_or",
    "pow": "power",
    "rshift": "right_shift",
    "sub": "subtract",
    "truediv": "divide",
    "xor": "bitwise_xor",
}
_HALF = {"float16", "bfloat16"}
waits = 0
"""How often the host has waited for the device."""
operations: Counter[str] = Counter()
"""What the device was asked for: ``kernels`` of the package, operations on ``arrays``, ``fills``,
``copies`` from the host and to it, ``products``. CuPy launches one kernel for most operations on
arrays, and two or three for some; it does not launch any on nothing, and that is not counted."""


def signature(parameters: str) -> inspect.Signature:
    return inspect.signature(eval(f"lambda {parameters}: None"))


def wait() -> None:
    global waits
    waits += 1


def asked(kind: str, array: Any) -> Any:
    """Count an operation, and return the array that it makes or reads."""
    several = array if isinstance(array, tuple | list) else [array]
    operations[kind] += any(np.size(getattr(each, "host", each)) for each in several)
    return array


class ndarray:
    """A view of device memory. It cannot become a NumPy array unasked."""

    __array_ufunc__ = None  # what NumPy starts with one of these, it leaves to them
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: memory.MemoryPointer | None = None,
        strides: None = None,
        order="C",
    ) -> None:
        if memptr is None:
            self.host = memory.allocate(shape, dtype, order)
        else:
            self.host = memory.array_at(memptr, shape, dtype)

    @classmethod
    def of(cls, host: np.ndarray) -> ndarray:
        """A view of memory that is on the device."""
        assert memory.allocation_of(host) is not None
        new = object.__new__(cls)
        new.host = host
        return new

    @property
    def T(self) -> ndarray:
        return self.of(self.host.T)

    @property
    def device(self) -> Any:
        from .cuda import Device

        return Device(memory.allocation_of(self.host).device_id)

    @property
    def data(self) -> Any:
        """Its ``ptr`` is an address of the emulator."""
        return Pointer(ptxemu.address_of(self.host))

    def view(self, dtype: Any = None, type: None = None) -> ndarray:
        return self.of(self.host.view(self.dtype if dtype is None else dtype))

    def fill(self, value: Any) -> None:
        self._set(..., asked("fills", value) if self.size else value)

    def get(
        self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking=True
    ) -> Any:
        if blocking:
            wait()
        copy = asked("copies", memory.checked(self.host).copy(order))
        if out is None:
            return copy
        assert (out.shape, out.dtype) == (copy.shape, copy.dtype)
        out[...] = copy
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray) or arr.shape != self.shape or arr.dtype != self.dtype:
            raise ValueError("only a NumPy array of the same shape and dtype can be set")
        _write(self, asked("copies", arr))

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed: use .get()")

    def __dlpack_device__(self) -> tuple[int, int]:
        from . import dlpack

        return dlpack.device_of(self)

    def __dlpack__(self, **kwargs: Any) -> Any:
        from . import dlpack

        return dlpack.capsule_of(self, **kwargs)

    def __getitem__(self, key: Any) -> ndarray:
        key = _key(key)
        if _masks(key):
            wait()
        part = self.host[key]
        if memory.allocation_of(np.asarray(part)) is not None:
            return self.of(part)
        if np.ndim(part) == 0 and _basic(key):  # NumPy gives a scalar where CuPy gives a view
            return self.of(self.host[(*(key if isinstance(key, tuple) else (key,)), ...)])
        memory.checked(self.host, key)
        return to_device(asked("arrays", part))

    def __setitem__(self, key: Any, value: Any) -> None:
        key = _key(key)
        asked("arrays", self.host[key])
        self._set(key, value)

    def _set(self, key: Any, value: Any) -> None:
        self.host[key] = read(value)
        memory.mark_written(self.host, key)

    def __neg__(self) -> ndarray:
        return call(np.negative, self)

    def __invert__(self) -> ndarray:
        return call(np.invert, self)

    def __abs__(self) -> ndarray:
        return call(np.absolute, self)

    def __repr__(self) -> str:
        return f"<{self.dtype}{list(self.shape)} on the emulated device>"


class Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


def _basic(key: Any) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return all(isinstance(part, int | np.integer) or part is ... for part in parts)


def _masks(key: Any) -> bool:
    """Whether it depends on values how much it selects."""
    parts = key if isinstance(key, tuple) else (key,)
    return any(getattr(part, "dtype", None) == np.bool_ for part in parts)


def _key(key: Any) -> Any:
    """An index with arrays on the host."""
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    return memory.checked(key.host) if isinstance(key, ndarray) else key


def read(value: Any) -> Any:
    """A value for NumPy: arrays must be on the device, and written."""
    if isinstance(value, ndarray):
        return memory.checked(value.host)
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, tuple | list):
        return type(value)(map(read, value))
    return value


def to_device(result: Any) -> Any:
    """The results of NumPy, each in memory of its own."""
    if isinstance(result, tuple | list):
        return tuple(map(to_device, result))
    array = np.asarray(result)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    new = ndarray(array.shape, array.dtype, order=order)
    _write(new, array)
    return new


def _write(out: ndarray, values: np.ndarray) -> None:
    np.copyto(out.host, values, casting="same_kind")
    memory.mark_written(out.host)


def call(
    function: Callable[..., Any],
    *args: Any,
    out: ndarray | None = None,
    counted: str = "arrays",
    **kwargs: Any,
) -> Any:
    """A function of NumPy on arrays of the device, counted among the operations of this kind."""
    if function is np.matmul:
        function, counted = _matmul, "products"
    with np.errstate(all="ignore"):
        result = function(*map(read, args), **{name: read(value) for name, value in kwargs.items()})
    asked(counted, result)
    if out is None:
        return to_device(result)
    if np.shape(result) != out.shape:
        raise ValueError(f"out has shape {out.shape}, the result {np.shape(result)}")
    _write(out, result)
    return out


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Summed up in float32 at least, as by cuBLAS."""
    dtype = np.result_type(a, b)
    wide = np.float32 if dtype.name in _HALF else dtype
    return np.matmul(a.astype(wide), b.astype(wide)).astype(dtype)


def bound(parameters: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """The implementation, refusing what CuPy does not take."""
    accepted = signature(parameters)

    def function(*args: Any, **kwargs: Any) -> Any:
        given = accepted.bind(*args, **kwargs)
        out = given.arguments.pop("out", None)
        return implementation(*given.args, **given.kwargs, **({} if out is None else {"out": out}))

    function.__signature__ = accepted  # type: ignore[attr-defined]
    return function


def by_numpy(name: str, parameters: str) -> Callable[..., Any]:
    numpys = getattr(np, name)
    return bound(parameters, lambda *args, **kwargs: call(numpys, *args, **kwargs))


def waiting(name: str, parameters: str) -> Callable[..., Any]:
    found = by_numpy(name, parameters)

    def function(*args: Any, **kwargs: Any) -> Any:
        wait()
        return found(*args, **kwargs)

    return bound(parameters, function)


def ufunc(name: str) -> Callable[..., Any]:
    numpys = getattr(np, name)
    return lambda *args, out=None, dtype=None: (
        call(numpys, *args, out=out) if dtype is None else call(numpys, *args, out=out, dtype=dtype)
    )


def _method(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, out: ndarray | None = None, **kwargs: Any) -> Any:
        return call(
            lambda host, *a, **k: getattr(host, name)(*a, **k), self, *args, out=out, **kwargs
        )

    return method


def _view(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> ndarray:
        result = getattr(self.host, name)(*args, **kwargs)
        if memory.allocation_of(result) is not None:
            return self.of(result)
        memory.checked(self.host)
        return to_device(asked("arrays", result))

    return method


def _complete() -> None:
    """Gives the class the members that the tables above name."""
    for name, parameters in METHODS.items():
        setattr(ndarray, name, bound(f"self, {parameters}", _method(name)))
    for name, parameters in VIEWS.items():
        setattr(ndarray, name, bound(f"self, {parameters}", _view(name)))
    for name in ATTRIBUTES:
        setattr(ndarray, name, property(lambda self, name=name: getattr(self.host, name)))
    for name, operation in OPERATORS.items():
        numpys = getattr(np, operation)
        setattr(ndarray, f"__{name}__", lambda a, b, f=numpys: call(f, a, b))
        if name not in ("eq", "ne", "lt", "le", "gt", "ge"):
            setattr(ndarray, f"__r{name}__", lambda a, b, f=numpys: call(f, b, a))
            if name != "matmul":
                setattr(ndarray, f"__i{name}__", lambda a, b, f=numpys: call(f, a, b, out=a))


_complete()
