"""make_golden.py: writes tests/golden/<name>.json, what the float64 oracle says about a real model.

Ten prompts of different kinds, each with its token ids (made here by plain reference tokenizers, not by ours), the
oracle's logits after the prompt with KV in f16 (the 32 largest and 512 sampled ones, and norm and mean of all), and
64 greedy tokens with their margins (largest logit less the second).

Command line: make_golden.py MODEL.gguf [--out tests/golden] [--name NAME]; minutes on two idle cores.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time

import numpy as np
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from oracle import Oracle  # noqa: E402

TOP, SAMPLED, GREEDY, SEED = 32, 512, 64, 20240601
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

MEDIUM = (
    "The lighthouse at the end of the peninsula had not been lit for thirty years when Marta bought it. The town "
    "sold it for less than the price of a car, on condition that she keep the stairs safe and the windows whole. "
    "She moved in with two suitcases, a box of tools and a grey cat that belonged to nobody. On the first "
    "evening she carried a lamp up the hundred and forty-two steps, counted them aloud, and found that the glass "
    "of the great lens was unbroken under its coat of salt. She cleaned it slowly, one prism a day, and wrote "
    "down in a notebook what she saw through each: the ferry at six in the morning, a line of geese, the red "
    "buoy that the fishermen called the apple.\n\nIn November a storm took the power lines down along the whole "
    "coast. The radio said that four boats were still out. Marta had no generator, but she had the lamp, eleven "
    "litres of oil and a lens that could throw the light of a candle to the horizon. She wound the old clockwork "
    "by hand every forty minutes and did not sleep. Toward morning, three boats had come in past the rocks. When "
    "the fourth one finally answered on the radio, its captain asked only one question:"
)

LONG = (
    MEDIUM
    + " who had lit the tower?\n\nPeople came to see her after that. Some brought bread, some brought oil, and the "
    "harbour master brought a paper that made her the keeper of a light that no map showed any more. She hung it in "
    "the kitchen. Children from the school climbed the stairs on Fridays, and she taught them how a lens is cut: "
    "that each ring bends the light a little more than the one inside it, that the same glass which gathers the "
    "sun can send a small flame twenty miles, and that the trick was found by a man who wanted to save coal. "
    "They asked whether she was lonely. She said that one cannot be lonely in a house that everybody looks "
    "at.\n\nIn the spring an engineer arrived with a measuring instrument and a list of questions. He wanted to "
    "know how bright the lamp was, how often it turned, and who had given permission. She answered the first "
    "two. He measured for a week, filled nineteen pages with numbers, and on the last day he asked whether he "
    "might see the light from the sea. They went out in the apple fisherman's boat, past the buoy, until the "
    "land was a thin dark line. The sun went down. For a while there was nothing, and then the beam came round "
    "over the water, slow and white, and touched the boat, and went on. The engineer put his papers away. He "
    "said that the new beacon, the automatic one, would cost four hundred thousand and be finished in two years, "
    "and that in his opinion nobody needed it. Then he asked her name, and wrote it down at the top of the first "
    "page.\n\nQuestion: Why did the engineer change his mind about the new beacon?\nAnswer:"
)

PROMPTS = {
    "word": "Hello",
    "fact": "The capital of France is",
    "list": "The first ten prime numbers are 2, 3, 5, 7,",
    "code": 'def binary_search(items, target):\n    """Return the index of target in the sorted list items, or -1."""\n'
    "    low, high = 0, len(items) - 1\n    while low <= high:\n        ",
    "json": '{"name": "Ada Lovelace", "born": 1815, "fields": ["mathematics", "computing"]}\n'
    '{"name": "Alan Turing", "born": 1912, "fields": [',
    "languages": "English: good morning. Deutsch: guten Morgen. Français: bonjour. Español: buenos días. 日本語: おはよう。"
    " Русский: доброе утро. العربية: صباح الخير. Ελληνικά: καλημέρα. Italiano:",
    "odd": "  \t Spaces,   tabs\tand\n\n\nlines; 3.14159e-10 != 0x7FFF — “quotes” … 👩‍🚀🚀 naïve café ½ ÅÄÖ\r\nThe",
    "medium": MEDIUM,
    "long": LONG,
}
CHAT = {  # By the tokenizer that the model has; the control tokens are parsed.
    "gpt2": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhy is the sky blue? Answer in two sentences.<|im_end|>\n<|im_start|>assistant\n",
    "llama": "<start_of_turn>user\nWhy is the sky blue? Answer in two sentences.<end_of_turn>\n<start_of_turn>model\n",
}


def byte_level_encoder(meta):
    """SmolLM's pre-tokenizer: single digits, then GPT-2's expression."""
    if meta["tokenizer.ggml.pre"] != "smollm":
        raise ValueError(f"pre-tokenizer {meta['tokenizer.ggml.pre']} is not known here")
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    t = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    t.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    t.add_special_tokens([AddedToken(s, special=True) for s, kind in zip(tokens, kinds) if kind == CONTROL])
    return lambda text: t.encode(text, add_special_tokens=False).ids


def sentence_piece_encoder(meta):
    """Merges the neighbours whose piece has the best score until none is a piece; unknown characters become bytes."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    scores = meta["tokenizer.ggml.scores"]
    number = {token: i for i, token in enumerate(tokens)}
    whole = [t for t, kind in zip(tokens, kinds) if kind in (CONTROL, USER_DEFINED)]
    split = re.compile("(" + "|".join(re.escape(t) for t in sorted(whole, key=len, reverse=True)) + ")")

    def pieces(text):
        parts = list(text.replace(" ", "▁"))
        while True:
            pairs = [(scores[number[a + b]], -i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in number]
            if not pairs:
                return parts
            i = -max(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    def encode(text):
        ids = [meta["tokenizer.ggml.bos_token_id"]] if meta.get("tokenizer.ggml.add_bos_token") else []
        for i, fragment in enumerate(split.split(text)):
            if i % 2:
                ids.append(number[fragment])
                continue
            for piece in pieces(fragment):
                ids += [number[piece]] if piece in number else [number[f"<0x{b:02X}>"] for b in piece.encode()]
        return ids

    return encode


def encoder(path):
    meta = {k: f.contents() for k, f in GGUFReader(path).fields.items() if k.startswith("tokenizer.")}
    kind = meta["tokenizer.ggml.model"]
    return kind, {"gpt2": byte_level_encoder, "llama": sentence_piece_encoder}[kind](meta)


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def single(values):
    """Float32 values in as few digits as give them back."""
    return [float(str(np.float32(v))) for v in values]


def main():
    p = argparse.ArgumentParser(description="write the golden file of one model")
    p.add_argument("model")
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/golden"))
    p.add_argument("--name", help="default: the model's file name")
    args = p.parse_args()
    name = args.name or os.path.splitext(os.path.basename(args.model))[0]
    kind, encode = encoder(args.model)
    oracle = Oracle(args.model)
    vocab = oracle.weights.vocab
    sampled = sorted(int(i) for i in np.random.default_rng(SEED).choice(vocab, SAMPLED, replace=False))
    golden = {"model": os.path.basename(args.model), "sha256": sha256(args.model), "kv": "f16", "vocab": vocab,
              "sampled": sampled, "prompts": []}
    for label, text in (PROMPTS | {"chat": CHAT[kind]}).items():
        began = time.time()
        tokens = encode(text)
        oracle.rewind(0)
        logits = oracle.eval(tokens)
        top = np.argsort(-logits)[:TOP]
        picked, margins = oracle.greedy(logits, GREEDY)
        golden["prompts"].append({
            "name": label, "text": text, "tokens": tokens, "norm": float(np.linalg.norm(logits)),
            "mean": float(logits.mean()), "top": [int(i) for i in top], "top_logits": single(logits[top]),
            "sampled_logits": single(logits[sampled]), "greedy": picked, "margins": single(margins),
        })
        print(f"{name} {label}: {len(tokens)} tokens, {time.time() - began:.1f} s", file=sys.stderr, flush=True)
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, f"{name}.json"), "w", encoding="utf-8") as f:
        lines = [json.dumps(prompt, ensure_ascii=False, separators=(",", ":")) for prompt in golden.pop("prompts")]
        head = json.dumps(golden, separators=(",", ":"))[:-1]
        f.write(head + ',"prompts":[\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
