#!/usr/bin/env python3
"""versus.py: ringspan beside llama.cpp on the same model, threads and KV formats, as a Markdown table.

    bench/build_llama.py                                          once: builds llama.cpp (or --llama FILE)
    bench/make_model.py smollm2-135m build/bench/smollm2-135m.gguf
    bench/versus.py build/bench/smollm2-135m.gguf [--threads 2] [--formats f16,q8_0,q4_0] [--depths 0,65536,131072]
                    [--prompt 512] [--prompt-depths 0,16384] [--repeat 5] [--quick] [--json FILE]

Every sample of llama.cpp is followed by one of ringspan, so that what the machine does besides meets both. Figures are
medians. ringspan fills its cache with random rows, llama.cpp's holds copies of evaluated ones (bench/llama_time.c):
neither has to evaluate the depth. The roof is the time that reading a token's bytes (weights once, all of the cache)
takes at the read bandwidth that `ringspan probe` measured, or numpy where there is no such command.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA = ROOT / "build/llama.cpp/native/bin/llama_time"
PROGRAM = ROOT / "build/release/ringspan"
SAMPLE_S = 0.5  # a sample is as many tokens as take this long,
SAMPLE_TOKENS_MAX = 16  # but no more than these


class Llama:
    """One llama.cpp with a model, a KV format and a cache, which waits for the next row to measure."""

    def __init__(self, options, kv, context):
        self.process = subprocess.Popen([options.llama, options.model, str(options.threads), kv, str(context)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.description = self.process.stdout.readline().strip()
        if not self.description:
            sys.exit(f"versus: {options.llama} does not start")

    def seconds(self, kind, depth, tokens):
        self.process.stdin.write(f"{kind} {depth} {tokens}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"versus: llama.cpp gave up at {kind} {tokens}, depth {depth}")
        return float(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def call_ringspan(options, command, *flags):
    call = [options.program, command, "--json", "-m", options.model, "--threads", str(options.threads), *flags]
    return json.loads(subprocess.run([str(word) for word in call], check=True, stdout=subprocess.PIPE).stdout)


def ringspan_seconds(options, kind, kv, depth, tokens):
    prompt, predict = (tokens, 0) if kind == "prompt" else (0, tokens)
    rows = call_ringspan(options, "bench", "-q", "-p", prompt, "-n", predict, "-d", depth, "-r", 1, "--kv", kv)
    return rows[0]["samples_ns"][0] * 1e-9


def read_bandwidth(options):
    """(bytes per second that all threads read, who measured it)."""
    help_text = subprocess.run([options.program, "--help"], capture_output=True, text=True).stdout
    if "probe" in help_text:
        with tempfile.TemporaryDirectory() as folder:  # The planner's profile is not ours to replace.
            call = [options.program, "probe", "--json", "-q", "-o", f"{folder}/machine.json", "--threads",
                    str(options.threads)]
            answer = subprocess.run(call, stdout=subprocess.PIPE)
        if answer.returncode == 0:
            return json.loads(answer.stdout)["all_threads"]["read_bytes_per_s"]["median"], "ringspan probe"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        import numpy as np
    except ImportError:
        sys.exit("versus: neither ringspan probe nor numpy here; run it with .venv/bin/python")

    slabs = [np.ones(1 << 26, np.float32) for _ in range(options.threads)]
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:

        def once():
            begun = time.perf_counter()
            list(pool.map(lambda slab: np.dot(slab, slab), slabs))
            return sum(slab.nbytes for slab in slabs) / (time.perf_counter() - begun)

        return max(once() for _ in range(10)), "numpy"


def bytes_of_token(options, kv, depth):
    """What a decode step behind `depth` tokens has to read: the plan's weights, and its cache of that many tokens."""
    plan = call_ringspan(options, "plan", "--kv", kv, "--ctx", max(depth, 1))
    read = sum(rank["weights_bytes"] for rank in plan["ranks"])
    return read + (sum(rank["kv_bytes"] for rank in plan["ranks"]) if depth > 0 else 0)


def list_rows(options):
    rows = [("decode", kv, depth) for kv in options.formats for depth in options.depths]
    if options.prompt > 0:
        rows += [("prompt", kv, depth) for kv in options.formats for depth in options.prompt_depths]
    return sorted(rows, key=lambda row: (options.formats.index(row[1]), row[2], row[0]))


