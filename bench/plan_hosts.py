#!/usr/bin/env python3
"""plan_hosts.py: is the planner right about clusters? Hosts in network namespaces, a thread each, joined by links of a
set rate and delay (tests/lab, needs root): what `ringspan plan --hosts` predicts for every split beside what each
takes, as Markdown tables, and how near its choice comes to the fastest.

    bench/plan_hosts.py MODEL.gguf [--clusters 2,2:10gbit:0.05ms,2:1gbit:0.5ms] [--depths 0,16384] [--kv f16]
                        [--prompt 1024] [--repeat 5] [--first-core 0] [--cores 1] [--json FILE]

A cluster is HOSTS or HOSTS:RATE:DELAY. A host has --cores of the machine and one thread: two cores where two of the
system's are one of the hardware's. In each cluster all hosts are probed first, at the same time, as they share a memory
bus here. Then every plan that the planner priced is run: as many hosts join as it has ranks. The best repetition
counts, since other programs only ever slow a run down. With --prompt each plan also evaluates one, in chunks of 512.
Ends with the median and the largest error.
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

import wall

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build/release/ringspan"
sys.path.insert(0, str(ROOT / "tests/lab"))
import lab  # noqa: E402

CHUNK = "512"
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
        return self.lab.start(host, [str(PROGRAM), *words, "--threads", "1"], env=environment,
                              cores=wall.cores_of(self.options, host), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, **popen)

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


class Plan:
    """One that the planner priced, by what the machines are told to choose it again."""

    def __init__(self, options):
        self.ranks, self.split, self.tpa = options["ranks"], options["split"], options["tpa"]
        self.flags = ["--ranks", str(self.ranks), "--split", self.split if self.ranks > 1 else "r1"]
        self.flags += ["--tpa", str(self.tpa)] if self.tpa > 1 else []

    def __str__(self):
        return self.split if self.tpa == 1 else f"{self.split} tpa{self.tpa}"


def predicted(cluster, depths):
    """[(plan, {depth: seconds of a token}), ...], the planner's choice first."""
    forecast = cluster.json(cluster.hosts, "plan", "--ctx", str(max(depths) + 64), "--depths",
                            ",".join(map(str, depths)))["forecast"]
    plans = {}
    for price in [forecast["choice"], *forecast["rejected"]]:
        plan = Plan(price["options"])
        key = plan.ranks, str(plan)
        plans.setdefault(key, (plan, {entry["depth"]: entry["token"]["seconds"] for entry in price["depths"]}))
    return list(plans.values())


def predicted_prompt(cluster, plan, tokens):
    forecast = cluster.json(plan.ranks, "plan", "--ctx", str(tokens), "--depths", "0", "--chunk", CHUNK, *plan.flags)
    return forecast["forecast"]["choice"]["prefill"]["seconds"]


def measured(cluster, plan, depths):
    words = ["-p", "0", "-n", "8", "-d", ",".join(map(str, depths)), "-r", str(cluster.options.repeat)]
    rows = cluster.json(plan.ranks, "bench", *plan.flags, *words, "--ctx", str(max(depths) + 64))
    return {row["n_depth"]: 1e-9 * min(row["samples_ns"]) / row["n_gen"] for row in rows}


def measured_prompt(cluster, plan, tokens):
    words = ["-p", str(tokens), "-n", "0", "-d", "0", "-r", "3", "--chunk", CHUNK]
    return 1e-9 * min(cluster.json(plan.ranks, "bench", *plan.flags, *words)[0]["samples_ns"])


def compare(cluster, text, depths, errors):
    """Prints one cluster's table; returns its rows."""
    rows, prompt = [], cluster.options.prompt
    names = [f"at {d}" for d in depths] + ([f"prompt {prompt}"] if prompt else [])
    print(f"\n{text}\n\n| ranks | split |", " | ".join(f"{n}: predicted ms | measured | error" for n in names), "|")
    print("|---:|---|" + "---:|" * (3 * len(names)), flush=True)
    for plan, price in predicted(cluster, depths):
        took = measured(cluster, plan, depths)
        if prompt:
            price["prompt"] = predicted_prompt(cluster, plan, prompt)
            took["prompt"] = measured_prompt(cluster, plan, prompt)
        cells = []
        for what, seconds in price.items():
            error = seconds / took[what] - 1
            errors.append(abs(error))
            cells += [f"{1e3 * seconds:.2f}", f"{1e3 * took[what]:.2f}", f"{100 * error:+.0f} %"]
        rows.append({"ranks": plan.ranks, "split": str(plan), "predicted_s": price, "measured_s": took})
        print(f"| {plan.ranks} | {plan} |", " | ".join(cells), "|", flush=True)
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
    p.add_argument("--prompt", type=int, default=0)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--first-core", type=int, default=0)
    p.add_argument("--cores", type=int, default=1, help="of a host")
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
