"""tokenizer_cases.py: seeded lines of mixed text, vocabularies as GGUF files, and independent tokenizers of them."""

import random
import struct

import gguf
import numpy as np
import sentencepiece
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

# What the lines are made of. Only characters that Unicode had by version 13: the classes of newer ones depend on the
# tables of the regular expression library.
WORDS = """the of and to in a is that for it was on are as with his they at be this from I have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she many some so
these would other into has more her two like him see time could no make than first been its who now people my made
over did down only way find use may water long little very after words called just where most know""".split()
CONTRACTIONS = [
    "don't",
    "I'm",
    "we'LL",
    "you've",
    "HE'S",
    "they're",
    "'tis",
    "o'clock",
    "it'd",
    "l'été",
    "'s's",
    "''",
    "don’t",
    "'ſ",
    "I'M",
    "'Re",
]
CODE = [
    "for (int i = 0; i < n; i++) {",
    "\treturn x->y[3] & 0xFF;",
    "def f(self, *args, **kw):",
    "    if a != b and not c:",
    "#include <stdio.h>",
    "SELECT * FROM t WHERE a >= 10 -- c",
    "</div></td><b>bold</b>",
    "fn main() -> Result<(), E> {",
    "x += 1;;;",
    "/* ---- */",
    "a_b_c__d",
    "camelCaseName",
    "HTTPServer2",
    "λx.x",
    "$HOME/bin:$PATH",
    "{{ '%s' }}",
    "\\n\\t\\\\",
    "https://example.org/a?b=c&d=%20#e",
    "1e-9 + 3.14159f * 0b1010",
    "<|notspecial|>",
    "@property",
    "!!==??..",
    "\r\n",
    "//\n",
]
SCRIPTS = {
    "cjk": (0x4E00, 0x9FA5),
    "kana": (0x3041, 0x30FE),
    "hangul": (0xAC00, 0xD7A3),
    "arabic": (0x0620, 0x064A),
    "hebrew": (0x05D0, 0x05EA),
    "devanagari": (0x0904, 0x094D),
    "thai": (0x0E01, 0x0E3A),
    "cyrillic": (0x0410, 0x044F),
    "greek": (0x03B1, 0x03C9),
    "latin": (0x00C0, 0x024F),
    "math": (0x2200, 0x22FF),
    "symbols": (0x2190, 0x21FF),
    "marks": (0x0300, 0x036F),
    "punctuation": (0x2010, 0x2027),
    "fullwidth": (0xFF01, 0xFF5E),
    "box": (0x2500, 0x257F),
    "emoji": (0x1F600, 0x1F64F),
    "mathletters": (0x1D400, 0x1D454),
    "gothic": (0x10330, 0x1034A),
    "digits": (0x0660, 0x0669),
    "digits2": (0x0966, 0x096F),
    "roman": (0x2160, 0x2188),
    "super": (0x2070, 0x2071),
    "georgian": (0x10D0, 0x10FA),
    "tibetan": (0x0F40, 0x0F47),
    "cjk2": (0x20000, 0x20100),
    "ascii": (0x21, 0x7E),
    "controls": (0x00, 0x1F),
    "c1": (0x80, 0x9F),
}
EMOJI = [
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "👍🏽",
    "🇩🇪🇫🇷",
    "❤️",
    "🧑🏿‍🚀",
    "e\u0301",
    "क्षि",
    "กำ",
    "نَصّ",
    "שָׁלוֹם",
    "Å\u030a",
    "\u200d",
    "\u2581",
    "\ufeff",
    "\ufffd",
    "\u180e",
    "\u0085",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u200b",
    "\u00ad",
    "ǅ",
    "ŉ",
    "ß",
    "İ",
    "ﬁ",
    "½",
    "²",
    "Ⅷ",
    "①",
]
SPACES = [
    " ",
    "  ",
    "   ",
    "    ",
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\r\n",
    "\n\n\n",
    " \n ",
    "\n    ",
    "\t ",
    " \t",
    "\u00a0 ",
    "\v",
    "\f",
]
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<pad>",
    "<unused12>",
    "[multimodal]",
    "<start_of_image>",
    "<table>",
    "<td>",
    "</s>",
    "<s>",
    "<0x0A>",
    "<repo_name>",
    "<gh_stars>",
    "<|im_sta",
    "<|im_start|",
    "<start_of_turn",
    "<<td>>",
    "<mask>",
    "[INST]",
    "<h1>",
]


