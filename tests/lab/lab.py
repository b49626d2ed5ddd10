#!/usr/bin/env python3
"""lab.py: several hosts on one Linux machine, joined by links of a set rate and delay. For tests, benchmarks and play.

    with Lab(hosts=3, rate_bits=1e9, delay_s=0.0005) as lab:
        server = lab.start(1, ["ringspan", "join", ...])
        lab.run(0, ["ringspan", "bench", ...], check=True)

A host is a set of namespaces (network, hostname, processes, mounts, IPC) held by one process, its init: programs in it
see a machine of their own, with the address 10.77.0.(1 + index) and no other network. The switch is such a host too, so
nothing of the machine's own network is touched, and labs beside each other may use the same addresses.

An init ends when its standard input does, that is when the lab is closed or its owner dies, however that happens. The
kernel then kills every process of the host, and with the last one go its devices. Nothing has a name outside, so there
is nothing that an earlier run could leave behind.

By hand, as root:  python3 tests/lab/lab.py --hosts 3 --rate 1gbit --delay 0.5ms [-- COMMAND]
"""

import argparse
import contextlib
import ctypes
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NETDELAY = os.path.join(os.environ.get("RINGSPAN_BUILD", os.path.join(ROOT, "build/release")), "netdelay")
TOOLS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "taskset": "util-linux", "mount": "mount"}
HOSTS_MAX = 64
WAIT_S = 20  # For a step of the set-up that takes milliseconds: only a broken machine gets near.
CLONE_NEWPID = 0x20000000
libc = ctypes.CDLL(None, use_errno=True)

# What an init does. With SIGCHLD ignored the kernel reaps the orphans that fall to it. /dev/shm is the host's own, or
# programs on two hosts would find each other's shared memory.
INIT = """set -e
echo "$0" > /proc/sys/kernel/hostname
mount -t tmpfs lab /dev/shm
ip link set lo up
trap '' CHLD
echo ready
exec cat"""


class LabError(Exception):
    """The lab cannot do what was asked; the text says why and what to do."""


