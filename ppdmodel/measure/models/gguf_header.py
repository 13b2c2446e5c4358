"""Parsing and validation of a GGUF header, bounded by the file's size. No torch here.

A GGUF file states the counts and offsets of its keys, values and tensors. With false ones an
unchecked reader can run for hours, exhaust the memory or read other bytes as weights. A file that
passes these checks is safe for `gguf.GGUFReader`, with which the loader then reads it.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError

#: limits above those of real headers; `GGUFReader` takes a kilobyte per array value, and the
#: loader thirty bytes per byte of a string
MAX_HEADER_BYTES = 2**26
MAX_VALUES = 2**21
MAX_ENTRIES = 2**16
MAX_NAME_BYTES = 2**16 - 1
MAX_DIMS = 4
VERSIONS = (2, 3)
#: fewest bytes of a tensor's description, and of a key with its value
TENSOR_BYTES, KEY_BYTES = 32, 13

STRING, ARRAY, UINT32, UINT64 = 8, 9, 4, 10
NUMBERS = {
    kind: struct.Struct("<" + code)
    for kind, code in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
BLOCK = re.compile(r"blk\.([0-9]{1,9})\.")
DEFAULT_FIX = "copy or install it again"

#: by key: the GGUF type, and the value if it is a number or a string
Values = dict[str, tuple[int, int | float | bytes | None]]


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header describes it; the row length comes first in its shape."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of a complete GGUF file; tensor offsets count from `data_start`.

    `fields` are the values that are numbers or strings, by key; None stands for an array.
    """

    architecture: str
    block_count: int
    data_start: int
    tensors: tuple[Tensor, ...]
    fields: Mapping[str, int | float | str | None]

    @property
    def quantization(self) -> str:
        """The type of most bytes of the weights."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.kind] += tensor.n_bytes
        return max(sizes, key=sizes.__getitem__)


def read_header(path: Path) -> GgufHeader:
    """Read a GGUF file's header, in bounded memory and time whatever it contains.

    Raises:
        InvalidInputError: it is not a GGUF file, or its header is cut short or damaged, or it
            ends before its last tensor does.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise InvalidInputError(
                f"a model file must be GGUF; got {path}, which starts with {magic!r}; "
                "give a GGUF file, a folder with safetensors or a known name"
            )
        size = os.fstat(file.fileno()).st_size
        end = min(size, MAX_HEADER_BYTES)
        with mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) as data:
            walk = _HeaderReader(path, data, size)
            values, tensors = _entries(walk)
    _check_whole(walk, values)
    alignment = _alignment(walk, values)
    data_start = walk.at + -walk.at % alignment  # the header's end, rounded up
    _check_places(walk, data_start, alignment, tensors)
    architecture = _architecture(walk, values)
    block_count = _block_count(walk, architecture, values, tensors)
    fields = {
        key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for key, (_, value) in values.items()
    }
    return GgufHeader(architecture, block_count, data_start, tensors, fields)


