"""The plan's bytes against the peak of resident memory, of one process and of those of a cluster, and allocations per
generated token.

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

BIN = os.environ.get("RINGSPAN_BIN")
WITHIN = 0.03
EMBEDDINGS = 49152 * 576 * 34 // 32  # The plan has room for all of them; a run reads those of its tokens.
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
    check(model, 4096, ranks, "f16", "packed", 23040, unread=EMBEDDINGS)


@pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program")
@pytest.mark.parametrize(("transports", "files"), [("all", True), ("tcp", True), ("all", False)])
def test_each_process_of_a_cluster_takes_what_was_planned(model, tmp_path, transports, files, hosts=3):
    """files: members have the model; else the head, which keeps no more of it in memory, sends them their slices."""
    cluster, machine = tmp_path / "cluster.json", tmp_path / "machine.json"
    with open(os.path.join(ROOT, "profiles/epyc.json")) as file:
        machine.write_text(json.dumps({**json.load(file), "threads": 1}))
    cluster.write_text(json.dumps({"machines": [{"profile": str(machine), "count": hosts}],
                                   "link": {"latency_s": 5e-5, "bytes_per_s": 3e9}}))
    same = ["-m", model, "--json", "--kv", "f16", "--ctx", str(CONTEXT), "--ranks", str(hosts), "--split", "r4"]
    planned = subprocess.run([BIN, "plan", *same, "--shares", ",".join(["1"] * hosts), "--chunk", "512", "--cluster",
                              str(cluster)], capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    held = [rank["held_bytes"] for rank in json.loads(planned.stdout)["forecast"]["choice"]["ranks"]]
    if free_bytes() < 1.3 * sum(held):
        pytest.skip(f"{sum(held) >> 20} MiB and a reserve are not free")
    environment = {**os.environ, "RINGSPAN_SECRET": "a secret of the tests", "UCX_TLS": transports}
    head = subprocess.Popen([BIN, "bench", *same, "-d", str(CONTEXT - 256), "-p", "256", "-n", "2", "-r", "1", "-t",
                             "1", "--hosts", str(hosts), "--listen", "127.0.0.1:0"], env=environment, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    address = head.stderr.readline().split("join ")[1].split("'")[0]
    join = [BIN, "join", address, "-q", "-t", "1", *(["-m", model] if files else [])]
    members = [subprocess.Popen(join, env=environment) for _ in range(hosts - 1)]
    head.stderr.read()
    for process, bytes_held in zip([head, *members], held):
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peak = used.ru_maxrss * 1024
        print(f"{hosts} hosts, {transports}: peak / planned {peak / bytes_held:.4f} ({peak - bytes_held} bytes more)")
        assert (1 - WITHIN) * bytes_held - EMBEDDINGS <= peak <= (1 + WITHIN) * bytes_held, (peak, bytes_held)


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
