"""Chat templates: chat_template.c and its helper against Jinja2 set up here as the transformers library does, on real
and random templates and random conversations; and what the helper can do once the sandbox is broken: nothing."""

import ctypes
import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

import jinja2
import jinja2.ext
import jinja2.sandbox
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).resolve().parent.parent
OK, BAD_FORMAT, UNSUPPORTED, IO = 0, 2, 3, 9
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

# ---- The C side, as a shared object ----


class Str(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("bytes", ctypes.c_size_t)]


class Message(ctypes.Structure):
    _fields_ = [("role", ctypes.c_char_p), ("content", ctypes.c_char_p)]


def build(folder, python):
    """Compiles the library with `python` as RS_PYTHON."""
    source, path = folder / "source.c", folder / "chat.so"
    embed = dict(INPUT=ROOT / "model/chat_template.py", OUTPUT=source, NAME="chat_template_source")
    subprocess.run(["cmake", *[f"-D{k}={v}" for k, v in embed.items()], "-P", ROOT / "cmake/embed.cmake"], check=True)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "jansson"], check=True, capture_output=True, text=True)
    subprocess.run(
        ["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-shared", "-fPIC", f"-I{ROOT}", f"-I{ROOT}/include"]
        + [f'-DRS_PYTHON="{python}"', "-o", path, source, ROOT / "model/chat_template.c"]
        + [ROOT / f"base/{name}.c" for name in ("status", "text", "clock")]
        + [*flags.stdout.split(), "-lpthread"],
        check=True,
    )
    lib = ctypes.CDLL(str(path))
    lib.rs_last_error.restype = ctypes.c_char_p
    lib.chat_template_open.argtypes = [Str, Str, Str, ctypes.POINTER(ctypes.c_void_p)]
    lib.chat_template_close.argtypes = [ctypes.c_void_p]
    lib.chat_template_close.restype = None
    lib.chat_template_render.argtypes = [ctypes.c_void_p, ctypes.POINTER(Message), ctypes.c_size_t, ctypes.c_bool]
    lib.chat_template_render.argtypes += [ctypes.POINTER(ctypes.c_void_p)]
    return lib


@pytest.fixture(scope="session")
def lib(tmp_path_factory):
    return build(tmp_path_factory.mktemp("chat"), "/usr/bin/python3")


free = ctypes.CDLL(None).free
free.argtypes = [ctypes.c_void_p]


class Ours:
    def __init__(self, lib, source, bos="<s>", eos="</s>"):
        self.lib, self.handle = lib, ctypes.c_void_p()
        texts = [Str(t.encode(), len(t.encode())) for t in (source, bos, eos)]
        assert lib.chat_template_open(*texts, ctypes.byref(self.handle)) == OK, lib.rs_last_error()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.chat_template_close(self.handle)

    def render(self, messages, generate=True):
        """(status, text or error)"""
        array = (Message * len(messages))(*[(m["role"].encode(), m["content"].encode()) for m in messages])
        out = ctypes.c_void_p()
        status = self.lib.chat_template_render(self.handle, array, len(messages), generate, ctypes.byref(out))
        if status != OK:
            return status, self.lib.rs_last_error().decode()
        text = ctypes.string_at(out).decode()
        free(out)
        return status, text


# ---- The oracle ----


class Tracker(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def oracle():
    def fail(message):
        raise jinja2.exceptions.TemplateError(message)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Tracker, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    env.globals["raise_exception"] = fail
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


ORACLE = oracle()


def expected(source, messages, generate, bos="<s>", eos="</s>"):
    """(status, text); every exception of a template is a bad format."""
    try:
        names = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v}
        text = ORACLE.from_string(source).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=generate, **names
        )
    except Exception:
        return BAD_FORMAT, None
    return OK, text


def compare(ours, source, messages, generate, bos="<s>", eos="</s>"):
    status, text = ours.render(messages, generate)
    want, want_text = expected(source, messages, generate, bos, eos)
    assert status == want, (text, want_text)
    if status == OK:
        assert text == want_text