def piece(rng):
    kind = rng.random()
    if kind < 0.40:
        word = rng.choice(WORDS)
        return rng.choice([word, word, word.upper(), word.title(), word[::-1]])
    if kind < 0.46:
        return rng.choice(CONTRACTIONS)
    if kind < 0.56:
        return rng.choice(CODE)
    if kind < 0.70:
        first, last = SCRIPTS[rng.choice(sorted(SCRIPTS))]
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.choice([1, 2, 3, 5, 9])))
    if kind < 0.77:
        return rng.choice(EMOJI)
    if kind < 0.84:
        return str(rng.randint(0, 10 ** rng.randint(1, 12)))
    if kind < 0.89:
        return rng.choice(SPECIAL)
    if kind < 0.93:
        return rng.choice(SPACES) * rng.choice([1, 2, 3, 7, 16, 33, 65])
    if kind < 0.96:
        return rng.choice("aA.-=_!'\"#*~/\\ ") * rng.randint(1, 90)
    return chr(rng.choice([rng.randint(0x20, 0x7E), rng.randint(0xA0, 0x2FF), rng.randint(0x400, 0x4FF)]))


def line(rng):
    parts = []
    for _ in range(rng.choice([1, 2, 4, 8, 16, 30])):
        parts.append(piece(rng))
        parts.append(rng.choice(["", " ", " ", " ", " ", rng.choice(SPACES)]))
    return "".join(parts)


def lines(count, seed):
    """`count` lines of valid text."""
    rng = random.Random(seed)
    return [line(rng) for _ in range(count)]


