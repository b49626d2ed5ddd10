"""The program over several machines, in the lab (tests/lab): a head, `ringspan run --hosts N`, and members, `ringspan
join`, each on a host of its own. What it writes is what one machine writes, and whoever is lost, everybody else ends
and says so. tests/test_hosts.py holds the numbers to the oracle, on one machine.
"""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "lab")]
import lab as labs  # noqa: E402
import tiny_models  # noqa: E402

BIN = os.environ.get("RINGSPAN_BIN")
REASON = labs.unavailable()
pytestmark = [pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program"),
              pytest.mark.skipif(REASON is not None, reason=str(REASON))]

SECRET = "a secret of the tests"
PROMPT = "Pages of 64 tokens are dealt to all hosts, so a text must be long enough for each to have some. " * 3
HOSTS = 3
PATIENCE_S = 120  # For the end of what must end: some deadlines are tens of seconds, and machines are busy.
LINKS = [pytest.param({}, id="plain"), pytest.param({"rate_bits": 1e9, "delay_s": 0.0005}, id="shaped")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.make(str(tmp_path_factory.mktemp("cluster")), "llama-f32")


def words(command, model, *flags):
    return [BIN, command, "-m", model, *flags]


def run_words(model, tokens, *flags):
    plain = ("--raw", "-p", PROMPT, "--temp", "0", "--ignore-eos", "-c", "512")
    return words("run", model, *plain, "-n", str(tokens), *flags)


class Cluster:
    """The processes of a cluster: a head on node0, members on the others. Only the odd members have the model."""

    def __init__(self, lab, command, model, secrets=None):
        self.lab, self.processes = lab, []
        head = [*command, "--hosts", str(HOSTS), "-t", "1", "--wait", "60"]
        self.start(0, head, SECRET)
        for i in range(1, HOSTS):
            join = [BIN, "join", f"{lab.address(0)}:7777", "-t", "1", *(["-m", model] if i % 2 else [])]
            self.start(i, join, (secrets or {}).get(i, SECRET))
        self.head, self.members = self.processes[0], self.processes[1:]

    def start(self, host, argv, secret):
        env = {**os.environ, "RINGSPAN_SECRET": secret}
        pipes = {name: subprocess.PIPE for name in ("stdout", "stderr")}
        self.processes.append(self.lab.start(host, argv, env=env, stdin=subprocess.DEVNULL, **pipes))

    def wait_for_text(self):
        assert self.head.stdout.read(1), self.head.stderr.read()

    def ends(self, processes=None):
        """[(exit status, output, what it said)] of each, or of those given."""
        ends = []
        for process in processes or self.processes:
            out, err = process.communicate(timeout=PATIENCE_S)
            ends.append((process.returncode, out, err.decode()))
        return ends


@pytest.mark.parametrize("links", LINKS)
@pytest.mark.parametrize("split", ["r1", "r2", "r3", "r4", "tp", "pp"])
def test_the_text_is_that_of_one_machine(model, split, links):
    command = run_words(model, 16, "--split", split)
    alone = subprocess.run([*command, "--ranks", str(HOSTS)], capture_output=True)
    assert alone.returncode == 0 and len(alone.stdout) > 16, alone
    with labs.Lab(HOSTS, **links) as lab:
        head, *members = Cluster(lab, command, model).ends()
        assert (head[0], head[1]) == (0, alone.stdout), head
        assert [member[:2] for member in members] == [(0, b"")] * 2, members
        for name in ("node1", "node2"):
            assert re.search(rf"{name} \(10\.77\.0\.\d:\d+\) has joined, [23] of 3", head[2]), head
        assert all("the head has left" in member[2] for member in members)


def test_bench_and_every_exchange_crosses_the_network(model):
    """A token waits for the others' shares in each layer, so it takes at least that many times the delay. Ranks that
    found a way around the network, such as shared memory, would be faster."""
    tokens, layers, delay_s = 8, tiny_models.SMALL["llama"].layers, 0.005
    flags = ("--json", "-p", "0", "-n", str(tokens), "-r", "2", "--split", "r1")
    with labs.Lab(HOSTS, delay_s=delay_s) as lab:
        head, *members = Cluster(lab, words("bench", model, *flags), model).ends()
        assert head[0] == 0 and [member[0] for member in members] == [0, 0], (head, members)
    measured, = json.loads(head[1])
    assert measured["options"]["ranks"] == HOSTS and len(measured["samples_ns"]) == 2
    assert min(measured["samples_ns"]) >= tokens * layers * delay_s * 1e9


@pytest.mark.parametrize("loss", ["killed", "cut off"])
@pytest.mark.parametrize("host", [0, 1, 2])
def test_the_loss_of_a_host_ends_everybody(model, host, loss):
    with labs.Lab(HOSTS, delay_s=0.002) as lab:
        cluster = Cluster(lab, run_words(model, 250, "--split", "r4"), model)
        cluster.wait_for_text()
        if loss == "killed":
            lab.kill_host(host)
        else:
            lab.link_down(host)
        ends = cluster.ends()
        print(*ends, sep="\n")
        for i, (status, _, said) in enumerate(ends):
            last = said.splitlines()[-1]
            if loss == "killed" and i == host:
                assert status == -signal.SIGKILL
            elif i > 0:
                assert status > 0 and last.startswith("ringspan: the head (node0): "), said
            else:
                lost = rf"node{host}" if host > 0 else "node[12]"  # Who is cut off finds the others gone.
                assert status > 0 and re.match(rf"ringspan: rank [12] \({lost}\): ", last), said
        assert [lab.pids(i) for i in range(HOSTS)] == [[]] * HOSTS


def test_who_does_not_know_the_secret_stays_outside(model):
    with labs.Lab(HOSTS) as lab:
        cluster = Cluster(lab, run_words(model, 4), model, secrets={1: "another secret"})
        (status, out, said), = cluster.ends(cluster.members[:1])
        assert status > 0 and out == b"" and "secret" in said
        join = [BIN, "join", f"{lab.address(0)}:7777", "-t", "1"]
        cluster.start(1, join, SECRET)
        assert [end[0] for end in cluster.ends([cluster.head, cluster.members[1], cluster.processes[-1]])] == [0, 0, 0]
