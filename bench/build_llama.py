#!/usr/bin/env python3
"""build_llama.py: builds llama.cpp's library and bench/llama_time.c from the source in PyPI's llama-cpp-python.

    bench/build_llama.py                          for this CPU (GGML_NATIVE), into build/llama.cpp/native
    bench/build_llama.py --portable FILE.tar.gz   for other x86-64 servers: chosen when it starts among the variants
                         [--variants haswell,sapphirerapids], packed with the libraries it needs

Nothing of llama.cpp is part of this project: the source is downloaded into build/llama.cpp and stays there. Needs pip,
cmake, ninja, gcc and g++. Without network, give an unpacked llama.cpp with --source.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / "build/llama.cpp"
PACKAGE = "llama-cpp-python"
OFF = "TESTS EXAMPLES TOOLS SERVER APP COMMON UI".split()
SYSTEM_LIBRARIES = "libgomp.so.1 libstdc++.so.6 libgcc_s.so.1".split()


def run(*call, **more):
    print("+", *call, flush=True)
    return subprocess.run([str(word) for word in call], check=True, **more)


def fetch(version):
    """Folder of llama.cpp's source."""
    source = CACHE / "source"
    if not (source / "vendor/llama.cpp/CMakeLists.txt").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        wanted = PACKAGE + (f"=={version}" if version else "")
        run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "-d", CACHE, wanted)
        archive = max(CACHE.glob("llama_cpp_python-*.tar.gz"), key=lambda path: path.stat().st_mtime)
        source.mkdir(exist_ok=True)
        run("tar", "-xzf", archive, "-C", source, "--strip-components=1")
    return source / "vendor/llama.cpp"


def name_version(source):
    """Commit of llama.cpp, as the package's change log tells it."""
    log = source.parent.parent / "CHANGELOG.md"
    found = re.search(r"llama\.cpp@([0-9a-f]{7,40})", log.read_text()) if log.exists() else None
    info = source.parent.parent / "PKG-INFO"
    package = re.search(r"^Version: (\S+)", info.read_text(), re.M) if info.exists() else None
    return " ".join(part for part in (f"commit {found.group(1)}" if found else "commit unknown",
                                      f"({PACKAGE} {package.group(1)})" if package else "") if part)


def keep_variants(source, variants):
    """Takes the x86 variants that were not asked for out of the build: each costs a minute or two."""
    lists = source / "ggml/src/CMakeLists.txt"
    all_lists = lists.with_suffix(".all")
    if not all_lists.exists():
        shutil.copy(lists, all_lists)
    text = all_lists.read_text()
    begin = text.index('if (GGML_SYSTEM_ARCH STREQUAL "x86")', text.index("GGML_CPU_ALL_VARIANTS"))
    end = text.index("elseif(", begin)

    def keep(match):
        return match.group() if match.group(1) in variants else ""

    part = re.sub(r"^ *ggml_add_cpu_backend_variant\((\w+)[^)]*\)\n", keep, text[begin:end], flags=re.M)
    lists.write_text(text[:begin] + part + text[end:])


def build(source, folder, portable, jobs):
    flags = {"CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "ON", "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
             "CMAKE_INSTALL_RPATH": "$ORIGIN", "GGML_NATIVE": "OFF" if portable else "ON", "LLAMA_OPENSSL": "OFF",
             **{f"LLAMA_BUILD_{name}": "OFF" for name in OFF}}
    if portable:
        flags |= {"GGML_BACKEND_DL": "ON", "GGML_CPU_ALL_VARIANTS": "ON"}
    run("cmake", "-S", source, "-B", folder, "-G", "Ninja", "--log-level=WARNING",
        *(f"-D{name}={value}" for name, value in flags.items()))
    run("cmake", "--build", folder, "--target", "llama", "-j", jobs)
    run("gcc", "-O2", "-Wall", "-Wextra", "-o", folder / "bin/llama_time", ROOT / "bench/llama_time.c", "-I",
        source / "include", "-I", source / "ggml/include", "-L", folder / "bin", "-lllama", "-lggml", "-lggml-base",
        "-Wl,-rpath,$ORIGIN", f"-Wl,-rpath-link,{folder / 'bin'}")
    (folder / "bin/VERSION").write_text(name_version(source) + "\n")


def pack(source, folder, archive):
    """Everything under one folder `llama`: the program finds its libraries beside itself."""
    with tarfile.open(archive, "w:gz") as out:
        for path in sorted((folder / "bin").iterdir()):
            out.add(path, f"llama/{path.name}")
        for name in SYSTEM_LIBRARIES:
            path = subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True)
            out.add(pathlib.Path(path.stdout.strip()).resolve(), f"llama/{name}")
        out.add(source / "LICENSE", "llama/LICENSE")
    print(archive, f"{pathlib.Path(archive).stat().st_size / 1e6:.1f} MB")


def main():
    p = argparse.ArgumentParser(description="build llama.cpp for bench/versus.py")
    p.add_argument("--portable", metavar="FILE.tar.gz")
    p.add_argument("--variants", default="haswell,sapphirerapids", help="of the portable build")
    p.add_argument("--source", type=pathlib.Path, help="an unpacked llama.cpp")
    p.add_argument("--version", help=f"of {PACKAGE} (default: the newest)")
    p.add_argument("--jobs", default="2")
    options = p.parse_args()
    source = options.source or fetch(options.version)
    folder = CACHE / ("portable" if options.portable else "native")
    if options.portable:
        keep_variants(source, options.variants.split(","))
    build(source, folder, options.portable, options.jobs)
    if options.portable:
        pack(source, folder, options.portable)
    else:
        print(folder / "bin/llama_time")


if __name__ == "__main__":
    main()
