"""A pass key hidden in a long text is found by the real SmolLM2, on one rank and on three, and every page matters."""

import functools
import json
import os
import random
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOL = os.path.join(os.environ.get("RINGSPAN_BUILD", os.path.join(ROOT, "build/release")), "needle_tool")
MODELS = os.environ.get("RINGSPAN_MODELS", os.path.join(ROOT, "models"))
REAL = os.path.join(MODELS, "SmolLM2-135M-Instruct.Q4_1.gguf")

pytestmark = [
    pytest.mark.skipif(not os.path.exists(TOOL), reason=f"{TOOL} is not built"),
    pytest.mark.skipif(not os.path.exists(REAL), reason=f"{REAL} is not there"),
]

PAGE_TOKENS = 64
KEY = "71432"
SHORT, LONG = 128, 610  # Sentences: 1,743 and 8,036 tokens, of the 8,192 that the model was trained for.

# Margins of the key's digits over the next best token, from tools/oracle.py (float64, K and V rounded to f16).
ORACLE = {
    SHORT: [5.835733, 7.157352, 7.319965, 5.915143, 7.717070],
    LONG: [2.800631, 5.367426, 7.474926, 5.752165, 8.766900],
}
# Largest difference of a margin from the oracle's, and between one rank and three. Measured: 0.010 and 0.007 at 1,743
# tokens, 0.005 and 0.003 at 8,036.
MARGIN_NOISE = 0.02

WHO = ("The gardener|A young sailor|The old teacher|Our neighbour|The clockmaker|A quiet traveller|The miller|"
       "The fisherman|A tired soldier|The baker's daughter").split("|")
DID = ("walked along|remembered|looked over|wrote about|painted|searched for|spoke of|returned to|dreamed of|"
       "sat beside").split("|")
WHAT = ("the river|an old bridge|the harbour|a field of wheat|the narrow road|the orchard|the lighthouse|"
        "the market square|a small stone house|the green hills").split("|")
WHEN = ("in the early morning|while the bells were ringing|with a lantern in hand|long after supper|"
        "before the rain came|as the wind turned north|without saying a word|when the snow had melted").split("|")


def prompt(sentences, seed=1):
    """A question about a key that stands behind 40 % of a text, and the answer begun."""
    rng = random.Random(seed)
    text = [f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHAT)} {rng.choice(WHEN)}." for _ in range(sentences)]
    text.insert(sentences * 2 // 5, f"The secret pass key is {KEY}. Remember it. {KEY} is the secret pass key.")
    return (
        "<|im_start|>user\nRead the text and remember the pass key.\n\n" + " ".join(text)
        + "\n\nWhat is the secret pass key in the text?<|im_end|>\n<|im_start|>assistant\nThe secret pass key is "
    )


@functools.lru_cache(maxsize=None)
def run(directory, sentences, ranks, remove):
    path = os.path.join(directory, f"{sentences}.txt")
    with open(path, "w") as file:
        file.write(prompt(sentences))
    done = subprocess.run([TOOL, REAL, str(ranks), "f16", path, KEY, "1" if remove else "0"], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("needle"))


def margins_on(directory, sentences, least, most):
    """The digits' margins on one rank and on three."""
    one, three = (run(directory, sentences, ranks, sentences == SHORT) for ranks in (1, 3))
    assert least <= one["tokens"] == three["tokens"] <= most
    print(f"{one['tokens']} tokens: margins {one['margins']} on one rank, {three['margins']} on three")
    assert len(one["margins"]) == len(three["margins"]) == len(KEY)
    return one["margins"], three["margins"]


@pytest.mark.parametrize(("sentences", "least", "most"), [(SHORT, 1600, 2048), (LONG, 7900, 8150)])
def test_the_key_is_found_on_any_ranks(directory, sentences, least, most):
    one, three = margins_on(directory, sentences, least, most)
    assert min(one) > 0 and min(three) > 0
    for a, b in ((one, three), (one, ORACLE[sentences]), (three, ORACLE[sentences])):
        assert max(abs(x - y) for x, y in zip(a, b)) < MARGIN_NOISE


def distance(a, b):
    difference = sum((x - y) ** 2 for x, y in zip(a, b))
    return (difference / sum(y * y for y in b)) ** 0.5


def test_every_page_of_every_rank_matters(directory):
    one, three = (run(directory, SHORT, ranks, True) for ranks in (1, 3))
    noise = distance(three["logits"], one["logits"])
    owners = [owner for owner, _ in three["removed"]]
    moved = [moved for _, moved in three["removed"]]
    print(f"noise {noise:.1e}, smallest page {min(moved):.1e}, largest {max(moved):.1e}")
    pages = (three["tokens"] - 1) // PAGE_TOKENS
    assert len(moved) == pages and set(owners) == {0, 1, 2} and {owner for owner, _ in one["removed"]} == {0}
    assert all(owners.count(rank) >= pages // 3 for rank in range(3))
    assert min(moved) > noise
    # The page that holds the key is the one that matters most, but for the first page, which attention rests on.
    key_page = max(range(1, pages), key=lambda page: moved[page])
    assert abs((key_page + 0.5) / pages - 0.4) < 0.1
    # The same page weighs the same on any ranks.
    assert all(abs(a - b) < 2 * noise + 0.01 * a for (_, a), (_, b) in zip(one["removed"], three["removed"]))
