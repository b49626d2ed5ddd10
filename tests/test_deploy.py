"""The launchers of deploy/ under what they are written for: sshd, Slurm and systemd themselves run on hosts of the lab
(tests/lab), and the manifest for Kubernetes is held to its schema."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import kubernetes_validate
import pytest
import tiny_models
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/lab"))
import lab as labs  # noqa: E402

BIN = os.environ.get("RINGSPAN_BIN")
pytestmark = pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program")
SECRET = "a secret of the tests"
RUN = ["--raw", "-p", "\x01\x02", "--temp", "0", "-n", "4"]
HOSTS = 3
PATIENCE_S = 120  # For what takes seconds: machines are busy.
PATH = f"{os.path.dirname(BIN or '')}:{os.environ['PATH']}:/usr/sbin:/sbin"


def needs(**packages):
    """Skips a test where no lab can be made or a program is missing."""
    missing = [f"{program} (package {package})" for program, package in packages.items()
               if not shutil.which(program.replace("_", "-"), path=PATH)]
    reason = labs.unavailable(shaped=False) or (f"no {', '.join(missing)}" if missing else None)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


needs_ssh = needs(sshd="openssh-server", ssh="openssh-client")
needs_slurm = needs(slurmctld="slurmctld", slurmd="slurmd", sbatch="slurm-client", munged="munge")
needs_systemd = needs(systemd_nspawn="systemd-container", useradd="passwd")


def wait_until(check, what):
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


class Machines:
    """The hosts of a lab, each with a /run of its own, which know each other by name. What root's shells and ssh would
    read at home is left out."""

    def __init__(self, lab, folder):
        self.lab, self.folder = lab, folder
        self.environment = {**os.environ, "PATH": PATH, "XDG_CACHE_HOME": str(folder)}
        self.environment.pop("RINGSPAN_SECRET", None)
        names, users = folder / "names", folder / "users"
        names.write_text("".join(f"{lab.address(i)} {lab.name(i)}\n" for i in range(HOSTS)))
        known = pathlib.Path("/etc/passwd").read_text()
        users.write_text(re.sub("^root:.*", f"root:x:0:0:root:{folder}:/bin/sh", known, flags=re.M))
        mounts = 'mount -t tmpfs run /run; mount --bind "$1" /etc/hosts; mount --bind "$2" /etc/passwd'
        for i in range(HOSTS):
            self.run(i, "sh", "-ec", mounts, "sh", names, users, check=True)

    def run(self, host, *words, **options):
        options = {"env": self.environment, "timeout": PATIENCE_S, **options}
        return self.lab.run(host, [str(word) for word in words], **options)

    def daemon(self, host, *words):
        """Its log is a file of the test's folder, named by it and the host."""
        with open(self.folder / f"{words[0]}{host}.log", "w") as log:
            words = [shutil.which(words[0], path=PATH), *map(str, words[1:])]
            return self.lab.start(host, words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def logs(self):
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def machines(tmp_path):
    with labs.Lab(HOSTS) as lab:
        yield Machines(lab, tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.make(str(tmp_path_factory.mktemp("deploy")), "llama-f32")


@pytest.fixture(scope="module")
def text(model):
    """What all of them have to say."""
    return subprocess.run([BIN, "run", "-m", model, *RUN, "--ranks", str(HOSTS)], capture_output=True, text=True,
                          check=True).stdout


# ---- ssh and a hostfile


@pytest.fixture
def by_ssh(machines):
    """A function that runs ringspan-hosts on node0. The others have an sshd, node0 the key to them."""
    folder, lab = machines.folder, machines.lab
    key, known, config = folder / "key", folder / "known", folder / "config"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    known.write_text(f"node* {key.with_suffix('.pub').read_text()}")
    config.write_text(f"IdentityFile {key}\nUserKnownHostsFile {known}\nStrictHostKeyChecking yes\n")
    machines.run(0, "mount", "--bind", config, "/etc/ssh/ssh_config", check=True)
    for i in range(1, HOSTS):
        machines.run(i, "mkdir", "/run/sshd", check=True)
        options = (f"AuthorizedKeysFile={key}.pub", "StrictModes=no", "UsePAM=no", "PidFile=none")
        machines.daemon(i, "sshd", "-D", "-e", "-f", "/dev/null", "-h", key, *(w for o in options for w in ("-o", o)))
        wait_until(lambda host=lab.name(i): machines.run(0, "ssh", "-o", "BatchMode=yes", host, "true").returncode == 0,
                   machines.logs)

    def run(hostfile, *words, program=BIN):
        (folder / "hosts").write_text(hostfile)
        machines.environment["RINGSPAN"] = str(program)
        done = machines.run(0, ROOT / "deploy/ringspan-hosts", folder / "hosts", *words)
        wait_until(lambda: [len(lab.pids(i)) for i in range(HOSTS)] == [0, 1, 1], lambda: "members are left")
        return done

    return run


@needs_ssh
def test_hostfile(model, text, by_ssh):
    done = by_ssh(f"node0\t--threads 1  # here\n\nnode1\t-m {model} --threads 1\nnode2 --threads 1 # no file\n", "run",
                  "-m", model, *RUN)
    assert done.returncode == 0 and done.stdout == text, done.stderr
    assert done.stderr.count("has joined") == 2 and done.stderr.count("no model file here") == 1
    assert done.stderr.count("the head has left") == 2


@needs_ssh
def test_hostfile_ends_the_others_when_the_head_cannot_start(tmp_path, by_ssh):
    """A head that fails when both members already look for it, which they would for ten minutes."""
    program = tmp_path / "program"
    program.write_text(f"""#!/bin/sh
if [ "$1" = join ]; then
    touch {tmp_path}/"$(hostname)"
    exec {BIN} "$@"
fi
until [ -e {tmp_path}/node1 ] && [ -e {tmp_path}/node2 ]; do sleep 0.1; done
exit 3
""")
    program.chmod(0o755)
    done = by_ssh("node0\nnode1 --wait 600\nnode2 --wait 600\n", "run", program=program)
    assert done.returncode == 3, done.stderr


@needs_ssh
def test_hostfile_ends_the_head_when_a_machine_cannot_join(model, by_ssh):
    done = by_ssh("node0\nnode1\nnode2 -m /nonexistent\n", "run", "-m", model, *RUN)
    assert done.returncode != 0 and "/nonexistent" in done.stderr
    assert "ringspan-hosts: not all machines could join, so the head ends" in done.stderr


@pytest.mark.parametrize("text, reason", [(None, "cannot read"), ("# nothing\n", "names no machine")])
def test_hostfiles_that_cannot_be(tmp_path, text, reason):
    hosts = tmp_path / "hosts"
    if text is not None:
        hosts.write_text(text)
    done = subprocess.run([ROOT / "deploy/ringspan-hosts", hosts, "run"], capture_output=True, text=True)
    assert done.returncode == 2 and reason in done.stderr


# ---- Slurm

SLURM = """ClusterName=lab
SlurmctldHost=node0
SlurmUser=root
AuthInfo=socket=/run/munge.socket
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=1
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
NodeName=node[0-2] RealMemory=500
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture
def by_slurm(machines):
    """A function that submits ringspan.sbatch on node0 and waits for its end: (Slurm's record, what the job wrote)."""
    folder = machines.folder
    key, settings, out = folder / "munge.key", folder / "slurm.conf", folder / "out"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    settings.write_text(SLURM.format(folder=folder))
    (folder / "state").mkdir()
    machines.environment["SLURM_CONF"] = str(settings)
    for i in range(HOSTS):
        files = [f"--{name}=/run/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        machines.daemon(i, "munged", "--foreground", f"--key-file={key}", *files)
        wait_until(lambda i=i: machines.run(i, "munge", "-n", "-S", "/run/munge.socket").returncode == 0, machines.logs)
    machines.daemon(0, "slurmctld", "-D")
    for i in range(HOSTS):
        machines.daemon(i, "slurmd", "-D", "-N", machines.lab.name(i))
    wait_until(lambda: machines.run(0, "sinfo", "-h", "-o", "%D %T").stdout == "3 idle\n", machines.logs)

    def submit(*words):
        batch = ("sbatch", "--export=PATH", "--nodes", HOSTS, "-o", out, ROOT / "deploy/ringspan.sbatch")
        machines.run(0, *batch, *words, check=True)
        wait_until(lambda: machines.run(0, "squeue", "-h", check=True).stdout == "", machines.logs)
        return machines.run(0, "scontrol", "show", "job", check=True).stdout, out.read_text()

    return submit


@needs_slurm
def test_slurm(model, text, by_slurm):
    job, wrote = by_slurm("run", "-m", model, *RUN)
    assert "JobState=COMPLETED" in job and text in wrote, f"{job}\n{wrote}"
    assert wrote.count("has joined") == 2 and "no model file here" not in wrote
    assert f"mem={HOSTS * 500}M," in job  # All of it.


@needs_slurm
def test_slurm_ends_the_job_when_the_head_cannot_start(model, by_slurm):
    job, wrote = by_slurm("run", "-m", model, "-f", "/nonexistent")
    assert "JobState=FAILED" in job and "/nonexistent" in wrote, f"{job}\n{wrote}"


# ---- systemd

# This machine once more, as it would be after one has installed the unit; what changes is kept in memory.
INSTALL = """mount -t tmpfs disk "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
echo 0123456789abcdef0123456789abcdef > etc/machine-id
echo node1 > etc/hostname
cp "$2" usr/local/bin/ringspan
cp "$3" etc/systemd/system/
mkdir -p etc/ringspan
printf 'HEAD=10.77.0.1:7777\\nFLAGS=--threads 1 --memory-limit 1GiB\\n' > etc/ringspan/join.conf
echo "$4" > etc/ringspan/secret
chroot . useradd --system ringspan
chroot . chown ringspan etc/ringspan/secret
chmod 600 etc/ringspan/secret"""


# A process that asks for it gets control groups of its own, below which systemd finds its place.
CGROUP = """for tree in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    if [ -e "$tree/cgroup.procs" ]; then
        mkdir "$tree/$0"
        echo 0 > "$tree/$0/cgroup.procs"
    fi
done
exec "$@\""""


@pytest.fixture
def cgroup(machines):
    name = f"ringspan-{os.getpid()}"
    yield ["sh", "-ec", CGROUP, name]
    machines.lab.close()
    for tree in list(pathlib.Path("/sys/fs/cgroup").glob(f"**/{name}")):
        for folder, _, _ in os.walk(tree, topdown=False):
            os.rmdir(folder)


@needs_systemd
def test_systemd_joins_every_head(machines, cgroup, model, text):
    """Heads that come, go and are killed, one after the other, on node0; node1 is booted with the unit."""
    disk = machines.folder / "disk"
    disk.mkdir()
    unit = ROOT / "deploy/ringspan-join.service"
    done = machines.run(1, "sh", "-ec", INSTALL, "sh", disk, BIN, unit, SECRET)
    if done.returncode != 0:
        pytest.skip(f"no second root on this machine: {done.stderr.strip()}")
    nspawn = ("systemd-nspawn", "-D", disk / "root", "--register=no", "--keep-unit", "--boot")
    boot = machines.daemon(1, *cgroup, *nspawn, "--", f"--unit={unit.name}")
    machines.environment["RINGSPAN_SECRET"] = SECRET

    def words(*command):
        return [BIN, *command, "-m", model, "--hosts", "2", "--threads", "1", "--wait", str(PATIENCE_S // 2)]

    for killed in (False, False, True, False):
        if killed:
            head = machines.lab.start(0, words("bench", "-n", "100000", "-c", "200000"), env=machines.environment,
                                      stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
            assert any(b"has joined" in line for line in head.stderr)
            head.kill()
            head.communicate()
            continue
        done = machines.run(0, *words("run", *RUN))
        if boot.poll() is not None:
            pytest.skip(f"systemd does not boot on this machine: {machines.logs()}")
        assert done.returncode == 0 and done.stdout == text, f"{done.stderr}\n{machines.logs()}"
        assert "node1 (10.77.0.2" in done.stderr
    boot.terminate()
    assert boot.wait(PATIENCE_S) == 0, machines.logs()


# ---- Kubernetes


def test_kubernetes_manifest():
    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    service, job = documents
    pod = job["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["metadata"]["name"] == pod["spec"]["subdomain"]
    container, = pod["spec"]["containers"]
    script, = container["args"]
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    assert f"--hosts {job['spec']['completions']} " in script
    assert script.count(f"--threads {container['resources']['limits']['cpu']} ") == 2
    assert script.count(f"{job['metadata']['name']}-0.{service['metadata']['name']}") == 2
