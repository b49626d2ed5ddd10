#!/usr/bin/env python3
"""wall.py: the memory-bandwidth wall, and how context parallelism takes it down: decode time over depth for several
numbers of ranks, split by context and by layers, each rank a process with a core of its own. A Markdown table, JSON
and a plot.

    bench/wall.py MODEL.gguf [--ranks 1,2,3,4] [--splits r4,pp,apart] [--depths 0,16384,65536,131072,200000]
                  [--kv f16] [--prompt 32768] [--repeat 3] [--first-core 0] [--cores 1] [--threads 1]
                  [--json FILE] [--plot FILE.svg]
                  [--rate 10gbit --delay 0.05ms]      hosts in network namespaces, joined by such links (needs root)

Ranks are processes that join over the loopback, so UCX takes shared memory between them; with --rate and --delay each
is a host of its own in tests/lab. A rank has --cores of the machine and --threads on them: twice as many cores as
threads where two of the system's "cores" are one of the hardware's. The KV cache is filled with random rows. The slope
is what each further token of context costs a token, from the first depth to the last; "of 1/N" is the slope of one rank
over N times that of N. The split "apart" is no split: as many engines that know nothing of each other, each with its
part of the context, at the same time. What they lose on 1/N the machine's memory or the slowest of so many costs, not
what ranks say to each other.
"""

import argparse
import contextlib
import json
import os
import pathlib
import secrets
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build/release/ringspan"
sys.path.insert(0, str(ROOT / "tests/lab"))
import lab  # noqa: E402

COLOURS = ["#1b1b1b", "#0b6e99", "#d1495b", "#66a182", "#edae49", "#8d5a97", "#2e4057", "#b08968"]


def cores_of(options, rank):
    first = options.first_core + rank * options.cores
    return f"{first}-{first + options.cores - 1}"


class Here:
    """Ranks as processes of this machine."""

    head = "127.0.0.1"

    def __init__(self, options):
        self.options = options

    def start(self, rank, argv, **popen):
        return subprocess.Popen(["taskset", "-c", cores_of(self.options, rank), *argv], text=True, **popen)


class Elsewhere:
    """Ranks as hosts of a lab."""

    def __init__(self, options, hosts):
        self.options, self.hosts, self.head = options, hosts, hosts.address(0)

    def start(self, rank, argv, **popen):
        return self.hosts.start(rank, argv, cores=cores_of(self.options, rank), text=True, **popen)


def places(options, ranks):
    """A context manager of the machines."""
    if options.rate is None and options.delay is None:
        return contextlib.nullcontext(Here(options))

    @contextlib.contextmanager
    def opened():
        with lab.Lab(hosts=ranks, rate_bits=options.rate, delay_s=options.delay) as hosts:
            yield Elsewhere(options, hosts)

    return opened()


def bench_call(options, *words):
    return [str(options.program), "bench", "--json", "-m", options.model, "--kv", options.kv, "-r", str(options.repeat),
            "--threads", str(options.threads), *words]


def bench(options, ranks, split, *words):
    """The rows of one `ringspan bench` on so many ranks."""
    call = bench_call(options, *words)
    environment = {**os.environ, "RINGSPAN_SECRET": secrets.token_hex(16)}
    pipe = subprocess.PIPE
    with places(options, ranks) as place:
        if ranks == 1:
            head, members = place.start(0, call, stdout=pipe, env=environment), []
        else:
            call += ["--hosts", str(ranks), "--split", split, "--listen", f"{place.head}:0"]
            head = place.start(0, call, stdout=pipe, stderr=pipe, env=environment)
            address = head.stderr.readline().split("join ")[1].split("'")[0]
            join = [str(options.program), "join", address, "-q", "--threads", str(options.threads), "-m",
                    options.model]
            members = [place.start(rank, join, env=environment) for rank in range(1, ranks)]
        out, said = head.communicate()
        if head.returncode != 0:
            sys.exit(f"wall: {' '.join(call)}: {said}")
        for member in members:
            member.wait()
    return json.loads(out)


def decode(options, ranks, split):
    """Milliseconds per token at each depth."""
    rows = bench(options, ranks, split, "-p", "0", "-n", str(options.tokens), "-d", options.depths)
    return {row["n_depth"]: 1e-6 * statistics.median(row["samples_ns"]) / row["n_gen"] for row in rows}


