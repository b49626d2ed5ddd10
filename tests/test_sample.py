"""Sampling against an independent numpy chain in llama.cpp's order: penalties, top-k, top-p, min-p, temperature.

The chain gives the probability of every token; what the library draws must never have probability 0 and must, over
thousands of draws, come as often as it should (Pearson's chi-square).
"""

import os
import sys

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import rs  # noqa: E402
import tiny_models  # noqa: E402

pytestmark = pytest.mark.skipif(not rs.available(), reason=f"{rs.PATH} is not built")

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # Every filter off.
DRAWS = 6000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with rs.Model(tiny_models.make(str(tmp_path_factory.mktemp("tiny")), "llama-f32")) as model:
        yield model


@pytest.fixture(scope="module")
def vocab(model):
    return model.info["vocab"]


# ---- The chain again, in float64 over whole arrays


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def penalised(logits, tokens, repeat=1.0, presence=0.0, frequency=0.0, last=64):
    x = logits.astype(np.float64)
    window = list(tokens)[max(0, len(tokens) - last) :]
    for token in set(window):
        x[token] = x[token] / repeat if x[token] > 0 else x[token] * repeat
        x[token] -= presence + frequency * window.count(token)
    return x


def probabilities(logits, tokens=(), temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0,
                  presence_penalty=0.0, frequency_penalty=0.0, penalty_last=64):
    x = penalised(logits, tokens, repeat_penalty, presence_penalty, frequency_penalty, penalty_last)
    order = np.lexsort((np.arange(len(x)), -x))  # Falling; of equal ones the lower id first.
    if top_k:
        order = order[:top_k]
    before = np.concatenate(([0.0], np.cumsum(softmax(x[order]))[:-1]))
    if top_p < 1:
        order = order[before < np.float32(top_p)]
    relative = np.exp(x[order] - x[order[0]])
    order = order[relative >= np.float32(min_p)]
    out = np.zeros(len(x))
    if temperature == 0:
        out[order[0]] = 1
    else:
        out[order] = softmax(x[order] / temperature)
    return out


def logits_of(rng, vocab, spread=2.0):
    return (rng.standard_normal(vocab) * spread).astype(np.float32)


def draw(model, logits, n, tokens=(), **sampling):
    """How often each token came in n draws."""
    with model.sampler(**sampling) as sampler:
        return np.bincount([sampler.pick(logits, tokens)[0] for _ in range(n)], minlength=len(logits))


def assert_follows(counts, expected):
    """Nothing impossible, and Pearson's chi-square below its mean plus six deviations (one in 10^7 by chance). Tokens
    expected less than five times are counted together."""
    assert counts[expected == 0].sum() == 0
    n = counts.sum()
    rare = n * expected < 5
    e = np.append(n * expected[~rare], n * expected[rare].sum())
    c = np.append(counts[~rare], counts[rare].sum())
    c, e = c[e > 0], e[e > 0]
    free = max(len(e) - 1, 1)
    chi2 = ((c - e) ** 2 / e).sum()
    assert chi2 < free + 6 * np.sqrt(2 * free), (chi2, free)


# ---- Greedy


