"""oracle.py: a slow, readable float64 forward pass over a GGUF file, which the engine's logits are compared with.

Written from the papers and the families' reference semantics, never from our C: an error must not be made twice
alike. Weights are dequantised once by the package gguf (float32 values) and kept as float64 (SmolLM2-135M: 1.1 GB,
Gemma 3 270M: 2.1 GB); every operation is float64. The only deliberate rounding is that of the KV cache: K after RoPE
and V are replaced by what the format would give back, and attention reads nothing else.

Command line: oracle.py MODEL --tokens 1,2,3 [--greedy N] [--kv-k F] [--kv-v F] [--top N] [--logits OUT.npy]
"""

import argparse
import json
import sys

import numpy as np
from gguf import GGUFReader, dequantize

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
KV_FORMATS = ("none", "f16", "q8_0", "q4_0")
ROTATED = ("q8_0", "q4_0")  # by a Hadamard matrix of the head, K with the queries, V undone after attention


# ---- Rounding of the KV cache


def round_f16(x):
    return x.astype(np.float16).astype(np.float64)


def round_q8_0(x):
    """Each head's row: scale = half(max|x| / 127), q = round(x / scale) in [-127, 127]; no rotation."""
    scale = round_f16(np.abs(x).max(-1, keepdims=True) / 127)
    q = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    return np.clip(np.rint(q), -127, 127) * scale


def round_q4_0(x):
    """Blocks of 32: d = half(the value of largest magnitude / -8), q = floor(x / d + 8.5) in [0, 15]; no rotation."""
    b = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.take_along_axis(b, np.abs(b).argmax(-1)[..., None], -1)
    d = round_f16(largest / -8)
    q = np.divide(b, d, out=np.full_like(b, -0.5), where=d != 0)
    return ((np.clip(np.floor(q + 8.5), 0, 15) - 8) * d).reshape(x.shape)


