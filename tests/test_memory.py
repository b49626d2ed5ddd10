"""The plan's bytes against the peak of resident memory, and allocations per generated token.

The model has SmolLM2-135M's shape, random weights and 131,072 tokens of context; tests/memory_tool.c evaluates a chunk
of prompt, fills the context and generates.
"""

import glob
import json
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tiny_models  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOL = os.path.join(os.environ.get("RINGSPAN_BUILD", os.path.join(ROOT, "build/release")), "memory_tool")
MODELS = os.environ.get("RINGSPAN_MODELS", os.path.join(ROOT, "models"))
REAL = sorted(glob.glob(os.path.join(MODELS, "SmolLM2-135M*.gguf")))

pytestmark = [
    pytest.mark.skipif(not os.path.exists(TOOL), reason=f"{TOOL} is not built"),
    pytest.mark.skipif(not REAL, reason=f"no SmolLM2 in {MODELS} to take the tokenizer from"),
]

WITHIN = 0.03
CONTEXT = 131072


def free_bytes():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("memory") / "shape.gguf")
    yield tiny_models.make_smollm2(path, CONTEXT, REAL[0])
    os.remove(path)


@pytest.mark.parametrize("context", [4096, 32768, CONTEXT])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("kv", "token_bytes"), [("f16", 23040), ("q8_0", 11880)])
def test_peak_is_planned_and_decode_allocates_nothing(model, context, ranks, kv, token_bytes):
    check(model, context, ranks, kv, "shared", token_bytes)


@pytest.mark.parametrize("ranks", [1, 3])
def test_packed_slices_are_planned_and_the_file_is_given_back(model, ranks):
    """The plan has room for all embeddings; a run reads those of its tokens."""
    check(model, 4096, ranks, "f16", "packed", 23040, unread=49152 * 576 * 34 // 32)


def check(model, context, ranks, kv, weights, token_bytes, unread=0):
    expected = os.path.getsize(model) + context * token_bytes  # 30 layers x (K, V) x 3 heads x 64 values.
    if free_bytes() < 1.3 * expected:
        pytest.skip(f"{expected >> 20} MiB and a reserve are not free")
    done = subprocess.run([TOOL, model, str(context), str(ranks), kv, weights], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    of_plan = f"peak / planned {seen['peak'] / seen['planned']:.4f}"
    print(f"context {context}, {ranks} ranks, {kv}, {weights} weights: {seen}, {of_plan}")
    slack = WITHIN * seen["planned"]
    assert seen["planned"] - unread - slack <= seen["peak"] <= seen["planned"] + slack, seen
    assert seen["planned"] > expected and seen["peak"] > expected, "the tool has not used the whole context"
    assert seen["allocations"] == 0, seen
