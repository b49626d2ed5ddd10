"""rs.py: libringspan for Python tests, a thin ctypes binding of include/ringspan.h.

The library is $RINGSPAN_LIB or build/release/libringspan.so. Failures raise Error with the status's number in
.status and the library's sentence as text. Objects close themselves when collected, or as context managers, children
before parents.
"""

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATH = os.environ.get("RINGSPAN_LIB", os.path.join(ROOT, "build/release/libringspan.so"))

(OK, BAD_ARGUMENT, BAD_FORMAT, UNSUPPORTED, LIMIT, CANCELLED, PEER_LOST, PEER_LATE, NO_MEMORY, IO, DEVICE) = range(11)
KV = {"f16": 0, "q8_0": 1, "q4_0": 2}
KERNELS = ("ref", "portable", "avx2", "avx_vnni", "avx512", "amx", "neon", "neon_dot", "neon_i8mm")
SPLITS = {"auto": 0, "r1": 1, "r2": 2, "r3": 3, "r4": 4, "tp": 5, "pp": 6}
RANKS_MAX = 64


class ModelInfo(Structure):
    _fields_ = [
        ("architecture", c_char_p), ("name", c_char_p), ("weights", c_char_p), ("chat_template", c_char_p),
        ("parameters", c_uint64), ("file_bytes", c_uint64),
        ("layers", c_uint32), ("dim", c_uint32), ("heads", c_uint32), ("kv_heads", c_uint32), ("head_dim", c_uint32),
        ("ffn_dim", c_uint32), ("vocab", c_uint32), ("context_trained", c_uint32), ("window", c_uint32),
        ("bos", c_int32), ("eos", c_int32),
    ]


class Text(Structure):
    _fields_ = [("held", ctypes.c_char * 16), ("n_held", c_uint32), ("started", c_bool)]


class Message(Structure):
    _fields_ = [("role", c_char_p), ("content", c_char_p)]


class Options(Structure):
    _fields_ = [
        ("context", c_uint32), ("ranks", c_uint32), ("shares", ctypes.c_double * RANKS_MAX),
        ("weight_shares", ctypes.c_double * RANKS_MAX), ("split", ctypes.c_int), ("tpa", c_uint32),
        ("kv_k", ctypes.c_int), ("kv_v", ctypes.c_int), ("chunk", c_uint32), ("threads", c_uint32),
        ("memory_limit", c_uint64), ("kernels", c_char_p), ("cluster", c_void_p),
    ]


class PlanRank(Structure):
    _fields_ = [
        ("weights", c_uint64), ("kv", c_uint64), ("activations", c_uint64), ("wire", c_uint64), ("slices", c_uint64),
        ("pages", c_uint32), ("layer_begin", c_uint32), ("layer_end", c_uint32), ("head_begin", c_uint32),
        ("head_end", c_uint32), ("ffn_begin", c_uint32), ("ffn_end", c_uint32), ("vocab_begin", c_uint32),
        ("vocab_end", c_uint32),
    ]


class PlanInfo(Structure):
    _fields_ = [
        ("options", Options), ("page_tokens", c_uint32), ("weights", c_uint64), ("program", c_uint64),
        ("ranks", c_uint64), ("tables", c_uint64), ("total", c_uint64), ("limit", c_uint64), ("context_max", c_uint32),
    ]


class Sampling(Structure):
    _fields_ = [
        ("temperature", c_float), ("top_k", c_uint32), ("top_p", c_float), ("min_p", c_float),
        ("repeat_penalty", c_float), ("presence_penalty", c_float), ("frequency_penalty", c_float),
        ("penalty_last", c_uint32), ("seed", c_uint64),
    ]


GO_ON = ctypes.CFUNCTYPE(c_bool, c_void_p)
NEWS = ctypes.CFUNCTYPE(None, c_void_p, c_char_p)


class ClusterOptions(Structure):
    _fields_ = [
        ("address", c_char_p), ("secret", c_char_p), ("secret_bytes", c_size_t), ("machine", c_void_p),
        ("hosts", c_uint32), ("wait_s", ctypes.c_double), ("discover", c_bool), ("go_on", GO_ON), ("news", NEWS),
        ("user", c_void_p),
    ]


class LogProb(Structure):
    _fields_ = [("token", c_int32), ("logprob", c_float)]


PROGRESS = ctypes.CFUNCTYPE(c_bool, c_void_p, c_size_t, c_size_t)
TOKENS = POINTER(c_int32)
STATUS = ctypes.c_int

