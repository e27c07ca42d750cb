"""Read plain values and uint8 arrays from an untrusted pickle, without running any code that the file names."""

from __future__ import annotations

import io
import pickle
import pickletools

import numpy as np

# Opcodes that store a value in the memo (the unpickler's table of values) at an index that the file chooses.
MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")


class Array:
    """Stand-in for `numpy.ndarray`: accepts the state of a pickled uint8 array."""

    __slots__ = ("values",)

    values: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.code.lstrip("|") not in ("u1", "uint8"):
            raise ValueError(f"an array of {dtype.code}, not of uint8")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stand-in for `numpy.dtype`: keeps the type code that the pickle passes."""

    __slots__ = ("code",)

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Ignore the state (byte order and fields), because single bytes have neither."""


def _reconstruct(kind: type, *_: object) -> Array:
    """Stand-in for numpy's `_reconstruct`: return an empty array, whose state the opcode `BUILD` sets next."""
    if kind is not Array:
        raise ValueError("an array of an unknown kind")
    return Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for `_codecs.encode`: in pickles of protocol 2, Python 3 writes bytes as a call of this function."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


# A pickle may name any callable of any module, but CIFAR's official files name only the callables below. A stand-in
# replaces each of these, because the real numpy code trusts the shapes and types in the file.
_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class Forbidden(ValueError):
    """The pickle names a callable without a stand-in. The text of the error is this name."""


def loads(content: bytes) -> object:
    """Return the object of a pickle. Arrays become `Array`, and Python 2 strings become bytes.

    Raise `Forbidden` if the pickle names a callable without a stand-in. A damaged pickle may raise any exception.
    """
    _check_memo(content)
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def _check_memo(content: bytes) -> None:
    """Raise `ValueError` for a memo index that no pickler writes.

    The unpickler allocates memory up to the largest index, so a single damaged byte could request 64 GiB. A pickler
    counts memo indices upwards, so an index never exceeds the number of opcodes before it. Reading the opcodes also
    finds lengths beyond the end of the file, before the unpickler allocates memory for them.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in MEMO_OPCODES and not 0 <= (argument or 0) <= count:
            raise ValueError(f"memo index {argument} after {count} opcodes")


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the stand-ins and refuses every other name."""

    def find_class(self, module_name: str, global_name: str, /) -> object:
        try:
            return _STAND_INS[module_name, global_name]
        except KeyError:
            raise Forbidden(f"{module_name}.{global_name}") from None
