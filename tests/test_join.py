"""Joining a cluster: who gets in and who does not, what both sides are told, and what a lost machine costs. Processes
on this machine's loopback; a peer written here after the format of comm/channel.h stands for strangers, other versions
and machines that misbehave."""

import hashlib
import hmac
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest
import tiny_models

BIN = os.environ.get("RINGSPAN_BIN")
pytestmark = pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program")

SECRET = "correct horse"
MAGIC = b"rspan\0\0\1"
BEAT, HELLO, WELCOME, BYTES, MEASURE, PLAN, READY, FAILED, NAMES, BYE = range(10)
LIMIT_S = 120  # against hangs alone


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.make(str(tmp_path_factory.mktemp("join")), "llama-f32")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return tiny_models.make(str(tmp_path_factory.mktemp("join")), "qwen2-f32")


@pytest.fixture
def start(tmp_path):
    """Starts programs of which none outlives the test. They find no profile of this machine."""
    running = []

    def run(*words, secret=SECRET):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        environment.pop("RINGSPAN_SECRET", None)
        if secret is not None:
            environment["RINGSPAN_SECRET"] = secret
        pipe = subprocess.PIPE
        process = subprocess.Popen([BIN, *words], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True,
                                   env=environment)
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def lead(start, model, *words, hosts=2, command="run"):
    """(head, its address) once it listens."""
    if command == "run":
        words = ("--raw", "-p", "\x01\x02\x03", "--temp", "0", *words)
    head = start(command, "-m", model, "--hosts", str(hosts), "--listen", "127.0.0.1:0", "--threads", "1", *words)
    return head, address_of(head)


def address_of(head):
    return re.search(r"join (127\.0\.0\.1:\d+)'", wait_for(head, "waiting for"))[1]


def end(process):
    """(exit code, standard output, standard error)."""
    out, said = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, said


def wait_for(process, text):
    """Reads standard error up to a line with the text."""
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"'{text}' was never said")


# ---- Who gets in ----


def test_two_machines_answer_as_one(start, model):
    alone = subprocess.run([BIN, "run", "-m", model, "--raw", "-p", "\x01\x02\x03", "--temp", "0", "-n", "20", "-q"],
                           capture_output=True, text=True, timeout=LIMIT_S)
    for with_model in (True, False):
        head, address = lead(start, model, "-n", "20")
        member = start("join", address, "--threads", "1", *(["-m", model] if with_model else []))
        code, out, said = end(head)
        assert code == 0, said
        assert out == alone.stdout
        code, out, said = end(member)
        assert code == 0 and out == "", said
        assert "the head has left" in said
        assert ("no model file here" in said) is not with_model


def test_another_secret_is_refused(start, model):
    head, address = lead(start, model, "-n", "2")
    code, _, said = end(start("join", address, secret="another one"))
    assert code == 2 and "secrets of the two machines differ" in said
    assert "was refused" in wait_for(head, "refused")
    member = start("join", address)
    assert end(head)[0] == 0 and end(member)[0] == 0  # the head still takes who knows it


def test_another_model_is_refused(start, model, other_model):
    head, address = lead(start, model, "-n", "2")
    code, _, said = end(start("join", address, "-m", other_model))
    assert code == 2 and "model file" in said
    member = start("join", address, "-m", model)
    assert end(head)[0] == 0 and end(member)[0] == 0


def test_too_little_memory_is_told_on_both_sides(start, model):
    head, address = lead(start, model, "-n", "2", "--ctx", "100000")
    member = start("join", address, "--memory-limit", "20MiB")
    code, _, said = end(head)
    assert code == 2 and re.search(r"rank 1 \(.*are allowed; the largest context that fits here", said), said
    code, _, said = end(member)
    assert code == 2 and "largest context that fits here" in said


def test_nobody_comes(start, model):
    head, _ = lead(start, model, "--wait", "1")
    code, _, said = end(head)
    assert code == 2 and "1 of 2 machines joined" in said


