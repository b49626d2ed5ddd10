"""The installed tree: what libringspan exports, and programs built against it through pkg-config and find_package."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("RINGSPAN_BUILD", ROOT / "build" / "release"))
MODEL = pathlib.Path(os.environ.get("RINGSPAN_MODELS", ROOT / "models")) / "SmolLM2-135M-Instruct.Q4_1.gguf"

HELLO = """
#include <ringspan.h>
#include <stdio.h>
/* The name is one of libringspan's own: a program may have it too. */
int status_fail(int x);
int status_fail(int x) { return x + 1; }
int main(void) {
    printf("%s %s %d\\n", RS_VERSION, rs_status_name(RS_OK), status_fail(1));
    return 0;
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.25)
project(user C)
find_package(ringspan {version} REQUIRED)
add_executable(program {source})
target_link_libraries(program ringspan::ringspan)
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    path = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", BUILD, "--prefix", path)
    return path


@pytest.fixture(scope="module")
def hello(tmp_path_factory):
    path = tmp_path_factory.mktemp("hello") / "hello.c"
    path.write_text(HELLO)
    return path


def version():
    return re.search(r'RS_VERSION "(.*)"', (ROOT / "include" / "ringspan.h").read_text()).group(1)


def build_with_pkg_config(prefix, source, program, *arguments):
    environment = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", *arguments, "ringspan", env=environment).split()
    if "--static" in arguments:
        flags = [f"-l:lib{flag[2:]}.a" if flag == "-lringspan" else flag for flag in flags]
    run("cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", source, "-o", program, *flags)


def build_with_cmake(prefix, source, folder):
    (folder / "CMakeLists.txt").write_text(CMAKE.format(version=version(), source=source))
    run("cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder / "build")
    return folder / "build" / "program"


def loading(prefix):
    return {**os.environ, "LD_LIBRARY_PATH": str(prefix / "lib")}


def declared():
    return set(re.findall(r"\b(rs_\w+)\(", (ROOT / "include" / "ringspan.h").read_text()))


def exported(command, library):
    return {line.split()[-1] for line in run("nm", *command, library).splitlines() if " " in line}


def test_exports_only_what_the_header_declares(prefix):
    assert exported(["-D", "--defined-only"], prefix / "lib" / "libringspan.so") <= declared()
    assert exported(["-g", "--defined-only"], prefix / "lib" / "libringspan.a") <= declared()


def test_exports_all_that_the_header_declares(prefix):
    if not list((ROOT / "engine").glob("*.c")):
        pytest.skip("the engine is not written yet")
    assert exported(["-D", "--defined-only"], prefix / "lib" / "libringspan.so") >= declared()
    assert exported(["-g", "--defined-only"], prefix / "lib" / "libringspan.a") >= declared()


def test_soname_carries_the_major_version(prefix):
    major = version().split(".")[0]
    assert f"[libringspan.so.{major}]" in run("readelf", "-d", prefix / "lib" / "libringspan.so")


def test_nothing_installed_names_the_build_or_source_tree(prefix):
    for path in [*prefix.rglob("*.pc"), *prefix.rglob("*.cmake"), *prefix.rglob("*.h")]:
        assert str(ROOT) not in path.read_text(), path


@pytest.mark.parametrize("arguments", [[], ["--static"]], ids=["shared", "static"])
def test_pkg_config(prefix, hello, tmp_path, arguments):
    build_with_pkg_config(prefix, hello, tmp_path / "hello", *arguments)
    assert run(tmp_path / "hello", env=loading(prefix)) == f"{version()} ok 2\n"


def test_find_package(prefix, hello, tmp_path):
    program = build_with_cmake(prefix, hello, tmp_path)
    assert run(program) == f"{version()} ok 2\n"


def test_moved_tree_still_serves(prefix, hello, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(prefix, moved, symlinks=True)
    build_with_pkg_config(moved, hello, tmp_path / "hello")
    assert run(tmp_path / "hello", env=loading(moved)) == f"{version()} ok 2\n"


def test_command_runs_where_it_is_installed(prefix):
    if not list((ROOT / "cli").glob("*.c")):
        pytest.skip("the command line is not written yet")
    assert version() in run(prefix / "bin" / "ringspan", "--version")


def test_profiles_are_found_by_name_where_they_are_installed(prefix, tmp_path):
    installed = {path.name for path in (prefix / "share" / "ringspan" / "profiles").glob("*.json")}
    assert installed == {path.name for path in (ROOT / "profiles").glob("*.json")} and "m4-max.json" in installed
    if not MODEL.exists():
        pytest.skip("models/ lacks smollm2-135m (tools/fetch-model)")
    moved = tmp_path / "moved"
    shutil.copytree(prefix, moved, symlinks=True)
    text = run(moved / "bin" / "ringspan", "plan", "-m", MODEL, "--ctx", "4096", "--cluster", "3x-m4-max")
    assert "m4-max" in text and "tokens/s" in text


EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.c"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(prefix, tmp_path, name):
    """Each example builds both ways; with the small model it answers, without arguments it says how it is used."""
    source = ROOT / "examples" / name
    shared = tmp_path / "shared"
    build_with_pkg_config(prefix, source, shared)
    program = build_with_cmake(prefix, source, tmp_path)
    for built in (shared, program):
        usage = subprocess.run([built], env=loading(prefix), capture_output=True, text=True, timeout=60)
        assert usage.returncode > 0 and "usage" in usage.stderr.lower()
    if not MODEL.exists():
        pytest.skip("built, not run: models/ lacks smollm2-135m (tools/fetch-model)")
    answer = run(program, MODEL, "What is the capital of France?", env=loading(prefix))
    assert answer.strip()
