"""GGUF files that lie end in one line, and sound ones read as the `gguf` package reads them."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFEndian, GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.models import gguf_header
from ppdmodel.measure.models.gguf_header import read_header
from ppdmodel.measure.models.packaged import DEFAULT_MODEL, find, packaged

UINT8, UINT32, INT32, STRING, ARRAY, UINT64 = 0, 4, 5, 8, 9, 10
F32, Q4_0 = 0, 2
ZEROS = bytes(2**22)


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(content: bytes) -> bytes:
    return u64(len(content)) + content


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key.encode() if isinstance(key, str) else key) + u32(kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + items


def tensor(
    name: str | bytes,
    shape: Sequence[int] = (8,),
    kind: int = F32,
    offset: int = 1152,
    n_dims: int | None = None,
) -> bytes:
    name = name.encode() if isinstance(name, str) else name
    dims = b"".join(map(u64, shape))
    rank = len(shape) if n_dims is None else n_dims
    return text(name) + u32(rank) + dims + u32(kind) + u64(offset)


NAMED = pair("general.architecture", STRING, text(b"llama"))
ONE_BLOCK = pair("llama.block_count", UINT32, u32(1))
EMPTY = pair("a", ARRAY, array(STRING, 1, text(b"")))
EMBEDDING = tensor("token_embd.weight", (32, 8), offset=0)
NORM = "blk.0.attn_norm.weight"
TENSORS = (EMBEDDING, tensor(NORM, (32,), offset=1024))


def gguf(
    *more_pairs: bytes,
    pairs: Sequence[bytes] = (NAMED, ONE_BLOCK),
    tensors: Sequence[bytes] = TENSORS,
    more_tensors: Sequence[bytes] = (),
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    version: bytes = b"\3\0\0\0",
    data: bytes = bytes(2048),
) -> bytes:
    """A GGUF file, sound unless an argument makes it otherwise."""
    pairs, tensors = [*pairs, *more_pairs], [*tensors, *more_tensors]
    counts = u64(len(tensors) if n_tensors is None else n_tensors)
    counts += u64(len(pairs) if n_pairs is None else n_pairs)
    header = b"GGUF" + version + counts + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def extra(**tensor_arguments: object) -> bytes:
    """A file with a third tensor, called x."""
    return gguf(more_tensors=[tensor("x", **tensor_arguments)])  # type: ignore[arg-type]


def blocks(kind: int, value: bytes) -> bytes:
    """A file with another block count."""
    return gguf(pairs=[NAMED, pair("llama.block_count", kind, value)])


def norm_at(offset: int) -> bytes:
    """A file whose second tensor is elsewhere."""
    return gguf(tensors=[EMBEDDING, tensor(NORM, (32,), offset=offset)])


IN_HEADER = r"must be whole; got .*bad\.gguf, which is cut short or damaged \(\d+ bytes end within"
BEFORE_TENSOR = r"must be whole; got .*bad\.gguf, which is cut short .* end before its tensor '"
DIMS = r"must have 1 to 4 dimensions of 1 or more; got .*, whose 'x' has "
BLOCKS = r"'llama\.block_count' must be the number of blocks with tensors; got .*, which has "
ALIGNMENT = r"general\.alignment must be a power of two, as uint32; got .*, which has "
KNOWN_TYPE = "a tensor in a GGUF file must have a known type; got .*, whose 'x' has type "
NUMBERS_OR_STRINGS = "must hold numbers or strings; got .*, which has one of type "

HOSTILE = {
    "magic only": (b"GGUF", IN_HEADER),
    "cut in its counts": (gguf()[:20], IN_HEADER),
    "cut in its last tensor": (gguf()[:-1000], BEFORE_TENSOR),
    "2^63 keys": (gguf(n_pairs=2**63), IN_HEADER),
    "2^64 - 1 keys": (gguf(n_pairs=2**64 - 1), IN_HEADER),
    "2^40 keys, zeros": (gguf(n_pairs=2**40, data=ZEROS), IN_HEADER),
    "2^17 keys, zeros": (gguf(n_pairs=2**17, data=ZEROS), "at most 65536 keys; got .* has 131072"),
    "one key too many": (gguf(n_pairs=3, data=b""), IN_HEADER),
    "2^40 tensors": (gguf(n_tensors=2**40), IN_HEADER),
    "2^40 tensors, zeros": (gguf(n_tensors=2**40, data=ZEROS), IN_HEADER),
    "2^17 tensors, zeros": (gguf(n_tensors=2**17, data=ZEROS), "at most 65536 tensors; got"),
    "an empty string at its end": (
        gguf(EMPTY, tensors=[], data=b"")[: 24 + len(NAMED + ONE_BLOCK + EMPTY)],
        "must have tensors; got .*, which has none",
    ),
    "key of 2^16 bytes": (gguf(pair("k" * 2**16, UINT32, u32(1))), "at most 65535 bytes; got"),
    "a tensor cut by a byte": (gguf(data=bytes(1151)), BEFORE_TENSOR),
    "no blocks": (
        gguf(pairs=[NAMED, pair("llama.block_count", UINT32, u32(0))], tensors=[EMBEDDING]),
        BLOCKS + "0 and tensors of 0",
    ),
    "tensor of 58 letters twice": (
        gguf(more_tensors=[tensor("y" * 58)] * 2), "which has 'y{58}' twice"
    ),
    "tensor of 59 letters twice": (
        gguf(more_tensors=[tensor("y" * 59)] * 2), r"which has 'y{55}\.\.\.' twice"
    ),
    "no tensors": (gguf(tensors=[]), "must have tensors; got .*, which has none"),
    "key of 2^60 bytes": (gguf(u64(2**60) + b"k" + u32(UINT32) + u32(1)), IN_HEADER),
    "key of 2^17 bytes": (gguf(pair("k" * 2**17, UINT32, u32(1))), "at most 65535 bytes; got"),
    "key that is not UTF-8": (gguf(pair(b"\xff", UINT32, u32(1))), "must be UTF-8; got .* byte"),
    "string of 2^60 bytes": (gguf(pair("a", STRING, u64(2**60))), IN_HEADER),
    "string of 2^64 - 1 bytes": (gguf(pair("a", STRING, u64(2**64 - 1))), IN_HEADER),
    "2^60 uint8": (gguf(pair("a", ARRAY, array(UINT8, 2**60)), data=ZEROS), IN_HEADER),
    "2^64 - 1 uint64": (gguf(pair("a", ARRAY, array(UINT64, 2**64 - 1))), IN_HEADER),
    "2^60 strings": (gguf(pair("a", ARRAY, array(STRING, 2**60)), data=ZEROS), IN_HEADER),
    "2^18 empty strings": (
        gguf(pair("a", ARRAY, array(STRING, 2**18)), tensors=[], data=ZEROS),
        "must have tensors; got .*, which has none",
    ),
    "strings that go on": (gguf(pair("a", ARRAY, array(STRING, 9, u64(2**50)))), IN_HEADER),
    "4 million real uint8": (
        gguf(pair("a", ARRAY, array(UINT8, 2**22, bytes(2**22)))),
        "arrays of a GGUF header must have at most 2097152 values in all; got .* whose arrays",
    ),
    "nested array": (gguf(pair("a", ARRAY, array(ARRAY, 1, array(UINT8, 0)))), NUMBERS_OR_STRINGS),
    "2^60 nested arrays": (
        gguf(pair("a", ARRAY, array(ARRAY, 2**60)), data=ZEROS),
        NUMBERS_OR_STRINGS + "9",
    ),
    "5000 arrays deep": (gguf(pair("a", ARRAY, array(ARRAY, 1) * 5000)), NUMBERS_OR_STRINGS + "9"),
    "array of unknown type": (gguf(pair("a", ARRAY, array(13, 1))), NUMBERS_OR_STRINGS + "13"),
    "value of unknown type": (gguf(pair("a", 13, u32(0))), "a known type; got .* one of type 13"),
    "value of type 2^31": (gguf(pair("a", 2**31, u32(0))), "one of type 2147483648"),
    "key twice": (gguf(ONE_BLOCK), r"keys .* must differ; got .*'llama\.block_count' twice"),
    "the reader's own key": (gguf(pair("GGUF.version", UINT32, u32(3))), r"'GGUF\.version' twice"),
    "tensor twice": (
        gguf(more_tensors=[tensor(NORM)]),
        r"the tensors of a GGUF file must differ; got .*, which has 'blk\.0\.attn_norm\.weight' tw",
    ),
    "tensor's name is not UTF-8": (gguf(more_tensors=[tensor(b"\xff")]), "must be UTF-8; got"),
    "2^64 weights": (extra(shape=(2**32, 2**32)), BEFORE_TENSOR),
    "weights that wrap to 8": (extra(shape=(2**63 + 4, 2)), BEFORE_TENSOR),
    "2^60 weights": (extra(shape=(2**60,)), BEFORE_TENSOR),
    "0 weights": (extra(shape=(0, 4)), DIMS + r"2: \(0, 4\)"),
    "0 dimensions": (extra(shape=()), DIMS + "0"),
    "5 dimensions": (extra(shape=(1,) * 5), DIMS + "5;"),
    "2^31 dimensions": (extra(n_dims=2**31), DIMS + "2147483648"),
    "rows of half a block": (
        extra(shape=(48, 64), kind=Q4_0),
        "Q4_0 must be whole blocks of 32; got .* has rows of 48",
    ),
    "unknown tensor type": (extra(kind=99), KNOWN_TYPE + "99; give another quantization"),
    "removed tensor type": (extra(kind=4), KNOWN_TYPE + "4; "),
    "offset beyond the file": (norm_at(2**20), BEFORE_TENSOR),
    "offset of 2^63": (norm_at(2**63), BEFORE_TENSOR),
    "offset of -64": (norm_at(2**64 - 64), BEFORE_TENSOR),
    "offset between": (norm_at(1025), "must be multiples of 32; got .* has 1025"),
    "overlap": (norm_at(512), r"must not overlap; got .*'token_embd\.weight' and 'blk\.0\.attn_no"),
    "same place": (norm_at(0), "must not overlap"),
    "no architecture": (gguf(pairs=[ONE_BLOCK]), r"name its general\.architecture; got .* none"),
    "architecture is a number": (
        gguf(pairs=[pair("general.architecture", UINT32, u32(7)), ONE_BLOCK]),
        r"must name its general\.architecture; got .*, which has 7",
    ),
    "architecture is not UTF-8": (
        gguf(pairs=[pair("general.architecture", STRING, text(b"\xff")), ONE_BLOCK]),
        r"must name its general\.architecture; got .*, which has b'\\xff'",
    ),
    "architecture is long": (
        gguf(pairs=[pair("general.architecture", STRING, text(b"a" * 10**6)), ONE_BLOCK]),
        r"'a{55}\.\.\.' must be the number of blocks with tensors; got .*, which has none",
    ),
    "no block count": (gguf(pairs=[NAMED]), BLOCKS + "none and tensors of 1"),
    "2^31 blocks": (blocks(UINT32, u32(2**31)), BLOCKS + "2147483648 and tensors of 1"),
    "2^63 blocks": (blocks(UINT64, u64(2**63)), BLOCKS + "9223372036854775808 and tensors of 1"),
    "0 blocks": (blocks(UINT32, u32(0)), BLOCKS + "0 and tensors of 1"),
    "-1 blocks": (blocks(INT32, b"\xff" * 4), BLOCKS + "-1 and tensors of 1"),
    "a block without tensors": (blocks(UINT32, u32(2)), BLOCKS + "2 and tensors of 1"),
    "'1' blocks": (blocks(STRING, text(b"1")), BLOCKS + "b'1' and tensors of 1"),
    "[1] blocks": (blocks(ARRAY, array(UINT32, 1, u32(1))), BLOCKS + "none and tensors of 1"),
    "True blocks": (blocks(7, b"\1"), BLOCKS + "True and tensors of 1"),
    "block 7 only": (
        gguf(tensors=[EMBEDDING, tensor("blk.7.attn_norm.weight", (32,), offset=1024)]),
        BLOCKS + "1 and tensors of 1",
    ),
    "alignment 0": (gguf(pair("general.alignment", UINT32, u32(0))), ALIGNMENT + "0 of type 4"),
    "alignment 48": (gguf(pair("general.alignment", UINT32, u32(48))), ALIGNMENT + "48 of type 4"),
    "alignment 2^31": (gguf(pair("general.alignment", UINT32, u32(2**31))), BEFORE_TENSOR),
    "alignment of 64 bits": (gguf(pair("general.alignment", UINT64, u64(32))), "32 of type 10"),
    "version 0": (gguf(version=u32(0)), "must have version 2 or 3; got .*, which has version 0"),
    "version 1": (gguf(version=u32(1)), "which has version 1; convert the model again"),
    "version 99": (gguf(version=u32(99)), "must have version 2 or 3; got .*, which has version 99"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_end_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    read_header(written(tmp_path / "sound.gguf", gguf()))  # imports what it needs, once
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError, match=words) as caught:
            read_header(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))
    assert peak < 4 * 2**20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.gguf", "sound.gguf"]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_header_has_a_largest_size(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", gguf(pair("a", STRING, u64(2**33))))
    with path.open("r+b") as file:
        file.truncate(2**34)  # sparse: no disk is used
    with pytest.raises(InvalidInputError, match="must take at most 67108864 bytes; got"):
        read_header(path)


ARRAYS = (
    pair("a", ARRAY, array(UINT8, 2, bytes(2))),
    pair("b", ARRAY, array(STRING, 1, text(b"x"))),
)
LIMITS = {
    "MAX_HEADER_BYTES": (24 + sum(map(len, (NAMED, ONE_BLOCK, *ARRAYS, *TENSORS))), "bytes; got"),
    "MAX_VALUES": (3, "values in all; got"),
    "MAX_ENTRIES": (4, "keys; got .*, which has 4"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_header_that_just_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = written(tmp_path / "m.gguf", gguf(*ARRAYS))
    limit, words = LIMITS[name]
    monkeypatch.setattr(gguf_header, name, limit)
    assert read_header(path).quantization == "F32"
    monkeypatch.setattr(gguf_header, name, limit - 1)
    with pytest.raises(InvalidInputError, match=f"at most {limit - 1} {words}"):
        read_header(path)


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    """The reader takes such a file, and its weights come out as noise."""
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.BIG)
    writer.add_block_count(1)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidInputError, match=r"must be little endian; got .* is big endian"):
        read_header(path)


SOUND = {
    "version 3": gguf(),
    "version 2": gguf(version=u32(2)),
    "empty arrays": gguf(pair("a", ARRAY, array(UINT8, 0)), pair("b", ARRAY, array(STRING, 0))),
    "strings": gguf(pair("a", ARRAY, array(STRING, 3, text(b"") + text(b"x") + text(b"\xff")))),
    "other numbers": gguf(
        *(pair(f"k{kind}", kind, b"\1" * n) for kind, n in enumerate((1, 1, 2, 2, 4, 4, 4, 1))),
        *(pair(f"k{kind}", kind, b"\1" * 8) for kind in (10, 11, 12)),
    ),
    "alignment 1": gguf(pair("general.alignment", UINT32, u32(1))),
    "alignment 8": gguf(pair("general.alignment", UINT32, u32(8))),
    "quantized": extra(shape=(64, 2), kind=Q4_0),
    "4 dimensions": extra(shape=(2, 3, 1, 4)),
    "key of 2^16 - 1 bytes": gguf(pair("k" * (2**16 - 1), UINT32, u32(1))),
    "nothing after its last tensor": gguf(data=bytes(1152)),
    "out of order": gguf(tensors=TENSORS[::-1]),
}  # fmt: skip


@pytest.mark.parametrize("content", SOUND.values(), ids=SOUND)
def test_sound_files_read_as_the_reader_reads_them(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "m.gguf", content)
    assert_read_alike(path)
    assert read_header(path).quantization == "F32"


def assert_read_alike(path: Path) -> None:
    """The header's tensors are those of the `gguf` package."""
    header, reader = read_header(path), GGUFReader(path)
    assert header.data_start == reader.data_offset
    ours = [
        (t.name, t.kind, t.shape, t.n_bytes, header.data_start + t.offset) for t in header.tensors
    ]
    assert ours == [
        (t.name, t.tensor_type.name, tuple(t.shape.tolist()), t.n_bytes, t.data_offset)
        for t in reader.tensors
    ]


