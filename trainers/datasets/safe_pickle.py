"""Read a pickle of plain values and uint8 arrays without trusting it: no code that the file names ever runs."""

from __future__ import annotations

import io
import pickle
import pickletools

import numpy as np

# Opcodes that store into the memo at a place that the file chooses.
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
    """Stand-in for `numpy.dtype`: remembers the type code of its call."""

    __slots__ = ("code",)

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and fields: single bytes have none."""


def _reconstruct(kind: type, *_: object) -> Array:
    """Stand-in for numpy's `_reconstruct`: return the empty array that `BUILD` then sets a state on."""
    if kind is not Array:
        raise ValueError("an array of an unknown kind")
    return Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for `_codecs.encode`: Python 3 writes bytes so in pickles of protocol 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


# A pickle may name any callable of any module. The official files name these only. Each gets a stand-in of ours,
# because numpy's own loading code trusts the shapes and types in the file.
_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class Forbidden(ValueError):
    """The pickle asks for a name that is none of the stand-ins; the text is the name."""


def loads(content: bytes) -> object:
    """Return the object of a pickle, its arrays as `Array`; Python 2 strings become bytes.

    `Forbidden` for a pickle that names any other function or class; any exception for a damaged pickle.
    """
    _check_memo(content)
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def _check_memo(content: bytes) -> None:
    """Raise `ValueError` for a memo index that no pickler writes.

    The unpickler allocates memory up to the largest index: a single damaged byte could ask for 64 GiB. A pickler
    counts the memo upwards, so an index never exceeds the number of opcodes before it. Reading the opcodes also finds
    lengths beyond the end of the file, before the unpickler allocates memory for them.
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
