"""The command line of ringspan: help, refused arguments, exit codes. RINGSPAN_BIN names the program."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios

import pytest

BIN = os.environ.get("RINGSPAN_BIN")
pytestmark = pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program")

COMMANDS = ["run", "plan", "bench"]
ENGINE_FLAGS = ["ctx", "ranks", "shares", "split", "kv", "kv-k", "kv-v", "chunk", "threads", "memory-limit", "kernels"]
ABSENT = "/nonexistent/model.gguf"


def call(*words, **kwargs):
    if "input" not in kwargs:
        kwargs["stdin"] = subprocess.DEVNULL
    return subprocess.run([BIN, *words], capture_output=True, text=True, timeout=60, **kwargs)


def refused(*words):
    """The program ends with 2, prints nothing on standard output and one sentence on standard error: that one."""
    done = call(*words)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert re.fullmatch(r"ringspan: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_version():
    done = call("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"ringspan \d+\.\d+\.\d+\n", done.stdout)


def test_usage_lists_the_commands():
    done = call("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(re.search(rf"^  {name} ", done.stdout, re.M) for name in COMMANDS)
    bare = call()
    assert bare.returncode == 2 and bare.stdout == "" and bare.stderr == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_flag_once(command):
    done = call(command, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"Usage: ringspan {command} -m MODEL")
    flags = re.findall(r"^  (?:-\w, |    )--([\w-]+)", done.stdout, re.M)
    assert len(flags) == len(set(flags))
    assert set(ENGINE_FLAGS) <= set(flags)
    assert call(command, "-h").stdout == done.stdout


def test_help_shows_defaults():
    text = call("run", "--help").stdout
    expected = {"temp": "0.8", "top-k": "40", "top-p": "0.95", "ranks": "1", "kv-k": "f16", "split": "auto"}
    for flag, value in expected.items():
        assert re.search(rf"--{flag} .*\(default {re.escape(value)}\)", text), flag
    text = call("bench", "--help").stdout
    for flag, value in {"n-prompt": "512", "n-gen": "128", "n-depth": "0", "repetitions": "5"}.items():
        assert re.search(rf"--{flag} .*\(default {value}\)", text), flag


def test_manual_has_every_flag():
    with open(os.path.join(os.path.dirname(__file__), "../man/ringspan.1")) as file:
        manual = file.read()
    for command in COMMANDS:
        for flag in re.findall(r"--([\w-]+)", call(command, "--help").stdout):
            assert re.search(rf"(?<![\w-])-{flag}\b", manual), flag


def test_unknown_words():
    assert "unknown command 'fly'; see 'ringspan --help'" in refused("fly")
    assert "unknown flag '--fly'" in refused("--fly")
    for command in COMMANDS:
        assert f"unknown flag '--fly'; see 'ringspan {command} --help'" in refused(command, "--fly")
        assert "unknown flag '-z'" in refused(command, "-z")
        assert "flag '-m' needs a value" in refused(command, "-m")
        assert "flag '--json=1' takes no value" in refused(command, "--json=1")
        assert "unexpected argument 'word'" in refused(command, "-m", ABSENT, "word")
    assert "unknown flag '--temp'" in refused("plan", "--temp", "1")
    assert "unknown flag '--repetitions'" in refused("run", "--repetitions", "1")


@pytest.mark.parametrize("command", COMMANDS)
def test_model_is_required(command):
    assert "no model: give -m" in refused(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_absent_model(command):
    words = ["-p", "x"] if command == "run" else []
    assert ABSENT in refused(command, "-m", ABSENT, *words)


BAD = [
    ("run", "--ctx", ["0", "-1", "", " 1", "+1", "1.5", "1k", "4294967295", "99999999999999999999"]),
    ("run", "--ranks", ["0", "65", "two"]),
    ("run", "--shares", ["", "1,", ",1", "1,,2", "0", "-1,2", "nan", "inf", "1;2", ",".join(["1"] * 65)]),
    ("run", "--split", ["", "r5", "R1", "tensor"]),
    ("run", "--kv", ["", "f32", "q8", "Q8_0"]),
    ("run", "--kv-k", ["bf16"]),
    ("run", "--kv-v", ["bf16"]),
    ("run", "--chunk", ["0", "x"]),
    ("run", "--threads", ["0", "5000"]),
    ("plan", "--memory-limit", ["", "0", "-1G", "12X", "12GiBs", "GiB", "1e30", "nan", "12 GiB", "9000000T"]),
    ("run", "--predict", ["-1", "4294967295"]),
    ("run", "--temp", ["-0.1", "nan", "inf", "hot", "1,5"]),
    ("run", "--top-p", ["1.1", "-1"]),
    ("run", "--min-p", ["2"]),
    ("run", "--repeat-penalty", ["0", "-1"]),
    ("run", "--seed", ["-1", "18446744073709551616", "x"]),
    ("run", "--logprobs", ["101", "-1"]),
    ("bench", "--n-prompt", ["", "1,", "a", "1,,2", "-5", "1 2", ",".join(["1"] * 33)]),
    ("bench", "--n-depth", ["1e3"]),
    ("bench", "--repetitions", ["0", "1001"]),
]


@pytest.mark.parametrize("command,flag,value", [(c, f, v) for c, f, values in BAD for v in values])
def test_bad_values_are_named(command, flag, value):
    error = refused(command, "-m", ABSENT, f"{flag}={value}")
    assert error.startswith(f"ringspan: {flag}: '{value}' is "), error


GOOD = [
    ("run", "--ctx", ["1", "200000", "4294967294"]),
    ("run", "--shares", ["1", "3,2,1", "0.5,1e-3"]),
    ("run", "--split", ["auto", "r1", "r2", "r3", "r4", "tp", "pp"]),
    ("run", "--kv", ["f16", "q8_0", "q4_0"]),
    ("plan", "--memory-limit", ["1", "12GiB", "12G", "12g", "1.5GiB", "800MB", "4T", "512KiB", "7B"]),
    ("run", "--temp", ["0", "1.5"]),
    ("run", "--presence-penalty", ["-1.5", "2"]),
    ("run", "--seed", ["0", "18446744073709551615"]),
    ("run", "--predict", ["0", "5"]),
    ("bench", "--n-prompt", ["0", "512", "1,2,3", ",".join(["1"] * 32)]),
]


@pytest.mark.parametrize("command,flag,value", [(c, f, v) for c, f, values in GOOD for v in values])
def test_good_values_pass_to_the_model(command, flag, value):
    words = ["-p", "x"] if command == "run" else []
    assert ABSENT in refused(command, "-m", ABSENT, *words, f"{flag}={value}")


def test_flags_that_contradict_each_other():
    base = ["run", "-m", ABSENT, "-p", "x"]
    assert "--shares names 3 ranks and --ranks 2" in refused(*base, "--shares", "3,2,1", "--ranks", "2")
    assert "--logprobs needs --json" in refused(*base, "--logprobs", "2")
    assert "--system belongs to a chat" in refused(*base, "--raw", "--system", "x")
    assert "nothing to measure" in refused("bench", "-m", ABSENT, "-p", "0", "-n", "0")
    assert "need a context of 4608 tokens and --ctx allows 100" in refused(
        "bench", "-m", ABSENT, "-d", "0,4096", "--ctx", "100")


def test_closed_and_full_standard_output():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([BIN, "run", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.returncode == 141 and done.stderr == ""
    with open("/dev/full", "w") as full:
        done = subprocess.run([BIN, "run", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "ringspan: cannot write to standard output: No space left on device\n"


# What needs a model: RINGSPAN_MODEL names a small GGUF file.
MODEL = os.environ.get("RINGSPAN_MODEL")
with_model = pytest.mark.skipif(not MODEL, reason="RINGSPAN_MODEL does not name a GGUF file")


def run_json(*words):
    done = call("run", "-m", MODEL, "--json", "-q", "--raw", *words)
    assert done.returncode == 0 and done.stderr == "", done
    return json.loads(done.stdout)


@with_model
def test_run_gives_the_same_text_as_stream_and_as_json():
    words = ["-p", "The sea is", "-n", "12", "--temp", "0", "--ignore-eos"]
    answer = run_json(*words)
    assert call("run", "-m", MODEL, "--raw", "-q", *words).stdout == answer["text"] + "\n"
    assert len(answer["tokens"]) == 12 and answer["finish_reason"] == "length"
    timings = answer["timings"]
    assert timings["prefill_tokens"] == timings["prompt_tokens"] > 0 and timings["decode_tokens"] == 11
    assert 0 < timings["prefill_s"] <= timings["ttft_s"] and timings["decode_tokens_per_s"] > 0
    assert answer["options"]["context"] == timings["prompt_tokens"] + 12
    assert len(answer["ranks"]) == 1 and answer["ranks"][0]["kv_bytes"] > 0


@with_model
def test_seed_repeats_a_run():
    words = ["-p", "Once", "-n", "8", "--temp", "1", "--ignore-eos"]
    first = run_json(*words)
    assert run_json(*words, "--seed", str(first["seed"]))["tokens"] == first["tokens"]


@with_model
def test_logprobs():
    answer = run_json("-p", "The sea is", "-n", "4", "--temp", "0", "--logprobs", "3", "--ignore-eos")
    assert [entry["token"] for entry in answer["logprobs"]] == answer["tokens"]
    for entry in answer["logprobs"]:
        assert len(entry["top"]) == 3 and entry["logprob"] <= 0
        assert entry["top"] == sorted(entry["top"], key=lambda t: -t["logprob"])
    assert "logprobs" not in run_json("-p", "x", "-n", "1")


@with_model
def test_file_and_question_and_standard_input_are_one_prompt(tmp_path):
    (tmp_path / "long.txt").write_text("A long text.")
    words = ["-n", "4", "--temp", "0"]
    expected = run_json("-p", "A long text.\n\nWhy?", *words)
    assert run_json("-f", str(tmp_path / "long.txt"), "-p", "Why?", *words)["tokens"] == expected["tokens"]
    done = call("run", "-m", MODEL, "--json", "-q", "--raw", *words, input="A long text.\n\nWhy?")
    assert json.loads(done.stdout)["tokens"] == expected["tokens"]


@with_model
def test_context_bounds_the_answer():
    prompt = run_json("-p", "one two three", "-n", "0")["timings"]["prompt_tokens"]
    full = run_json("-p", "one two three", "--ctx", str(prompt + 5), "--ignore-eos")
    assert full["finish_reason"] == "context" and len(full["tokens"]) == 6  # the last needs no place in the cache
    error = refused("run", "-m", MODEL, "--raw", "-p", "one two three", "--ctx", str(prompt - 1))
    assert f"the prompt has {prompt} tokens and the context {prompt - 1}" in error


@with_model
def test_broken_pipe_ends_generation():
    words = ["run", "-m", MODEL, "--raw", "-p", "x", "-n", "2000", "--ignore-eos", "--temp", "1"]
    process = subprocess.Popen([BIN, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=120) == 141


def on_terminal(words, width, interrupt=False):
    """Exit code, standard output and what the terminal of `width` columns on standard error received."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    process = subprocess.Popen([BIN, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    screen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux reports the closed other end so.
            piece = b""
        if not piece:
            break
        screen += piece
        if interrupt and b"prefill" in screen:
            process.send_signal(signal.SIGINT)
            interrupt = False
    out = process.stdout.read()
    os.close(master)
    return process.wait(timeout=120), out, screen


