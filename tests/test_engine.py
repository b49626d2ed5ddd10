"""Laws of plans, engines and sessions on tiny models of every family, over ranks, splits and threads.

The expectation is always another way to the same timeline: a fresh session, one rank, other threads. What the logits
are is settled by test_matrix.py.
"""

import dataclasses
import functools
import itertools
import os
import sys
import threading

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import rs  # noqa: E402
import tiny_models  # noqa: E402

pytestmark = pytest.mark.skipif(not rs.available(), reason=f"{rs.PATH} is not built")

# Largest ||a - b|| / ||b - mean(b)|| of logits on different ways to the same timeline. Float arithmetic in another
# order is 1e-6 off; 1.1e-4 was measured where a K or V value fell on the other side of a rounding boundary of the f16
# cache.
CLOSE = 1e-3

CONTEXT = 512
MEMORY = 1 << 30  # Bounds the contexts that a plan tries: a tiny model's largest is millions of tokens.
FAMILIES = tiny_models.FAMILIES
WAYS = {
    "one rank": {"chunk": 64},
    "2 r1": {"ranks": 2, "split": "r1", "chunk": 100},
    "3 r2 uneven": {"ranks": 3, "split": "r2", "shares": [3, 2, 1], "chunk": 64},
    "3 r3": {"ranks": 3, "split": "r3", "chunk": 16},
    "4 r4 uneven": {"ranks": 4, "split": "r4", "shares": [1, 2.5, 1, 4], "chunk": 64},
    "2 tp": {"ranks": 2, "split": "tp", "chunk": 64},
    "3 pp": {"ranks": 3, "split": "pp", "chunk": 100},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tiny"))


@functools.lru_cache(maxsize=None)
def open_model(path):
    return rs.Model(path)


@pytest.fixture(params=FAMILIES)
def model(request, directory):
    return open_model(tiny_models.make(directory, f"{request.param}-f32"))


@pytest.fixture
def llama(directory):
    return open_model(tiny_models.make(directory, "llama-f32"))


@pytest.fixture
def gemma(directory):
    return open_model(tiny_models.make(directory, "gemma3-f32"))


@pytest.fixture(params=WAYS)
def way(request):
    return {"context": CONTEXT, "memory_limit": MEMORY, **WAYS[request.param]}


def random_tokens(model, count, seed=1):
    return np.random.default_rng(seed).integers(0, model.info["vocab"], count).tolist()


def evaluate(model, *timelines, **options):
    """Logits of each timeline in turn, in one session."""
    with model.engine(**{"context": CONTEXT, "memory_limit": MEMORY, **options}) as engine, engine.session() as session:
        return [session.eval(tokens) for tokens in timelines]


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b - b.mean())