def test_no_head(start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code, _, said = end(start("join", address, "--wait", "1"))
    assert code == 2 and "nobody answers" in said and address in said


def test_a_head_that_comes_later_is_found(start, model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    member = start("join", address)
    time.sleep(1)
    head = start("run", "-m", model, "--raw", "-p", "\x01", "-n", "2", "--hosts", "2", "--listen", address)
    assert end(head)[0] == 0 and end(member)[0] == 0


def test_a_head_that_is_busy_with_another_is_waited_for(start, model):
    """One that knows the secret and says no hello, and one that does not know it, have the head for five seconds each.
    """
    head, address = lead(start, model, "-n", "2")
    silent = threading.Thread(target=Peer(address).live)
    silent.start()
    host, port = address.split(":")
    with socket.create_connection((host, int(port))):
        member = start("join", address)
        assert end(head)[0] == 0 and end(member)[0] == 0
    silent.join(LIMIT_S)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_member_that_waits_can_be_stopped(start, how):
    """For a head's first byte, and for its word after the proof."""
    for talks in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            member = start("join", f"127.0.0.1:{listener.getsockname()[1]}")
            listener.settimeout(LIMIT_S)
            if talks:
                head = Peer(listener.accept()[0])
                assert head.receive()[0] == HELLO
                beats = threading.Thread(target=head.live)
                beats.start()
            else:
                listener.accept()[0].recv(40, socket.MSG_WAITALL)
            member.send_signal(how)
            code, _, said = end(member)
            assert code == 128 + how, said
            if talks:
                beats.join(LIMIT_S)


@pytest.mark.parametrize(
    "words, secret, reason",
    [
        (["join"], SECRET, "no head"),
        (["join", "somewhere"], SECRET, "no address"),
        (["join", "127.0.0.1:99999"], SECRET, "no address"),
        (["join", "127.0.0.1:9"], None, "needs a secret"),
        (["join", "127.0.0.1:9"], "short", "at least 8"),
        (["join", "127.0.0.1:9", "--secret-file", "/nonexistent"], None, "cannot read the secret"),
        (["join", "127.0.0.1:9", "--hosts", "2"], SECRET, "unknown flag"),
        (["join", "127.0.0.1:9", "--discover"], SECRET, "leave out either"),
        (["join", "--discover"], "short", "at least 8"),
        (["run", "-m", "MODEL", "-p", "x", "--discover"], SECRET, "--hosts N"),
        (["run", "-m", "MODEL", "-p", "x", "--hosts", "2"], None, "needs a secret"),
        (["run", "-m", "MODEL", "-p", "x", "--hosts", "2", "--ranks", "3"], SECRET, "a machine is one rank"),
        (["run", "-m", "MODEL", "-p", "x", "--hosts", "2", "--listen", "192.0.2.1:0"], SECRET, "cannot listen"),
    ],
)
def test_what_cannot_be_is_refused(start, model, words, secret, reason):
    code, out, said = end(start(*[model if word == "MODEL" else word for word in words], secret=secret))
    assert code == 2 and out == ""
    assert reason in said and said.count("\n") == 1


def test_the_secret_may_be_in_a_file(start, model, tmp_path):
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    head, address = lead(start, model, "-n", "2")
    member = start("join", address, "--secret-file", str(path), secret=None)
    assert end(head)[0] == 0 and end(member)[0] == 0


def probed(start):
    """Probes this machine; what it then says of itself, from a hello to a head that is one of the test's own."""
    assert end(start("probe", "-q", "--threads", "1"))[0] == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start("join", f"127.0.0.1:{listener.getsockname()[1]}")
        listener.settimeout(LIMIT_S)
        return Peer(listener.accept()[0]).answer(HELLO)["machine"]


def with_speed(machine, bytes_per_s):
    """rs_machine as hex digits, with its first rate replaced: a double behind name, memory and threads."""
    return machine[:128] + struct.pack("<d", bytes_per_s).hex() + machine[144:]


def test_ranks_go_by_speed_only_where_all_are_known(start, model):
    machine = probed(start)
    for slow, rank in ((None, 1), (with_speed(machine, 1e9), 2)):
        _, address = lead(start, model, hosts=3)
        peers = []
        for one in (slow, with_speed(machine, 2e9)):
            peers.append(Peer(address))
            peers[-1].hello(machine=one)
            peers[-1].answer(WELCOME)
        assert peers[0].answer(MEASURE, PLAN)["rank"] == rank


def test_one_machine_more_waits_for_the_next_head(start, model):
    """Whether it dials when all have come, or is in the queue of the kernel by then."""
    head, address = lead(start, model)
    host, port = address.split(":")
    peer = Peer(address)  # has the head until it says hello
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as queued:
        peer.hello()
        peer.answer(PLAN)
        queued.settimeout(1)  # the head lives: PLAN comes after the end of the queue
        with pytest.raises(ConnectionResetError):
            queued.recv(1)
    member = start("join", address)
    for _ in range(10):
        time.sleep(0.2)
        peer.send(BEAT)
    peer.send(FAILED, "8 there is no room in here")
    assert end(head)[0] == 2
    assert member.poll() is None
    head = start("run", "-m", model, "--raw", "-p", "\x01", "-n", "2", "--hosts", "2", "--listen", address)
    assert end(head)[0] == 0 and end(member)[0] == 0


# ---- Machines that misbehave ----


class Peer:
    """The other end of a channel, written after comm/channel.h: a second implementation."""

    def __init__(self, address, secret=SECRET):
        """Dials an address, or is the listener's end of an accepted socket."""
        dials = isinstance(address, str)
        if dials:
            host, port = address.rsplit(":", 1)
            self.socket = socket.create_connection((host, int(port)), timeout=LIMIT_S)
        else:
            self.socket = address
        key = hashlib.sha256(secret.encode()).digest()
        own = os.urandom(32)
        self.socket.sendall(MAGIC + own)
        theirs = self.take(40)
        assert theirs[:8] == MAGIC
        nonces = own + theirs[8:] if dials else theirs[8:] + own

        def derive(label):
            return hmac.digest(key, label + nonces, "sha256")

        if not dials:
            self.socket.sendall(derive(b"listener"))
        assert self.take(32) == derive(b"listener" if dials else b"dialler")
        if dials:
            self.socket.sendall(derive(b"dialler"))
        self.keys = derive(b"frames of the dialler"), derive(b"frames of the listener")
        if not dials:
            self.keys = self.keys[::-1]
        self.counts = [0, 0]

    def take(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionError("closed")
            data += more
        return data

    def seal(self, way, head, content):
        number = struct.pack("<Q", self.counts[way])
        self.counts[way] += 1
        return hmac.digest(self.keys[way], number + head + content, "sha256")

    def send(self, kind, content=b""):
        content = content.encode() if isinstance(content, str) else content
        head = struct.pack("<IB3x", len(content), kind)
        self.socket.sendall(head + content + self.seal(0, head, content))

    def receive(self):
        """(kind, content) of the next frame that is no sign of life; answers those."""
        while True:
            head = self.take(8)
            size, kind = struct.unpack("<IB3x", head)
            content = self.take(size)
            assert self.take(32) == self.seal(1, head, content)
            if kind != BEAT:
                return kind, content
            self.send(BEAT)

    def live(self):
        """Gives signs of life until the other leaves."""
        try:
            while True:
                self.receive()
        except OSError:
            pass

    def answer(self, *kinds):
        """The content of the next frame of one of the kinds."""
        while True:
            got, content = self.receive()
            if got in kinds:
                return json.loads(content)

    def hello(self, **other):
        version = subprocess.run([BIN, "--version"], capture_output=True, text=True).stdout.split()[1]
        self.send(HELLO, json.dumps({"version": version, "host": "fake", "model": "", "machine": None, **other}))


def test_another_version_is_refused(start, model):
    _, address = lead(start, model)
    peer = Peer(address)
    peer.hello(version="99.0.0")
    kind, content = peer.receive()
    assert kind == FAILED and b"99.0.0" in content and b"install one on both" in content


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": "0", "host": "x"}', "\xff", "{}{}"],
                         ids=repr)
def test_a_hello_that_makes_no_sense_is_refused(start, model, content):
    _, address = lead(start, model)
    peer = Peer(address)
    peer.send(HELLO, content)
    kind, content = peer.receive()
    assert kind == FAILED and b"from the other machine" in content


def test_noise_after_the_proof_is_refused(start, model):
    head, address = lead(start, model, "-n", "2")
    for noise in (os.urandom(300), struct.pack("<IB3x", 0xFFFFFFFF, 1), b"GET / HTTP/1.1\r\n\r\n" * 9):
        peer = Peer(address)
        peer.socket.sendall(noise)
        peer.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError):
            while True:
                peer.receive()
        assert "was refused" in wait_for(head, "refused")
    member = start("join", address)
    assert end(head)[0] == 0 and end(member)[0] == 0


@pytest.mark.parametrize("answer", ["{}", '{"address": "xyz"}', '{"address": ""}', "no JSON"], ids=repr)
def test_a_member_with_nonsense_for_an_address(start, model, answer):
    head, address = lead(start, model)
    peer = Peer(address)
    peer.hello(host="odd\x1b[31mone")
    while peer.receive()[0] != PLAN:
        pass
    peer.send(READY, answer)
    code, _, said = end(head)
    assert code == 2 and "rank 1 (odd?[31mone)" in said and "\x1b" not in said


def test_a_member_that_leaves_at_once(start, model):
    """It is refused, or, where the head was quicker, lost, but not waited for."""
    head, address = lead(start, model, "--wait", "30", hosts=3)
    peer = Peer(address)
    peer.hello()
    peer.send(BYE)
    assert "it left" in wait_for(head, "left")


def test_a_member_that_says_why_it_cannot(start, model):
    head, address = lead(start, model)
    peer = Peer(address)
    peer.hello()
    while peer.receive()[0] != PLAN:
        pass
    peer.send(FAILED, "8 there is no room in here")
    code, _, said = end(head)
    assert code == 2 and "rank 1 (fake): there is no room in here" in said


@pytest.mark.parametrize("command", ["run", "probe"])
def test_what_one_does_wrong_is_told_to_all(start, model, command):
    """While plans are exchanged, and while links are measured."""
    machine = probed(start) if command == "probe" else None
    if command == "run":
        head, address = lead(start, model, hosts=3)
    else:
        head = start("probe", "--hosts", "3", "--listen", "127.0.0.1:0")
        address = address_of(head)
    peers = []
    for name in ("odd", "good"):
        peers.append(Peer(address))
        peers[-1].hello(host=name, machine=machine)
        peers[-1].answer(WELCOME)
    peers[0].answer(MEASURE, PLAN)
    peers[0].send(READY, "{}")
    kind, content = peers[1].receive()
    while kind not in (FAILED, BYE):
        kind, content = peers[1].receive()
    assert kind == FAILED and b"rank 1 (odd): an address from the other machine" in content
    code, _, said = end(head)
    assert code == 2 and "rank 1 (odd): an address" in said


def test_a_member_that_ucx_cannot_reach(start, model):
    """One that lends the address of a rank that has ended: what may be wrong is told to both."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        member = start("join", f"127.0.0.1:{listener.getsockname()[1]}")
        listener.settimeout(LIMIT_S)
        other = Peer(listener.accept()[0])
        other.answer(HELLO)
        other.send(WELCOME, json.dumps({"host": "fake", "model": "", "file_bytes": 0}))
        other.send(MEASURE, json.dumps({"rank": 1, "ranks": 2, "epoch": 1}))
        ready = other.answer(READY)
        member.kill()
        member.wait()
    head, address = lead(start, model)
    peer = Peer(address)
    peer.hello()
    peer.answer(PLAN)
    peer.send(READY, json.dumps(ready))
    kind, content = peer.receive()
    while kind != FAILED:
        kind, content = peer.receive()
    assert b"UCX_NET_DEVICES" in content
    code, _, said = end(head)
    assert code == 2 and "UCX_NET_DEVICES" in said, said


# ---- Machines that go ----


def busy(start, model):
    """(head, member) in the middle of an answer that would take long."""
    head, address = lead(start, model, "-n", "100000000", "--ignore-eos", "--ctx", "400000")
    member = start("join", address, "--threads", "1")
    wait_for(member, "for a context of")
    time.sleep(1)  # a model of random weights may generate what gives no text to wait for
    assert head.poll() is None and member.poll() is None
    return head, member


def test_a_killed_member(start, model):
    head, member = busy(start, model)
    member.kill()
    code, _, said = end(head)
    assert code == 2 and re.search(r"rank 1 \(.*\): the (other side closed|connection broke)", said), said


def test_a_silent_member(start, model):
    head, member = busy(start, model)
    member.send_signal(signal.SIGSTOP)
    code, _, said = end(head)
    assert code == 2 and re.search(r"rank 1 \(.*\): it has been silent for 2\.\d s", said), said
    member.send_signal(signal.SIGCONT)
    code, _, said = end(member)
    assert code == 2 and "the head" in said


def test_a_killed_head(start, model):
    head, member = busy(start, model)
    head.kill()
    code, _, said = end(member)
    assert code == 2 and "the head" in said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_either_side(start, model, how):
    head, member = busy(start, model)
    member.send_signal(how)
    assert end(member)[0] == 128 + how
    code, _, said = end(head)
    assert code == 2 and "its user stopped it" in said
    head, member = busy(start, model)
    head.send_signal(how)
    assert end(head)[0] == 128 + how
    code, _, said = end(member)
    assert code == 0 and "the head has left" in said
    head, _ = lead(start, model)  # and while it waits
    head.send_signal(how)
    assert end(head)[0] == 128 + how


# ---- Measuring ----


def test_probe_tells_the_links(start, tmp_path, model):
    """Only machines that were probed count; then the cluster is a file that plan reads, and run follows the planner."""
    head = start("probe", "--hosts", "2", "--listen", "127.0.0.1:0")
    member = start("join", address_of(head))
    code, _, said = end(head)
    assert code == 2 and "run 'ringspan probe' on each" in said
    assert end(member)[0] == 0
    assert end(start("probe", "-q", "--threads", "1"))[0] == 0
    head = start("probe", "--hosts", "2", "--listen", "127.0.0.1:0", "-o", str(tmp_path / "cluster.json"))
    member = start("join", address_of(head))
    code, out, said = end(head)
    assert code == 0, said
    assert len(re.findall(r"^\d .*\d \S+ +[\d.]+ +[\d.]+$", out, re.M)) == 2, out
    assert end(member)[0] == 0
    cluster = json.loads((tmp_path / "cluster.json").read_text())
    assert len(cluster["machines"]) == 2 and len(cluster["links"]) == 1
    assert 1e-7 < cluster["links"][0]["latency_s"] < 1 and cluster["links"][0]["bytes_per_s"] > 1e6
    code, out, said = end(start("plan", "-m", model, "--cluster", str(tmp_path / "cluster.json"), "--json"))
    assert code == 0, said
    head, address = lead(start, model, "-n", "2")
    member = start("join", address)
    code, _, said = end(head)
    assert code == 0 and re.search(r"split \w+ on \d of 2 machines", said), said
    assert end(member)[0] == 0