@with_model
@pytest.mark.parametrize("width", [100, 60, 20])
def test_progress_fits_the_terminal_and_is_cleared(width, tmp_path):
    (tmp_path / "long.txt").write_text("word " * 1500)
    words = ["run", "-m", MODEL, "--raw", "-f", str(tmp_path / "long.txt"), "-n", "1", "--chunk", "64"]
    code, _, screen = on_terminal(words, width)
    assert code == 0
    drawn = [line.removesuffix(b"\x1b[K") for line in re.findall(rb"\r(prefill[^\r\n]*)", screen)]
    assert len(drawn) > 1 and max(map(len, drawn)) < width
    assert screen.rfind(b"\r\x1b[K") > screen.rfind(b"prefill")


@with_model
def test_interrupt_prints_the_summary(tmp_path):
    (tmp_path / "long.txt").write_text("word " * 1800)
    words = ["run", "-m", MODEL, "--raw", "-f", str(tmp_path / "long.txt"), "-n", "100", "--chunk", "64"]
    code, _, screen = on_terminal(words, 100, interrupt=True)
    assert code == 130
    assert b"; cancelled" in screen and b"KV MiB" in screen


@with_model
def test_plan_fits_or_says_what_does():
    done = call("plan", "-m", MODEL, "--ctx", "1024", "--ranks", "2", "--json")
    assert done.returncode == 0, done
    plan = json.loads(done.stdout)
    size = plan["bytes"]
    assert plan["fits"] and len(plan["ranks"]) == 2
    assert size["total"] == size["weights_file"] + size["program"] + size["tables"] + size["ranks"]
    assert size["ranks"] == sum(r["kv_bytes"] + r["activations_bytes"] + r["wire_bytes"] for r in plan["ranks"])
    tight = call("plan", "-m", MODEL, "--ctx", "1024", "--ranks", "2", "--memory-limit", str(size["total"] - 1))
    assert tight.returncode == 2 and "largest context that fits" in tight.stderr
    assert "rank  " in tight.stdout
    exact = call("plan", "-m", MODEL, "--ctx", "1024", "--ranks", "2", "--memory-limit", str(size["total"] + 65536))
    assert exact.returncode == 0, exact


@with_model
def test_bench_rows():
    words = ["bench", "-m", MODEL, "-p", "32,0", "-n", "4", "-d", "0,64", "-r", "2"]
    rows = json.loads(call(*words, "--json").stdout)
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows] == [(32, 0, 0), (0, 4, 0), (32, 0, 64), (0, 4, 64)]
    for row in rows:
        mean = sum(row["samples_ts"]) / 2
        assert len(row["samples_ns"]) == 2 and abs(row["avg_ts"] - mean) < 1e-6 * mean
    lines = call(*words).stdout.splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1  # in columns, not bytes
    assert [line.split("|")[-3].strip() for line in lines[2:]] == ["pp32", "tg4", "pp32 @ d64", "tg4 @ d64"]
