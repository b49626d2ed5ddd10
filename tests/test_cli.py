"""The command line of ringspan: help, refused arguments, exit codes. RINGSPAN_BIN names the program."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import termios

import pytest

BIN = os.environ.get("RINGSPAN_BIN")
pytestmark = pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program")

COMMANDS = ["run", "plan", "bench"]  # that take a model
ENGINE_FLAGS = ["ctx", "ranks", "shares", "split", "kv", "kv-k", "kv-v", "chunk", "threads", "memory-limit", "kernels"]
ABSENT = "/nonexistent/model.gguf"


def call(*words, **kwargs):
    if "input" not in kwargs:
        kwargs["stdin"] = subprocess.DEVNULL
    kwargs.setdefault("timeout", 60)
    return subprocess.run([BIN, *words], capture_output=True, text=True, **kwargs)


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
    assert all(re.search(rf"^  {name} ", done.stdout, re.M) for name in [*COMMANDS, "probe"])
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
    for command in [*COMMANDS, "probe"]:
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
    ("run", "--seed", ["-1", "9223372036854775808", "18446744073709551616", "x"]),
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
    ("run", "--seed", ["0", "9223372036854775807"]),
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


def on_terminal(words, width, interrupt_at=None, interrupt=signal.SIGINT):
    """Exit code and what a terminal of `width` columns received; the signal is sent once `interrupt_at` is on it."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    process = subprocess.Popen([BIN, *words], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
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
        if interrupt_at and re.search(interrupt_at, screen):
            process.send_signal(interrupt)
            interrupt_at = None
    os.close(master)
    return process.wait(timeout=60), screen


