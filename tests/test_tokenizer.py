"""test_tokenizer.py: token ids against Hugging Face's tokenizers and Google's SentencePiece, on the vocabularies of
small models trained here, and of published ones when their files are at hand (RINGSPAN_MODELS, or models/)."""

import io
import json
import os
import pathlib
import re
import struct
import subprocess

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

import tokenizer_cases as cases
from tokenizer_cases import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary

ROOT = pathlib.Path(__file__).parent.parent
BUILD = pathlib.Path(os.environ.get("RINGSPAN_BUILD", ROOT / "build/dev"))
MODELS = pathlib.Path(os.environ.get("RINGSPAN_MODELS", ROOT / "models"))
ADD_SPECIAL, PARSE_SPECIAL = 1, 2
LINES = int(os.environ.get("RINGSPAN_LINES", "12000"))


@pytest.fixture(scope="session")
def tool():
    path = BUILD / "tokenize_tool"
    if not path.exists():
        subprocess.run(["cmake", "--build", BUILD, "--target", "tokenize_tool"], check=True)
    return path


def encode(tool, path, flags, texts):
    texts = [t.encode() if isinstance(t, str) else t for t in texts]
    data = b"".join(struct.pack("<I", len(t)) + t for t in texts)
    done = subprocess.run([tool, path, "encode", str(flags)], input=data, capture_output=True, check=True)
    result = [[int(i) for i in row.split()] for row in done.stdout.decode().split("\n")[:-1]]
    assert len(result) == len(texts)
    return result


def decode(tool, path, rows):
    data = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    done = subprocess.run([tool, path, "decode"], input=data, capture_output=True, check=True)
    stream, texts = io.BytesIO(done.stdout), []
    while head := stream.read(4):
        texts.append(stream.read(struct.unpack("<I", head)[0]))
    assert len(texts) == len(rows)
    return texts


def agree(texts, got, expected):
    wrong = [(t, g, e) for t, g, e in zip(texts, got, expected) if g != e]
    shown = "\n".join(
        f"{t!r}\n  got      {g}\n  expected {e}" for t, g, e in sorted(wrong, key=lambda w: len(w[0]))[:5]
    )
    assert not wrong, f"{len(wrong)} of {len(texts)} lines differ:\n{shown}"


def published(name):
    found = sorted(MODELS.glob(name)) if MODELS.is_dir() else []
    if not found:
        pytest.skip(f"no {name} in {MODELS}; set RINGSPAN_MODELS")
    return found[0]