def unavailable(shaped=True):
    """None, or the reason why no lab can be made here. shaped: one with a rate or a delay."""
    if not sys.platform.startswith("linux"):
        return "the lab needs the namespaces of Linux"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            return f"the lab needs the command {tool} (package {package})"
    if os.geteuid() != 0:
        return "the lab makes network namespaces, which needs root"
    if shaped and not os.path.exists("/dev/net/tun"):
        return "the lab's links need TAP devices, and /dev/net/tun is missing"
    if shaped and not os.path.exists(NETDELAY):
        return f"{NETDELAY} is not built (cmake --build --preset release --target netdelay)"
    script = "ip link add name lab0 type veth peer name lab1"
    if shaped:
        script += " && ip tuntap add lab2 mode tap"
    command = ["unshare", "--net", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode != 0:
        return f"the lab may not make namespaces and devices here: {tried.stderr.strip()}"
    return None


@contextlib.contextmanager
def children_in(fd):
    """Processes that this thread starts meanwhile are born in another PID namespace: in the one that fd is open on, or
    in a new one (None), whose init is then the first of them. They are ordinary children of ours, which nsenter --pid
    could not give: it forks, and the process that one would signal and wait for is not the program."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        if (libc.unshare(CLONE_NEWPID) if fd is None else libc.setns(fd, CLONE_NEWPID)) != 0:
            raise LabError(f"cannot enter a host: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            if libc.setns(own, CLONE_NEWPID) != 0:
                raise LabError(f"cannot leave a host: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(own)


def read_line(pipe, what):
    """The next line of an unbuffered pipe, without its end."""
    line, deadline = b"", time.monotonic() + WAIT_S
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
        byte = pipe.read(1) if ready else None
        if not byte:
            raise LabError(f"{what}: " + ("it has ended" if byte == b"" else f"no answer in {WAIT_S} s"))
        line += byte
    return line[:-1].decode(errors="replace")


def call(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


class Host:
    """Namespaces, and the process that holds them."""

    def __init__(self, name):
        self.name, self.processes = name, []
        command = ["unshare", "--net", "--uts", "--ipc", "--mount-proc", "sh", "-c", INIT, name]
        with children_in(None):
            self.init = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                                         start_new_session=True)
        try:
            read_line(self.init.stdout, f"the init of {name}")
            self.pid_ns = os.open(f"/proc/{self.init.pid}/ns/pid", os.O_RDONLY)
        except BaseException:
            self.end()
            raise

    def end(self):
        """Kills all of the host. Init is gone once everything else is, our own children among it reaped."""
        self.init.kill()
        for process in self.processes:
            process.wait()
        self.init.wait()
        self.init.stdin.close()
        self.init.stdout.close()
        if hasattr(self, "pid_ns"):
            os.close(self.pid_ns)

    def ip(self, *arguments):
        call("nsenter", f"--target={self.init.pid}", "--net", "ip", *arguments)

    def start(self, argv, cores=None, cwd=None, **popen):
        into = ["nsenter", f"--target={self.init.pid}", "--net", "--uts", "--ipc", "--mount",
                f"--wdns={os.path.abspath(cwd or os.getcwd())}"]
        pinned = ["taskset", "--cpu-list", cores] if cores else []
        with children_in(self.pid_ns):
            process = subprocess.Popen([*into, *pinned, *argv], start_new_session=True, **popen)
        self.processes = [*(p for p in self.processes if p.poll() is None), process]
        return process

    def pids(self):
        """Living processes of the host but its init, by the PIDs that the host knows them by."""
        proc, found = f"/proc/{self.init.pid}/root/proc", []
        for entry in os.listdir(proc):
            with contextlib.suppress(OSError):
                if entry.isdigit() and entry != "1":
                    with open(f"{proc}/{entry}/stat") as file:
                        if file.read().rpartition(")")[2].split()[0] not in "ZX":
                            found.append(int(entry))
        return found


class Lab:
    """hosts: how many, named node0, node1, ...
    rate_bits: bits a second of every link, each way; None has no bound.
    delay_s: how long every frame is on its way from host to host, so a round trip takes twice that, and what the hosts
    themselves need. With neither a rate nor a delay the links are a plain veth and bridge.
    mtu: as usual by default, since how many round trips TCP needs to get going depends on it. The speed does not: the
    hosts hand over up to 64 KiB at once either way."""

    def __init__(self, hosts=3, rate_bits=None, delay_s=None, mtu=1500):
        if not 1 <= hosts <= HOSTS_MAX:
            raise LabError(f"{hosts} hosts: 1 to {HOSTS_MAX} are possible")
        self.shaped = rate_bits is not None or delay_s is not None
        reason = unavailable(self.shaped)
        if reason:
            raise LabError(reason)
        self.hosts, self.switch, self.netdelay = [], None, None
        try:
            self.switch = Host("switch")
            for i in range(hosts):
                self.hosts.append(Host(f"node{i}"))
            if self.shaped:
                self.connect_netdelay(rate_bits or 0, delay_s or 0)
            else:
                self.connect_bridge()
            for i, host in enumerate(self.hosts):
                host.ip("link", "set", "eth0", "mtu", str(mtu))
                host.ip("address", "add", f"{self.address(i)}/24", "dev", "eth0")
                host.ip("link", "set", "eth0", "up")
        except BaseException:
            self.close()
            raise

    def connect_bridge(self):
        self.switch.ip("link", "add", "name", "br0", "type", "bridge")
        self.switch.ip("link", "set", "br0", "up")
        for i, host in enumerate(self.hosts):
            self.switch.ip("link", "add", "name", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns",
                           str(host.init.pid))
            self.switch.ip("link", "set", f"port{i}", "master", "br0", "up")

    def connect_netdelay(self, rate_bits, delay_s):
        ports = [f"port{i}:{rate_bits / 8!r}:{delay_s!r}" for i in range(len(self.hosts))]
        self.netdelay = self.switch.start([NETDELAY, *ports], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        read_line(self.netdelay.stdout, "netdelay")
        for i, host in enumerate(self.hosts):
            self.switch.ip("link", "set", f"port{i}", "netns", str(host.init.pid), "name", "eth0")

    def close(self):
        """Kills everything in the lab and takes it down. May be called twice."""
        if self.netdelay:
            self.netdelay.kill()
            self.netdelay.wait()
            self.netdelay.stdin.close()
            self.netdelay.stdout.close()
        for host in [*self.hosts, *([self.switch] if self.switch else [])]:
            host.end()
        self.hosts, self.switch, self.netdelay = [], None, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- Hosts

    def name(self, host):
        return self.hosts[host].name

    def address(self, host):
        return f"10.77.0.{1 + host}"

    def start(self, host, argv, cores=None, **popen):
        """Starts a program on a host, in a session of its own; the Popen is that of the program itself, so signals and
        exit status are its own. cores: the machine's, as in "0" or "0,1"; the rest is Popen's."""
        return self.hosts[host].start(argv, cores, **popen)

    def run(self, host, argv, cores=None, timeout=None, check=False, **popen):
        """The same to its end. A CompletedProcess; output is text and captured unless told otherwise."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with self.start(host, argv, cores, **{**pipes, **popen}) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            said = f"{out or ''}{err or ''}"
            raise LabError(f"{shlex.join(argv)} on {self.name(host)}: status {process.returncode}\n{said}")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def pids(self, host):
        """What runs on a host, by the PIDs that it knows them by."""
        return self.hosts[host].pids()

    def kill_host(self, host):
        """SIGKILL to every process of a host, all at once. The host stays, as after a restart. Its kernel still ends
        the connections; for a power cut take the link down first."""
        self.hosts[host].start(["sh", "-c", "kill -s KILL -- -1"]).wait()
        deadline = time.monotonic() + WAIT_S
        while self.pids(host):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name(host)}: the processes {self.pids(host)} do not die")
            time.sleep(0.001)

    # ---- Links

    def command(self, verb, host, *value):
        """Has netdelay do something, and waits until it is done; the answer."""
        self.name(host)  # An index that is none is the caller's mistake, not netdelay's.
        if not self.netdelay:
            raise LabError(f"{verb}: this lab is a plain bridge; give it a rate_bits or a delay_s")
        self.netdelay.stdin.write(" ".join([verb, str(host), *(repr(float(v)) for v in value)]).encode() + b"\n")
        answer = read_line(self.netdelay.stdout, "netdelay")
        if not answer.startswith("ok"):
            raise LabError(f"netdelay: {answer}")
        return answer

    def set_link(self, host, state):
        if self.netdelay:
            self.command(state, host)
        else:
            self.switch.ip("link", "set", f"port{host}", state)

    def link_down(self, host):
        """Cuts a host off: what is on its way to it is lost, and so is all that comes, either way."""
        self.set_link(host, "down")

    def link_up(self, host):
        self.set_link(host, "up")

    def set_rate(self, host, rate_bits):
        """The rate of a host's link, each way; None has no bound."""
        self.command("rate", host, (rate_bits or 0) / 8)

    def set_delay(self, host, delay_s):
        """The delay of what goes to a host."""
        self.command("delay", host, delay_s or 0)

    def stats(self, host):
        """What went to a host so far, as a dict: frames sent and dropped (for a full queue, to or from it) and cut (the
        link was down), and by how much they were late."""
        pairs = (pair.split("=") for pair in self.command("stats", host).split()[1:])
        return {key: float(value) if key.endswith("_s") else int(value) for key, value in pairs}


