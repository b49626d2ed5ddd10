"""format_expand and the half conversions against numpy and the PyPI package gguf, bit for bit, on random bytes."""

import ctypes
import pathlib
import subprocess

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

ROOT = pathlib.Path(__file__).resolve().parent.parent
FORMATS = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL MXFP4".split()


class Info(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("block_values", ctypes.c_uint16), ("block_bytes", ctypes.c_uint16)]


@pytest.fixture(scope="session")
def lib(tmp_path_factory):
    path = tmp_path_factory.mktemp("format") / "format.so"
    subprocess.run(
        ["cc", "-std=gnu11", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{ROOT}", f"-I{ROOT}/include"]
        + ["-o", path, ROOT / "math/format.c", ROOT / "math/format_k.c"],
        check=True,
    )
    lib = ctypes.CDLL(str(path))
    lib.format_describe.restype = Info
    lib.format_expand.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    lib.format_expand.restype = None
    lib.half_to_float.argtypes, lib.half_to_float.restype = [ctypes.c_uint16], ctypes.c_float
    lib.half_from_float.argtypes, lib.half_from_float.restype = [ctypes.c_float], ctypes.c_uint16
    return lib


def assert_same_bits(ours, theirs):
    nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), nan)
    unsigned = {2: np.uint16, 4: np.uint32}[ours.itemsize]
    assert np.array_equal(ours.view(unsigned)[~nan], theirs.view(unsigned)[~nan])


def expand(lib, kind, data, values):
    """Expands from an odd address, with guard values after the output."""
    buffer = np.zeros(data.size + 1, np.uint8)
    buffer[1:] = data
    out = np.full(values + 8, 12345.0, np.float32)
    lib.format_expand(int(kind), buffer.ctypes.data + 1, out.ctypes.data, values)
    assert (out[values:] == 12345.0).all()
    return out[:values]


def test_descriptions(lib):
    known = {}
    for number in list(range(64)) + [2**31, 2**32 - 1]:
        info = lib.format_describe(ctypes.c_uint32(number))
        if info.name is not None:
            known[info.name.decode()] = number
            kind = GGMLQuantizationType(number)
            assert (info.name.decode(), (info.block_values, info.block_bytes)) == (kind.name, GGML_QUANT_SIZES[kind])
    assert sorted(known) == sorted(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_expand_random_bytes(lib, name):
    """Random bytes cover every scale: half NaN, infinities and denormals come up in one block of 20."""
    kind = GGMLQuantizationType[name]
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = 4096 if block_values > 1 else 100_000
    rng = np.random.default_rng(7)
    data = rng.integers(0, 256, blocks * block_bytes, np.uint8)
    data[: 64 * block_bytes] = 0
    data[64 * block_bytes : 128 * block_bytes] = 255
    with np.errstate(all="ignore"):
        expected = dequantize(data.reshape(blocks, block_bytes), kind).reshape(-1)
    assert_same_bits(expand(lib, kind, data, blocks * block_values), np.ascontiguousarray(expected))


@pytest.mark.parametrize("name", [f for f in FORMATS if f not in ("F32", "F16", "BF16", "MXFP4")])
@pytest.mark.parametrize("scale", [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0xFC00, 0x7E01])
def test_expand_special_scales(lib, name, scale):
    kind = GGMLQuantizationType[name]
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(scale).integers(0, 256, (64, block_bytes), np.uint8)
    offsets = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
    offsets = offsets.get(name, (0, 2) if name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,))
    for offset in offsets:
        data[:, offset : offset + 2] = [scale & 255, scale >> 8]
    with np.errstate(all="ignore"):
        expected = np.ascontiguousarray(dequantize(data, kind).reshape(-1))
    assert_same_bits(expand(lib, kind, data.reshape(-1), 64 * block_values), expected)


def test_expand_nothing(lib):
    for name in FORMATS:
        lib.format_expand(int(GGMLQuantizationType[name]), None, None, 0)


def test_half_to_float_all(lib):
    halves = np.arange(65536, dtype=np.uint16)
    ours = np.array([lib.half_to_float(int(h)) for h in halves], np.float32)
    assert_same_bits(ours, halves.view(np.float16).astype(np.float32))


def test_half_from_float(lib):
    """Every half, the midpoints between neighbours and the floats beside them, and random bits."""
    with np.errstate(all="ignore"):
        halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
        middle = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)
        near = np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))])
        bits = np.random.default_rng(3).integers(0, 2**32, 100_000, np.uint32).view(np.float32)
        special = np.array([65504, 65519.996, 65520, np.inf, np.nan, 2**-25, 2**-24, 1e-45, 0], np.float32)
        values = np.concatenate([halves, near, special, bits])
        values = np.concatenate([values, -values])
        expected = values.astype(np.float16)
    ours = np.array([lib.half_from_float(float(v)) for v in values], np.uint16).view(np.float16)
    assert_same_bits(ours, expected)