# Every function of the header: what it returns, then its parameters.
FUNCTIONS = {
    "rs_status_name": (c_char_p, STATUS),
    "rs_last_error": (c_char_p,),
    "rs_model_open": (STATUS, c_char_p, POINTER(c_void_p)),
    "rs_model_close": (None, c_void_p),
    "rs_model_describe": (None, c_void_p, POINTER(ModelInfo)),
    "rs_tokenize": (STATUS, c_void_p, c_char_p, c_size_t, ctypes.c_uint, TOKENS, c_size_t, POINTER(c_size_t)),
    "rs_detokenize": (STATUS, c_void_p, POINTER(Text), c_int32, c_bool, c_void_p, c_size_t, POINTER(c_size_t)),
    "rs_token_ends": (c_bool, c_void_p, c_int32),
    "rs_chat_render": (STATUS, c_void_p, POINTER(Message), c_size_t, c_bool, POINTER(c_void_p)),
    "rs_free": (None, c_void_p),
    "rs_options_init": (None, POINTER(Options)),
    "rs_cluster_open": (STATUS, c_void_p, POINTER(ClusterOptions), POINTER(c_void_p)),
    "rs_cluster_close": (None, c_void_p),
    "rs_plan_make": (STATUS, c_void_p, POINTER(Options), POINTER(c_void_p)),
    "rs_plan_free": (None, c_void_p),
    "rs_plan_describe": (None, c_void_p, POINTER(PlanInfo)),
    "rs_plan_describe_rank": (None, c_void_p, c_uint32, POINTER(PlanRank)),
    "rs_plan_tokens": (c_size_t, c_void_p, c_uint32, c_size_t),
    "rs_engine_open": (STATUS, c_void_p, POINTER(Options), POINTER(c_void_p)),
    "rs_engine_close": (None, c_void_p),
    "rs_engine_plan": (c_void_p, c_void_p),
    "rs_session_open": (STATUS, c_void_p, POINTER(c_void_p)),
    "rs_session_close": (None, c_void_p),
    "rs_session_eval": (STATUS, c_void_p, TOKENS, c_size_t, PROGRESS, c_void_p, POINTER(POINTER(c_float))),
    "rs_session_length": (c_size_t, c_void_p),
    "rs_session_fill": (STATUS, c_void_p, c_size_t, c_uint64),
    "rs_sampling_init": (None, POINTER(Sampling)),
    "rs_sampler_open": (STATUS, c_void_p, POINTER(Sampling), POINTER(c_void_p)),
    "rs_sampler_close": (None, c_void_p),
    "rs_sampler_pick": (
        STATUS, c_void_p, POINTER(c_float), TOKENS, c_size_t, POINTER(LogProb), POINTER(LogProb), c_size_t
    ),
}
_lib = None


def available():
    return os.path.exists(PATH)


def lib():
    """The library, loaded at first use so that a test can say why it is skipped."""
    global _lib
    if _lib is None:
        _lib = ctypes.CDLL(PATH)
        for name, (result, *parameters) in FUNCTIONS.items():
            function = getattr(_lib, name)
            function.restype, function.argtypes = result, parameters
    return _lib


class Error(Exception):
    def __init__(self, status):
        name = lib().rs_status_name(status).decode()
        super().__init__(f"{name}: {lib().rs_last_error().decode(errors='replace')}")
        self.status = status


def check(status):
    if status != OK:
        raise Error(status)


def token_array(tokens):
    return (c_int32 * max(len(tokens), 1))(*[int(t) for t in tokens])


def fields(structure):
    """A structure as a dict of Python values."""
    out = {name: getattr(structure, name) for name, _ in structure._fields_}
    return {k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in out.items()}


def options(**values):
    """Options from names: kv_k="q8_0", split="r3", shares=[3, 2, 1], ranks=3, ..."""
    out = Options()
    lib().rs_options_init(byref(out))
    for key, value in values.items():
        if key in ("shares", "weight_shares"):
            getattr(out, key)[: len(value)] = value
        elif key in ("kv_k", "kv_v"):
            setattr(out, key, KV.get(value, value))
        elif key == "split":
            out.split = SPLITS.get(value, value)
        elif key == "cluster":
            out.cluster = value.pointer
            out.ranks = values.get("ranks", value.hosts)
        elif key == "kernels":
            out.kernels = value.encode() if value else None
        elif key in dict(Options._fields_):
            setattr(out, key, value)
        else:
            raise TypeError(f"no option {key}")
    return out