def hadamard(n):
    """Orthonormal Walsh-Hadamard matrix [n, n] in Sylvester's order, block diagonal when n is no power of two."""
    block = n & -n
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    return np.kron(np.eye(n // block), h / np.sqrt(block))


ROUND = {"none": lambda x: x, "f16": round_f16, "q8_0": round_q8_0, "q4_0": round_q4_0}


# ---- The file


class Weights:
    """Everything one GGUF file says, in float64. May be shared by several oracles."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.meta = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer.")}
        self.tensors = {}
        for t in reader.tensors:
            shape = [int(n) for n in reversed(t.shape)]
            self.tensors[t.name] = dequantize(t.data, t.tensor_type).reshape(shape).astype(np.float64)

        self.family = self.meta["general.architecture"]
        if self.family not in FAMILIES:
            raise ValueError(f"architecture {self.family} is not one of {', '.join(FAMILIES)}")
        self.layers = int(self.get("block_count"))
        self.dim = int(self.get("embedding_length"))
        self.heads = int(self.get("attention.head_count"))
        self.kv_heads = int(self.get("attention.head_count_kv", self.heads))
        self.head_dim = int(self.get("attention.key_length", self.dim // self.heads))
        if int(self.get("attention.value_length", self.head_dim)) != self.head_dim:
            raise ValueError("attention.value_length differs from key_length")
        self.eps = float(self.get("attention.layer_norm_rms_epsilon"))
        self.n_rot = int(self.get("rope.dimension_count", self.head_dim))
        self.window = int(self.get("attention.sliding_window", 0)) if self.family == "gemma3" else 0
        self.vocab = len(self.tensors["token_embd.weight"])

    def get(self, key, default=None):
        value = self.meta.get(f"{self.family}.{key}", default)
        if value is None:
            raise ValueError(f"{self.family}.{key} is missing")
        return value

    def is_local(self, layer):
        """Gemma 3: five sliding-window layers, then a global one."""
        return self.window > 0 and (layer + 1) % 6 != 0

    def rope_table(self, layer):
        """(angles per position [n_rot / 2], factor on cosine and sine) of one layer."""
        half = np.arange(self.n_rot // 2)
        if self.is_local(layer):
            return float(self.get("rope.freq_base_swa", 10000.0)) ** (-2 * half / self.n_rot), 1.0
        base = float(self.get("rope.freq_base", 10000.0))
        angle = base ** (-2 * half / self.n_rot)
        if "rope_freqs.weight" in self.tensors:  # Llama 3: one divisor per pair, worked out when the file was made.
            angle = angle / self.tensors["rope_freqs.weight"]
        kind = self.get("rope.scaling.type", "linear")
        factor = float(self.get("rope.scaling.factor", 1.0))
        if kind == "none" or factor == 1.0:
            return angle, 1.0
        if kind == "linear":
            return angle / factor, 1.0
        if kind != "yarn":
            raise ValueError(f"rope.scaling.type {kind} is not known")

        # YaRN (arXiv:2309.00071): pairs that turn more than beta_fast times within the original context keep their
        # angle, those that turn less than beta_slow times are interpolated, with a ramp over the pair's index between.
        original = float(self.get("rope.scaling.original_context_length", self.get("context_length")))

        def pair_turning(turns):
            return self.n_rot * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base))

        low = max(np.floor(pair_turning(float(self.get("rope.scaling.yarn_beta_fast", 32.0)))), 0)
        high = min(np.ceil(pair_turning(float(self.get("rope.scaling.yarn_beta_slow", 1.0)))), self.n_rot - 1)
        interpolated = np.clip((half - low) / max(high - low, 0.001), 0, 1)
        mscale = (0.1 * np.log(factor) + 1) * float(self.get("rope.scaling.attn_factor", 1.0))
        return angle * (1 - interpolated) + angle / factor * interpolated, mscale


# ---- The network


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotate(x, position, angle, mscale, neighbours):
    """RoPE on x [tokens, heads, head_dim]: pairs (2i, 2i + 1) or (i, i + n_rot / 2) of the leading n_rot values."""
    n = len(angle)
    cos = (np.cos(position[:, None] * angle) * mscale)[:, None, :]
    sin = (np.sin(position[:, None] * angle) * mscale)[:, None, :]
    first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if neighbours else (slice(0, n), slice(n, 2 * n))
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., first] * sin + x[..., second] * cos
    return y


class Oracle:
    """One timeline of tokens. `model` is a path or a Weights."""

    def __init__(self, model, kv_k="f16", kv_v="f16"):
        w = self.weights = model if isinstance(model, Weights) else Weights(model)
        self.kv_k, self.kv_v = kv_k, kv_v
        self.hadamard = hadamard(w.head_dim)
        self.rope = [w.rope_table(layer) for layer in range(w.layers)]
        self.scale = 1 / np.sqrt(w.head_dim)
        if w.family == "gemma3" and w.layers == 62:
            self.scale = 1 / np.sqrt(w.dim / w.heads)
        empty = np.zeros((0, w.kv_heads, w.head_dim))
        self.tokens = []
        self.k = [empty] * w.layers  # each [tokens, kv_heads, head_dim], as the cache would give them back
        self.v = [empty] * w.layers

    def rewind(self, length):
        self.tokens = self.tokens[:length]
        self.k = [k[:length] for k in self.k]
        self.v = [v[:length] for v in self.v]

    def eval(self, tokens, every=False):
        """Appends tokens; logits [vocab] of the last one, or of every new one [tokens, vocab]."""
        w = self.weights
        gemma = w.family == "gemma3"
        position = np.arange(len(self.tokens), len(self.tokens) + len(tokens))
        self.tokens = self.tokens + [int(t) for t in tokens]
        x = w.tensors["token_embd.weight"][np.asarray(tokens)]
        if gemma:
            x = x * np.sqrt(w.dim)
        for layer in range(w.layers):
            attended = self._attention(layer, rms_norm(x, self._tensor(layer, "attn_norm"), w.eps), position)
            if gemma:
                attended = rms_norm(attended, self._tensor(layer, "post_attention_norm"), w.eps)
            x = x + attended
            y = rms_norm(x, self._tensor(layer, "ffn_norm"), w.eps)
            gate, up = self._project(layer, "ffn_gate", y), self._project(layer, "ffn_up", y)
            y = self._project(layer, "ffn_down", (gelu_tanh(gate) if gemma else silu(gate)) * up)
            if gemma:
                y = rms_norm(y, self._tensor(layer, "post_ffw_norm"), w.eps)
            x = x + y
        if not every:
            x = x[-1]
        output = w.tensors.get("output.weight", w.tensors["token_embd.weight"])
        return rms_norm(x, w.tensors["output_norm.weight"], w.eps) @ output.T

    def greedy(self, logits, n):
        """n tokens from the given logits on, each with its margin (largest logit less the second)."""
        picked, margins = [], []
        for i in range(n):
            second, first = np.partition(logits, -2)[-2:]
            picked.append(int(logits.argmax()))
            margins.append(float(first - second))
            if i + 1 < n:
                logits = self.eval(picked[-1:])
        return picked, margins

    def _tensor(self, layer, name):
        return self.weights.tensors[f"blk.{layer}.{name}.weight"]

    def _project(self, layer, name, x):
        y = x @ self._tensor(layer, name).T
        bias = self.weights.tensors.get(f"blk.{layer}.{name}.bias")
        return y if bias is None else y + bias

    def _attention(self, layer, x, position):
        """x [tokens, dim] normed -> [tokens, dim]."""
        w, n = self.weights, len(x)
        q = self._project(layer, "attn_q", x).reshape(n, w.heads, w.head_dim)
        k = self._project(layer, "attn_k", x).reshape(n, w.kv_heads, w.head_dim)
        v = self._project(layer, "attn_v", x).reshape(n, w.kv_heads, w.head_dim)
        if w.family in ("qwen3", "gemma3"):
            q = rms_norm(q, self._tensor(layer, "attn_q_norm"), w.eps)
            k = rms_norm(k, self._tensor(layer, "attn_k_norm"), w.eps)
        neighbours = w.family == "llama"
        q = rotate(q, position, *self.rope[layer], neighbours) * self.scale
        k = rotate(k, position, *self.rope[layer], neighbours)
        if self.kv_k in ROTATED:
            q, k = q @ self.hadamard, k @ self.hadamard
        if self.kv_v in ROTATED:
            v = v @ self.hadamard
        k = self.k[layer] = np.concatenate([self.k[layer], ROUND[self.kv_k](k)])
        v = self.v[layer] = np.concatenate([self.v[layer], ROUND[self.kv_v](v)])

        key = np.arange(len(k))
        seen = key <= position[:, None]
        if w.is_local(layer):
            seen &= key > position[:, None] - w.window
        group = w.heads // w.kv_heads
        out = np.empty_like(q)
        for head in range(w.heads):
            score = np.where(seen, q[:, head] @ k[:, head // group].T, -np.inf)
            score = np.exp(score - score.max(-1, keepdims=True))
            out[:, head] = score / score.sum(-1, keepdims=True) @ v[:, head // group]
        if self.kv_v in ROTATED:
            out = out @ self.hadamard  # Symmetric and orthonormal: its own inverse.
        return self._project(layer, "attn_output", out.reshape(n, -1))


def main():
    p = argparse.ArgumentParser(description="float64 logits of a GGUF model, as JSON")
    p.add_argument("model")
    p.add_argument("--tokens", required=True, help="token ids, separated by commas")
    p.add_argument("--greedy", type=int, default=0, help="tokens to generate")
    p.add_argument("--kv-k", choices=KV_FORMATS, default="f16")
    p.add_argument("--kv-v", choices=KV_FORMATS, default="f16")
    p.add_argument("--top", type=int, default=10, help="most probable tokens to list")
    p.add_argument("--logits", help="write all logits of the last prompt token to this .npy file")
    args = p.parse_args()
    oracle = Oracle(args.model, args.kv_k, args.kv_v)
    logits = oracle.eval([int(t) for t in args.tokens.split(",")])
    if args.logits:
        np.save(args.logits, logits)
    top = np.argsort(-logits)[: args.top]
    result = {"top": [[int(t), float(logits[t])] for t in top], "norm": float(np.linalg.norm(logits))}
    if args.greedy:
        result["greedy"], result["margins"] = oracle.greedy(logits, args.greedy)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