PATIENCE_S = 600  # a probe takes seconds, but not beside other programs
FIGURES = ["read_bytes_per_s", "copy_bytes_per_s", "fp32_flop_per_s", "int8_op_per_s"]


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A cache folder with a profile of this machine that `ringspan probe --json` has stored and printed."""
    cache = tmp_path_factory.mktemp("cache")
    here = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = call("probe", "--json", "--threads", "2", env=here, timeout=PATIENCE_S)
    assert done.returncode == 0 and done.stderr == "", done
    return cache, json.loads(done.stdout)


def test_probe_measures_and_stores(probed):
    cache, profile = probed
    assert os.listdir(cache / "ringspan") == ["machine.json"]  # and no temporary file
    assert json.loads((cache / "ringspan" / "machine.json").read_text()) == profile
    assert profile["ringspan_version"] == call("--version").stdout.split()[1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", profile["measured_at"])
    assert profile["host"] == socket.gethostname() and profile["cpu"] and profile["int8_by"]
    assert profile["kernels"] in ("portable", "avx2", "avx_vnni", "avx512", "neon", "neon_dot", "neon_i8mm")
    assert profile["cpus"] == len(os.sched_getaffinity(0)) >= profile["cores"] >= 1 and profile["numa_nodes"] >= 1
    assert profile["buffer_bytes"] >= max(256 << 20, 4 * profile["cache_bytes"])
    assert profile["buffer_bytes"] <= profile["allowed_bytes"] / 4 < profile["memory_bytes"] / 4
    assert 0 < profile["cpu_share"] <= 1 and profile["duration_s"] > 0
    assert profile["all_threads"].pop("threads") == 2 and profile["one_thread"].pop("threads") == 1


def test_probe_figures_are_plausible(probed):
    """Bounds that hold on a busy machine, too, but not for work that the compiler left out or counted twice."""
    profile = probed[1]
    for figure in FIGURES:
        one, both = profile["one_thread"][figure], profile["all_threads"][figure]
        for rate in (one, both):
            assert 0 < rate["least"] <= rate["median"] <= rate["most"] < 1e14, figure
        assert both["most"] > one["median"] / 2, figure
    for threads in ("one_thread", "all_threads"):
        read, copy = (profile[threads][figure]["most"] for figure in FIGURES[:2])
        assert 1e8 < read < 1e12 and copy < 4 * read  # a copy counts its bytes twice


def test_probe_refuses(tmp_path):
    out = str(tmp_path / "profile.json")
    assert "kernels 'ref' are not for speed" in refused("probe", "-o", out, "--kernels", "ref")
    assert "no kernels 'abacus'" in refused("probe", "-o", out, "--kernels", "abacus")
    assert "takes at most a quarter" in refused("probe", "-o", out, "--memory-limit", "512MiB")
    assert "cannot store the profile in /nonexistent/x: No such" in refused("probe", "-o", "/nonexistent/x")
    assert "it is no file" in refused("probe", "-o", "/dev/null")
    assert "is not a number" in refused("probe", "-o", out, "--threads", "0")
    assert "unknown flag '--ctx'" in refused("probe", "-o", out, "--ctx", "5")
    assert "unknown flag '-m'" in refused("probe", "-m", ABSENT)
    assert "unexpected argument 'word'" in refused("probe", "-o", out, "word")
    assert "flag '-o' needs a value" in refused("probe", "-o")
    homeless = call("probe", env={"PATH": "/nonexistent"})
    assert homeless.returncode == 2 and "give -o FILE" in homeless.stderr
    assert os.listdir(tmp_path) == []


def test_probe_draws_progress_and_stops(tmp_path):
    (tmp_path / "profile.json").write_text("the one before")
    words = ["probe", "-o", str(tmp_path / "profile.json"), "--threads", "1"]
    code, screen = on_terminal(words, 100, interrupt_at=rb"\rprobe [^\r]* [1-9]%")
    assert code == 130 and b"stored in" not in screen and b"tok/s" not in screen
    assert (tmp_path / "profile.json").read_text() == "the one before" and len(os.listdir(tmp_path)) == 1


def test_probe_table(tmp_path):
    (tmp_path / "profile.json").write_text("the one before")
    done = call("probe", "-o", str(tmp_path / "profile.json"), "-t", "1", "--kernels", "portable", timeout=PATIENCE_S)
    assert done.returncode == 0 and done.stderr == "", done
    assert max(map(len, done.stdout.splitlines())) <= 120 and "kernels portable" in done.stdout
    for row in ("read GB/s", "copy GB/s", "FP32 GFLOP/s", "INT8 GOP/s"):
        assert re.search(rf"^ *{row} +\d+\.\d\d +\d+ %$", done.stdout, re.M), row
    assert done.stdout.endswith(f"stored in {tmp_path}/profile.json\n")
    assert json.loads((tmp_path / "profile.json").read_text())["all_threads"]["threads"] == 1


# What needs a model.
MODEL = os.path.join(os.environ.get("RINGSPAN_MODELS", "models"), "SmolLM2-135M-Instruct.Q4_1.gguf")
with_model = pytest.mark.skipif(not os.path.exists(MODEL), reason=f"{MODEL} is missing: tools/fetch-model smollm2-135m")
GREEDY = ["--temp", "0", "--ignore-eos"]


def run_json(*words, **kwargs):
    done = call("run", "-m", MODEL, "--json", "-q", *words, **kwargs)
    assert done.returncode == 0 and done.stderr == "", done
    return json.loads(done.stdout)


@with_model
def test_chat_answers_and_stops():
    answer = run_json("-p", "What is the capital of France?", "-n", "60", "--temp", "0")
    assert "Paris" in answer["text"] and answer["finish_reason"] == "stop" and len(answer["tokens"]) < 60
    assert not answer["text"].startswith(" ") and "<|im_end|>" not in answer["text"]
    pirate = run_json("-p", "What is the capital of France?", "-n", "0", "--system", "You are a pirate.")
    assert pirate["timings"]["prompt_tokens"] != answer["timings"]["prompt_tokens"]


@with_model
def test_run_gives_the_same_text_as_stream_and_as_json():
    words = ["--raw", "-p", "The sea is", "-n", "12", *GREEDY]
    answer = run_json(*words)
    done = call("run", "-m", MODEL, *words)
    assert done.returncode == 0 and done.stdout == answer["text"] + "\n"
    assert re.search(rf"^prompt +{answer['timings']['prompt_tokens']} tokens .* first token after", done.stderr, re.M)
    assert re.search(r"^generated +12 tokens .* ended by -n$", done.stderr, re.M)
    assert len(answer["tokens"]) == 12 and answer["finish_reason"] == "length"
    timings = answer["timings"]
    assert timings["prefill_tokens"] == timings["prompt_tokens"] > 0 and timings["decode_tokens"] == 11
    assert 0 < timings["prefill_s"] <= timings["ttft_s"] and timings["decode_tokens_per_s"] > 0
    assert answer["options"]["context"] == timings["prompt_tokens"] + 12
    assert len(answer["ranks"]) == 1 and answer["ranks"][0]["kv_bytes"] > 0


@with_model
def test_characters_are_never_cut():
    """Emoji and Chinese take several tokens a character; every write is valid UTF-8 on its own."""
    words = ["run", "-m", MODEL, "-q", "-p", "Repeat exactly: \U0001f600\u65e5\u672c\u8a9e", "-n", "24", *GREEDY]
    process = subprocess.Popen([BIN, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    pieces = []
    while piece := os.read(process.stdout.fileno(), 65536):
        pieces.append(piece.decode())
    assert process.wait(timeout=60) == 0
    assert len(pieces) > 4 and any(ord(c) > 0x2FFF for c in "".join(pieces))


@with_model
@pytest.mark.parametrize("split", ["r1", "r2", "r3", "r4", "tp", "pp"])
def test_splits_agree_and_hold_the_whole_context(split):
    words = ["--raw", "-p", "The sea is " * 30, "-n", "6", *GREEDY]
    answer = run_json(*words, "--ranks", "3", "--split", split)
    assert answer["tokens"] == run_json(*words)["tokens"]
    held = [rank["tokens"] for rank in answer["ranks"]]
    length = answer["timings"]["prompt_tokens"] + 5  # The last token is not evaluated.
    assert held == [length] * 3 if split in ("tp", "pp") else sum(held) == length and min(held) < max(held)


@with_model
def test_shares_deal_the_context():
    answer = run_json("--raw", "-p", "word " * 400, "-n", "1", "--shares", "3,2,1", "--kv", "q8_0")
    assert [rank["tokens"] // 64 for rank in answer["ranks"]] == [3, 2, 1]
    assert answer["options"]["ranks"] == 3 and answer["options"]["kv_v"] == "q8_0"


@with_model
def test_a_rank_without_heads_holds_nothing():
    ranks = run_json("--raw", "-p", "The sea", "-n", "1", "--split", "tp", "--ranks", "4")["ranks"]  # 3 KV heads
    assert sorted(rank["tokens"] > 0 for rank in ranks) == [False, True, True, True]
    assert all((rank["tokens"] > 0) == (rank["pages"] > 0) for rank in ranks)


@with_model
def test_seed_repeats_a_run():
    words = ["--raw", "-p", "Once", "-n", "8", "--temp", "1", "--ignore-eos"]
    first = run_json(*words)
    assert run_json(*words, "--seed", str(first["seed"]))["tokens"] == first["tokens"]
    assert run_json(*words, "--seed", str(2**63 - 1))["seed"] == 2**63 - 1


@with_model
def test_logprobs():
    words = ["--raw", "-p", "The sea is", "-n", "4", *GREEDY]
    answer = run_json(*words, "--logprobs", "3")
    assert [entry["token"] for entry in answer["logprobs"]] == answer["tokens"]
    for entry in answer["logprobs"]:
        assert len(entry["top"]) == 3 and entry["logprob"] <= 0
        assert entry["top"] == sorted(entry["top"], key=lambda t: -t["logprob"])
        assert entry["top"][0]["token"] == entry["token"]  # greedy
    assert "".join(entry["text"] for entry in answer["logprobs"]) == answer["text"]
    assert "logprobs" not in run_json(*words)


@with_model
def test_file_and_question_and_standard_input_are_one_prompt(tmp_path):
    (tmp_path / "long.txt").write_text("A long text.")
    words = ["--raw", "-n", "4", "--temp", "0"]
    expected = run_json("-p", "A long text.\n\nWhy?", *words)
    assert run_json("-f", str(tmp_path / "long.txt"), "-p", "Why?", *words)["tokens"] == expected["tokens"]
    assert run_json(*words, input="A long text.\n\nWhy?")["tokens"] == expected["tokens"]
    assert run_json("-f", "-", "-p", "Why?", *words, input="A long text.")["tokens"] == expected["tokens"]


@with_model
def test_prompts_that_cannot_be_are_refused(tmp_path):
    base = ["run", "-m", MODEL]
    (tmp_path / "nul").write_bytes(b"a\0b")
    assert "the prompt is empty" in refused(*base, "-p", "")
    assert "the prompt is empty" in refused(*base, "--raw", "-p", "")
    assert "NUL byte" in refused(*base, "-f", str(tmp_path / "nul"))
    assert "cannot open" in refused(*base, "-f", str(tmp_path / "absent"), "-p", "x")
    assert "cannot read" in refused(*base, "-f", str(tmp_path), "-p", "x")
    assert "no kernels 'abacus'" in refused(*base, "-p", "x", "--kernels", "abacus")


@with_model
def test_without_python_the_chat_says_what_to_do():
    """An interpreter without Jinja2 is as good as none; the build's own first choice may have it."""
    done = call("run", "-m", MODEL, "-p", "x", "-n", "1", "-q", env={"PATH": "/nonexistent"})
    assert done.returncode == 0 or re.fullmatch(
        r"ringspan: chat templates need .*; install python3-jinja2; --raw continues the prompt [^\n]*\n", done.stderr)
    assert call("run", "-m", MODEL, "--raw", "-p", "x", "-n", "1", env={"PATH": "/nonexistent"}).returncode == 0