class Handle:
    """An opaque pointer that is closed once; keeps its parent alive."""

    closer = None

    def __init__(self, pointer, parent=None):
        self.pointer, self.parent = pointer, parent

    def close(self):
        pointer, self.pointer = getattr(self, "pointer", None), None
        if pointer:
            getattr(lib(), self.closer)(pointer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()


class Model(Handle):
    closer = "rs_model_close"

    def __init__(self, path):
        out = c_void_p()
        check(lib().rs_model_open(os.fsencode(path), byref(out)))
        super().__init__(out)

    @property
    def info(self):
        out = ModelInfo()
        lib().rs_model_describe(self.pointer, byref(out))
        return fields(out)

    def tokenize(self, text, add_special=False, parse_special=False):
        data = text.encode() if isinstance(text, str) else text
        flags = (1 if add_special else 0) | (2 if parse_special else 0)
        count, capacity = c_size_t(), len(data) + 8
        tokens = (c_int32 * capacity)()
        status = lib().rs_tokenize(self.pointer, data, len(data), flags, tokens, capacity, byref(count))
        if status == LIMIT:
            capacity = count.value
            tokens = (c_int32 * capacity)()
            status = lib().rs_tokenize(self.pointer, data, len(data), flags, tokens, capacity, byref(count))
        check(status)
        return list(tokens[: count.value])

    def detokenize(self, tokens, special=False):
        """All the bytes that a stream of these tokens gives."""
        stream, out, size = Text(), ctypes.create_string_buffer(4096), c_size_t()
        text = b""
        for token in [*tokens, -1]:
            check(lib().rs_detokenize(self.pointer, byref(stream), token, special, out, 4096, byref(size)))
            text += out.raw[: size.value]
        return text

    def ends(self, token):
        return bool(lib().rs_token_ends(self.pointer, token))

    def chat(self, messages, add_generation_prompt=True):
        """messages: [(role, content), ...]."""
        array = (Message * max(len(messages), 1))(*[Message(r.encode(), c.encode()) for r, c in messages])
        text = c_void_p()
        check(lib().rs_chat_render(self.pointer, array, len(messages), add_generation_prompt, byref(text)))
        rendered = ctypes.string_at(text).decode()
        lib().rs_free(text)
        return rendered

    def plan(self, **values):
        out = c_void_p()
        check(lib().rs_plan_make(self.pointer, byref(options(**values)), byref(out)))
        plan = describe_plan(out)
        lib().rs_plan_free(out)
        return plan

    def engine(self, **values):
        return Engine(self, **values)

    def sampler(self, **values):
        return Sampler(self, **values)


def describe_plan(pointer):
    """A plan as a dict; "options" as one too, "rank" a list of one dict a rank."""
    info = PlanInfo()
    lib().rs_plan_describe(pointer, byref(info))
    plan = fields(info)
    plan["options"] = fields(info.options)
    plan["options"]["shares"] = list(info.options.shares[: info.options.ranks])
    plan["rank"] = []
    for rank in range(info.options.ranks):
        out = PlanRank()
        lib().rs_plan_describe_rank(pointer, rank, byref(out))
        plan["rank"].append(fields(out))
    return plan


class Engine(Handle):
    closer = "rs_engine_close"

    def __init__(self, model, **values):
        out = c_void_p()
        check(lib().rs_engine_open(model.pointer, byref(options(**values)), byref(out)))
        super().__init__(out, model)

    @property
    def plan(self):
        return describe_plan(lib().rs_engine_plan(self.pointer))

    def session(self):
        return Session(self)


class Cluster(Handle):
    """The head of a cluster; `start(port)` is called once it listens and is to make the other machines join."""

    closer = "rs_cluster_close"

    def __init__(self, model, hosts, secret, start, address="127.0.0.1:0", wait_s=60.0):
        self.hosts, self.news, out = hosts, [], c_void_p()

        def tell(_, line):
            self.news.append(line.decode(errors="replace"))
            if len(self.news) == 1:  # "... join HOST:PORT' there"
                start(int(self.news[0].split(":")[-1].split("'")[0]))

        self.tell = NEWS(tell)  # kept alive while the library may call it
        values = ClusterOptions(address.encode(), secret, len(secret), None, hosts, wait_s, False, GO_ON(), self.tell)
        check(lib().rs_cluster_open(model.pointer, byref(values), byref(out)))
        super().__init__(out, model)


class Session(Handle):
    closer = "rs_session_close"

    def __init__(self, engine):
        out = c_void_p()
        check(lib().rs_session_open(engine.pointer, byref(out)))
        super().__init__(out, engine)
        self.vocab = engine.parent.info["vocab"]

    def eval(self, tokens, progress=None):
        """Makes the timeline equal to tokens; a copy of its last token's logits, float32 [vocab].
        progress(done, total) returns False to stop."""
        callback = PROGRESS(lambda _, done, total: progress(done, total) is not False) if progress else PROGRESS()
        logits = POINTER(c_float)()
        check(lib().rs_session_eval(self.pointer, token_array(tokens), len(tokens), callback, None, byref(logits)))
        return np.ctypeslib.as_array(logits, (self.vocab,)).copy()

    def fill(self, count, seed=0):
        check(lib().rs_session_fill(self.pointer, count, seed))

    def __len__(self):
        return lib().rs_session_length(self.pointer)


class Sampler(Handle):
    closer = "rs_sampler_close"

    def __init__(self, model, **values):
        sampling, out = Sampling(), c_void_p()
        lib().rs_sampling_init(byref(sampling))
        for key, value in values.items():
            if key not in dict(Sampling._fields_):
                raise TypeError(f"no sampling option {key}")
            setattr(sampling, key, value)
        check(lib().rs_sampler_open(model.pointer, byref(sampling), byref(out)))
        super().__init__(out, model)

    def pick(self, logits, tokens=(), n_top=0):
        """(token, logprob), or with n_top ((token, logprob), [(token, logprob), ...])."""
        logits = np.ascontiguousarray(logits, np.float32)
        picked, top = LogProb(), (LogProb * max(n_top, 1))()
        check(lib().rs_sampler_pick(self.pointer, logits.ctypes.data_as(POINTER(c_float)), token_array(tokens),
                                    len(tokens), byref(picked), top if n_top else None, n_top))
        pair = (picked.token, picked.logprob)
        return (pair, [(t.token, t.logprob) for t in top]) if n_top else pair