def same(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def common_prefix(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


class Progress:
    """Notes what it is told; says stop at call `stop`."""

    def __init__(self, stop=None):
        self.calls, self.stop = [], stop

    def __call__(self, done, total):
        self.calls.append((done, total))
        return len(self.calls) != self.stop

    @property
    def total(self):
        return self.calls[-1][1]


# ---- Timelines


def test_every_way_gives_the_same_logits(model, way):
    tokens = random_tokens(model, 300)
    reference = evaluate(model, tokens, tokens[:70], chunk=512)
    for a, b in zip(evaluate(model, tokens, tokens[:70], **way), reference):
        assert distance(a, b) < CLOSE
    assert distance(*reference) > 0.3  # Other tokens, other logits: the bound above can fail.


def test_rewind_append_is_append(model, way):
    """A session driven back and forth at random gives what a fresh one gives."""
    rng = np.random.default_rng(2)
    timeline, kept, restarted = [], 0, 0
    with model.engine(**way) as engine, engine.session() as session:
        for step in range(14):
            keep = int(rng.integers(0, len(timeline))) if step % 3 else len(timeline)
            keep = min(keep, CONTEXT - 40)
            new = random_tokens(model, int(rng.integers(1, min(200, CONTEXT - keep))), step)
            before, timeline = timeline, timeline[:keep] + new
            progress = Progress()
            logits = session.eval(timeline, progress)
            assert len(session) == len(timeline)
            start = len(timeline) - progress.total
            common = common_prefix(before, timeline)
            assert start in (0, min(common, len(timeline) - 1))
            if 0 < common < len(before):
                kept, restarted = kept + (start > 0), restarted + (start == 0)
            assert distance(logits, evaluate(model, timeline, chunk=512)[0]) < CLOSE, (step, keep, len(new))
    assert kept > 0
    assert restarted == 0 or model.info["architecture"] == "gemma3"


def test_a_ring_that_has_moved_on_starts_again(gemma, way):
    """Sliding layers keep the window and a chunk only: a timeline rewound further is evaluated from its beginning."""
    tokens, other = random_tokens(gemma, CONTEXT), random_tokens(gemma, 30, 9)
    starts = {}
    for keep in (40, 200, 440, 500):
        with gemma.engine(**way) as engine, engine.session() as session:
            session.eval(tokens)
            progress = Progress()
            timeline = tokens[:keep] + other[: CONTEXT - keep]
            logits = session.eval(timeline, progress)
        starts[keep] = len(timeline) - progress.total
        assert distance(logits, evaluate(gemma, timeline)[0]) < CLOSE
    assert starts[40] == 0 and starts[500] == 500, starts


def test_back_in_small_steps(gemma, way):
    """What a ring has overwritten stays overwritten, however short the timeline has become since."""
    tokens = random_tokens(gemma, CONTEXT)
    starts = []
    with gemma.engine(**way) as engine, engine.session() as session:
        session.eval(tokens)
        for keep in range(490, 200, -22):
            timeline = tokens[:keep] + [3, 1, 4]
            progress = Progress()
            assert distance(session.eval(timeline, progress), evaluate(gemma, timeline)[0]) < CLOSE, keep
            starts.append(len(timeline) - progress.total)
            if starts[-1] == 0:
                break
    assert starts[0] > 0 and starts[-1] == 0


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_last_token_again_never_starts_again(directory, ranks):
    """However window, chunk and pages lie to each other, the ring still has what the last token sees."""
    spec = dataclasses.replace(tiny_models.SMALL["gemma3"], window=100)
    gemma = open_model(tiny_models.write(os.path.join(directory, f"window-{ranks}.gguf"), spec, "window"))
    tokens = random_tokens(gemma, CONTEXT)
    for chunk in (16, 30):
        with gemma.engine(context=CONTEXT, ranks=ranks, chunk=chunk, memory_limit=MEMORY) as engine:
            with engine.session() as session:
                for count in range(180, 460, 7):
                    session.eval(tokens[:count])
                    progress = Progress()
                    session.eval(tokens[: count - 1] + [1], progress)
                    assert progress.total == 1, (chunk, count)


def test_a_ring_begun_again_is_whole(gemma, way):
    """What was overwritten before the timeline began again no longer matters."""
    tokens, other = random_tokens(gemma, CONTEXT), random_tokens(gemma, 60, 9)
    with gemma.engine(**way) as engine, engine.session() as session:
        session.eval(tokens)
        session.eval(tokens[:40] + other)
        progress = Progress()
        logits = session.eval(tokens[:40] + other[:20] + tokens[:30], progress)
    assert progress.total == 30
    assert distance(logits, evaluate(gemma, tokens[:40] + other[:20] + tokens[:30])[0]) < CLOSE


def test_rewinding_to_a_step_boundary_gives_the_same_bits(model, way):
    tokens, other, detour = random_tokens(model, 90), random_tokens(model, 50, 2), random_tokens(model, 60, 3)
    direct = evaluate(model, tokens, tokens + other, **way)[1]
    assert same(evaluate(model, tokens, tokens + detour, tokens + other, **way)[2], direct)


def test_the_same_timeline_again_gives_the_same_bits(model, way):
    tokens = random_tokens(model, 130)
    first, second, third, again = evaluate(model, tokens, tokens, tokens, tokens[:100] + tokens[100:], **way)
    assert same(second, third) and same(second, again)
    assert distance(first, second) < CLOSE  # The last token alone goes another way than with its prompt.
    with model.engine(**way) as engine, engine.session() as session:
        session.eval(tokens)
        progress = Progress()
        session.eval(tokens, progress)
    assert progress.calls == [(1, 1)]


def test_token_by_token_is_the_prompt(model, way):
    tokens = random_tokens(model, 90)
    with model.engine(**way) as engine, engine.session() as session:
        for count in range(60, 91):
            logits = session.eval(tokens[:count])
    assert distance(logits, evaluate(model, tokens, **way)[0]) < CLOSE


def test_runs_repeat_bit_for_bit_with_any_threads(model, way):
    tokens = random_tokens(model, 200)

    def run(threads):
        return np.concatenate(evaluate(model, tokens, tokens + [1], tokens[:150] + [2], **way, threads=threads))

    first = run(1)
    for threads in (1, 2, 3, 7):
        assert same(run(threads), first), threads


def test_sessions_of_one_engine_do_not_know_each_other(model, way):
    tokens = random_tokens(model, 200)
    with model.engine(**way) as engine:
        with engine.session() as session:
            first = session.eval(tokens)
            session.eval(random_tokens(model, 400, 5))
        with engine.session() as session:
            assert len(session) == 0
            assert same(session.eval(tokens), first)


# ---- Progress and cancelling


def test_progress_and_cancelling(model, way):
    tokens = random_tokens(model, 230)
    chunk = way["chunk"]
    expected = [(min(done, 230), 230) for done in range(chunk, 230 + chunk, chunk)]
    with model.engine(**way) as engine, engine.session() as session:
        whole = Progress()
        uncancelled = session.eval(tokens, whole)
        assert whole.calls == expected
    with model.engine(**way) as engine, engine.session() as session:
        stopped = Progress(stop=2)
        with pytest.raises(rs.Error, match=f"stopped after {2 * chunk} of 230 tokens") as caught:
            session.eval(tokens, stopped)
        assert caught.value.status == rs.CANCELLED
        assert stopped.calls == expected[:2]
        assert len(session) == 2 * chunk  # What is done stays.
        rest = Progress()
        assert same(session.eval(tokens, rest), uncancelled)
        assert rest.calls == [(done - 2 * chunk, 230 - 2 * chunk) for done, _ in expected[2:]]


def test_a_stop_after_the_last_chunk_is_too_late(llama):
    tokens = random_tokens(llama, 60)
    with llama.engine(context=CONTEXT, chunk=32) as engine, engine.session() as session:
        late = Progress(stop=2)
        assert same(session.eval(tokens, late), evaluate(llama, tokens, chunk=32)[0])
        assert late.calls == [(32, 60), (60, 60)] and len(session) == 60


def test_cancelling_after_a_rewind(model, way):
    tokens, other = random_tokens(model, 400), random_tokens(model, 300, 8)
    timeline = tokens[:50] + other
    with model.engine(**way) as engine, engine.session() as session:
        session.eval(tokens)
        with pytest.raises(rs.Error, match="stopped after"):
            session.eval(timeline, Progress(stop=1))
        length = len(session)
        assert length in (way["chunk"], 50 + way["chunk"])  # Begun again, or kept.
        with pytest.raises(rs.Error, match="stopped after"):
            session.eval(tokens, Progress(stop=1))
        assert distance(session.eval(timeline), evaluate(model, timeline)[0]) < CLOSE


# ---- What a session refuses, and that it goes on


def test_a_full_context(model, way):
    tokens = random_tokens(model, 151)
    way = {**way, "context": 150}
    with model.engine(**way) as engine, engine.session() as session:
        logits = session.eval(tokens[:150])
        assert len(session) == 150
        with pytest.raises(rs.Error, match="151 tokens do not fit the context of 150") as caught:
            session.eval(tokens)
        assert caught.value.status == rs.LIMIT and len(session) == 150
        with pytest.raises(rs.Error, match="151 tokens do not fit the context of 150") as caught:
            session.fill(151)
        assert caught.value.status == rs.LIMIT
        assert distance(session.eval(tokens[:150]), logits) < CLOSE
        session.fill(150)


def test_bad_tokens(llama):
    vocab = llama.info["vocab"]
    with llama.engine(context=CONTEXT, ranks=3) as engine, engine.session() as session:
        logits = [session.eval(random_tokens(llama, 40)) for _ in range(2)][1]
        for bad in (-1, vocab, 2**31 - 1, -(2**31)):
            with pytest.raises(rs.Error, match=f"token {bad} at 3 is not in the vocabulary of {vocab}") as caught:
                session.eval([1, 2, 3, bad, 4])
            assert caught.value.status == rs.BAD_ARGUMENT and len(session) == 40
        with pytest.raises(rs.Error, match="at least one token") as caught:
            session.eval([])
        assert caught.value.status == rs.BAD_ARGUMENT and len(session) == 40
        assert same(session.eval(random_tokens(llama, 40)), logits)


def test_one_session_at_a_time(llama):
    with llama.engine(context=128) as engine:
        with engine.session() as session:
            with pytest.raises(rs.Error, match="planned for one session, and one is open") as caught:
                engine.session()
            assert caught.value.status == rs.LIMIT
            session.eval([1])
        engine.session().close()


def test_missing_pointers_are_refused(llama):
    lib, out, options, logits = rs.lib(), rs.c_void_p(), rs.options(context=64), rs.POINTER(rs.c_float)()
    assert lib.rs_engine_open(None, rs.byref(options), rs.byref(out)) == rs.BAD_ARGUMENT
    assert lib.rs_engine_open(llama.pointer, None, rs.byref(out)) == rs.BAD_ARGUMENT
    assert lib.rs_plan_make(None, rs.byref(options), rs.byref(out)) == rs.BAD_ARGUMENT
    assert lib.rs_session_open(None, rs.byref(out)) == rs.BAD_ARGUMENT
    assert lib.rs_session_eval(None, None, 0, rs.PROGRESS(), None, rs.byref(logits)) == rs.BAD_ARGUMENT
    assert lib.rs_session_fill(None, 1, 1) == rs.BAD_ARGUMENT
    for close in (lib.rs_session_close, lib.rs_engine_close, lib.rs_plan_free, lib.rs_model_close):
        close(None)


def test_an_engine_closes_its_session(directory):
    model = rs.Model(tiny_models.make(directory, "qwen3-f32"))
    for evaluated in (False, True):
        engine = model.engine(context=128, ranks=3)
        session = engine.session()
        if evaluated:
            session.eval([1, 2, 3])
        engine.close()
        session.pointer = None  # Closed with its engine.
    model.close()


# ---- Filling


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0"])
def test_a_fill_does_not_depend_on_the_ranks(model, kv):
    timeline = [0] * 300 + [7]

    def run(seed=5, **options):
        with model.engine(context=CONTEXT, kv_k=kv, kv_v=kv, **options) as engine, engine.session() as session:
            session.fill(300, seed)
            assert len(session) == 300
            progress = Progress()
            logits = session.eval(timeline, progress)
            assert progress.calls == [(1, 1)]
            return logits

    one = run()
    assert same(run(), one)
    assert distance(run(seed=6), one) > 0.01
    for way in WAYS.values():
        assert distance(run(**way), one) < CLOSE, way


def test_a_fill_replaces_what_was_there(model, way):
    tokens = random_tokens(model, 250)
    with model.engine(**way) as engine, engine.session() as session:
        fresh = session.eval(tokens)
        session.fill(180, 3)
        progress = Progress()
        after_fill = session.eval([0] * 180 + tokens[:5], progress)
        assert progress.total == 5
        session.fill(0)
        assert len(session) == 0
        assert same(session.eval(tokens), fresh)
        session.fill(180, 3)
        assert same(session.eval([0] * 180 + tokens[:5]), after_fill)


# ---- Plans


def test_shares_and_pages(llama):
    plan = llama.plan(context=64 * 24, ranks=3, shares=[3, 2, 1])
    assert [r["pages"] for r in plan["rank"]] == [12, 8, 4]
    assert plan["options"]["shares"] == [3, 2, 1] and plan["page_tokens"] == 64
    # A context that ends inside a page takes the whole page; more ranks than pages leave some without.
    assert [r["pages"] for r in llama.plan(context=65, ranks=4)["rank"]] == [1, 1, 0, 0]
    assert [r["pages"] for r in llama.plan(context=64, ranks=3, split="pp")["rank"]] == [1, 1, 1]


@pytest.mark.parametrize("split", ["r1", "r4"])
def test_ranks_without_pages_still_work(model, split):
    tokens = random_tokens(model, 70)
    way = {"context": 80, "ranks": 4, "split": split}
    plan = model.plan(**way)["rank"]
    assert [r["pages"] for r in plan] == [1, 1, 0, 0] and max(r["kv"] for r in plan[2:]) < plan[0]["kv"] / 10
    assert distance(evaluate(model, tokens, **way)[0], evaluate(model, tokens)[0]) < CLOSE


def test_bytes_add_up(model, way):
    plan = model.plan(**way)
    assert plan["ranks"] == sum(r["kv"] + r["activations"] + r["wire"] + r["slices"] for r in plan["rank"])
    assert plan["total"] == plan["weights"] + plan["program"] + plan["ranks"] + plan["tables"]
    assert plan["weights"] == model.info["file_bytes"]
    assert plan["tables"] >= CONTEXT * 4  # The timeline is one of them.
    assert all((r["wire"] > 0) == ("ranks" in way and way["split"] != "pp") for r in plan["rank"])
    with model.engine(**way) as engine:
        opened = engine.plan
    for key in ("ranks", "tables", "weights", "rank", "page_tokens"):
        assert opened[key] == plan[key], key


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0"])
def test_kv_bytes_are_those_of_the_format_on_any_ranks(llama, way, kv):
    info = llama.info
    bits = {"f16": 16, "q8_0": 8 + 16 / info["head_dim"], "q4_0": 4 + 16 / 32}[kv]
    exact = CONTEXT * 2 * info["layers"] * info["kv_heads"] * info["head_dim"] * bits / 8
    kv_bytes = sum(r["kv"] for r in llama.plan(kv_k=kv, kv_v=kv, **way)["rank"])
    slack = 64 * (info["layers"] + 1) * 4  # Alignment, and a pointer per layer.
    assert exact <= kv_bytes <= exact + slack


def test_sliding_layers_do_not_grow_with_the_context(gemma):
    small, large = (gemma.plan(context=c, chunk=64)["rank"][0]["kv"] for c in (4096, 8192))
    info = gemma.info
    per_layer = 4096 * 2 * info["kv_heads"] * info["head_dim"] * 2
    assert large - small == per_layer  # One of the seven layers sees everything.


@pytest.mark.parametrize("split", ["r1", "r2", "r3", "r4", "tp", "pp"])
def test_slices_cover_the_model_once(model, split):
    info = model.info
    whole = model.plan(context=CONTEXT)["rank"][0]
    for ranks, shares in ((2, [1, 1]), (3, [3, 2, 1]), (4, [1, 1, 5, 2])):
        plan = model.plan(context=CONTEXT, ranks=ranks, split=split, shares=shares)["rank"]
        total = sum(r["weights"] for r in plan)
        assert all(r["weights"] <= whole["weights"] for r in plan)
        assert total >= whole["weights"] and (split != "pp" or total == whole["weights"])
        if split in ("r4", "tp"):
            assert total < 1.05 * whole["weights"]  # Norms and biases alone are on every rank.
        sliced = {"layer": split == "pp", "ffn": split in ("r2", "r3", "r4", "tp"), "head": split in ("r4", "tp")}
        sizes = {"layer": info["layers"], "ffn": info["ffn_dim"], "head": info["heads"], "vocab": info["vocab"]}
        for name, size in sizes.items():
            ranges = [(r[f"{name}_begin"], r[f"{name}_end"]) for r in plan]
            if sliced.get(name, True):
                filled = sorted(pair for pair in ranges if pair[0] < pair[1])
                assert [filled[0][0], filled[-1][1]] == [0, size]
                assert all(a[1] == b[0] for a, b in itertools.pairwise(filled)), (name, ranges)
            else:
                assert set(ranges) == {(0, size)}, (name, ranges)


def test_defaults_are_filled_in(model):
    options = model.plan()["options"]
    assert options["context"] == model.info["context_trained"] == CONTEXT
    assert options["ranks"] == 1 and options["chunk"] == 512 and options["split"] == rs.SPLITS["r1"]
    assert options["threads"] == len(os.sched_getaffinity(0))
    assert options["kernels"] in rs.KERNELS
    assert options["memory_limit"] > 1 << 28
    assert model.plan(ranks=3)["options"]["split"] == rs.SPLITS["r4"]
    assert model.plan(context=100, chunk=4096)["options"]["chunk"] == 100


@pytest.mark.parametrize(("values", "text"), [
    ({"ranks": 0}, "0 ranks asked for, 1 to 64 are possible"),
    ({"ranks": 65}, "65 ranks asked for, 1 to 64 are possible"),
    ({"split": 7}, "unknown split 7"),
    ({"split": -1}, "unknown split -1"),
    ({"kv_k": 3}, "kv_k is no KV format"),
    ({"kv_v": -1}, "kv_v is no KV format"),
    ({"context": 2**26 + 1}, "a context of 67108865 tokens asked for, at most 67108864"),
    ({"chunk": 2**16 + 1}, "a chunk of 65537 tokens asked for, at most 65536"),
    ({"threads": 1025}, "1025 threads asked for, at most 1024"),
    ({"ranks": 3, "shares": [1, 2]}, "rank 2 of 3 has no share"),
    ({"ranks": 2, "shares": [1, -1]}, "share -1 of rank 1 is not a positive number"),
    ({"ranks": 2, "shares": [float("nan"), 1]}, "of rank 0 is not a positive number"),
    ({"ranks": 2, "shares": [float("inf"), 1]}, "share inf of rank 0 is not a positive number"),
])
def test_options_that_cannot_be_meant_are_refused(llama, values, text):
    for attempt in (llama.plan, llama.engine):
        with pytest.raises(rs.Error, match=text) as caught:
            attempt(**values)
        assert caught.value.status == rs.BAD_ARGUMENT


def test_kernels_that_do_not_exist_are_refused(llama):
    with pytest.raises(rs.Error, match="no kernels 'avx9000' on this CPU; it runs ref") as caught:
        llama.engine(kernels="avx9000")
    assert caught.value.status == rs.UNSUPPORTED


# ---- Memory limits

SLACK = 4 << 20  # Bytes that the advice leaves free, since the program's own memory differs from run to run.


def needed(plan, program):
    """Total bytes of a plan if the process had `program` bytes resident."""
    return plan["total"] - plan["program"] + program


def test_context_max_is_the_largest_that_fits(model, way):
    for spare in (1_000_000, 7_654_321, 40_000_000):
        limit = needed(model.plan(**{**way, "context": 64}), model.plan(**way)["program"]) + spare + SLACK
        plan = model.plan(**{**way, "memory_limit": limit})
        most, program = plan["context_max"], plan["program"]
        assert most % 64 == 0 and plan["limit"] == limit
        assert most > 0
        assert needed(model.plan(**{**way, "context": most}), program) <= limit - SLACK
        assert needed(model.plan(**{**way, "context": most + 64}), program) > limit - SLACK


@pytest.mark.parametrize("ranks", [1, 3])
def test_context_max_opens_and_much_more_does_not(model, ranks):
    """The advice holds although the resident size of this process differs between calls."""
    evaluate(model, [1], ranks=ranks)
    limit = model.plan(context=64 * 300, ranks=ranks)["total"] + SLACK
    most = model.plan(ranks=ranks, memory_limit=limit)["context_max"]
    with model.engine(ranks=ranks, context=most, memory_limit=limit) as engine, engine.session() as session:
        assert engine.plan["total"] <= limit
        session.fill(most)
        assert len(session) == most
    more = most + 64
    while model.plan(ranks=ranks, context=more)["total"] <= limit + SLACK:
        more *= 2
    with pytest.raises(rs.Error, match=f"a context of {more} tokens needs .* MiB and") as caught:
        model.engine(ranks=ranks, context=more, memory_limit=limit)
    assert caught.value.status == rs.LIMIT


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_an_open_session_has_its_memory(llama):
    """What is promised is there before the first token: every KV page is touched when a session opens."""
    with llama.engine(context=60000, ranks=3) as engine:
        planned = sum(r["kv"] for r in engine.plan["rank"])
        before = resident_bytes()
        with engine.session():
            assert abs(resident_bytes() - before - planned) < 0.05 * planned
        assert resident_bytes() - before < 0.05 * planned


def test_a_refusal_names_the_largest_context(llama):
    limit = llama.plan(context=64 * 200)["total"] + SLACK
    with pytest.raises(rs.Error, match="the largest context that fits is [0-9]+ tokens") as caught:
        llama.engine(context=10**6, memory_limit=limit)
    named = int(str(caught.value).split("fits is ")[1].split()[0])
    assert abs(named - 64 * 200) <= 64 * 60 and named % 64 == 0  # The process's own bytes vary by a megabyte or two.
    with pytest.raises(rs.Error, match="no context fits") as caught:
        llama.engine(context=64, memory_limit=1 << 20)
    assert caught.value.status == rs.LIMIT
    plan = llama.plan(context=64, memory_limit=1 << 20)  # A plan that does not fit is still a plan.
    assert plan["context_max"] == 0 and plan["total"] > plan["limit"] == 1 << 20


# ---- Several engines, several threads, many ranks


def test_two_engines_on_one_model(model):
    tokens, other = random_tokens(model, 150), random_tokens(model, 120, 4)
    a_way, b_way = {"ranks": 3, "chunk": 64}, {"ranks": 2, "split": "r2", "chunk": 64}
    expected_a = evaluate(model, tokens[:100], tokens, **a_way)
    expected_b = evaluate(model, other[:90], other, **b_way)
    with model.engine(context=CONTEXT, **a_way) as a, model.engine(context=CONTEXT, **b_way) as b:
        with a.session() as s, b.session() as t:
            got = [s.eval(tokens[:100]), t.eval(other[:90]), s.eval(tokens), t.eval(other)]
    assert all(same(x, y) for x, y in zip(got, [expected_a[0], expected_b[0], expected_a[1], expected_b[1]]))


def test_engines_in_threads_of_their_own(model):
    timelines = [random_tokens(model, 150 + i, i) for i in range(3)]
    ways = [{"chunk": 64}, {"ranks": 3, "chunk": 64}, {"ranks": 2, "split": "pp", "chunk": 64}]
    expected = [evaluate(model, t, **w)[0] for t, w in zip(timelines, ways)]
    got, errors = [None] * 3, [None] * 3

    def work(i):
        for _ in range(4):
            got[i] = evaluate(model, timelines[i], **ways[i])[0]
        try:
            evaluate(model, [1] * (600 + i))
        except rs.Error as error:
            errors[i] = str(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(a, b) for a, b in zip(got, expected))
    assert errors == [f"limit: {600 + i} tokens do not fit the context of {CONTEXT}" for i in range(3)]


def test_each_thread_has_its_own_last_error(llama):
    seen = []

    def fail(ranks):
        with pytest.raises(rs.Error):
            llama.plan(ranks=ranks)
        seen.append(rs.lib().rs_last_error().decode())

    fail(65)
    thread = threading.Thread(target=fail, args=(66,))
    thread.start()
    thread.join()
    seen.append(rs.lib().rs_last_error().decode())
    assert [s.split()[0] for s in seen] == ["65", "66", "65"]


def test_an_engine_may_move_to_another_thread(llama):
    tokens = random_tokens(llama, 100)
    with llama.engine(context=CONTEXT, ranks=3) as engine, engine.session() as session:
        session.eval(tokens[:50])
        got = []
        thread = threading.Thread(target=lambda: got.append(session.eval(tokens)))
        thread.start()
        thread.join()
    assert same(got[0], evaluate(llama, tokens[:50], tokens, ranks=3)[1])


@pytest.mark.parametrize("split", ["r1", "r2", "r3", "r4", "tp", "pp"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_as_many_ranks_as_there_may_be(directory, family, split):
    model = open_model(tiny_models.make(directory, f"{family}-f32"))
    tokens = random_tokens(model, 140)
    way = {"ranks": rs.RANKS_MAX, "split": split, "memory_limit": 2 * MEMORY}  # Pages travel to 64 receivers.
    for a, b in zip(evaluate(model, tokens, tokens + [3], **way), evaluate(model, tokens, tokens + [3])):
        assert distance(a, b) < CLOSE