class _HeaderReader:
    """A cursor in a header that only moves forward, and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size = path, data, size
        self.end = len(data)
        self.at = 4
        self.array_values = 0

    def error(self, must: str, found: str, fix: str = DEFAULT_FIX) -> InvalidInputError:
        return InvalidInputError(f"{must}; got {self.path}, {found}; {fix}")

    def past_the_end(self) -> InvalidInputError:
        if self.end < self.size:
            return self.error(
                f"a GGUF header must take at most {MAX_HEADER_BYTES} bytes",
                "whose header takes more",
            )
        return self.error(
            "a GGUF file must be whole",
            f"which is cut short or damaged ({self.size} bytes end within its header)",
        )

    def need(self, count: int, n_bytes: int = 1) -> None:
        """Raise unless `count` items of at least `n_bytes` each remain."""
        if count > (self.end - self.at) // n_bytes:
            raise self.past_the_end()

    def take(self, n_bytes: int) -> int:
        """Advance by `n_bytes`; return where they start."""
        self.need(n_bytes)
        start, self.at = self.at, self.at + n_bytes
        return start

    def number(self, kind: int = UINT32) -> Any:
        layout = NUMBERS[kind]
        (number,) = layout.unpack_from(self.data, self.take(layout.size))
        return number

    def text(self) -> bytes:
        start = self.take(self.number(UINT64))
        return self.data[start : self.at]

    def name(self) -> str:
        """A key or the name of a tensor."""
        length = self.number(UINT64)
        self.need(length)
        if length > MAX_NAME_BYTES:
            raise self.error(
                f"a name in a GGUF file must have at most {MAX_NAME_BYTES} bytes",
                f"which has one of {length}",
            )
        start = self.take(length)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(
                "a name in a GGUF file must be UTF-8", f"which has another at byte {start}"
            ) from None

    def value(self, kind: int) -> int | float | bytes | None:
        """Read a number or a string; an array is skipped and gives None."""
        if kind == ARRAY:
            self.skip_array()
            return None
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            number: int | float = self.number(kind)
            return number
        raise self.error(
            "a value in a GGUF file must have a known type", f"which has one of type {kind}"
        )

    def skip_array(self) -> None:
        kind, count = self.number(), self.number(UINT64)
        if kind not in NUMBERS and kind != STRING:
            raise self.error(
                "an array in a GGUF file must hold numbers or strings",
                f"which has one of type {kind}",
            )
        size = NUMBERS[kind].size if kind in NUMBERS else NUMBERS[UINT64].size
        self.need(count, size)
        self.array_values += count
        if self.array_values > MAX_VALUES:
            raise self.error(
                f"the arrays of a GGUF header must have at most {MAX_VALUES} values in all",
                "whose arrays have more",
            )
        if kind == STRING:
            self.skip_strings(count)
        else:
            self.take(count * size)

    def skip_strings(self, count: int) -> None:
        length, data, at, last = NUMBERS[UINT64], self.data, self.at, self.end - 8
        for _ in range(count):
            if at > last:
                raise self.past_the_end()
            (size,) = length.unpack_from(data, at)
            at += 8 + size
        self.take(at - self.at)

    def count(self, what: str, n_bytes: int) -> int:
        """The number of keys or tensors, each of which takes `n_bytes` or more."""
        count: int = self.number(UINT64)
        self.need(count, n_bytes)
        if count > MAX_ENTRIES:
            raise self.error(
                f"a GGUF file must have at most {MAX_ENTRIES} {what}", f"which has {count}"
            )
        return count


def _entries(walk: _HeaderReader) -> tuple[Values, tuple[Tensor, ...]]:
    """The keys and the tensor descriptions of a header."""
    _check_version(walk)
    n_tensors, n_keys = walk.count("tensors", TENSOR_BYTES), walk.count("keys", KEY_BYTES)
    values: Values = {}
    taken = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}  # the reader's own keys
    for _ in range(n_keys):
        key = _new_name(walk, "keys", taken)
        kind = walk.number()
        values[key] = kind, walk.value(kind)
    kinds, names = _tensor_kinds(), set[str]()
    return values, tuple(_tensor(walk, names, kinds) for _ in range(n_tensors))


def _check_version(walk: _HeaderReader) -> None:
    version = walk.number()
    if version and not version & 0xFFFF:
        raise walk.error(
            "a GGUF file must be little endian",
            "which is big endian",
            "convert it with gguf-convert-endian, which comes with the gguf package",
        )
    if version not in VERSIONS:
        raise walk.error(
            "a GGUF file must have version 2 or 3",
            f"which has version {version}",
            "convert the model again with a current llama.cpp",
        )


def _new_name(walk: _HeaderReader, what: str, taken: set[str]) -> str:
    name = walk.name()
    if name in taken:
        raise walk.error(
            f"the {what} of a GGUF file must differ", f"which has {_short(name)} twice"
        )
    taken.add(name)
    return name


def _check_whole(walk: _HeaderReader, values: Values) -> None:
    """Raise where the file is one of the parts that a model was split into."""
    _, count = values.get("split.count", (UINT32, None))
    _, number = values.get("split.no", (UINT32, None))
    if isinstance(count, (int, float)) and count > 1:
        part = number + 1 if isinstance(number, (int, float)) else _shown(number)
        raise walk.error(
            "a GGUF file must hold a whole model",
            f"which is part {part} of {count}",
            "join them with llama-gguf-split --merge FIRST-PART WHOLE.gguf, from llama.cpp",
        )


def _tensor_kinds() -> dict[int, tuple[str, int, int]]:
    """By type number: name, and the weights and bytes per block."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _tensor(walk: _HeaderReader, names: set[str], kinds: dict[int, tuple[str, int, int]]) -> Tensor:
    name = _new_name(walk, "tensors", names)
    n_dims = walk.number()
    few = n_dims <= MAX_DIMS
    shape = tuple(walk.number(UINT64) for _ in range(n_dims)) if few else ()
    if not shape or 0 in shape:
        raise walk.error(
            f"a tensor in a GGUF file must have 1 to {MAX_DIMS} dimensions of 1 or more",
            f"whose {_short(name)} has {n_dims}" + (f": {shape}" if shape else ""),
        )
    kind, offset = walk.number(), walk.number(UINT64)
    if kind not in kinds:
        raise walk.error(
            "a tensor in a GGUF file must have a known type",
            f"whose {_short(name)} has type {kind}",
            "give another quantization, or a newer gguf package",
        )
    label, block, block_bytes = kinds[kind]
    if shape[0] % block:
        raise walk.error(
            f"rows of {label} must be whole blocks of {block}",
            f"whose {_short(name)} has rows of {shape[0]}",
        )
    return Tensor(name, label, shape, offset, math.prod(shape) // block * block_bytes)


def _alignment(walk: _HeaderReader, values: Values) -> int:
    """The alignment of tensor offsets, in bytes."""
    kind, alignment = values.get("general.alignment", (UINT32, 32))
    if kind != UINT32 or not isinstance(alignment, int) or alignment.bit_count() != 1:
        raise walk.error(
            "general.alignment must be a power of two, as uint32",
            f"which has {_shown(alignment)} of type {kind}",
        )
    return alignment


def _check_places(
    walk: _HeaderReader, data_start: int, alignment: int, tensors: tuple[Tensor, ...]
) -> None:
    """Raise unless tensors are aligned, do not overlap, and end within the file."""
    if not tensors:
        raise walk.error("a GGUF file must have tensors", "which has none")
    placed = sorted(tensors, key=lambda tensor: tensor.offset)
    for tensor in placed:
        if data_start + tensor.offset + tensor.n_bytes > walk.size:
            raise walk.error(
                "a GGUF file must be whole",
                f"which is cut short or damaged ({walk.size} bytes end before its tensor "
                f"{_short(tensor.name)} does)",
            )
        if tensor.offset % alignment:
            raise walk.error(
                f"offsets of tensors in this GGUF file must be multiples of {alignment}",
                f"whose {_short(tensor.name)} has {tensor.offset}",
            )
    for left, right in pairwise(placed):
        if left.offset + left.n_bytes > right.offset:
            raise walk.error(
                "the tensors of a GGUF file must not overlap",
                f"whose {_short(left.name)} and {_short(right.name)} do",
            )


def _architecture(walk: _HeaderReader, values: Values) -> str:
    _, name = values.get("general.architecture", (STRING, None))
    try:
        architecture = name.decode("utf-8") if isinstance(name, bytes) else ""
    except UnicodeDecodeError:
        architecture = ""
    if not architecture:
        raise walk.error(
            "a GGUF file must name its general.architecture", f"which has {_shown(name)}"
        )
    return architecture


def _block_count(
    walk: _HeaderReader, architecture: str, values: Values, tensors: tuple[Tensor, ...]
) -> int:
    """The number of layers: the loader would invent weights for missing ones."""
    found = {int(match[1]) for tensor in tensors if (match := BLOCK.match(tensor.name))}
    blocks = len(found)
    _, count = values.get(f"{architecture}.block_count", (UINT32, None))
    is_count = isinstance(count, int) and not isinstance(count, bool)
    if not is_count or count != blocks or not blocks or max(found) != blocks - 1:
        raise walk.error(
            f"{_short(architecture + '.block_count')} must be the number of blocks with tensors",
            f"which has {_shown(count)} and tensors of {blocks}",
        )
    return blocks


def _shown(value: int | float | bytes | None) -> str:
    return "none" if value is None else _short(value)


def _short(value: object) -> str:
    text = repr(value[:80] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"
