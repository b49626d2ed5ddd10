#!/usr/bin/env python3
"""make_model.py: writes a model with random weights in the shape of a real one, for measurements and plans.

    bench/make_model.py SHAPE FILE.gguf [--context 262144] [--weights Q8_0] [--sparse] [--tokenizer REAL.gguf]

smollm2-135m is SmolLM2-135M (143 MB), 8b-4l four layers of an 8B Llama (dim 4096, 32 heads, 8 KV heads of 128, FFN
14,336; 1.1 GB). Their tokenizer is taken from a real model of the vocabulary 49,152, which `tools/fetch-model
smollm2-135m` downloads. llama-3-8b, llama-70b, qwen3-14b and qwen3-32b have one made up; with --sparse a file of any
size takes a few MB, and `ringspan plan` can tell how the model would run and where. Needs the packages numpy and gguf
(tools/setup: .venv/bin/python).
"""

import argparse
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
VENV = ROOT / ".venv/bin/python"

sys.path.insert(0, str(ROOT / "tests"))
try:
    from tiny_models import SHAPES, make_shape
except ImportError:
    if not VENV.exists() or sys.prefix == str(VENV.parent.parent):
        raise
    os.execv(VENV, [str(VENV), *sys.argv])


def main():
    p = argparse.ArgumentParser(description="write a random model in a real model's shape")
    p.add_argument("shape", choices=list(SHAPES))
    p.add_argument("file")
    p.add_argument("--context", type=int, default=262144)
    p.add_argument("--weights", default="Q8_0", metavar="FORMAT")
    p.add_argument("--sparse", action="store_true", help="a hole in place of the weights: to plan, not to run")
    p.add_argument("--tokenizer", default=str(TOKENIZER), metavar="GGUF")
    options = p.parse_args()
    print(make_shape(options.file, options.shape, options.context, options.tokenizer, options.weights, options.sparse))


if __name__ == "__main__":
    main()