# ---- Conversations ----

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60) | st.sampled_from(
    ["", " \n", "<|im_end|>", "{{ 1 }}", "{% endfor %}", '"\\', "</think>\n\nso", "a<think>b</think>c", "🧠\u2028"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT}),
    max_size=6,
)

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}
    {{- (first if loop.first else "") + turn['content'] | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""

QWEN = """
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- set ns = namespace(seeking=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.seeking and m.role == "user" and m.content is string and not m.content.startswith('<tool_response>') %}
        {%- set ns.seeking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role in ["user", "system"] %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}
    {%- elif m.role == "assistant" %}
        {%- set content, thought = m.content, '' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\n' }}
    {%- elif m.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""


def real_templates():
    """(source, bos, eos) of the models in models/ that have a template."""
    from gguf import GGUFReader

    for path in sorted((ROOT / "models").glob("*.gguf")):
        fields = GGUFReader(path).fields
        if "tokenizer.chat_template" in fields:
            tokens = fields["tokenizer.ggml.tokens"]
            ids = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("bos", "eos")]
            yield (fields["tokenizer.chat_template"].contents(), *[tokens.contents(i) for i in ids])


def test_real_templates(lib):
    found = list(real_templates())
    if not found:
        pytest.skip("no model with a chat template in models/")
    for source, bos, eos in found:
        with Ours(lib, source, bos, eos) as ours:

            @SETTINGS
            @given(MESSAGES, st.booleans())
            def same(messages, generate):
                compare(ours, source, messages, generate, bos, eos)

            same()


@pytest.mark.parametrize("source", [GEMMA, QWEN], ids=["gemma", "qwen"])
def test_family_templates(lib, source):
    with Ours(lib, source) as ours:

        @SETTINGS
        @given(MESSAGES, st.booleans())
        def same(messages, generate):
            compare(ours, source, messages, generate)

        same()


# Pieces whose sequence, with the blanks and newlines between, exercises trim_blocks, lstrip_blocks and scopes.
PIECES = st.lists(
    st.sampled_from(
        ["{% for m in messages %}", "{%- for m in messages -%}", "{% endfor %}", "{%- endfor -%}", "{% break %}"]
        + ["{% if m.role == 'user' %}", "{% else %}", "{% endif %}", "{% continue %}", "{% set x = m.content %}"]
        + ["{{ m.content }}", "{{- x -}}", "{{ m.content | trim }}", "{{ m | tojson }}", "{{ bos_token }}"]
        + ["{{ loop.index }}", "{{ messages | tojson(indent=2) }}", "{# note #}", "{{ none }}", "{{ true }}"]
        + ["{% generation %}", "{% endgeneration %}", "{{ raise_exception('no') }}", "{{ unknown }}", "{{ a.b }}"]
        + [" ", "\n", "  \n", "\t", "text", "{{ m.content[:5] | upper }}", "{{ 'a' ~ 1 ~ none }}"]
    ),
    max_size=12,
)


def test_random_templates(lib):
    outcomes = {OK: 0, BAD_FORMAT: 0}
    messages = [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "<b>é"}]

    @settings(SETTINGS, max_examples=120)
    @given(PIECES, st.booleans())
    def same(pieces, loop):
        source = "".join(pieces)
        if loop:
            source = "{% for m in messages %}\n" + source + "{% endfor %}\n"
        with Ours(lib, source) as ours:
            compare(ours, source, messages, True)
        outcomes[expected(source, messages, True)[0]] += 1

    same()
    assert min(outcomes.values()) > 10  # Both kinds were seen.


def test_every_filter_works_behind_the_wall(lib):
    """Nothing is imported or opened late: each filter, test and function gives what it gives here."""
    values = ["'a b <c> http://x.org'", "[3, 1, 2]", "{'k': 1}", "-2.5", "'0x1F'", "none", "[{'a': 1}, {'a': 2}]"]
    lines = [
        f"{{{{ {value} | {name}{arguments} | string }}}}"
        for name in sorted(set(ORACLE.filters) - {"random"})
        for arguments in ("", "(2)", "('a')")
        for value in values
    ]
    lines += [f"{{{{ {value} is {name} }}}}" for name in sorted(ORACLE.tests) for value in values]
    lines += ["{{ lipsum(n=1) | length > 9 }}", "{{ cycler(1, 2).next() }}", "{{ dict(a=1) }}", "{{ range(3) }}"]
    lines += ["{{ [7] | random }}", "{{ '\\x41\\u00e9' }}", "{{ strftime_now('%Y %B %Z') }}", "{{ '%5.2f' % 1.5 }}"]
    lines += ["{{ joiner()() }}", "{{ 'é'.encode() }}"]
    results = {line: expected(line, [], False) for line in lines}
    results = {line: result for line, result in results.items() if " at 0x" not in str(result)}  # Addresses of objects.
    good = [line for line, (status, _) in results.items() if status == OK]
    with Ours(lib, "\n@\n".join(good)) as ours:
        status, text = ours.render([])
        assert status == OK, text
        different = [(g, t) for g, t in zip(good, text.split("\n@\n"), strict=True) if results[g][1] != t]
    assert different == [] and len(good) > 400
    failing = {line.split()[3]: line for line, (status, _) in results.items() if status != OK}
    for line in failing.values():
        with Ours(lib, line) as ours:
            status, text = ours.render([])
            assert status == BAD_FORMAT and "Permission" not in text and "No module" not in text, text


# ---- The helper itself ----

ATTEMPTS = """
def attempt(name, action):
    try:
        results[name] = repr(action())
    except BaseException as error:
        results[name] = type(error).__name__
import socket, mmap, threading
results = {}
environment_new()
restrict()
attempt("open", lambda: open("/etc/hostname"))
attempt("create", lambda: open(sys.argv[4] + "/file", "w"))
attempt("list", lambda: os.listdir("/"))
attempt("stat", lambda: os.stat("/etc"))
attempt("unlink", lambda: os.unlink(sys.argv[4] + "/victim"))
attempt("mkdir", lambda: os.mkdir(sys.argv[4] + "/folder"))
attempt("socket", lambda: socket.socket())
attempt("duplicate", lambda: os.dup(0))
attempt("pipe", lambda: os.pipe())
attempt("fork", lambda: os.fork())
attempt("thread", lambda: threading.Thread(target=print).start())
if len(sys.argv) > 5:  # Without the filter it would start, and find no library.
    attempt("execute", lambda: os.execv("/bin/true", ["true"]))
attempt("signal", lambda: os.kill(os.getppid(), 0))
attempt("limit", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)))
attempt("root", lambda: os.setuid(0))
attempt("memory", lambda: len(bytes(MEMORY_BYTES)))
send(results)
"""


@pytest.mark.parametrize("filtered", [True, False], ids=["filtered", "limits-only"])
def test_a_broken_sandbox_opens_nothing(filtered):
    source = (ROOT / "model/chat_template.py").read_text().removesuffix("main()\n")
    if not filtered:
        source = source.replace("    filter_system_calls()\n", "")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # No permission keeps the helper out of this one.
        pathlib.Path(folder, "victim").touch()
        command = ["/usr/bin/python3", "-I", "-c", source + ATTEMPTS, "6", str(1 << 30), str(1 << 26), folder]
        command += ["filtered"] if filtered else []
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE)
        theirs.close()
        results = json.loads(ours.recv(1 << 16) or process.communicate()[1])
        ours.close()
        process.communicate(timeout=10)
        left = os.listdir(folder)
    # Without the filter, what needs no descriptor remains: stat, unlink, mkdir, signals to processes of its user.
    closed = set(results) if filtered else {"open", "create", "list", "socket", "duplicate", "pipe", "memory"}
    errors = {"PermissionError", "OSError", "MemoryError", "RuntimeError", "ValueError"}
    assert {name: result for name, result in results.items() if name in closed and result not in errors} == {}
    assert len(results) == 15 + filtered
    assert "file" not in left and (left == ["victim"] or not filtered)


def test_helper_gets_no_secrets(lib, monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    with Ours(lib, "x") as ours:
        assert ours.render([]) == (OK, "x")
        children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        found = pathlib.Path(f"/proc/{children[-1]}/environ").read_bytes()
    assert b"PATH=" in found and b"secret" not in found


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", None])
def test_local_time(lib, monkeypatch, zone):
    monkeypatch.setenv("TZ", zone) if zone else monkeypatch.delenv("TZ", raising=False)
    time.tzset()
    with Ours(lib, "{{ strftime_now('%d %B %Y %H %z') }}") as ours:
        for _ in range(3):
            form = "%d %B %Y %H %z"
            before, (status, text) = datetime.datetime.now().strftime(form), ours.render([])
            assert status == OK and text in (before, datetime.datetime.now().strftime(form))
    monkeypatch.undo()
    time.tzset()


def script(folder, text):
    path = folder / "fake"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_without_python(tmp_path, monkeypatch):
    lib = build(tmp_path, "/nonexistent/python3")
    with Ours(lib, "x") as ours:
        monkeypatch.setenv("PATH", "/nonexistent")
        status, text = ours.render([])
        assert status == UNSUPPORTED and "install python3-jinja2" in text
        assert "cannot be started: No such file" in text
        # The python3 of PATH is the second choice, and found as soon as it is there.
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/python3").symlink_to("/usr/bin/python3")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert ours.render([]) == (OK, "x")


def test_without_jinja2(tmp_path, monkeypatch):
    lib = build(tmp_path, script(tmp_path, 'exec /usr/bin/python3 -S "$@"\n'))
    monkeypatch.setenv("PATH", "/nonexistent")
    with Ours(lib, "x") as ours:
        for _ in range(2):
            status, text = ours.render([])
            assert status == UNSUPPORTED and "python3" in text
    fake = tmp_path / "fake"
    (tmp_path / "python3").symlink_to(fake)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Ours(lib, "x") as ours:
        status, text = ours.render([])
        assert status == UNSUPPORTED and "has no jinja2; install python3-jinja2" in text


@pytest.mark.parametrize(
    "behaviour, status, words",
    [
        ("exit 3", UNSUPPORTED, "ended before it was ready"),
        ("kill -9 $$", UNSUPPORTED, "ended before it was ready"),
        ("echo hello >&0; sleep 60", IO, "no reply"),
        ("printf '{\"text\": \"\"}\\n{}\\n' >&0; sleep 60", IO, "no reply"),
        ("exec cat /dev/zero >&0", 4, "more than the 67108864 bytes"),
        ("echo '{\"text\": \"\"}' >&0; exit 3", IO, "ended (status 3)"),
        ("echo '{\"text\": \"\"}' >&0; read line; kill -11 $$", IO, "signal 11"),
        ("echo '{\"text\": \"\"}' >&0; read line; echo '[1]' >&0; sleep 60", IO, "no reply"),
        ("echo '{\"text\": \"\"}' >&0; sleep 60", 4, "took longer than 5 s"),
    ],
)
def test_a_helper_that_misbehaves(tmp_path, monkeypatch, behaviour, status, words):
    fake = script(tmp_path, behaviour + "\n")
    lib = build(tmp_path, fake)
    (tmp_path / "python3").symlink_to(fake)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    descriptors = len(os.listdir("/proc/self/fd"))
    with Ours(lib, "x" * 100000) as ours:
        for _ in range(2):
            got, text = ours.render([{"role": "user", "content": "x" * 2000000}])
            assert got == status and words in text, text
    assert len(os.listdir("/proc/self/fd")) == descriptors


def runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_wrapped_interpreter_ends_too(tmp_path, monkeypatch):
    """As when python3 is a script: ending the helper ends what that started."""
    wrapper = f'exec 3<&0\n/usr/bin/python3 "$@" <&3 3<&- &\necho $! > {tmp_path}/pid\nwait\n'
    lib = build(tmp_path, script(tmp_path, wrapper))
    monkeypatch.setenv("PATH", "/nonexistent")
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% if b %}{% endif %}{% endfor %}{% endfor %}"
    with Ours(lib, endless) as ours:
        started = []
        threading.Timer(2, lambda: started.append(runs((tmp_path / "pid").read_text().strip()))).start()
        assert ours.render([])[0] == 4  # Busy, it would not notice the end of its socket.
    deadline = time.monotonic() + 0.5  # Its own alarm rings a second after our deadline.
    while runs(pid := (tmp_path / "pid").read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started == [True] and not runs(pid)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
