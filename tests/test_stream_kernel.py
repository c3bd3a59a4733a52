"""The kernel: to the bit what Python and the plain decoder read, nothing that the latter refuses, within its bounds."""

import ctypes
import mmap
import os
import random
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from tasks.streaming import ObjectStorageDataset
from tasks.streaming.formats import native
from tasks.streaming.formats.native import Kernel, KernelError, describe_decoder, find_kernel, place_columns
from tests.fuzz_decoding import NUMBERS, ODD_CELLS, compare, decode_natively, decode_plainly, fuzz
from tests.sanitizing import COMPILER, fuzz_with_sanitizers, needs_compiler
from tests.shards import draw_rows, to_csv

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tasks" / "streaming" / "formats" / "kernel.c"
FUZZ_SECONDS = float(os.environ.get("SHARDLINE_FUZZ_SECONDS", "60"))


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    found = find_kernel()
    if found is None:
        pytest.skip(f"no kernel to test: {describe_decoder()}")
    return found


def read_cells(kernel, cells, dtype="float64"):
    return decode_natively(kernel, "".join(f"{cell}\n" for cell in cells).encode(), ("a",), ("a",), dtype)


@needs_compiler
def test_it_is_built_where_there_is_a_compiler():
    assert describe_decoder() == "the kernel in C"


class TestWhatItReads:
    @pytest.mark.parametrize("shape", NUMBERS)
    def test_is_what_python_reads_to_the_bit(self, shape, kernel):
        r = random.Random(shape)
        cells = [NUMBERS[shape](r) for _ in range(4000)]
        values = np.array([float(cell.strip('"')) for cell in cells])
        finite = int(np.isfinite(values).sum())
        read = [read_cells(kernel, [cell]) for cell in cells]
        accepted = [index for index, found in enumerate(read) if found is not None]
        assert all(read[index].tobytes() == values[index].tobytes() for index in accepted)
        if shape not in ("long", "midpoint, long", "point", "scientific", "zeros", "blanks"):  # some are left in doubt
            assert len(accepted) == finite

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
    def test_is_every_double_as_python_writes_it(self, values):
        found = find_kernel()
        if found is not None:
            read = read_cells(found, map(repr, values))
            assert read is not None and read.tobytes() == np.array(values).tobytes()

    def test_is_the_hardest_of_all_numbers(self, kernel):
        cells = [cell for cell in draw_hardest_cells() if np.isfinite(float(cell))]
        values = np.array([float(cell) for cell in cells])
        assert len(cells) > 10_000
        assert read_cells(kernel, cells).tobytes() == values.tobytes()

    def test_is_the_double_rounded_where_float32_is_asked_for(self, kernel):
        edges = ["3.4028235677973364e38", "1.0000000596046448", "1.00000005960464477539", "1e-45", "7e-46", "1e-60"]
        values = np.array([float(cell) for cell in edges])
        assert read_cells(kernel, edges, "float32").tobytes() == values.astype(np.float32).tobytes()

    def test_goes_where_the_columns_are_asked_for(self, kernel):
        data = b'x,1,"a, ""b""",2.5\r\n,3,"",4\r\n\r\ny"z,5,-,6\n'
        read = decode_natively(kernel, data, ("t", "a", "u", "b"), ("b", "a"), "float64")
        assert read is not None and read.tolist() == [[2.5, 1.0], [4.0, 3.0], [6.0, 5.0]]

    @pytest.mark.parametrize("data", [b"\n", b"\r\n\n", b"1", b"1\r", b"\n1\n\n"])
    def test_may_be_empty_lines_or_lack_the_last_line_end(self, data, kernel):
        read = decode_natively(kernel, data, ("a",), ("a",), "float64")
        assert read is not None and read.tolist() == ([[1.0]] if b"1" in data else [])


class TestTheRangesThatItFinds:
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    @pytest.mark.parametrize("shape", [(1, 1), (3, 2), (600, 1), (100, 9), (57, 9), (3, 700)])
    @pytest.mark.parametrize("scale", [1, 1e6, 1e15, 1e37])
    def test_are_those_of_numpy(self, shape, dtype, scale, kernel):
        rows = (np.random.default_rng(1).normal(0, 1, shape) * scale).astype(dtype)
        rows[:, ::2] = np.rint(rows[:, ::2])
        found = kernel.find_ranges(rows)
        assert found is not None
        for one, other in zip(found, (rows.min(0), rows.max(0), (np.rint(rows) != rows).any(0)), strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)

    @pytest.mark.parametrize("cell", [0.5, -0.5, 2**51 + 0.5, -(2**51) - 0.5, 2**52 - 0.5, 0.49999999999999994, 5e-324])
    def test_tell_a_fraction_however_small(self, cell, kernel):
        assert [each.tolist() for each in kernel.find_ranges(np.array([[1.0], [cell]]))][2] == [True]
        assert kernel.find_ranges(np.rint(np.array([[1.0], [cell]])))[2].tolist() == [False]