def decode_apart(options, ranks):
    """The same of engines that exchange nothing: at each depth, the median of the slowest ones' samples."""
    ms, place = {}, Here(options)
    for depth in map(int, options.depths.split(",")):
        call = bench_call(options, "-p", "0", "-n", str(options.tokens), "-d", str(depth // ranks))
        engines = [place.start(rank, call, stdout=subprocess.PIPE) for rank in range(ranks)]
        outs = [engine.communicate()[0] for engine in engines]
        if any(engine.returncode != 0 for engine in engines):
            sys.exit(f"wall: {' '.join(call)} failed")
        samples = zip(*[json.loads(out)[0]["samples_ns"] for out in outs])
        ms[depth] = 1e-6 * statistics.median(map(max, samples)) / options.tokens
    return ms


def measure(options, ranks, split):
    """Milliseconds per token at each depth, and seconds of the prompt."""
    ms = decode_apart(options, ranks) if split == "apart" else decode(options, ranks, split)
    prompt_s = None
    if options.prompt > 0 and split != "apart":
        chunk = ["--chunk", str(options.chunk)] if options.chunk else []
        rows = bench(options, ranks, split, "-p", str(options.prompt), "-n", "0", "-d", "0", *chunk)
        prompt_s = 1e-9 * statistics.median(rows[0]["samples_ns"])
    first, *_, last = sorted(ms)
    slope = 1e6 * (ms[last] - ms[first]) / (last - first)
    return {"ranks": ranks, "split": split if ranks > 1 else "-", "ms": ms, "prompt_s": prompt_s, "slope_ns": slope}


def print_row(row, alone):
    cells = [f"{ms:.1f}" for _, ms in sorted(row["ms"].items())]
    cells += [f"{row['slope_ns']:.0f}", f"{alone['slope_ns'] / (row['ranks'] * row['slope_ns']):.2f}"]
    if row["prompt_s"]:
        cells += [f"{row['prompt_s']:.1f}", f"{alone['prompt_s'] / row['prompt_s']:.2f}"]
    print(f"| {row['ranks']} | {row['split']} |", " | ".join(cells), "|", flush=True)


def print_header(options, depths):
    names = [f"{d} ms" for d in depths] + ["slope, ns/token", "of 1/N"]
    if options.prompt > 0:
        names += [f"prompt {options.prompt}, s", "times as fast"]
    print("| ranks | split |", " | ".join(names), "|")
    print("|---:|---|" + "---:|" * len(names), flush=True)


def plot(rows, title, path):
    """Decode time over depth, a line a row, as an SVG file."""
    width, height, left, right, top, bottom = 760, 440, 64, 150, 44, 52
    depth_max = max(max(row["ms"]) for row in rows)
    ms_max = 1.05 * max(max(row["ms"].values()) for row in rows)

    def x(depth):
        return left + (width - left - right) * depth / depth_max

    def y(ms):
        return height - bottom - (height - top - bottom) * ms / ms_max

    step = 10 ** len(str(int(ms_max))) / 10
    step = next(step * k for k in (0.1, 0.2, 0.5, 1, 2) if ms_max / (step * k) <= 8)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
           f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
           f'<text x="{left}" y="24" font-size="15">{title}</text>']
    for i in range(int(ms_max / step) + 1):
        out.append(f'<path d="M{left} {y(i * step):.1f}H{width - right}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y(i * step) + 4:.1f}" text-anchor="end">{i * step:g}</text>')
    for depth in sorted(rows[0]["ms"]):
        out.append(f'<text x="{x(depth):.1f}" y="{height - bottom + 18}" text-anchor="middle">{depth // 1000}K</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">context, tokens</text>'
               f'<text transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
               f"ms a token</text>")
    ends = sorted(rows, key=lambda row: row["ms"][max(row["ms"])])
    label_y = {}
    for row in reversed(ends):  # Labels keep a line's height between them.
        wanted = y(row["ms"][max(row["ms"])]) + 4
        label_y[id(row)] = max([wanted, *[value + 14 for value in label_y.values()]])
    for row in rows:
        colour = COLOURS[(row["ranks"] - 1) % len(COLOURS)]
        points = " ".join(f"{x(d):.1f},{y(ms):.1f}" for d, ms in sorted(row["ms"].items()))
        dash = {"pp": ' stroke-dasharray="6 4"', "apart": ' stroke-dasharray="1 4"'}.get(row["split"], "")
        name = "1 rank" if row["ranks"] == 1 else f"{row['ranks']} ranks, {row['split']}"
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
                   f'<text x="{width - right + 8}" y="{label_y[id(row)]:.1f}" fill="{colour}">{name}</text>')
    pathlib.Path(path).write_text("\n".join(out) + "\n</svg>\n")


def main():
    p = argparse.ArgumentParser(description="decode time over depth, by ranks and splits, a process and a core a rank")
    p.add_argument("model")
    p.add_argument("--program", default=str(PROGRAM))
    p.add_argument("--ranks", default="1,2,3,4")
    p.add_argument("--splits", default="r4,pp")
    p.add_argument("--depths", default="0,16384,65536,131072,200000")
    p.add_argument("--kv", default="f16")
    p.add_argument("--tokens", type=int, default=8)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--prompt", type=int, default=0, help="tokens of a prompt to time, too")
    p.add_argument("--chunk", type=int, default=0)
    p.add_argument("--first-core", type=int, default=0)
    p.add_argument("--cores", type=int, default=1, help="of a rank")
    p.add_argument("--threads", type=int, default=1, help="of a rank")
    p.add_argument("--rate", type=lab.quantity(["gbit", "mbit"]))
    p.add_argument("--delay", type=lab.quantity(["ms", "us"]))
    p.add_argument("--json")
    p.add_argument("--plot")
    options = p.parse_args()
    rows, depths = [], [int(d) for d in options.depths.split(",")]
    print_header(options, depths)
    for ranks in map(int, options.ranks.split(",")):
        for split in options.splits.split(",") if ranks > 1 else ["-"]:
            rows.append(measure(options, ranks, split))
            print_row(rows[-1], rows[0])
            if options.json:
                pathlib.Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")
    if options.plot:
        name = pathlib.Path(options.model).name
        plot(rows, f"{name}, {options.kv} KV, a core a rank; dashed: layers split; dotted: apart", options.plot)


if __name__ == "__main__":
    main()
