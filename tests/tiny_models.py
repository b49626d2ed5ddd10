"""tiny_models.py: writes small random GGUF files, every family in every weight format, from a seed.

Shapes are awkward on purpose (3 kv heads, 5 blocks of FFN, odd vocabularies: two, three or four ranks do not divide
them) and weights are scaled so that logits spread over several units and attention is not flat: an error in a
position, a KV row or a slice shows in the logits, a hundred times above the noise that rounding the KV cache
amplifies.

Command line: tiny_models.py --out DIR [NAME ...]   (all of MODELS without names)
              tiny_models.py --smollm2 FILE --context N [--tokenizer REAL.gguf]
"""

import argparse
import hashlib
import os
import zlib
from dataclasses import dataclass, field, replace

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize

FORMATS = ("F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL MXFP4").split()
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
BAND_VALUES = 1 << 23  # of a matrix that are drawn and quantised at once

# Formats that the package gguf cannot quantise to: bytes of a block, where its half scales lie, and each one's size
# relative to the first, chosen so that the mean of random codes is near zero. The rest of a block is random bytes.
RANDOM_BLOCKS = {
    "Q2_K": (84, ((80, 1.0), (82, 1.5))),
    "Q3_K": (110, ((108, 1.0),)),
    "Q4_K": (144, ((0, 1.0), (2, 7.5))),
    "Q5_K": (176, ((0, 1.0), (2, 15.5))),
    "Q6_K": (210, ((208, 1.0),)),
    "IQ4_NL": (18, ((0, 1.0),)),
}


@dataclass(frozen=True)
class Spec:
    family: str
    format: str = "F32"
    dim: int = 96
    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 32
    ffn_dim: int = 160
    layers: int = 3
    vocab: int = 331
    tied: bool = False
    context: int = 512
    window: int = 0
    freq_base: float = 10000.0
    rope: dict = field(default_factory=dict)  # rope.scaling.* metadata
    llama3: bool = False  # a rope_freqs.weight tensor
    explicit_head_dim: bool = True  # attention.key_length in the metadata
    chat: bool = False