def broken(count, seed):
    """`count` byte strings with bytes cut out of, and put into, the middle of characters."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        data = bytearray(line(rng).encode())
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data) + 1)
            if rng.random() < 0.5:
                del data[at : at + rng.randint(1, 3)]
            else:
                data[at:at] = bytes(
                    rng.choice([0x80, 0xBF, 0xC0, 0xC3, 0xE4, 0xED, 0xF0, 0xF5, 0xFF])
                    for _ in range(rng.randint(1, 3))
                )
        texts.append(bytes(data))
    return texts


# ---- GGUF files ------------------------------------------------------------------------------------------------------

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class Vocabulary:
    """What a GGUF file says about its tokenizer."""

    def __init__(self, model, pre, tokens, kinds, scores=None, merges=None, **keys):
        self.model, self.pre, self.tokens, self.kinds, self.scores, self.merges = (
            model,
            pre,
            tokens,
            kinds,
            scores,
            merges,
        )
        self.keys = keys

    @staticmethod
    def read(path):
        fields = gguf.GGUFReader(path).fields

        def get(name):
            field = fields.get("tokenizer.ggml." + name)
            return field.contents() if field else None

        keys = {
            k: get(k)
            for k in (
                "bos_token_id",
                "eos_token_id",
                "unknown_token_id",
                "add_bos_token",
                "add_eos_token",
                "add_space_prefix",
            )
        }
        return Vocabulary(
            get("model"),
            get("pre"),
            get("tokens"),
            get("token_type"),
            get("scores"),
            get("merges"),
            **{k: v for k, v in keys.items() if v is not None}
        )

    def write(self, path):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for key, value in self.keys.items():
            if isinstance(value, bool):
                writer.add_bool("tokenizer.ggml." + key, value)
            else:
                writer.add_uint32("tokenizer.ggml." + key, value)
        writer.add_tensor("token_embd.weight", np.zeros(32, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def specials(self, kinds):
        return [t for t, k in zip(self.tokens, self.kinds) if k in kinds]


# ---- Oracles ---------------------------------------------------------------------------------------------------------

LEAD, SIGNS = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+"
CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# The "pre_tokenizer" of each family's tokenizer.json: Split patterns, and whether BPE has ignore_merges. None stands
# for ByteLevel's own expression (GPT-2's), "digits" for the Digits pre-tokenizer.
FAMILIES = {
    "gpt-2": ([None], False),
    "smollm": (["digits", None], False),
    "llama-bpe": ([CASES + "|" + LEAD + r"\p{L}+|\p{N}{1,3}|" + SIGNS + r"[\r\n]*|" + TAIL], True),
    "qwen2": ([CASES + "|" + LEAD + r"\p{L}+|\p{N}|" + SIGNS + r"[\r\n]*|" + TAIL], False),
    "qwen35": ([CASES + "|" + LEAD + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + TAIL], False),
    "tekken": (
        [LEAD + UP + "*" + LOW + "+|" + LEAD + UP + "+" + LOW + r"*|\p{N}|" + SIGNS + r"[\r\n/]*|" + TAIL],
        True,
    ),
    "gpt-4o": (
        [
            LEAD
            + UP
            + "*"
            + LOW
            + "+"
            + CASES
            + "?|"
            + LEAD
            + UP
            + "+"
            + LOW
            + "*"
            + CASES
            + r"?|\p{N}{1,3}|"
            + SIGNS
            + r"[\r\n/]*|"
            + TAIL
        ],
        False,
    ),
    "deepseek-v3": (
        [
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            + r"""| ?[\p{P}\p{S}]+[\r\n]*|"""
            + TAIL,
        ],
        False,
    ),
}


def byte_level_oracle(vocabulary, special):
    """Hugging Face's BPE over the file's own tokens; without `special` it knows only user-defined tokens."""
    steps, whole_words = FAMILIES[vocabulary.pre]
    merges = [tuple(m.split(" ")) for m in vocabulary.merges]
    bpe = models.BPE({t: i for i, t in enumerate(vocabulary.tokens)}, merges, ignore_merges=whole_words)
    tokenizer = tokenizers.Tokenizer(bpe)
    parts = [
        pre_tokenizers.Digits(individual_digits=True) if s == "digits" else pre_tokenizers.Split(Regex(s), "isolated")
        for s in steps
        if s
    ]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=None in steps))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    kinds = (USER_DEFINED, CONTROL, UNKNOWN) if special else (USER_DEFINED,)
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(t, special=True, normalized=False) for t in vocabulary.specials(kinds)]
    )
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, value):
    """One field of a protocol buffer."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece_oracle(vocabulary):
    """Google's SentencePiece over the file's own pieces and scores."""
    parts = []
    fallback = BYTE in vocabulary.kinds
    unknown = vocabulary.keys["unknown_token_id"]
    for i, (token, score, kind) in enumerate(zip(vocabulary.tokens, vocabulary.scores, vocabulary.kinds)):
        kind = UNKNOWN if i == unknown else kind
        text = token.replace(" ", "▁") if kind == USER_DEFINED else token
        parts.append(field(1, field(1, text.encode()) + field(2, float(score)) + field(3, kind)))
    ids = field(40, unknown) + field(41, vocabulary.keys["bos_token_id"]) + field(42, vocabulary.keys["eos_token_id"])
    parts.append(field(2, field(3, 2) + field(35, int(fallback)) + ids))
    prefix = vocabulary.keys.get("add_space_prefix", True)
    parts.append(field(3, field(1, b"identity") + field(3, int(prefix)) + field(4, 0) + field(5, 1)))
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(b"".join(parts))
    return processor
