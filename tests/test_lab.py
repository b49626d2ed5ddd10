"""The lab (tests/lab): hosts apart from each other, links that keep their rate and delay, and nothing left behind.

That a round trip takes at least twice the delay, and that no more bytes come through than the rate lets, are laws. The
other bounds are wide and relative, since machines are noisy.
"""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "lab"))
import lab as labs  # noqa: E402
from lab import Lab, LabError  # noqa: E402

PEER = os.path.join(HERE, "lab", "peer.py")
CLI = os.path.join(HERE, "lab", "lab.py")
REASON = labs.unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

LINKS = [pytest.param({}, id="plain"), pytest.param({"rate_bits": 1e9, "delay_s": 0.0005}, id="shaped")]
SILENT_S = 1.0  # So long nothing comes through a link that is down. A round trip takes milliseconds.
PATIENCE_S = 60  # For what must come: TCP waits longer and longer before it tries a link again.


def serve(lab, *hosts):
    for host in hosts:
        server = lab.start(host, [sys.executable, PEER, "serve"], stdout=subprocess.PIPE)
        assert server.stdout.readline() == b"ready\n"


def peer(lab, host, verb, to, *arguments):
    done = lab.run(host, [sys.executable, PEER, verb, lab.address(to), *map(str, arguments)], check=True)
    return [float(word) for word in done.stdout.split()]