# ---- By hand

UNITS = {"": 1, "bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "s": 1, "ms": 1e-3, "us": 1e-6}


def quantity(units):
    def parse(text):
        match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([a-z]*)", text.lower())
        if not match or match.group(2) not in units:
            raise argparse.ArgumentTypeError(f"{text}: a number with one of {', '.join(units)}")
        return float(match.group(1)) * UNITS[match.group(2)]
    return parse


def write_entrances(lab, folder):
    """A command for each host, named as it, that runs another there."""
    for host in lab.hosts:
        path = os.path.join(folder, host.name)
        with open(path, "w") as file:
            file.write(f'#!/bin/sh\n[ $# -gt 0 ] || set -- "${{SHELL:-sh}}"\n'
                       f'exec nsenter --target={host.init.pid} --net --uts --ipc --mount --pid --wdns="$PWD" "$@"\n')
        os.chmod(path, 0o755)


def main():
    parser = argparse.ArgumentParser(
        prog="lab.py", description="Opens a lab and runs COMMAND, or a shell, beside its hosts. There, `node0 COMMAND` "
        "runs COMMAND on node0, and `node0` alone opens a shell on it. With the command everything ends.")
    parser.add_argument("--hosts", type=int, default=3, metavar="N", help="3 unless told otherwise")
    parser.add_argument("--rate", type=quantity(["bit", "kbit", "mbit", "gbit"]), metavar="R", help="as in 1gbit")
    parser.add_argument("--delay", type=quantity(["s", "ms", "us"]), metavar="D", help="one way, as in 0.5ms")
    parser.add_argument("--mtu", type=int, default=1500, metavar="BYTES")
    parser.add_argument("command", nargs="*", metavar="COMMAND")
    options = parser.parse_args()
    try:
        with (Lab(options.hosts, options.rate, options.delay, options.mtu) as lab,
              tempfile.TemporaryDirectory() as folder):
            write_entrances(lab, folder)
            if not options.command:
                print("\n".join(f"{host.name}  {lab.address(i)}" for i, host in enumerate(lab.hosts)))
                print("`node0 COMMAND` runs COMMAND on node0, `node0` opens a shell on it; `exit` here ends the lab.")
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # The command gets it as well and decides.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            env = {**os.environ, "PATH": folder + os.pathsep + os.environ.get("PATH", os.defpath)}
            return subprocess.run(options.command or [os.environ.get("SHELL", "sh")], env=env,
                                  preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)).returncode
    except (LabError, OSError) as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