# ---- Small vocabularies -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def byte_level_vocabulary():
    """Byte-level BPE trained on generated lines, with special tokens after it."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(cases.lines(4000, 1), trainer)

    model = json.loads(trained.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    kinds = [NORMAL] * len(tokens)
    for text, kind in (
        ("<|im_start|>", CONTROL),
        ("<|im_end|>", CONTROL),
        ("<|im_end|><|im_start|>", CONTROL),
        ("<s>", CONTROL),
        ("<td>", USER_DEFINED),
        ("   ", USER_DEFINED),
        ("<<td", USER_DEFINED),
    ):
        tokens.append(text)
        kinds.append(kind)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return Vocabulary(
        "gpt2",
        "gpt-2",
        tokens,
        kinds,
        merges=merges,
        bos_token_id=tokens.index("<s>"),
        eos_token_id=tokens.index("<|im_end|>"),
    )


def train_pieces(directory, byte_fallback):
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(re.sub(r"[\x00-\x1f\x85\u2028\u2029]+", " ", x) for x in cases.lines(4000, 2)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(directory / "pieces"),
        model_type="bpe",
        vocab_size=2500,
        character_coverage=0.98,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        control_symbols=["<|im_start|>"],
    )
    p = sentencepiece.SentencePieceProcessor(model_file=str(directory / "pieces.model"))
    kinds = [
        UNKNOWN if p.is_unknown(i) else CONTROL if p.is_control(i) else BYTE if p.is_byte(i) else NORMAL
        for i in range(p.vocab_size())
    ]
    return (
        Vocabulary(
            "llama",
            "default",
            [p.id_to_piece(i) for i in range(p.vocab_size())],
            kinds,
            scores=[p.get_score(i) for i in range(p.vocab_size())],
            bos_token_id=p.bos_id(),
            eos_token_id=p.eos_id(),
            unknown_token_id=p.unk_id(),
        ),
        p,
    )


# ---- Byte-level BPE -------------------------------------------------------------------------------------------------


def check_byte_level(tool, path, vocabulary, count):
    texts = cases.lines(count, 3)
    for flags in (0, PARSE_SPECIAL):
        oracle = cases.byte_level_oracle(vocabulary, special=flags == PARSE_SPECIAL)
        agree(texts, encode(tool, path, flags, texts), [oracle(t) for t in texts])


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_families_agree_with_tokenizers(tool, tmp_path, byte_level_vocabulary, family):
    byte_level_vocabulary.pre = family
    path = byte_level_vocabulary.write(tmp_path / "small.gguf")
    check_byte_level(tool, path, byte_level_vocabulary, LINES // 4)


def test_smollm2_agrees_with_tokenizers(tool):
    path = published("*mol*2*.gguf")
    check_byte_level(tool, path, Vocabulary.read(path), LINES)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_smollm2_words_in_other_families(tool, tmp_path, family):
    vocabulary = Vocabulary.read(published("*mol*2*.gguf"))
    vocabulary.pre = family
    check_byte_level(tool, vocabulary.write(tmp_path / "other.gguf"), vocabulary, LINES // 4)


def runs(data):
    """(valid, bytes) runs, as the tokenizer defines them: what is in no character is a run of its own."""
    found, at = [], 0
    while at < len(data):
        size = next((n for n in (1, 2, 3, 4) if is_character(data[at : at + n])), 0)
        if found and found[-1][0] == bool(size):
            found[-1][1].extend(data[at : at + max(size, 1)])
        else:
            found.append((bool(size), bytearray(data[at : at + max(size, 1)])))
        at += max(size, 1)
    return found


def is_character(data):
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def test_invalid_bytes_are_words_of_their_own(tool, tmp_path, byte_level_vocabulary):
    vocabulary = byte_level_vocabulary
    vocabulary.pre = "llama-bpe"
    path = vocabulary.write(tmp_path / "small.gguf")
    oracle = cases.byte_level_oracle(vocabulary, special=False)
    bpe = models.BPE(
        {t: i for i, t in enumerate(vocabulary.tokens)},
        [tuple(m.split(" ")) for m in vocabulary.merges],
        ignore_merges=True,
    )
    letters = {bytes([b]): t for b, t in zip(letter_bytes(), letter_texts())}
    texts, expected = cases.broken(LINES // 4, 4), []
    for data in texts:
        row = []
        for valid, run in runs(data):
            row += (
                oracle(run.decode())
                if valid
                else [t.id for t in bpe.tokenize("".join(letters[bytes([b])] for b in run))]
            )
        expected.append(row)
    agree(texts, encode(tool, path, 0, texts), expected)


def letter_bytes():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [b for b in range(256) if b not in printable]


def letter_texts():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(c) for c in printable + list(range(256, 256 + 256 - len(printable)))]


def test_byte_level_decoding_agrees_with_python(tool, tmp_path, byte_level_vocabulary):
    path = byte_level_vocabulary.write(tmp_path / "small.gguf")
    texts = [t.encode() for t in cases.lines(LINES // 4, 5)] + cases.broken(LINES // 4, 6)
    back = decode(tool, path, encode(tool, path, 0, texts))
    agree(texts, back, [t.decode(errors="replace").encode() for t in texts])


def test_bos_and_eos(tool, tmp_path, byte_level_vocabulary):
    v = byte_level_vocabulary
    bos, eos = v.keys["bos_token_id"], v.keys["eos_token_id"]
    v.pre = "gpt-2"
    plain = encode(tool, v.write(tmp_path / "a.gguf"), 0, ["hello"])[0]
    for keys, expected in (
        ({}, plain),
        ({"add_bos_token": True}, [bos] + plain),
        ({"add_eos_token": True}, plain + [eos]),
        ({"add_bos_token": True, "add_eos_token": True}, [bos] + plain + [eos]),
    ):
        other = Vocabulary(v.model, v.pre, v.tokens, v.kinds, merges=v.merges, **v.keys, **keys)
        path = other.write(tmp_path / "b.gguf")
        assert encode(tool, path, ADD_SPECIAL, ["hello"])[0] == expected
        assert encode(tool, path, 0, ["hello"])[0] == plain
    v.pre = "llama-bpe"
    path = v.write(tmp_path / "c.gguf")
    assert encode(tool, path, ADD_SPECIAL, ["", "hello"]) == [[bos], [bos] + encode(tool, path, 0, ["hello"])[0]]


# ---- SentencePiece --------------------------------------------------------------------------------------------------


def split_special(vocabulary, kinds, encode_part, lines):
    """Special tokens taken out first, leftmost and longest; the parts between encoded each for itself."""
    joined = "\0".join(lines).replace("▁", " ")
    texts = sorted((t for t in vocabulary.specials(kinds) if t in joined), key=len, reverse=True)
    ids = {t: i for i, t in enumerate(vocabulary.tokens)}
    pattern = re.compile("(" + "|".join(re.escape(t) for t in texts) + ")")

    def oracle(text):
        parts = pattern.split(text.replace("▁", " "))
        return sum(([ids[p]] if i % 2 else encode_part(p) if p else [] for i, p in enumerate(parts)), [])

    return oracle


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_small_pieces_agree_with_sentencepiece(tool, tmp_path, byte_fallback):
    vocabulary, processor = train_pieces(tmp_path, byte_fallback)
    path = vocabulary.write(tmp_path / "small.gguf")
    texts = cases.lines(LINES // 4, 7)
    agree(texts, encode(tool, path, 0, texts), [processor.encode(t) for t in texts])
    oracle = split_special(vocabulary, (CONTROL, UNKNOWN), processor.encode, texts)
    agree(texts, encode(tool, path, PARSE_SPECIAL, texts), [oracle(t) for t in texts])
    if byte_fallback:
        assert decode(tool, path, encode(tool, path, 0, texts)) == [t.replace("▁", " ").encode() for t in texts]


def test_gemma3_agrees_with_sentencepiece(tool):
    path = published("*emma*.gguf")
    vocabulary = Vocabulary.read(path)
    processor = cases.sentencepiece_oracle(vocabulary)
    texts = cases.lines(LINES, 8)
    agree(texts, encode(tool, path, 0, texts), [processor.encode(t) for t in texts])
    oracle = split_special(vocabulary, (CONTROL, UNKNOWN, USER_DEFINED), processor.encode, texts)
    agree(texts, encode(tool, path, PARSE_SPECIAL, texts), [oracle(t) for t in texts])
    assert decode(tool, path, encode(tool, path, 0, texts)) == [t.replace("▁", " ").encode() for t in texts]


def test_gemma3_invalid_bytes_are_byte_tokens(tool):
    path = published("*emma*.gguf")
    vocabulary = Vocabulary.read(path)
    processor = cases.sentencepiece_oracle(vocabulary)
    byte = {int(t[3:5], 16): i for i, (t, k) in enumerate(zip(vocabulary.tokens, vocabulary.kinds)) if k == BYTE}
    texts, expected = cases.broken(LINES // 4, 9), []
    for data in texts:
        expected.append(
            sum(
                (processor.encode(run.decode()) if valid else [byte[b] for b in run] for valid, run in runs(data)), []
            )
        )
    agree(texts, encode(tool, path, 0, texts), expected)