def measure_row(options, llama, kind, kv, depth):
    """One row of samples, in seconds per token of a decode or per prompt; pairs that alternate."""
    tokens = options.prompt if kind == "prompt" else 1
    warm = llama.seconds(kind, depth, tokens)
    if kind == "decode":
        warm = llama.seconds(kind, depth, tokens)
        tokens = min(max(round(SAMPLE_S / warm), 1), SAMPLE_TOKENS_MAX)
    row = {"kind": kind, "kv": kv, "depth": depth, "tokens": tokens, "llama_s": [], "ringspan_s": []}
    for _ in range(options.repeat):
        row["llama_s"].append(llama.seconds(kind, depth, tokens))
        row["ringspan_s"].append(ringspan_seconds(options, kind, kv, depth, tokens))
    return row


def measure(options, result):
    rows, begun, done = list_rows(options), time.monotonic(), 0
    cost = [row[2] + 4096 for row in rows]  # a guess at what rows take beside each other
    llama, llama_kv = None, None
    for i, (kind, kv, depth) in enumerate(rows):
        if kv != llama_kv:
            if llama:
                llama.close()
            context = max(row[2] for row in rows) + max(options.prompt, SAMPLE_TOKENS_MAX)
            llama, llama_kv = Llama(options, kv, context), kv
            result["llama"] = llama.description
        row = measure_row(options, llama, kind, kv, depth)
        if kind == "decode":
            row["roof_s"] = bytes_of_token(options, kv, depth) / result["read_bytes_per_s"]
        result["rows"].append(row)
        done += cost[i]
        spent = time.monotonic() - begun
        print(f"{i + 1}/{len(rows)} {kind} {kv} at {depth}: {spent:.0f} s spent, about "
              f"{spent / done * (sum(cost) - done):.0f} s to go", file=sys.stderr, flush=True)
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    llama.close()


def print_table(options, result):
    print(f"\n{pathlib.Path(options.model).name}, {options.threads} threads, medians of {options.repeat}; "
          f"read {result['read_bytes_per_s'] / 1e9:.1f} GB/s ({result['read_by']}); {result['llama_version']}\n")
    print("| test | KV | depth | llama.cpp | ringspan | times as fast | roof | share of it |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in sorted(result["rows"], key=lambda r: (r["kind"], options.formats.index(r["kv"]), r["depth"])):
        theirs, ours, n = statistics.median(row["llama_s"]), statistics.median(row["ringspan_s"]), row["tokens"]
        if row["kind"] == "decode":
            name, figures = "decode, ms", [f"{1e3 * s / n:.1f}" for s in (theirs, ours)]
            roof = [f"{1e3 * row['roof_s']:.1f}", f"{100 * row['roof_s'] * n / ours:.0f} %"]
        else:
            name, figures, roof = f"prompt {n}, tokens/s", [f"{n / s:.0f}" for s in (theirs, ours)], ["-", "-"]
        print(f"| {name} | {row['kv']} | {row['depth']} |", " | ".join([*figures, f"{theirs / ours:.2f}", *roof]), "|")


def parse():
    def numbers(text):
        return [int(word) for word in text.split(",")]

    p = argparse.ArgumentParser(description="ringspan beside llama.cpp")
    p.add_argument("model")
    p.add_argument("--llama", default=str(LLAMA), help="llama_time as bench/build_llama.py makes it")
    p.add_argument("--program", default=str(PROGRAM), help="ringspan")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--formats", type=lambda text: text.split(","), default=["f16", "q8_0", "q4_0"])
    p.add_argument("--depths", type=numbers, default=[0, 65536, 131072], help="of decode")
    p.add_argument("--prompt", type=int, default=512, help="tokens; 0: no prompt rows")
    p.add_argument("--prompt-depths", type=numbers, default=[0, 16384])
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--quick", action="store_true", help="no depth beyond 65536")
    p.add_argument("--json", metavar="FILE", help="every sample, written after each row")
    options = p.parse_args()
    if options.quick:
        options.depths = [depth for depth in options.depths if depth <= 65536]
    for path, maker in ((options.llama, "bench/build_llama.py"), (options.program, "make"),
                        (options.model, "bench/make_model.py")):
        if not pathlib.Path(path).exists():
            sys.exit(f"versus: no {path}; {maker} makes it")
    return options


def main():
    options = parse()
    version = pathlib.Path(options.llama).parent / "VERSION"
    bandwidth, by = read_bandwidth(options)
    result = {"model": options.model, "threads": options.threads, "repeat": options.repeat,
              "read_bytes_per_s": bandwidth, "read_by": by, "llama_version": "llama.cpp " +
              (version.read_text().strip() if version.exists() else "of unknown version"), "rows": []}
    measure(options, result)
    print_table(options, result)


if __name__ == "__main__":
    main()
