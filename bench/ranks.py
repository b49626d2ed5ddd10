#!/usr/bin/env python3
"""ranks.py: decode time over depth, for several numbers of ranks and splits, one thread a rank, as a Markdown table.

    bench/ranks.py MODEL.gguf [--ranks 1,2,3,4] [--splits auto,pp] [--depths 0,16384,65536,131072] [--kv f16]

Every figure is the median of the repetitions of `ringspan bench` (ms per token, the KV cache filled with random rows).
The last column is the slope: how many ns each further token of context costs, from the first depth to the last.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

PROGRAM = pathlib.Path(__file__).resolve().parent.parent / "build/release/ringspan"


def measure(options, ranks, split):
    """Milliseconds per token at each depth."""
    call = [options.program, "bench", "--json", "-m", options.model, "-p", "0", "-n", str(options.tokens), "-d",
            options.depths, "-r", str(options.repeat), "--ranks", str(ranks), "--threads", str(ranks), "--kv",
            options.kv]
    if ranks > 1:
        call += ["--split", split]
    rows = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    return {row["n_depth"]: 1e-6 * statistics.median(row["samples_ns"]) / row["n_gen"] for row in rows}


def main():
    p = argparse.ArgumentParser(description="decode time over depth, ranks and splits")
    p.add_argument("model")
    p.add_argument("--program", default=str(PROGRAM))
    p.add_argument("--ranks", default="1,2,3,4")
    p.add_argument("--splits", default="auto,pp")
    p.add_argument("--depths", default="0,16384,65536,131072")
    p.add_argument("--kv", default="f16")
    p.add_argument("--tokens", type=int, default=16)
    p.add_argument("--repeat", type=int, default=5)
    options = p.parse_args()
    depths = [int(d) for d in options.depths.split(",")]
    print("| ranks | split |", " | ".join(f"{d} ms" for d in depths), "| ns per token of context |")
    print("|---:|---|" + "---:|" * (len(depths) + 1))
    for ranks in map(int, options.ranks.split(",")):
        for split in options.splits.split(",") if ranks > 1 else ["-"]:
            ms = measure(options, ranks, split)
            slope = 1e6 * (ms[depths[-1]] - ms[depths[0]]) / (depths[-1] - depths[0])
            print(f"| {ranks} | {split} |", " | ".join(f"{ms[d]:.1f}" for d in depths), f"| {slope:.0f} |", flush=True)


if __name__ == "__main__":
    main()