class TestWhatItRefuses:
    @pytest.mark.parametrize("cell", ODD_CELLS)
    def test_is_whatever_is_no_finite_number(self, cell, kernel):
        if decode_plainly(f"{cell}\n".encode(), ("a",), ("a",), "float64") is None:
            assert read_cells(kernel, [cell, "1"]) is None

    @pytest.mark.parametrize(
        "data",
        [b"1\n", b"1,2,3\n", b"1,2\n3\n", b"1,\n", b",1\n", b"1\r2,3\n", b"\r1,2\n", b'1,2"\n', b"\xef\xbb\xbf1,2\n"],
    )
    def test_is_a_line_of_another_shape(self, data, kernel):
        assert decode_natively(kernel, data, ("a", "b"), ("a", "b"), "float64") is None

    @pytest.mark.parametrize("text", ['"a\nb"', '"a\rb"', '"a"b', '"a', "a\rb", '"a""'])
    def test_is_text_that_it_cannot_step_over(self, text, kernel):
        assert decode_natively(kernel, f"{text},1\n".encode(), ("t", "a"), ("a",), "float64") is None

    def test_is_a_block_behind_a_byte_order_mark(self, kernel):
        data = '\ufeff"a,b",1\n'.encode()
        assert decode_plainly(data, ("t", "u", "a"), ("a",), "float64") is None
        assert decode_natively(kernel, data, ("t", "u", "a"), ("a",), "float64") is None

    @pytest.mark.parametrize("cell", ["3.4028235677973366e38", "-1e39"])
    def test_is_a_number_too_large_for_float32(self, cell, kernel):
        assert read_cells(kernel, [cell], "float32") is None
        assert read_cells(kernel, [cell]).tolist() == [[float(cell)]]

    def test_is_more_rows_than_there_is_room_for(self, kernel):
        places = place_columns(("a",), ("a",))
        assert kernel.decode(b"1\n2\n3\n", places, np.empty((2, 1))) is None
        assert kernel.decode(b"1\n2\n\n", places, np.empty((2, 1))) == 2


@given(st.randoms(use_true_random=False), st.sampled_from(["float64", "float32"]))
def test_it_accepts_nothing_that_the_plain_decoder_does_not_read_alike(r, dtype):
    found = find_kernel()
    if found is not None:
        compare(found, r, dtype)


def test_most_blocks_that_are_not_damaged_are_accepted(kernel):
    tried, accepted = fuzz(2, seed=5)
    assert tried > accepted > tried / 8


@pytest.mark.long
@pytest.mark.timeout(FUZZ_SECONDS + 300)
def test_blocks_without_end_are_read_alike(kernel):
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    assert fuzz(FUZZ_SECONDS, seed)[1] > 0


