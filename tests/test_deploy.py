"""The launchers of deploy/ start what they say on every machine. Machines are this one's processes; what stands for
ssh, srun and scontrol is written here."""

import os
import pathlib
import subprocess

import pytest
import tiny_models
import yaml

BIN = os.environ.get("RINGSPAN_BIN")
ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program")
PROMPT = ["--raw", "-p", "\x01\x02", "--temp", "0", "-n", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.make(str(tmp_path_factory.mktemp("deploy")), "llama-f32")


@pytest.fixture
def tools(tmp_path):
    """A folder of commands, first in the PATH; `ringspan` is the program."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name, text):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
        return folder

    write("ringspan", f'exec {BIN} "$@"')
    return write


def call(argv, folder, **environment):
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(folder), **environment}
    environment.pop("RINGSPAN_SECRET", None)
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=300, env=environment,
                          stdin=subprocess.DEVNULL)


def test_hostfile(model, tools, tmp_path):
    folder = tools("rsh", 'echo "$@" >> "$RSH_LOG"\nhost=$1\nshift\nexec bash -c "$*"')
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1   # here\n\nbeta -m {model} --threads 1\ngamma --threads 1 # no file\n")
    log = tmp_path / "log"
    done = call([ROOT / "deploy/ringspan-hosts", hosts, "run", "-m", model, *PROMPT], folder, RINGSPAN_RSH="rsh",
                RINGSPAN_PORT="47771", RSH_LOG=str(log))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has joined") == 2 and done.stderr.count("no model file here") == 1
    started = log.read_text()
    assert "beta " in started and "gamma " in started
    assert started.count("127.0.0.1:47771") == 2


def test_hostfile_ends_the_others_when_the_head_cannot_start(tools, tmp_path):
    folder = tools("rsh", 'shift\nexec bash -c "$*"')
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1\nbeta\n")
    done = call([ROOT / "deploy/ringspan-hosts", hosts, "run", "-m", "/nonexistent", "-p", "x"], folder,
                RINGSPAN_RSH="rsh", RINGSPAN_PORT="47772")
    assert done.returncode == 2 and "/nonexistent" in done.stderr


@pytest.mark.parametrize("text, reason", [(None, "cannot read"), ("# nothing\n", "names no machine")])
def test_hostfiles_that_cannot_be(tools, tmp_path, text, reason):
    hosts = tmp_path / "hosts"
    if text is not None:
        hosts.write_text(text)
    done = call([ROOT / "deploy/ringspan-hosts", hosts, "run"], tools("unused", ""))
    assert done.returncode == 2 and reason in done.stderr


def test_slurm(model, tools):
    tools("scontrol", "echo 127.0.0.1\necho other")
    folder = tools("srun", """while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_NTASKS=3
SLURM_PROCID=1 "$@" & SLURM_PROCID=2 "$@" & SLURM_PROCID=0 "$@"
status=$?
wait
exit $status""")
    done = call(["bash", ROOT / "deploy/ringspan.sbatch", "run", "-m", model, *PROMPT], folder, SLURM_JOB_ID="77",
                SLURM_JOB_NODELIST="a[0-2]")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has joined") == 2 and "no model file here" not in done.stderr


def test_kubernetes_manifest():
    service, pods = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    spec = pods["spec"]["template"]["spec"]["containers"][0]
    assert service["metadata"]["name"] == pods["spec"]["serviceName"] == "ringspan"
    assert f"--hosts {pods['spec']['replicas']} " in spec["args"][0]
    assert "ringspan-0.ringspan:7777" in spec["args"][0]
