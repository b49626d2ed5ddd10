"""The golden matrix over processes: each rank a process of its own with its own slices of the weights, over
comm/ucx.h, against the oracle with the same bounds as ranks that are threads (tests/test_matrix.py).

The head is this process; the others run `ringspan join`. UCX takes shared memory between them, but TCP where there are
two. tests/test_cluster.py has hosts apart.
"""

import os
import subprocess

import pytest
import rs
import test_matrix
import tiny_models
from test_matrix import BOUND, CONTEXT, F32, GREEDY, SPLITS, TOKENS, check, expected, model, prompt, weights

BIN = os.environ.get("RINGSPAN_BIN")
pytestmark = pytest.mark.skipif(not BIN or not rs.available(), reason="the program or the library is missing")

SECRET = b"a secret of the tests"
directory = test_matrix.directory  # the fixture


class Hosts:
    """A head here and members elsewhere, one for each further host; every other one has no model file."""

    def __init__(self, path, hosts):
        self.path, self.hosts, self.members = path, hosts, []
        self.cluster = rs.Cluster(model(path), hosts, SECRET, self.start)

    def start(self, port):
        for number in range(1, self.hosts):
            call = [BIN, "join", f"127.0.0.1:{port}", "--threads", "1"]
            call += ["-m", self.path] if number % 2 == 0 else []
            environment = {**os.environ, "RINGSPAN_SECRET": SECRET.decode()}
            self.members.append(subprocess.Popen(call, env=environment, stderr=subprocess.PIPE, text=True))

    def close(self):
        """Every member leaves by itself once the head does."""
        self.cluster.close()
        for member in self.members:
            _, said = member.communicate(timeout=60)
            assert member.returncode == 0, said
            assert "the head has left" in said

    def engine(self, **options):
        return model(self.path).engine(context=CONTEXT, threads=1, cluster=self.cluster, **options)


@pytest.fixture
def open_hosts(directory):
    opened = []

    def open_them(name, hosts):
        opened.append(Hosts(tiny_models.make(directory, name), hosts))
        return opened[-1]

    yield open_them
    for hosts in opened:
        hosts.close()


def run(hosts, kv, steps=GREEDY, **options):
    tokens, logits = expected(hosts.path, kv)
    with hosts.engine(kv_k=kv[0], kv_v=kv[1], **options) as engine, engine.session() as session:
        for step in range(1 + steps):
            ours = session.eval(tokens[: TOKENS + step])
            check(ours, logits[step], kv, f"{os.path.basename(hosts.path)} {kv} {options} after {step} tokens")


CASES = [(name, 3) for name in F32] + [("llama-f32", 2), ("gemma3-f32", 2), ("qwen2-f32", 4), ("gemma3-f32", 4)]


@pytest.mark.parametrize("name, hosts", CASES)
def test_every_split(open_hosts, monkeypatch, name, hosts):
    """One cluster opens engine after engine, in every split; three hosts see all families, two of these all formats."""
    if hosts == 2:
        monkeypatch.setenv("UCX_TLS", "tcp")
    every = hosts == 3 and name in ("llama-f32", "gemma3-f32")
    formats = BOUND if every else (("f16", "f16"), ("q8_0", "q4_0"))
    group = open_hosts(name, hosts)
    for split in SPLITS:
        for kv in formats:
            run(group, kv, split=split)
        run(group, ("f16", "f16"), steps=0, split=split, chunk=7 if hosts == 3 else 64)
    for split in ("r3", "r4") if hosts == 4 else ():
        for kv in formats:
            run(group, kv, split=split, tpa=2)


def test_weight_formats(open_hosts):
    for name in ("llama-q4_k", "qwen2-q8_0", "gemma3-q6_k"):
        group = open_hosts(name, 3)
        for split in ("r2", "r4", "tp"):
            run(group, ("f16", "f16"), steps=1, split=split)


def test_uneven_shares(open_hosts):
    group = open_hosts("llama-f32", 3)
    for split in SPLITS:
        run(group, ("f16", "f16"), steps=1, split=split, shares=[3, 2, 1])
        run(group, ("f16", "f16"), steps=1, split=split, shares=[1e-6, 1, 1e-6])


def test_processes_give_the_bits_of_threads(open_hosts):
    """Order of summation and all rounding follow the ranks, not the network between them: where ranks meet the same
    work, decode in every split."""
    group = open_hosts("llama-f32", 3)
    tokens = prompt(weights(group.path).vocab, 12)
    for split in SPLITS:
        with group.engine(split=split) as engine, engine.session() as session:
            ours = session.eval(tokens)
        with model(group.path).engine(context=CONTEXT, threads=3, ranks=3, split=split) as engine:
            with engine.session() as session:
                assert (session.eval(tokens) == ours).all(), split


def test_pages_that_arrive_meanwhile_change_nothing(open_hosts):
    """In a prompt whose pages travel in three portions, each while the one before is attended to; where no slices
    travel the bits are those of threads."""
    group = open_hosts("llama-f32", 3)
    tokens = prompt(weights(group.path).vocab, 6250)
    options = {"context": 6272, "chunk": 6272, "split": "r1"}
    with model(group.path).engine(threads=1, cluster=group.cluster, **options) as engine, engine.session() as session:
        ours = session.eval(tokens)
    with model(group.path).engine(threads=3, ranks=3, **options) as engine, engine.session() as session:
        assert (session.eval(tokens) == ours).all()


def test_rewind_and_fill(open_hosts):
    group = open_hosts("qwen3-f32", 2)
    tokens, logits = expected(group.path, ("f16", "f16"))
    with group.engine() as engine, engine.session() as session:
        session.eval(tokens[:40] + tokens[:40])
        session.fill(100, seed=3)
        filled = session.eval([0] * 100 + tokens[:3])
        check(session.eval(tokens[:TOKENS]), logits[0], ("f16", "f16"), "after another timeline")
        session.fill(100, seed=3)
        assert (session.eval([0] * 100 + tokens[:3]) == filled).all()
    with model(group.path).engine(context=CONTEXT, ranks=2, threads=2) as engine, engine.session() as session:
        session.fill(100, seed=3)
        assert (session.eval([0] * 100 + tokens[:3]) == filled).all()