class Guarded:
    """`size` bytes that end where memory begins that nobody may touch; another such page stands before them."""

    def __init__(self, size: int) -> None:
        pages = -(-size // mmap.PAGESIZE)
        self._memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for page in (0, pages + 1):
            at = ctypes.c_void_p(start + page * mmap.PAGESIZE)
            assert protect(at, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0, os.strerror(ctypes.get_errno())
        end = (pages + 1) * mmap.PAGESIZE
        self.bytes = np.frombuffer(self._memory, dtype=np.uint8)[end - size : end]


@pytest.mark.parametrize(
    "text", ["1", "-0.1234567890123", "1e5", "12345678", '"7"', " 1", "1.5\r", "", "-", '"', "1e", "x"]
)
def test_it_stays_within_its_block_and_its_rows(text, kernel):
    """A byte too far would end this process."""
    names, columns = ("a", "b", "t"), ("b", "a")
    for rows in range(3):
        data = f"{text},{text},{text}\n{text},{text},{text}\n".encode()
        for end in range(len(data), 0, -1):
            block = Guarded(end)
            block.bytes[:] = np.frombuffer(data[:end], dtype=np.uint8)
            block.bytes[-1] = ord("\n")
            room = Guarded(rows * 16).bytes.view(np.float64).reshape(rows, 2)
            found = kernel.decode(block.bytes.data, place_columns(names, columns), room)
            assert found is None or found <= rows


class TestItsCrc32:
    """That of zlib, whose place it takes where the cache's files are checked."""

    @pytest.fixture(autouse=True)
    def fast(self, kernel):
        if kernel._crc32_blocks is None:
            pytest.skip("this processor does not multiply without carries")

    @pytest.mark.parametrize("before", [0, 1, 0xDEADBEEF, 2**32 - 1])
    def test_is_that_of_zlib_for_every_length(self, before, kernel):
        data = random.Random(before).randbytes(700)
        for size in range(len(data) + 1):
            for begin in (0, 1, 7):
                part = data[begin:size]
                assert kernel.crc32(part, before) == zlib.crc32(part, before)

    @given(st.lists(st.binary(max_size=400)))
    def test_goes_on_from_part_to_part(self, parts):
        found, crc = find_kernel(), 0
        if found is not None:
            for part in parts:
                crc = found.crc32(memoryview(part), crc)
            assert crc == zlib.crc32(b"".join(parts))

    @pytest.mark.parametrize("size", [64, 80, 127, 4096, 5000])
    def test_stays_within_its_bytes(self, size, kernel):
        block = Guarded(size)
        block.bytes[:] = np.arange(size) % 251
        assert kernel.crc32(block.bytes.data, 5) == zlib.crc32(block.bytes.data, 5)

    def test_is_left_to_zlib_where_it_was_not_built(self, kernel, monkeypatch):
        monkeypatch.setattr(kernel, "_crc32_blocks", None)
        assert kernel.crc32(bytes(1000), 3) == zlib.crc32(bytes(1000), 3)


@needs_compiler
@pytest.mark.long
def test_sanitizers_find_nothing(tmp_path):
    printed = fuzz_with_sanitizers(SOURCE, "tests.fuzz_decoding", 20, tmp_path)
    assert int(printed.split()[-2]) > 1000


class TestBuilding:
    def build(self, folder, **environment):
        """What `pip install` does with `ext-modules`, in a copy of what it needs."""
        (folder / "tasks" / "streaming" / "formats").mkdir(parents=True)
        shutil.copy(ROOT / "pyproject.toml", folder)
        shutil.copy(SOURCE, folder / "tasks" / "streaming" / "formats")
        (folder / "README.md").touch()
        command = [sys.executable, "-c", "from setuptools import setup; setup()", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list((folder / "tasks" / "streaming" / "formats").glob("kernel*.so"))

    @needs_compiler
    def test_makes_a_kernel_that_reads(self, tmp_path):
        [path] = self.build(tmp_path)
        assert read_cells(Kernel(path), ["1.5", "-2"]).tolist() == [[1.5], [-2.0]]

    def test_is_left_out_without_a_compiler(self, tmp_path):
        assert self.build(tmp_path, CC="no-such-compiler") == []

    @needs_compiler
    def test_of_another_version_is_refused(self, tmp_path):
        source, built = tmp_path / "kernel.c", tmp_path / "kernel.so"
        text = SOURCE.read_text()
        assert f"#define VERSION {native.VERSION} " in text
        source.write_text(text.replace(f"#define VERSION {native.VERSION} ", "#define VERSION 999 "))
        subprocess.run([COMPILER, "-std=c99", "-shared", "-fPIC", "-o", built, source], check=True)
        with pytest.raises(
            KernelError, match=rf"kernel.so is of version 999, not {native.VERSION}; install shardline ag"
        ):
            Kernel(built)

    def test_that_left_something_else_is_refused(self, tmp_path):
        (tmp_path / "kernel.so").write_text("not a library")
        with pytest.raises(KernelError, match=r"kernel.so cannot be loaded: "):
            Kernel(tmp_path / "kernel.so")


def test_without_a_kernel_it_is_said_why(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    native._look_for_kernel.cache_clear()
    try:
        assert find_kernel() is None
        assert describe_decoder() == "pyarrow, slower: kernel.c was not built, for want of a C compiler"
    finally:
        native._look_for_kernel.cache_clear()


def test_a_block_that_it_refuses_is_read_by_the_plain_decoder(tmp_path, kernel, monkeypatch):
    """Among others that it reads; nothing of what it wrote before it refused is left."""
    rows = draw_rows(120_000)
    lines = to_csv(rows).splitlines(keepends=True)
    lines[70_000] = lines[70_000].replace(b",", b" ,", 1)
    (tmp_path / "part.csv").write_bytes(b"".join(lines))
    answers: list[int | None] = []
    decode = Kernel.decode

    def remember(*given):
        answers.append(decode(*given))
        return answers[-1]

    monkeypatch.setattr(Kernel, "decode", remember)
    [batch] = ObjectStorageDataset(f"{tmp_path}/part.csv", epochs=1)
    assert batch.numpy().tobytes() == rows.tobytes()
    assert answers.count(None) == 1 and len(answers) > 2


def draw_hardest_cells():
    """Numbers of up to 19 digits that lie closest to the middle between two doubles, for each power of ten, and their
    neighbours: the best approximations of the power's ratio to one of two, by continued fractions."""
    for power in range(-342, 309):
        numerator, denominator = (10**power, 1) if power >= 0 else (1, 10**-power)
        for length in range(40, 64, 3):
            shift = length + numerator.bit_length() - denominator.bit_length() - 54
            a, b = numerator << max(0, -shift), denominator << max(0, shift)
            h0, h1, k0, k1 = 0, 1, 1, 0
            while b and k1 < 10**19:
                whole, a, b = a // b, b, a % b
                h0, h1, k0, k1 = h1, whole * h1 + h0, k1, whole * k1 + k0
                for factor in (1, 3, 5, 7, 997):
                    middle, digits = h1 * factor, k1 * factor
                    if digits < 10**19 - 1 and middle & 1 and 2**53 <= middle < 2**54:
                        yield from (f"{near}e{power}" for near in (digits - 1, digits, digits + 1))
