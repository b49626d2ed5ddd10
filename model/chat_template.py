"""chat_template.py: renders chat templates for chat_template.c, which embeds this source and starts it as a process.

One JSON object a line on descriptor 0, a socket. A request is {"template", "bos_token", "eos_token", "messages",
"add_generation_prompt"}; the reply is {"text"} or {"error": "format" | "limit" | "unsupported", "message"}. The first
line goes out unasked and says that the helper is ready, {"text": ""}, or why it cannot be.

Templates come from untrusted files. Jinja2's sandbox is the first wall; should one break out of it, this process can
open nothing, start nothing, signal nobody and hold only so much memory and time.
"""
import json
import os
import sys

RENDER_SECONDS, MEMORY_BYTES, REPLY_BYTES = (int(text) for text in sys.argv[1:4])
MESSAGE_CHARACTERS = 300  # of a template's own error text


def send(reply):
    """False when the line would be longer than the other side accepts."""
    line = json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    if len(line) > REPLY_BYTES:
        return False
    view = memoryview(line)
    while view:
        view = view[os.write(0, view) :]
    return True


def send_error(kind, message):
    send({"error": kind, "message": message[:MESSAGE_CHARACTERS]})


# glibc looks at /etc/localtime again for some formats, and takes UTC once it cannot: a named zone is read once.
os.environ.setdefault("TZ", ":/etc/localtime")

try:
    import ctypes
    import datetime
    import encodings.unicode_escape  # noqa: F401  This and the unused below are what Jinja2 imports when first needed.
    import html  # noqa: F401
    import pprint  # noqa: F401
    import resource
    import signal
    import struct
    import textwrap  # noqa: F401

    import jinja2
    import jinja2.constants
    import jinja2.debug  # noqa: F401
    import jinja2.ext
    import jinja2.sandbox
except ImportError as error:
    send_error("unsupported", f"{sys.executable} has no {error.name}")
    sys.exit(1)


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's text for training; here it is just its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def strftime_now(form):
    return datetime.datetime.now().strftime(form)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Unlike Jinja2's own, escapes nothing for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment_new():
    """As the `transformers` library sets it up for apply_chat_template, since templates are tested there."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


class TooLong(Exception):
    pass


def render(template, request):
    names = {name: request[name] for name in ("bos_token", "eos_token") if request[name]}
    parts, characters = [], 0
    for part in template.generate(
        messages=request["messages"],
        tools=None,
        documents=None,
        add_generation_prompt=request["add_generation_prompt"],
        **names,
    ):
        parts.append(part)
        characters += len(part)
        if characters > REPLY_BYTES:
            raise TooLong
    return "".join(parts)


# What rendering needs of the kernel: memory, this socket, the clock, the alarm. Numbers of asm/unistd_64.h and of
# asm-generic/unistd.h.
ALLOWED = {
    "x86_64": (
        0xC000003E,  # AUDIT_ARCH_X86_64
        dict(read=0, write=1, mmap=9, mprotect=10, munmap=11, brk=12, rt_sigprocmask=14, rt_sigreturn=15, mremap=25,
             madvise=28, setitimer=38, exit=60, gettimeofday=96, futex=202, clock_gettime=228, exit_group=231,
             getrandom=318),
    ),
    "aarch64": (
        0xC00000B7,  # AUDIT_ARCH_AARCH64
        dict(read=63, write=64, mmap=222, mprotect=226, munmap=215, brk=214, rt_sigprocmask=135, rt_sigreturn=139,
             mremap=216, madvise=233, setitimer=103, exit=93, gettimeofday=169, futex=98, clock_gettime=113,
             exit_group=94, getrandom=278),
    ),
}  # fmt: skip


def filter_system_calls():
    """A seccomp filter (classic BPF): the calls above pass, every other fails with EPERM."""
    if sys.platform != "linux" or os.uname().machine not in ALLOWED or sys.maxsize < 2**32:
        return  # The limits of restrict() still leave no file and no socket.
    architecture, calls = ALLOWED[os.uname().machine]
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    refuse, allow = 0x00050001, 0x7FFF0000  # SECCOMP_RET_ERRNO with EPERM, SECCOMP_RET_ALLOW
    program = [(load, 0, 0, 4), (equal, 0, len(calls) + 1, architecture), (load, 0, 0, 0)]
    program += [(equal, len(calls) - i, 0, number) for i, number in enumerate(calls.values())]
    program += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    prctl(22, 2, ctypes.addressof(header), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def restrict():
    os.chdir("/")
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        except OSError:
            pass  # A container that maps no such user; the rest holds for root too.
    limits = dict(AS=MEMORY_BYTES, NOFILE=0, FSIZE=0, NPROC=0, CORE=0)  # NOFILE 0: no open, no socket, no pipe.
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    filter_system_calls()


def answer(environment, compiled, request):
    """Returns (source, template) for the next request, which most often has the same source."""
    try:
        if compiled[0] != request["template"]:
            compiled = request["template"], environment.from_string(request["template"])
        text = render(compiled[1], request)
        if "\0" in text:
            send_error("format", "the text contains a NUL character")
        elif not send({"text": text}):
            raise TooLong
    except TooLong:
        send_error("limit", f"the text is longer than {REPLY_BYTES} bytes")
    except MemoryError:
        send_error("limit", f"it needs more than {MEMORY_BYTES >> 20} MiB of memory")
    except jinja2.TemplateSyntaxError as error:
        send_error("format", f"{error.message} (line {error.lineno})")
    except jinja2.TemplateError as error:
        send_error("format", str(error))
    except Exception as error:  # Whatever else an expression of the template raises.
        send_error("format", f"{type(error).__name__}: {error}")
    return compiled


def main():
    stream = open(0, "rb", closefd=False)
    environment = environment_new()
    datetime.datetime.now().strftime("%c")  # Reads the time zone.
    restrict()
    send({"text": ""})
    compiled = None, None
    for line in stream:
        # Ends this process if the other side is gone and cannot do it; templates cannot catch signals.
        signal.setitimer(signal.ITIMER_REAL, RENDER_SECONDS)
        compiled = answer(environment, compiled, json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)


main()
