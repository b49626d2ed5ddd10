#!/usr/bin/env python3
"""plan_hosts.py: is the planner right about clusters? Hosts in network namespaces, a core each, joined by links of a
set rate and delay (tests/lab, needs root): what `ringspan plan --hosts` predicts for every split beside what each
takes, as Markdown tables, and how near its choice comes to the fastest.

    bench/plan_hosts.py MODEL.gguf [--clusters 2,2:10gbit:0.05ms,2:1gbit:0.5ms] [--depths 0,16384] [--kv f16]
                        [--repeat 5] [--json FILE]

A cluster is HOSTS or HOSTS:RATE:DELAY. In each, all hosts are probed first, at the same time, as they share a memory
bus here. Then every plan that the planner priced is run: as many hosts join as it has ranks. The best repetition
counts, since other programs only ever slow a run down. Ends with the median and the largest error.
"""

import argparse
import json
import os
import pathlib
import secrets
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build/release/ringspan"
sys.path.insert(0, str(ROOT / "tests/lab"))
import lab  # noqa: E402

RATES, DELAYS = lab.quantity(["gbit", "mbit"]), lab.quantity(["ms", "us"])


class Cluster:
    """Hosts of a lab that know one secret, each with a profile of its own."""

    def __init__(self, options, text, folder):
        hosts, *link = text.split(":")
        self.options, self.hosts, self.folder = options, int(hosts), folder
        rate, delay = (RATES(link[0]), DELAYS(link[1])) if link else (None, None)
        self.lab = lab.Lab(hosts=self.hosts, rate_bits=rate, delay_s=delay)
        self.secret = secrets.token_hex(16)

    def start(self, host, *words, **popen):
        environment = {**os.environ, "RINGSPAN_SECRET": self.secret, "XDG_CACHE_HOME": f"{self.folder}/{host}"}
        return self.lab.start(host, [str(PROGRAM), *words, "--threads", "1"], cores=str(host), env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)

    def probe(self):
        probes = [self.start(host, "probe", "-q") for host in range(self.hosts)]
        for probe in probes:
            _, said = probe.communicate()
            if probe.returncode != 0:
                sys.exit(f"plan_hosts: probe: {said}")

    def json(self, hosts, command, *words):
        """What the head of so many hosts prints."""
        call = [command, "-m", self.options.model, "--kv", self.options.kv, "--json", "--hosts", str(hosts), "--listen",
                f"{self.lab.address(0)}:0", *words]
        head = self.start(0, *call)
        members = []
        if hosts > 1:
            address = head.stderr.readline().split("join ")[1].split("'")[0]
            members = [self.start(host, "join", address, "-q") for host in range(1, hosts)]
        out, said = head.communicate()
        for member in members:
            member.communicate()
        if head.returncode != 0:
            sys.exit(f"plan_hosts: {' '.join(call)}: {said}")
        return json.loads(out)


def predicted(cluster, depths):
    """[(ranks, split, {depth: seconds of a token}), ...], the planner's choice first."""
    forecast = cluster.json(cluster.hosts, "plan", "--ctx", str(max(depths) + 64), "--depths",
                            ",".join(map(str, depths)))["forecast"]
    plans = []
    for price in [forecast["choice"], *forecast["rejected"]]:
        key = price["options"]["ranks"], price["options"]["split"]
        if key in [plan[:2] for plan in plans]:
            continue
        plans.append((*key, {entry["depth"]: entry["token"]["seconds"] for entry in price["depths"]}))
    return plans


def measured(cluster, ranks, split, depths):
    words = ["-p", "0", "-n", "8", "-d", ",".join(map(str, depths)), "-r", str(cluster.options.repeat)]
    words += ["--ctx", str(max(depths) + 64)]
    rows = cluster.json(ranks, "bench", "--split", split if ranks > 1 else "r1", "--ranks", str(ranks), *words)
    return {row["n_depth"]: 1e-9 * min(row["samples_ns"]) / row["n_gen"] for row in rows}


def compare(cluster, text, depths, errors):
    """Prints one cluster's table; returns its rows."""
    rows = []
    print(f"\n{text}\n\n| ranks | split |", " | ".join(f"at {d}: predicted ms | measured | error" for d in depths), "|")
    print("|---:|---|" + "---:|" * (3 * len(depths)), flush=True)
    for ranks, split, price in predicted(cluster, depths):
        took = measured(cluster, ranks, split, depths)
        cells = []
        for depth in depths:
            error = price[depth] / took[depth] - 1
            errors.append(abs(error))
            cells += [f"{1e3 * price[depth]:.2f}", f"{1e3 * took[depth]:.2f}", f"{100 * error:+.0f} %"]
        rows.append({"ranks": ranks, "split": split, "predicted_s": price, "measured_s": took})
        print(f"| {ranks} | {split} |", " | ".join(cells), "|", flush=True)
    deepest = max(depths)
    best = min(row["measured_s"][deepest] for row in rows)
    loss = rows[0]["measured_s"][deepest] / best - 1
    print(f"\nAt {deepest} the choice, {rows[0]['split']} on {rows[0]['ranks']}, is {100 * loss:.1f} % off the best.")
    return rows


def main():
    p = argparse.ArgumentParser(description="predicted beside measured on clusters of the lab")
    p.add_argument("model")
    p.add_argument("--clusters", default="2,2:10gbit:0.05ms,2:1gbit:0.5ms")
    p.add_argument("--depths", default="0,16384")
    p.add_argument("--kv", default="f16")
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--json")
    options = p.parse_args()
    errors, all_rows, depths = [], {}, [int(d) for d in options.depths.split(",")]
    for text in options.clusters.split(","):
        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(options, text, folder)
            with cluster.lab:
                cluster.probe()
                all_rows[text] = compare(cluster, text, depths, errors)
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(all_rows, indent=2) + "\n")
    print(f"\n{len(errors)} figures: median error {100 * statistics.median(errors):.0f} %, largest "
          f"{100 * max(errors):.0f} %.")


if __name__ == "__main__":
    main()
