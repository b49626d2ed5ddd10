#!/usr/bin/env python3
"""plan_check.py: what `ringspan plan` predicts beside what `ringspan bench` measures, as a Markdown table.

    bench/plan_check.py MODEL.gguf ... [--ranks 1,2,3] [--splits r4,tp,pp] [--kv f16,q8_0] [--depths 0,16384,65536]
                        [--prompt 512] [--threads N] [--repeat 5] [--no-probe]

First the machine is probed (into a folder of its own), so that both are of the same minutes; the best repetition
counts on both sides, since other programs only ever slow a run down. Ends with the median and the largest error.
Machines differ in how a command is started on them: that is the class Runner, which `measure` and `predict` are given.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
from dataclasses import dataclass

PROGRAM = pathlib.Path(__file__).resolve().parent.parent / "build/release/ringspan"


@dataclass(frozen=True)
class Case:
    model: str
    ranks: int
    split: str
    kv: str
    threads: int  # 0: all cores

    def flags(self):
        flags = ["-m", self.model, "--ranks", str(self.ranks), "--split", self.split, "--kv", self.kv]
        return flags + (["--threads", str(self.threads)] if self.threads else [])

    def cells(self):
        return [pathlib.Path(self.model).stem, str(self.ranks), self.split if self.ranks > 1 else "-", self.kv]


class Runner:
    """Starts ringspan on this machine; one for others starts it there."""

    def __init__(self, program, cache):
        self.program, self.environment = program, {**os.environ, "XDG_CACHE_HOME": cache}

    def json(self, *words):
        done = subprocess.run([self.program, *words, "--json"], env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"ringspan {' '.join(words)}: {done.stderr.strip()}")
        return json.loads(done.stdout)


def measure(runner, case, depths, prompt, tokens, repeat):
    """{("decode", depth) or ("prefill", depth): seconds of a token or of the prompt}, the best of the repetitions."""
    out = {}
    for depth in depths:
        rows = runner.json("bench", *case.flags(), "-p", str(prompt if depth == depths[0] else 0), "-n", str(tokens),
                           "-d", str(depth), "-r", str(repeat), "-q")
        for row in rows:
            kind = "prefill" if row["n_prompt"] else "decode"
            out[kind, depth] = 1e-9 * min(row["samples_ns"]) / (1 if row["n_prompt"] else row["n_gen"])
    return out


def predict(runner, case, depths, prompt, tokens):
    """The same by the planner; a run of tokens is taken at its middle."""
    out = {}
    for depth in depths:
        context = str(depth + tokens)
        words = ["plan", *case.flags(), "--ctx", context, "--depths", str(depth + tokens // 2)]
        out["decode", depth] = runner.json(*words)["forecast"]["choice"]["depths"][0]["token"]["seconds"]
    if prompt:
        plan = runner.json("plan", *case.flags(), "--ctx", str(prompt))
        out["prefill", depths[0]] = plan["forecast"]["choice"]["prefill"]["seconds"]
    return out


def check(runner, cases, options):
    depths = [int(d) for d in options.depths.split(",")]
    errors = []
    print("| model | ranks | split | KV | what | depth | predicted ms | measured ms | predicted / measured |")
    print("|---|---:|---|---|---|---:|---:|---:|---:|")
    for case in cases:
        measured = measure(runner, case, depths, options.prompt, options.tokens, options.repeat)
        predicted = predict(runner, case, depths, options.prompt, options.tokens)
        for (kind, depth), seconds in measured.items():
            ratio = predicted[kind, depth] / seconds
            errors.append(max(ratio, 1 / ratio) - 1)
            what = f"prompt {options.prompt}" if kind == "prefill" else "token"
            print("|", " | ".join([*case.cells(), what, str(depth), f"{1e3 * predicted[kind, depth]:.2f}",
                                   f"{1e3 * seconds:.2f}", f"{ratio:.2f}"]), "|", flush=True)
    print(f"\n{len(errors)} figures: median error {100 * statistics.median(errors):.0f} %, largest "
          f"{100 * max(errors):.0f} %")


def main():
    p = argparse.ArgumentParser(description="predicted beside measured")
    p.add_argument("models", nargs="+", metavar="MODEL.gguf")
    p.add_argument("--program", default=str(PROGRAM))
    p.add_argument("--ranks", default="1,2,3")
    p.add_argument("--splits", default="r4,tp,pp")
    p.add_argument("--kv", default="f16,q8_0")
    p.add_argument("--depths", default="0,16384,65536")
    p.add_argument("--prompt", type=int, default=512, help="tokens of a prompt at the first depth; 0: none")
    p.add_argument("--tokens", type=int, default=8)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--no-probe", action="store_true", help="use the stored profile of this machine")
    options = p.parse_args()
    cases = [Case(model, ranks, split, kv, options.threads) for model in options.models
             for ranks in map(int, options.ranks.split(","))
             for split in (options.splits.split(",") if ranks > 1 else ["auto"]) for kv in options.kv.split(",")]
    with tempfile.TemporaryDirectory() as cache:
        if options.no_probe:
            check(Runner(options.program, os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))), cases,
                  options)
            return
        runner = Runner(options.program, cache)
        runner.json("probe", "-q")
        check(runner, cases, options)


if __name__ == "__main__":
    main()