@with_model
def test_context_bounds_the_answer():
    prompt = run_json("--raw", "-p", "one two three", "-n", "0")["timings"]["prompt_tokens"]
    full = run_json("--raw", "-p", "one two three", "--ctx", str(prompt + 5), "--ignore-eos")
    assert full["finish_reason"] == "context" and len(full["tokens"]) == 6  # the last needs no place in the cache
    error = refused("run", "-m", MODEL, "--raw", "-p", "one two three", "--ctx", str(prompt - 1))
    assert f"the prompt has {prompt} tokens and the context {prompt - 1}" in error
    assert "no context fits" in refused("run", "-m", MODEL, "--raw", "-p", "x", "--memory-limit", "10MiB")


@with_model
def test_broken_pipe_ends_generation():
    words = ["run", "-m", MODEL, "--raw", "-p", "x", "-n", "2000", "--ignore-eos", "--temp", "1"]
    process = subprocess.Popen([BIN, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 141


@with_model
@pytest.mark.parametrize("width", [100, 60, 40, 20])
def test_progress_fits_the_terminal_and_is_cleared(width):
    words = ["run", "-m", MODEL, "--raw", "-p", "word " * 300, "-n", "1", "--chunk", "32"]
    code, screen = on_terminal(words, width)
    assert code == 0
    drawn = [line.removesuffix(b"\x1b[K") for line in re.findall(rb"\r(prefill[^\r\n]*)", screen)]
    assert len(drawn) > 1 and max(map(len, drawn)) <= width - 3
    assert b"  0%" in drawn[0] and (width < 40 or b"ETA 0:00:" in drawn[1])
    assert screen.rfind(b"\r\x1b[K") > screen.rfind(b"prefill")


@with_model
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["prefill", "generation"])
def test_interrupt_prints_the_summary(when, how):
    prompt, mark = ("word " * 1500, rb" [1-9]%") if when == "prefill" else ("The sea is", rb"\r\x1b\[K[^\r]{20}")
    words = ["run", "-m", MODEL, "--raw", "-p", prompt, "-n", "2000", "--chunk", "32", *GREEDY]
    code, screen = on_terminal(words, 100, interrupt_at=mark, interrupt=how)
    assert code == 128 + how
    assert b"stopped by the user" in screen and b"KV MiB reserved" in screen
    assert (re.search(rb"prompt +\d+ of \d+ tokens", screen) is not None) == (when == "prefill")
    generated = int(re.search(rb"generated +(\d+) tokens", screen).group(1))
    assert generated == 0 if when == "prefill" else 0 < generated < 2000


@with_model
def test_plan_fits_or_says_what_does():
    done = call("plan", "-m", MODEL, "--ctx", "1024", "--ranks", "2", "--json")
    assert done.returncode == 0, done
    plan = json.loads(done.stdout)
    size = plan["bytes"]
    assert plan["fits"] and len(plan["ranks"]) == 2 and sum(rank["tokens"] for rank in plan["ranks"]) == 1024
    assert size["total"] == size["weights_file"] + size["program"] + size["tables"] + size["ranks"]
    parts = ("kv", "activations", "wire", "slices")
    assert size["ranks"] == sum(sum(r[f"{part}_bytes"] for part in parts) for r in plan["ranks"])
    words = ["plan", "-m", MODEL, "--ranks", "2", "--memory-limit"]
    tight = call(*words, str(size["total"] - (4 << 20)), "--ctx", "1024")
    assert tight.returncode == 2 and "rank  " in tight.stdout
    largest = int(re.search(r"largest context that fits is --ctx (\d+)", tight.stderr).group(1))
    assert 512 < largest < 1024
    assert call(*words, str(size["total"] - (2 << 20)), "--ctx", str(largest)).returncode == 0  # its own size varies
    none = call("plan", "-m", MODEL, "--memory-limit", "1MiB")
    assert none.returncode == 2 and "no context fits" in none.stderr
    assert max(map(len, none.stdout.splitlines())) <= 90


@with_model
def test_plan_tells_the_floor_of_decode(probed, tmp_path):
    """What all ranks read for a token by the read bandwidth; nothing without a valid profile of this host."""
    cache, profile = probed
    words = ["plan", "-m", MODEL, "--ctx", "4096", "--ranks", "3"]
    here = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    plan = json.loads(call(*words, "--json", env=here).stdout)
    floor, rate = plan["decode_floor"], profile["all_threads"]["read_bytes_per_s"]["median"]
    weights, kv = (sum(rank[key] for rank in plan["ranks"]) for key in ("weights_bytes", "kv_bytes"))
    assert floor["empty_ms"] == pytest.approx(1000 * weights / rate)
    assert floor["full_ms"] == pytest.approx(1000 * (weights + kv) / rate)
    text = call(*words, env=here).stdout
    assert f"least {floor['empty_ms']:.2f} ms a token at depth 0 and {floor['full_ms']:.2f} ms at depth 4096\n" in text
    assert max(map(len, text.splitlines())) <= 90
    (tmp_path / "ringspan").mkdir()
    broken = [json.dumps({**profile, **change}) for change in ({"host": "another"}, {"cpu_share": "1"})]
    for other in (None, "", "[]", *broken):
        if other is not None:
            (tmp_path / "ringspan" / "machine.json").write_text(other)
        text = call(*words, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}).stdout
        assert text.endswith("then the least time of a token is told here\n") and "at least" not in text


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


GEMMA = os.path.join(os.path.dirname(MODEL), "gemma-3-270m-q4_k_m.gguf")


@pytest.mark.skipif(not os.path.exists(GEMMA), reason=f"{GEMMA} is missing: tools/fetch-model gemma3-270m")
def test_a_model_without_template_continues_and_says_so():
    words = ["run", "-m", GEMMA, "-p", "The capital", "-n", "2", "--temp", "0"]
    done, raw = call(*words), call(*words, "--raw")
    note = "ringspan: note: this model has no chat template, so it continues the prompt as with --raw\n"
    assert done.returncode == 0 and done.stderr.startswith(note) and note not in raw.stderr
    assert done.stdout == raw.stdout
    assert "--system needs a chat template" in refused(*words, "--system", "x")