SMALL = {
    "llama": Spec("llama", dim=192, explicit_head_dim=False, chat=True),
    "qwen2": Spec("qwen2", dim=192, kv_heads=2, vocab=353, explicit_head_dim=False, freq_base=1e6),
    "qwen3": Spec("qwen3", dim=96, heads=8, kv_heads=4, layers=4, vocab=337, tied=True, freq_base=1e6),
    "gemma3": Spec("gemma3", dim=96, kv_heads=2, ffn_dim=224, layers=7, vocab=419, tied=True, window=20, freq_base=1e6),
}
# K-quants come in blocks of 256 along a row: three of them, or two, so that ranks get uneven column slices or none.
K_QUANT = {
    "llama": replace(SMALL["llama"], dim=256, heads=12, kv_heads=3, head_dim=64, ffn_dim=768, explicit_head_dim=True),
    "qwen2": replace(SMALL["qwen2"], dim=256, heads=4, kv_heads=2, head_dim=64, ffn_dim=768),
    "qwen3": replace(SMALL["qwen3"], dim=256, heads=8, kv_heads=2, head_dim=64, ffn_dim=512),
    "gemma3": replace(SMALL["gemma3"], dim=256, heads=4, kv_heads=1, head_dim=128, ffn_dim=768),
}
LINEAR = {"type": "linear", "factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 64}

MODELS = {}
for _family in FAMILIES:
    for _format in FORMATS:
        _shapes = K_QUANT if _format.endswith("_K") else SMALL
        MODELS[f"{_family}-{_format.lower()}"] = replace(_shapes[_family], format=_format)
MODELS |= {
    "llama-linear": replace(SMALL["llama"], rope=LINEAR),
    "llama-yarn": replace(SMALL["llama"], rope=YARN),
    "llama-llama3": replace(SMALL["llama"], llama3=True, freq_base=500000.0),
    "llama-tied": replace(SMALL["llama"], tied=True),
    "llama-head96": replace(SMALL["llama"], head_dim=96, heads=4, kv_heads=2, explicit_head_dim=True),
    "llama-one-kv-head": replace(SMALL["llama"], heads=5, kv_heads=1, dim=160),
    "llama-mha": replace(SMALL["llama"], heads=5, kv_heads=5, dim=160),
    "qwen2-yarn": replace(SMALL["qwen2"], rope=YARN),
    "qwen3-yarn": replace(SMALL["qwen3"], rope=YARN),
    "qwen3-untied": replace(SMALL["qwen3"], tied=False),
    "gemma3-linear": replace(SMALL["gemma3"], rope=LINEAR),
}


# ---- Tensors


def random_matrix(rng, name, rows, cols, std):
    """(data, type) of a [rows, cols] matrix whose values have about the given standard deviation."""
    kind = Type[name]
    if name == "F32":
        return (rng.standard_normal((rows, cols)) * std).astype(np.float32), kind
    if name not in RANDOM_BLOCKS:
        # Row scales differ, so that block scales do. Band by band: the largest would take many times the file's memory.
        def band(height):
            x = rng.standard_normal((height, cols)) * std * rng.uniform(0.5, 1.5, (height, 1))
            return quantize(x.astype(np.float32), kind)

        height = max(1, BAND_VALUES // cols)
        return np.concatenate([band(min(height, rows - first)) for first in range(0, rows, height)]), kind
    bytes_per_block, scales = RANDOM_BLOCKS[name]
    values = 32 if name == "IQ4_NL" else 256
    blocks = rng.integers(0, 256, (rows * cols // values, bytes_per_block), dtype=np.uint8)
    vary = rng.uniform(0.5, 1.5, len(blocks))

    def scaled(unit):
        for offset, ratio in scales:
            halves = (vary * unit * ratio).astype(np.float16)
            blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
        return dequantize(blocks, kind)

    scaled(std / scaled(1 / 64).std() / 64)
    return blocks.reshape(rows, -1), kind


def write_tensors(writer, spec, rng):
    """With rng None the tensors are only announced, for a file without data."""
    dim, q_dim, kv_dim = spec.dim, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def matrix(name, rows, cols, gain):
        if rng is None:
            kind = Type[spec.format]
            values, block_bytes = GGML_QUANT_SIZES[kind]
            row_bytes = cols // values * block_bytes
            writer.add_tensor_info(f"{name}.weight", [rows, row_bytes], np.dtype(np.uint8), rows * row_bytes, kind)
            return
        data, kind = random_matrix(rng, spec.format, rows, cols, gain / np.sqrt(cols))
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)

    def vector(name, n, mean, std):
        if rng is None:
            writer.add_tensor_info(name, [n], np.dtype(np.float32), 4 * n)
            return
        writer.add_tensor(name, (mean + std * np.clip(rng.standard_normal(n), -2, 2)).astype(np.float32))

    matrix("token_embd", spec.vocab, dim, 3.0)
    for layer in range(spec.layers):
        b = f"blk.{layer}"
        vector(f"{b}.attn_norm.weight", dim, 1.0, 0.3)
        matrix(f"{b}.attn_q", q_dim, dim, 1.0)
        matrix(f"{b}.attn_k", kv_dim, dim, 1.0)
        matrix(f"{b}.attn_v", kv_dim, dim, 1.0)
        matrix(f"{b}.attn_output", dim, q_dim, 1.5)
        if spec.family == "qwen2":
            for name, n in (("q", q_dim), ("k", kv_dim), ("v", kv_dim)):
                vector(f"{b}.attn_{name}.bias", n, 0.0, 0.5)
        if spec.family in ("qwen3", "gemma3"):
            vector(f"{b}.attn_q_norm.weight", spec.head_dim, 1.1, 0.3)
            vector(f"{b}.attn_k_norm.weight", spec.head_dim, 1.1, 0.3)
        if spec.family == "gemma3":
            vector(f"{b}.post_attention_norm.weight", dim, 1.5, 0.3)
            vector(f"{b}.post_ffw_norm.weight", dim, 1.5, 0.3)
        vector(f"{b}.ffn_norm.weight", dim, 1.0, 0.3)
        matrix(f"{b}.ffn_gate", spec.ffn_dim, dim, 1.5)
        matrix(f"{b}.ffn_up", spec.ffn_dim, dim, 1.0)
        matrix(f"{b}.ffn_down", dim, spec.ffn_dim, 1.5)
    vector("output_norm.weight", dim, 1.0, 0.3)
    if not spec.tied:
        matrix("output", spec.vocab, dim, 3.0)
    if spec.llama3:
        writer.add_tensor("rope_freqs.weight", llama3_divisors(spec.freq_base, spec.head_dim))


def llama3_divisors(base, n_rot, factor=8.0, low=1.0, high=4.0, original=64):
    """Llama 3's RoPE scaling as GGUF files keep it: long waves are stretched by factor, short ones not."""
    wave = 2 * np.pi * base ** (np.arange(0, n_rot, 2) / n_rot)
    smooth = np.clip((original / wave - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


# ---- Tokenizers


def byte_letters():
    """GPT-2's printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(other)}}


def write_byte_level(writer, vocab, pre, chat):
    letters = byte_letters()
    merges = "Ġ t|h e|i n|a n|o u|Ġt he|in g|Ġ a|e r|l l|Ċ Ċ|l o|h e|ll o".split("|")
    merges = list(dict.fromkeys(merges))
    tokens = [letters[b] for b in range(256)] + [m.replace(" ", "") for m in merges]
    types = [1] * len(tokens)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    filler = [f"<|unused_{i}|>" for i in range(vocab - len(tokens) - len(special))]
    if vocab > TOKENIZER_VOCAB:  # So many texts that differ in digits alone would fill a hash table unevenly.
        filler = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in filler]
    tokens, types = tokens + special + filler, types + [3] * len(special) + [5] * len(filler)
    bos = tokens.index("<|im_start|>")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(bos + 1)
    writer.add_add_bos_token(False)
    if chat:
        writer.add_chat_template(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )


def write_sentence_piece(writer, vocab):
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [3, 3, 3, 2] + [6] * 256
    scores = [-1000.0] * len(tokens)
    pieces = ["▁t", "he", "in", "an", "▁the", "ing", "▁a", "er", "ll", "lo", "llo", "hello", "▁"]
    pieces += [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("ABCDE.,!?0123456789é世")
    for i, piece in enumerate(pieces):
        tokens.append(piece)
        types.append(1)
        scores.append(-float(i))
    for i, control in enumerate(["<start_of_turn>", "<end_of_turn>"]):
        tokens.append(control)
        types.append(3)
        scores.append(-1000.0)
    while len(tokens) < vocab:
        tokens.append(f"<unused{len(tokens)}>")
        types.append(5)
        scores.append(-1000.0)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def copy_tokenizer(writer, path):
    for name, f in GGUFReader(path).fields.items():
        if name.startswith("tokenizer."):
            sub = f.types[-1] if f.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, f.contents(), f.types[0], sub)


# ---- Files


def write_metadata(writer, spec, name):
    a = spec.family
    writer.add_name(name)
    writer.add_uint32(f"{a}.context_length", spec.context)
    writer.add_uint32(f"{a}.embedding_length", spec.dim)
    writer.add_uint32(f"{a}.block_count", spec.layers)
    writer.add_uint32(f"{a}.feed_forward_length", spec.ffn_dim)
    writer.add_uint32(f"{a}.attention.head_count", spec.heads)
    writer.add_uint32(f"{a}.attention.head_count_kv", spec.kv_heads)
    writer.add_float32(f"{a}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(f"{a}.rope.freq_base", spec.freq_base)
    if spec.explicit_head_dim:
        writer.add_uint32(f"{a}.attention.key_length", spec.head_dim)
        writer.add_uint32(f"{a}.attention.value_length", spec.head_dim)
    if spec.family == "llama":
        writer.add_uint32(f"{a}.rope.dimension_count", spec.head_dim)
        writer.add_uint32(f"{a}.vocab_size", spec.vocab)
    if spec.window:
        writer.add_uint32(f"{a}.attention.sliding_window", spec.window)
    for key, value in spec.rope.items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(f"{a}.rope.scaling.{key}", value)


def write(path, spec, name, tokenizer=None, sparse=False):
    """Writes one model; `tokenizer` is a GGUF file to take the tokenizer from. The seed is the name. A sparse one has a
    hole in place of its data: it takes some MB of the disk and can be planned, not run."""
    writer = GGUFWriter(path + ".part", spec.family)
    write_metadata(writer, spec, name)
    if tokenizer:
        copy_tokenizer(writer, tokenizer)
    elif spec.family == "gemma3":
        write_sentence_piece(writer, spec.vocab)
    else:
        pre = {"llama": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}[spec.family]
        write_byte_level(writer, spec.vocab, "llama-bpe" if spec.llama3 else pre, spec.chat)
    write_tensors(writer, spec, None if sparse else np.random.default_rng(zlib.crc32(name.encode())))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if sparse:
        writer.write_ti_data_to_file()
    else:
        writer.write_tensors_to_file()
    writer.close()
    if sparse:
        pad = writer.data_alignment
        tensors = sum(-(-t.nbytes // pad) * pad for group in writer.tensors for t in group.values())
        os.truncate(path + ".part", -(-os.path.getsize(path + ".part") // pad) * pad + tensors)
    os.replace(path + ".part", path)
    return path


def make(directory, name):
    """Path of model `name` of MODELS in directory, written unless it is there."""
    path = os.path.join(directory, f"{name}.gguf")
    return path if os.path.exists(path) else write(path, MODELS[name], name)


# Shapes of real models for measurements of time and memory. 8b-4l is four layers of an 8B model. Those of the
# vocabulary 49,152 take the tokenizer that they are given, the others have one made up.
SHAPES = {
    "smollm2-135m": Spec("llama", "Q8_0", dim=576, heads=9, kv_heads=3, head_dim=64, ffn_dim=1536, layers=30,
                         vocab=49152, tied=True, freq_base=100000.0, explicit_head_dim=False),
    "8b-4l": Spec("llama", "Q8_0", dim=4096, heads=32, kv_heads=8, head_dim=128, ffn_dim=14336, layers=4,
                  vocab=49152, tied=True, freq_base=500000.0),
    "llama-3-8b": Spec("llama", "Q8_0", dim=4096, heads=32, kv_heads=8, head_dim=128, ffn_dim=14336, layers=32,
                       vocab=128256, freq_base=500000.0),
    "llama-70b": Spec("llama", "Q8_0", dim=8192, heads=64, kv_heads=8, head_dim=128, ffn_dim=28672, layers=80,
                      vocab=128256, freq_base=500000.0),
    "qwen3-14b": Spec("qwen3", "Q8_0", dim=5120, heads=40, kv_heads=8, head_dim=128, ffn_dim=17408, layers=40,
                      vocab=151936, freq_base=1e6),
    "qwen3-32b": Spec("qwen3", "Q8_0", dim=5120, heads=64, kv_heads=8, head_dim=128, ffn_dim=25600, layers=64,
                      vocab=151936, freq_base=1e6),
}
TOKENIZER_VOCAB = 49152


def make_shape(path, shape, context, tokenizer=None, weights=None, sparse=False):
    """One of SHAPES with random weights, Q8_0 if not told (143 MB; 1.1 GB; ...), and any context length."""
    spec = replace(SHAPES[shape], context=context, format=weights or SHAPES[shape].format)
    return write(path, spec, shape, tokenizer if spec.vocab == TOKENIZER_VOCAB else None, sparse)


def make_smollm2(path, context, tokenizer=None):
    """SmolLM2-135M's shape, for tests of memory."""
    return make_shape(path, "smollm2-135m", context, tokenizer)


def main():
    p = argparse.ArgumentParser(description="write tiny random GGUF models")
    p.add_argument("names", nargs="*", metavar="NAME")
    p.add_argument("--out", default=".")
    p.add_argument("--smollm2", metavar="FILE", help="write a model of SmolLM2-135M's shape instead")
    p.add_argument("--context", type=int, default=8192)
    p.add_argument("--tokenizer", metavar="GGUF", help="take the tokenizer of this file")
    args = p.parse_args()
    if args.smollm2:
        print(make_smollm2(args.smollm2, args.context, args.tokenizer))
        return
    os.makedirs(args.out, exist_ok=True)
    for name in args.names or MODELS:
        print(make(args.out, name))


if __name__ == "__main__":
    main()