def test_the_real_file_reads_as_the_reader_reads_it() -> None:
    model = packaged(DEFAULT_MODEL)
    path = find(model)
    assert path is not None, "make test installs it first"
    assert_read_alike(path)
    header = read_header(path)
    assert (header.architecture, header.block_count) == ("llama", model.layers)
    assert header.quantization == model.quantization


SMALL = gguf(
    pair("general.alignment", UINT32, u32(32)),
    pair("tokens", ARRAY, array(STRING, 2, text(b"a") + text(b"bc"))),
    pair("scores", ARRAY, array(6, 2, bytes(8))),
    more_tensors=[tensor("output.weight", (32, 4), Q4_0)],
)
HEADER_BYTES = len(SMALL) - 2048


def test_a_header_cut_anywhere_is_cut_short(tmp_path: Path) -> None:
    for keep in range(4, HEADER_BYTES - 32):  # its padding is shorter
        message = refusal(written(tmp_path / "cut.gguf", SMALL[:keep]))
        assert message is not None
        assert "end within its header" in message, keep


@settings(max_examples=400, deadline=None)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, HEADER_BYTES - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    keep=st.one_of(st.just(len(SMALL)), st.integers(0, len(SMALL))),
)
def test_damaged_headers_are_refused_or_read_as_the_reader_reads_them(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], keep: int
) -> None:
    content = bytearray(SMALL)
    for at, byte in flips:
        content[at] = byte
    path = written(tmp_path_factory.getbasetemp() / "damaged.gguf", bytes(content[:keep]))
    if (message := refusal(path)) is None:
        assert_read_alike(path)
    else:
        assert message.startswith(("a ", "an ", "the ", "general.", "rows of", "offsets of", "'"))
        assert f"; got {path}, wh" in message
        assert "\n" not in message


def refusal(path: Path) -> str | None:
    """What is said of a file, or None if it is taken; any other error fails the test."""
    try:
        read_header(path)
    except InvalidInputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("small", [False, True])
def test_a_part_of_a_split_file_is_named_with_the_way_to_join(tmp_path: Path, small: bool) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1, small_first_shard=small)
    writer.add_block_count(1)
    for name in ("token_embd.weight", "blk.0.attn_norm.weight"):
        writer.add_tensor(name, np.ones((8, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 2 + small
    for number, path in enumerate(parts):
        with pytest.raises(InvalidInputError) as caught:
            read_header(path)
        assert str(caught.value) == (
            f"a GGUF file must hold a whole model; got {path}, which is part {number + 1} of "
            f"{len(parts)}; join them with llama-gguf-split --merge FIRST-PART WHOLE.gguf, from "
            "llama.cpp"
        )


def test_values_are_kept_by_key(tmp_path: Path) -> None:
    more = pair("a", STRING, text(b"x\xff")), pair("b", ARRAY, array(UINT32, 1, u32(1)))
    fields = read_header(written(tmp_path / "m.gguf", gguf(*more))).fields
    assert (fields["a"], fields["b"], fields["llama.block_count"]) == ("x\ufffd", None, 1)
