"""Finding the head by multicast DNS (--discover), on hosts of the lab (tests/lab): who finds whom, and what is said
when nobody or too many are there. tests/test_discover.c has what one process sees."""

import os
import re
import subprocess
import sys
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "lab")]
import lab as labs  # noqa: E402
import tiny_models  # noqa: E402

BIN = os.environ.get("RINGSPAN_BIN")
REASON = labs.unavailable(shaped=False)
pytestmark = [pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program"),
              pytest.mark.skipif(REASON is not None, reason=str(REASON))]

HOSTS = 3
LIMIT_S = 120  # against hangs alone
PROMPT = ("--raw", "-p", "\x01\x02\x03", "--temp", "0", "-n", "20", "-t", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.make(str(tmp_path_factory.mktemp("discover")), "llama-f32")


@pytest.fixture(scope="module")
def lab():
    with labs.Lab(HOSTS) as hosts:
        yield hosts


@pytest.fixture
def start(lab):
    """Starts a program on a host; none outlives the test."""
    running = []

    def run(host, *words):
        pipe = subprocess.PIPE
        running.append(lab.start(host, [BIN, *words], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True,
                                 env={**os.environ, "RINGSPAN_SECRET": "a secret of the tests"}))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def lead(start, host, model, *words):
    return start(host, "run", "-m", model, *PROMPT, "--hosts", "2", "--discover", *words)


def address_of(head):
    """Once it can be found."""
    line = head.stderr.readline()
    assert "or 'ringspan join --discover'" in line, line + head.stderr.read()
    return re.search(r"join (\S+)'", line)[1]


def end(process):
    """(exit code, standard output, standard error)."""
    out, said = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, said


def test_a_member_finds_the_head(start, model):
    """Which may begin later, at a port that the system chooses."""
    alone = subprocess.run([BIN, "run", "-m", model, *PROMPT, "-q"], capture_output=True, text=True, timeout=LIMIT_S)
    member = start(1, "join", "--discover", "-t", "1")
    head = lead(start, 0, model, "--listen", "10.77.0.1:0")
    address = address_of(head)
    code, out, said = end(head)
    assert (code, out) == (0, alone.stdout), said
    code, out, said = end(member)
    assert (code, out) == (0, ""), said
    assert f"found node0 ({address})" in said and "the head has left" in said


def test_several_heads_are_not_chosen_from(start, model):
    """Nor is one that has gone: a head that is killed cannot say so, and yet is not found."""
    heads = [lead(start, host, model) for host in (0, 2)]
    assert [address_of(head) for head in heads] == ["node0:7777", "node2:7777"]
    code, out, said = end(start(1, "join", "--discover"))
    assert code == 2 and out == ""
    assert "2 heads are announced: " in said
    assert re.search(r"; name the one to join, as in 'ringspan join 10\.77\.0\.[13]:7777'", said), said
    assert "node0 at 10.77.0.1:7777" in said and "node2 at 10.77.0.3:7777" in said, said
    for head in heads:
        head.kill()
        head.wait()
    begin = time.monotonic()
    code, out, said = end(start(1, "join", "--discover", "--wait", "1"))
    assert code == 2 and out == "" and "no head was announced within 1 s" in said, said
    assert 1 <= time.monotonic() - begin < LIMIT_S