def test_greedy_is_the_largest_after_penalties(model, vocab):
    rng = np.random.default_rng(1)
    moved = 0
    for seed in range(40):
        logits, tokens = logits_of(rng, vocab), rng.integers(0, vocab, 90).tolist()
        tokens[-3:] = [int(logits.argmax())] * 3
        penalties = {"repeat_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.4, "penalty_last": 50}
        with model.sampler(temperature=0, seed=seed) as plain, model.sampler(temperature=0, **penalties) as penal:
            assert plain.pick(logits, tokens)[0] == logits.argmax()
            wanted = probabilities(logits, tokens, temperature=0, **penalties).argmax()
            assert penal.pick(logits, tokens)[0] == wanted
            moved += wanted != logits.argmax()
    assert moved > 20


def test_ties_go_to_the_lower_token(model, vocab):
    logits = np.zeros(vocab, np.float32)
    logits[[300, 17, 120]] = 3.0
    with model.sampler(temperature=0) as sampler:
        (token, _), top = sampler.pick(logits, n_top=6)
    assert token == 17
    assert [t for t, _ in top] == [17, 120, 300, 0, 1, 2]
    # Where top-k cuts through equal ones, the lower tokens stay.
    counts = draw(model, logits, 400, **PLAIN | {"top_k": 5})
    assert set(np.flatnonzero(counts)) == {17, 120, 300, 0, 1}
    assert probabilities(logits, **PLAIN | {"top_k": 5})[[2, 3]].sum() == 0


# ---- Draws


CASES = {
    "defaults": {},
    "plain": PLAIN,
    "cold": PLAIN | {"temperature": 0.3},
    "hot": PLAIN | {"temperature": 3.0},
    "top-k": PLAIN | {"top_k": 7},
    "top-k 1": PLAIN | {"top_k": 1},
    "top-k beyond the vocabulary": PLAIN | {"top_k": 100000},
    "top-p": PLAIN | {"top_p": 0.6},
    "top-p of one": PLAIN | {"top_p": 1e-6},
    "min-p": PLAIN | {"min_p": 0.2},
    "min-p of one": PLAIN | {"min_p": 1.0},
    "all filters": {"top_k": 20, "top_p": 0.7, "min_p": 0.15, "temperature": 1.7},
    "all filters, other order of strength": {"top_k": 6, "top_p": 0.9, "min_p": 0.05, "temperature": 0.5},
    "repeat": PLAIN | {"repeat_penalty": 1.8},
    "presence": PLAIN | {"presence_penalty": 2.0},
    "frequency": PLAIN | {"frequency_penalty": 0.7},
    "rewarded": PLAIN | {"repeat_penalty": 0.6, "presence_penalty": -1.0, "frequency_penalty": -0.2},
    "short window": PLAIN | {"presence_penalty": 3.0, "penalty_last": 5},
    "no window": PLAIN | {"presence_penalty": 3.0, "repeat_penalty": 2.0, "penalty_last": 0},
    "everything": {"repeat_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3, "penalty_last": 30},
}


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_chain(model, vocab, name):
    rng = np.random.default_rng(sorted(CASES).index(name))
    logits = logits_of(rng, vocab)
    # The likeliest tokens are among the last ones, some of them several times, so that penalties matter.
    best = np.argsort(-logits)
    tokens = rng.choice(best[:60], 70).tolist() + best[[4, 0, 1, 1, 2]].tolist()
    assert_follows(draw(model, logits, DRAWS, tokens, seed=77, **CASES[name]),
                   probabilities(logits, tokens, **CASES[name]))


def test_draws_are_independent_of_each_other(model, vocab):
    logits = np.full(vocab, -np.inf, np.float32)
    logits[:4] = 0.0
    with model.sampler(seed=5, **PLAIN) as sampler:
        picks = np.array([sampler.pick(logits)[0] for _ in range(DRAWS)])
    pairs = np.bincount(picks[:-1] * 4 + picks[1:], minlength=16)
    assert_follows(pairs, np.full(16, 1 / 16))


def test_nothing_impossible_with_random_parameters(model, vocab):
    rng = np.random.default_rng(3)
    for seed in range(150):
        sampling = {
            "temperature": float(rng.uniform(0.2, 4)), "top_k": int(rng.integers(0, 60)),
            "top_p": float(rng.uniform(0.3, 1)), "min_p": float(rng.uniform(0, 0.3)),
            "repeat_penalty": float(rng.uniform(0.7, 1.5)), "presence_penalty": float(rng.uniform(-1, 1)),
            "frequency_penalty": float(rng.uniform(-1, 1)), "penalty_last": int(rng.integers(0, 100)),
        }
        logits = logits_of(rng, vocab, rng.uniform(0.5, 4))
        tokens = rng.integers(0, vocab, rng.integers(0, 120)).tolist()
        # float32 parameters on both sides, and a distance from every boundary that rounding could cross.
        sampling = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in sampling.items()}
        expected = probabilities(logits, tokens, **sampling)
        counts = draw(model, logits, 60, tokens, seed=seed, **sampling)
        assert counts[expected == 0].sum() == 0, sampling


# ---- The order of the chain: distributions on which another order leaves other tokens


def left(model, chances, **sampling):
    logits = np.full(model.info["vocab"], -np.inf, np.float32)
    logits[: len(chances)] = np.log(chances)
    return set(np.flatnonzero(draw(model, logits, 300, **PLAIN | sampling)))


def test_top_k_comes_before_top_p(model):
    # Among the two that top-k leaves, the first has 4/7 of the probability.
    assert left(model, [0.4, 0.3, 0.2, 0.1], top_k=2, top_p=0.5) == {0}
    assert left(model, [0.4, 0.3, 0.2, 0.1], top_p=0.5) == {0, 1}


def test_top_p_comes_before_min_p(model):
    # Min-p leaves the first two, of which the first alone has 5/8.
    assert left(model, [0.5, 0.3, 0.15, 0.05], top_p=0.6, min_p=0.4) == {0, 1}


def test_filters_come_before_temperature(model):
    chances = [0.6, 0.25, 0.1, 0.05]
    assert left(model, chances, top_p=0.8, temperature=50) == {0, 1}
    assert left(model, chances, min_p=0.3, temperature=50) == {0, 1}
    assert left(model, chances, top_p=0.8, temperature=0.4) == {0, 1}


def test_penalties_come_before_the_filters(model):
    logits = np.full(model.info["vocab"], -np.inf, np.float32)
    logits[:3] = np.log([0.5, 0.3, 0.2])
    counts = draw(model, logits, 100, [0, 0], **PLAIN | {"top_k": 1, "presence_penalty": 2.0})
    assert set(np.flatnonzero(counts)) == {1}


# ---- Seeds


def test_seeds_repeat(model, vocab):
    logits = logits_of(np.random.default_rng(9), vocab)

    def sequence(seed):
        with model.sampler(seed=seed, **PLAIN) as sampler:
            return [sampler.pick(logits) for _ in range(60)]

    sequences = [sequence(seed) for seed in (0, 1, 2, 2**64 - 1)]
    assert sequences == [sequence(seed) for seed in (0, 1, 2, 2**64 - 1)]
    assert len({tuple(s) for s in sequences}) == 4
    # Neighbouring seeds differ from the first draw on, not only later.
    assert len({sequence(seed)[0][0] for seed in range(30)}) > 10


def test_asking_for_the_top_changes_no_draw(model, vocab):
    logits = logits_of(np.random.default_rng(10), vocab)
    with model.sampler(seed=4) as a, model.sampler(seed=4) as b:
        for _ in range(50):
            assert a.pick(logits) == b.pick(logits, n_top=9)[0]


# ---- Log-probabilities


def test_logprobs_are_those_before_temperature_filters_and_penalties(model, vocab):
    rng = np.random.default_rng(11)
    for seed in range(20):
        logits, tokens = logits_of(rng, vocab, 4.0), rng.integers(0, vocab, 50).tolist()
        expected = np.log(softmax(logits.astype(np.float64)))
        with model.sampler(seed=seed, temperature=2.5, top_k=12, repeat_penalty=1.7, frequency_penalty=1.0) as sampler:
            (token, logprob), top = sampler.pick(logits, tokens, n_top=15)
        assert abs(logprob - expected[token]) < 1e-5
        order = np.lexsort((np.arange(vocab), -logits))[:15]
        assert [t for t, _ in top] == order.tolist()
        assert np.abs(np.array([p for _, p in top]) - expected[order]).max() < 1e-5


def test_more_top_tokens_than_the_vocabulary(model, vocab):
    logits = logits_of(np.random.default_rng(12), vocab)
    with model.sampler(temperature=0) as sampler:
        _, top = sampler.pick(logits, n_top=vocab + 7)
    assert sorted(t for t, _ in top[:vocab]) == list(range(vocab))
    assert abs(np.exp([p for _, p in top[:vocab]]).sum() - 1) < 1e-5
    assert top[vocab:] == [(-1, -np.inf)] * 7


def test_large_logits_do_not_overflow(model, vocab):
    logits = logits_of(np.random.default_rng(13), vocab) + np.float32(3e4)
    with model.sampler(seed=1) as sampler:
        token, logprob = sampler.pick(logits)
    assert abs(logprob - np.log(softmax(logits.astype(np.float64)))[token]) < 1e-2  # A float's step here is 0.002.


def test_impossible_tokens_are_never_drawn(model, vocab):
    logits = np.full(vocab, -np.inf, np.float32)
    logits[[5, 9]] = 1.0
    assert set(np.flatnonzero(draw(model, logits, 200, **PLAIN))) == {5, 9}
    with model.sampler() as sampler:
        _, top = sampler.pick(logits, n_top=3)
    assert top[2] == (0, -np.inf)


# ---- Refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, "all -inf", "all nan"])
def test_logits_that_are_no_numbers_are_refused(model, vocab, bad):
    logits = logits_of(np.random.default_rng(14), vocab)
    logits[slice(None) if isinstance(bad, str) else vocab - 1] = float(str(bad).split()[-1])
    with model.sampler() as sampler, pytest.raises(rs.Error, match="logits are not finite") as caught:
        sampler.pick(logits)
    assert caught.value.status == rs.DEVICE


@pytest.mark.parametrize(("name", "values", "text"), [
    ("temperature", (-0.1, np.nan, np.inf, -np.inf), "temperature .* is not 0 or more"),
    ("top_p", (0.0, -0.5, 1.01, np.nan), "top_p .* is not above 0 and at most 1"),
    ("min_p", (-0.01, 1.01, np.nan), "min_p .* is not between 0 and 1"),
    ("repeat_penalty", (0.0, -1.0, np.nan, np.inf), "repeat_penalty .* is not above 0"),
    ("presence_penalty", (np.nan, np.inf, -np.inf, -3e38), "penalties are to be finite"),
    ("frequency_penalty", (np.nan, np.inf, -np.inf, 3e38), "penalties are to be finite"),
])
def test_parameters_that_cannot_be_meant_are_refused(model, name, values, text):
    for value in values:
        with pytest.raises(rs.Error, match=text) as caught:
            model.sampler(**{name: value})
        assert caught.value.status == rs.BAD_ARGUMENT


def test_penalties_without_a_token_left_draw_one_all_the_same(model, vocab):
    """All but one token impossible, and a repeat penalty that makes the last one so too."""
    logits = np.full(vocab, -np.inf, dtype=np.float32)
    logits[7] = -3e38
    with model.sampler(temperature=1.0, top_k=0, repeat_penalty=1e5, penalty_last=64) as sampler:
        assert 0 <= sampler.pick(logits, [7])[0] < vocab


@pytest.mark.parametrize("token", [-1, 331, 2**31 - 1])
def test_tokens_outside_the_vocabulary_are_refused(model, vocab, token):
    assert vocab == 331
    logits = np.zeros(vocab, np.float32)
    with model.sampler(repeat_penalty=1.1) as sampler:
        with pytest.raises(rs.Error, match=f"token {token} is not in the vocabulary of {vocab}") as caught:
            sampler.pick(logits, [0, token])
        assert caught.value.status == rs.BAD_ARGUMENT
        sampler.pick(logits, [0, 1])


def test_missing_pointers_are_refused(model, vocab):
    out, picked = rs.c_void_p(), rs.LogProb()
    lib = rs.lib()
    assert lib.rs_sampler_open(None, rs.byref(rs.Sampling()), rs.byref(out)) == rs.BAD_ARGUMENT
    assert lib.rs_sampler_open(model.pointer, None, rs.byref(out)) == rs.BAD_ARGUMENT
    with model.sampler() as sampler:
        assert lib.rs_sampler_pick(sampler.pointer, None, None, 0, rs.byref(picked), None, 0) == rs.BAD_ARGUMENT
    lib.rs_sampler_close(None)