class Talk:
    """A connection that stays open: what is said, and what is heard within a time, or None."""

    def __init__(self, lab, host, to):
        self.process = lab.start(host, [sys.executable, "-u", PEER, "talk", lab.address(to)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, bufsize=0)

    def say(self, word):
        self.process.stdin.write(word.encode() + b"\n")

    def hear(self, seconds=PATIENCE_S):
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline().decode().strip() if ready else None


def send_datagrams(lab, host, to, count):
    """Datagrams of 1,400 bytes, as fast as they go; nobody listens."""
    script = ("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
              f"for i in range({count}): s.sendto(bytes(1400), ('{lab.address(to)}', 9))")
    lab.run(host, [sys.executable, "-c", script], check=True)


def net_ns(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None  # It has ended, or is about to.


def processes_in(namespaces):
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and net_ns(pid) in namespaces]


def namespaces_of(lab):
    return {net_ns(host.init.pid) for host in [*lab.hosts, lab.switch]}


# ---- Hosts


@pytest.mark.parametrize("links", LINKS)
def test_every_host_reaches_every_other(links):
    with Lab(hosts=3, **links) as lab:
        serve(lab, 0, 1, 2)
        for a in range(3):
            for b in {0, 1, 2} - {a}:
                talk = Talk(lab, a, b)
                talk.say("hello")
                assert talk.hear() == f"node{b} saw 10.77.0.{1 + a}: hello"


@pytest.mark.parametrize("links", LINKS)
def test_hosts_are_machines_of_their_own(links):
    links_before = os.listdir("/sys/class/net")
    with Lab(hosts=2, **links) as lab:
        assert [lab.run(i, ["cat", "/proc/sys/kernel/hostname"]).stdout for i in (0, 1)] == ["node0\n", "node1\n"]
        assert len(namespaces_of(lab) | {net_ns("self")}) == 4
        assert os.listdir("/sys/class/net") == links_before
        lab.run(0, ["touch", "/dev/shm/mine"], check=True)
        assert lab.run(0, ["ls", "/dev/shm"]).stdout == "mine\n" and lab.run(1, ["ls", "/dev/shm"]).stdout == ""
        assert not os.path.exists("/dev/shm/mine")
        assert lab.run(0, ["sh", "-c", "echo $X; pwd"], env={**os.environ, "X": "y"}, cwd="/usr").stdout == "y\n/usr\n"
        assert "list: 0\n" in lab.run(1, ["sh", "-c", "taskset -cp $$"], cores="0").stdout
        first = lab.start(0, ["sleep", "1000"])
        assert lab.pids(1) == [] and len(lab.pids(0)) == 1
        first.terminate()
        assert first.wait() == -signal.SIGTERM


@pytest.mark.parametrize("links", LINKS)
def test_kill_host_kills_everything_and_the_host_can_start_again(links):
    with Lab(hosts=2, **links) as lab:
        other = lab.start(1, ["sleep", "1000"])
        # One in a session of its own whose parent has ended, and that ignores what can be ignored.
        lab.run(0, ["sh", "-c", "trap '' HUP TERM INT; setsid sleep 1000 > /dev/null 2>&1 < /dev/null &"], check=True)
        process = lab.start(0, ["sh", "-c", "sleep 1000 & sleep 1000"])
        deadline = time.monotonic() + PATIENCE_S
        while len(lab.pids(0)) < 4:
            assert time.monotonic() < deadline, lab.pids(0)
        lab.kill_host(0)
        assert lab.pids(0) == [] and process.wait() == -signal.SIGKILL
        assert other.poll() is None and len(lab.pids(1)) == 1
        serve(lab, 0)
        talk = Talk(lab, 1, 0)
        talk.say("again")
        assert talk.hear() == "node0 saw 10.77.0.2: again"


# ---- Links


def test_a_round_trip_takes_twice_the_delay():
    with Lab(hosts=2) as lab:
        serve(lab, 1)
        plain = peer(lab, 0, "ping", 1, 500)[1]
    with Lab(hosts=2, delay_s=0.0005) as lab:
        serve(lab, 1)
        for delay_s in (0.0005, 0.005):
            lab.set_delay(0, delay_s)
            lab.set_delay(1, delay_s)
            least, median, _ = peer(lab, 0, "ping", 1, 200)
            print(f"delay {delay_s}: least {least:.6f}, median {median:.6f}, without {plain:.6f}")
            assert least >= 2 * delay_s
            assert median <= 1.5 * 2 * delay_s + 10 * plain
        lab.set_delay(1, 0)
        assert 0.005 <= peer(lab, 0, "ping", 1, 200)[0] < 2 * 0.005  # One way only.


def test_bytes_come_at_the_rate():
    rate = 400e6
    with Lab(hosts=2, rate_bits=rate, delay_s=0.0002) as lab:
        serve(lab, 1)
        for part in (1, 0.25):
            for host in (0, 1):
                lab.set_rate(host, part * rate)
            seen, = peer(lab, 0, "send", 1, int(part * 20e6))
            print(f"rate {part * rate:.0f}: seen {seen:.0f} bit/s, {lab.stats(1)}")
            assert 0.5 * part * rate <= seen <= part * rate
        lab.set_rate(1, None)  # The rate of the sender's link holds alone.
        assert peer(lab, 0, "send", 1, 5_000_000)[0] <= 0.25 * rate


@pytest.mark.parametrize("senders, receivers", [((0, 0), (1, 2)), ((1, 2), (0, 0))], ids=["from one", "to one"])
def test_a_link_is_shared(senders, receivers):
    """Two streams over one end's link take twice as long as one: together they keep its rate."""
    rate, size = 400e6, 10_000_000
    with Lab(hosts=3, rate_bits=rate) as lab:
        serve(lab, *set(receivers))
        start = time.monotonic()
        streams = [lab.start(a, [sys.executable, PEER, "send", lab.address(b), str(size)], stdout=subprocess.PIPE)
                   for a, b in zip(senders, receivers)]
        assert [stream.wait() for stream in streams] == [0, 0]
        assert 2 * size * 8 / (time.monotonic() - start) <= rate


def test_queues_are_bounded():
    """Datagrams sent much faster than the link goes: some 512 KiB wait, the rest is dropped and counted."""
    with Lab(hosts=2, delay_s=0.0001) as lab:
        lab.set_rate(1, 10e6)
        before = lab.stats(1)
        send_datagrams(lab, 0, 1, 5000)
        seen = lab.stats(1)
        print(seen)
        assert seen["dropped"] > 2000 and seen["cut"] == before["cut"]
        time.sleep(0.5)
        assert lab.stats(1)["sent"] - seen["sent"] < 1000, "frames come that were not in the queue"


@pytest.mark.parametrize("links", LINKS)
def test_a_link_goes_down_and_comes_up(links):
    with Lab(hosts=3, **links) as lab:
        serve(lab, 1)
        near, other = Talk(lab, 0, 1), Talk(lab, 2, 1)
        for talk in (near, other):
            talk.say("a")
            assert talk.hear().endswith(": a")
        lab.link_down(0)
        near.say("b")
        assert near.hear(SILENT_S) is None
        other.say("b")
        assert other.hear().endswith(": b")
        for a, b in ((0, 1), (1, 0)) if links else ():
            before = lab.stats(b)["sent"]
            send_datagrams(lab, a, b, 100)
            assert lab.stats(b)["sent"] - before < 50, f"datagrams come from node{a} to node{b}"
        lab.link_up(0)
        assert near.hear().endswith(": b")


# ---- Labs


def test_two_labs_do_not_meet():
    with Lab(hosts=2, delay_s=0.0005) as one, Lab(hosts=2, delay_s=0.001) as two:
        assert not namespaces_of(one) & namespaces_of(two)
        serve(one, 1)
        serve(two, 1)
        talks = Talk(one, 0, 1), Talk(two, 0, 1)
        one.link_down(1)
        for talk in talks:
            talk.say("a")
        assert talks[1].hear().endswith(": a") and talks[0].hear(SILENT_S) is None
        one.close()
        talks[1].say("b")
        assert talks[1].hear().endswith(": b")


@pytest.mark.parametrize("links", LINKS)
def test_nothing_is_left_after_an_exception(links):
    with pytest.raises(ZeroDivisionError), Lab(hosts=2, **links) as lab:
        process = lab.start(0, ["sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE)
        process.stdout.readline()
        lab.run(1, ["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 < /dev/null &"], check=True)
        inside = namespaces_of(lab)
        assert len(processes_in(inside)) >= 5
        1 / 0
    assert process.poll() == -signal.SIGKILL
    assert processes_in(inside) == []


OWNER = """
import os, subprocess, sys, time
sys.path.insert(0, {folder!r})
from lab import Lab
with Lab(hosts=2, delay_s=0.001) as lab:
    lab.start(0, ["sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE).stdout.readline()
    print(*(os.readlink(f"/proc/{{host.init.pid}}/ns/net") for host in [*lab.hosts, lab.switch]), flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_owner_is_killed(how):
    script = OWNER.format(folder=os.path.dirname(CLI))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        inside = set(owner.stdout.readline().decode().split())
        n_inside = len(processes_in(inside))
        owner.send_signal(how)
    assert len(inside) == 3 and n_inside >= 5
    deadline = time.monotonic() + PATIENCE_S
    while processes_in(inside):
        assert time.monotonic() < deadline, processes_in(inside)
        time.sleep(0.01)


def test_by_hand():
    script = "node0 cat /proc/sys/kernel/hostname; node1 ip -brief address show eth0; node1 pwd; exit 7"
    done = subprocess.run([sys.executable, CLI, "--hosts", "2", "--rate", "1gbit", "--delay", "0.5ms", "--", "sh", "-c",
                           script], cwd="/usr", capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("node0\n") and "10.77.0.2/24" in done.stdout and done.stdout.endswith("/usr\n")


# ---- What cannot be


def test_mistakes_are_told():
    with Lab(hosts=1) as lab:
        with pytest.raises(LabError, match="rate_bits"):
            lab.set_rate(0, 1e9)
        with pytest.raises(LabError, match="status 3\non purpose"):
            lab.run(0, ["sh", "-c", "echo on purpose; exit 3"], check=True)
        with pytest.raises(subprocess.TimeoutExpired):
            lab.run(0, ["sleep", "1000"], timeout=0.1)
        assert lab.pids(0) == []
    with Lab(hosts=1, delay_s=0) as lab:
        with pytest.raises(LabError, match="no command: delay 0 -1"):
            lab.set_delay(0, -1)
        with pytest.raises(IndexError):
            lab.link_down(1)
        assert lab.stats(0)["dropped"] == 0
    with pytest.raises(LabError, match="1 to 64"):
        Lab(hosts=65)


@pytest.mark.parametrize("port, message", [("a", "NAME:BYTES_PER_S:DELAY_S"), ("a:1:-1", "NAME:BYTES_PER_S:DELAY_S"),
                                           (":1:1", "1 to 15 letters"), ("sixteen_letters_:1:1", "1 to 15 letters")])
def test_netdelay_refuses(port, message):
    done = subprocess.run([labs.NETDELAY, port], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr


def test_why_there_is_no_lab(monkeypatch):
    monkeypatch.setattr(labs, "NETDELAY", "/nowhere/netdelay")
    assert "/nowhere/netdelay is not built" in labs.unavailable() and labs.unavailable(shaped=False) is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in labs.unavailable()
    monkeypatch.setenv("PATH", "/nowhere")
    assert "package iproute2" in labs.unavailable()
