"""tools/tidy.py: every rule fires on a tree that breaks it, and on no other line; a clean tree passes."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

TIDY = pathlib.Path(__file__).resolve().parent.parent / "tools" / "tidy.py"
spec = importlib.util.spec_from_file_location("tidy", TIDY)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
UNDONE = "TO" "DO"

CLEAN = {
    "base/thing.h": "/* thing.h: a thing. */\n#ifndef RS_BASE_THING_H\n#define RS_BASE_THING_H\nint thing(int x);\n"
    "#endif\n",
    "base/thing.c": '/* thing.c: a thing, where x += 1; y *= 2 is prose. */\n#include "base/thing.h"\n\n'
    'int thing(int x) {\n    char exit_mark = \'{\';\n    return x + exit_mark; /* "} TAB" stays text. */\n}\n',
    "math/sum.c": '/* sum.c: sums. */\n#include "base/thing.h"\n#include "ringspan.h"\n',
    "cli/main.c": '/* main.c: starts. */\n#include "base/thing.h"\n#include "ringspan.h"\n'
    "int main(void) {\n    exit(0);\n}\n",
    "include/ringspan.h": "/* ringspan.h: public. */\n#ifndef RINGSPAN_H\n#define RINGSPAN_H\n"
    "typedef bool (*rs_progress)(void *user);\n\n/* Does it. */\nint rs_do(int x);\nvoid rs_undo(int x);\n\n#endif\n",
    "tools/help.py": '"""help.py: helps."""\n\n\ndef help_me():\n    return 1\n',
    "README.md": "# Top\n\nSee [the docs](docs/a.md#a-part-of-it) and [here](#top).\n\n```\n[x](nowhere)\n```\n",
    "docs/a.md": "# A\n\n## A part, of it\n",
    "docs/README.md": "# A second README is no clash.\n",
    "Makefile": "all:\n\ttrue\n",
}


def tidy(tmp_path, changes=None):
    for name, text in {**CLEAN, **(changes or {})}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return [f"{name}:{line}: {message}" for name, line, message in sorted(set(module.check_tree(tmp_path)))]


def c(body, name="extra.c"):
    return f"/* {name}: extra. */\n{body}\n"


def function(lines, comment=""):
    return c(f"{comment}int long_one(void) {{\n" + "    work();\n" * (lines - 2) + "}")


def header(guard):
    return f"/* extra.h: extra. */\n#ifndef {guard}\n#define {guard}\n#endif\n"


def public(declarations):
    return CLEAN["include/ringspan.h"].replace("#endif", declarations + "\n\n#endif")


def test_clean_tree_passes(tmp_path):
    assert tidy(tmp_path) == []


@pytest.mark.parametrize("text, status", [("int x;\n", 0), ("int x; \n", 1)], ids=["clean", "broken"])
def test_exit_status_is_the_verdict(tmp_path, text, status):
    (tmp_path / "extra.c").write_text("/* extra.c: extra. */\n" + text)
    done = subprocess.run([sys.executable, TIDY, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert ("extra.c:2: blanks at the end of the line" in done.stdout) == (status == 1)


BROKEN = [
    ("up", "math/extra.c", c('#include "model/gguf.h"'), 2, "above it"),
    ("up_within_spaces", "base/extra.c", c('  #  include "math/format.h"'), 2, "above it"),
    ("not_a_layer", "math/extra.c", c('#include "extra.h"'), 2, "<layer>"),
    ("cli_sees_engine", "cli/extra.c", c('#include "engine/engine.h"'), 2, "cli includes"),
    ("serve_sees_engine", "serve/extra.c", c('#include "engine/engine.h"'), 2, "serve includes"),
    ("example_sees_base", "examples/extra.c", c('#include "base/thing.h"'), 2, "examples includes"),
    ("public_includes", "include/ringspan.h",
     CLEAN["include/ringspan.h"].replace("typedef", '#include "base/thing.h"\ntypedef'), 4, "public header"),
    ("long_file", "base/extra.c", c("int x;\n" * 1000), 1, "lines, less than 1000"),
    ("long_function", "base/extra.c", function(70), 2, "long_one has 70 lines"),
    ("long_function_in_extern_c", "base/extra.c",
     c('extern "C" {\nint long_one(void) {\n' + "    work();\n" * 68 + "}\n}"), 3, "long_one has 70 lines"),
    ("long_python_function", "tools/extra.py", '"""Extra."""\ndef f():\n' + "    f()\n" * 69, 2, "f has 70 lines"),
    ("long_python_file", "tools/extra.py", '"""Extra."""\n' + "f()\n" * 1000, 1, "less than 1000"),
    ("python_without_docstring", "tools/extra.py", "x = 1\n", 1, "docstring"),
    ("broken_python", "tools/extra.py", '"""Extra."""\nx = (\n', 2, "no Python"),
    ("no_first_line", "base/extra.c", "#include <stdio.h>\n", 1, "first line"),
    ("first_line_of_another", "base/extra.c", c("int x;", "thing.c"), 1, "first line"),
    ("same_name", "tools/thing.c", c("int x;", "thing.c"), 1, "same name"),
    ("twin_elsewhere", "tools/sum.h", header("RS_TOOLS_SUM_H").replace("extra.h", "sum.h"), 1, "in another folder"),
    ("wide", "base/extra.c", c("int " + "x" * 120 + ";"), 2, "columns"),
    ("wide_markdown", "docs/b.md", "x " * 61 + "x\n", 1, "columns"),
    ("tab", "base/extra.c", c("\tint x;"), 2, "a tab"),
    ("tab_in_python", "tools/extra.py", '"""Extra."""\nif f():\n\tf()\n', 3, "a tab"),
    ("trailing_blank", "base/extra.c", c("int x; "), 2, "blanks at the end"),
    ("carriage_return", "base/extra.c", c("int x;\r"), 2, "blanks at the end"),
    ("no_line_end", "base/extra.c", c("int x;").rstrip("\n"), 2, "no line end"),
    ("undone", "base/extra.c", c(f"/* {UNDONE}: finish. */"), 2, UNDONE),
    ("undone_in_markdown", "docs/b.md", f"{UNDONE} finish\n", 1, UNDONE),
    ("issue_number", "base/extra.c", c("/* Since\n * #12 it does. */"), 3, "issue number"),
    ("issue_number_in_python", "tools/extra.py", '"""Extra."""\nx = 1  # see ' '#12\n', 2, "issue number"),
    ("code_call", "base/extra.c", c("/* Why.\n * close(file, now(1)); */"), 3, "code in a comment"),
    ("code_assignment", "base/extra.c", c("int x; // x->y = x + 1;"), 2, "code in a comment"),
    ("code_if", "base/extra.c", c("// if (x > 1) {"), 2, "code in a comment"),
    ("code_return", "base/extra.c", c("/* return x; */"), 2, "code in a comment"),
    ("code_declaration", "base/extra.c", c("/*\nsize_t count;\n*/"), 3, "code in a comment"),
    ("guard_missing", "base/extra.h", c("int x;", "extra.h"), 1, "RS_BASE_EXTRA_H"),
    ("guard_of_another", "base/extra.h", header("RS_BASE_THING_H"), 1, "RS_BASE_EXTRA_H"),
    ("guard_pragma", "base/extra.h", c("#pragma once", "extra.h"), 1, "RS_BASE_EXTRA_H"),
    ("undocumented", "include/ringspan.h", public("int rs_secret(void);"), 10, "rs_secret is not documented"),
    ("too_many", "include/ringspan.h",
     public("/* Many. */\n" + "\n".join(f"int rs_many{i}(void);" for i in range(35))), 1, "37 public functions"),
    ("dead_link", "docs/b.md", "A\n[b](c.md)\n", 2, "no such file"),
    ("dead_heading", "docs/b.md", "[b](a.md#b)\n", 1, "no such heading"),
    ("dead_own_heading", "docs/b.md", "# B\n\n[b](#c)\n", 3, "no such heading"),
    ("not_utf8", "docs/b.md", None, 1, "not UTF-8"),
    *((f"call_{name}", "cli/extra.c", c(f"int x(void) {{\n    {name}(1);\n}}"), 3, f"{name} is banned")
      for name in "strcpy strcat sprintf vsprintf gets alloca system".split()),
    *((f"below_{name}", "serve/extra.c", c(f"int x(void) {{\n    {name}(1);\n}}"), 3, f"{name} is for cli/ only")
      for name in "exit abort printf vprintf puts putchar getenv".split()),
    ("below_stdout", "base/extra.c", c("FILE *x(void) {\n    return stdout;\n}"), 3, "stdout is for cli/ only"),
]


@pytest.mark.parametrize("name, text, line, message", [case[1:] for case in BROKEN],
                         ids=[case[0] for case in BROKEN])
def test_rule_fires_there_and_only_there(tmp_path, name, text, line, message):
    if text is None:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"\xff\n")
        findings = tidy(tmp_path)
    else:
        findings = tidy(tmp_path, {name: text})
    assert len(findings) == 1, findings
    assert findings[0].startswith(f"{name}:{line}: ") and message in findings[0]


ALLOWED = {
    "waived_function_above": ("base/extra.c", function(99, "/* tidy: long, a table. */\n")),
    "waived_function_inside": ("base/extra.c", function(99).replace("work();", "/* tidy: long, a table. */", 1)),
    "function_of_69": ("base/extra.c", function(69)),
    "waived_file": ("base/extra.c", "/* extra.c: extra. tidy: long, a table. */\n" + "int x;\n" * 1000),
    "long_table": ("base/extra.c", c("static const int x[] = {\n" + "    1,\n" * 80 + "};")),
    "long_struct": ("base/extra.c", c("struct x {\n" + "    int (*f)(void);\n" * 80 + "};")),
    "macro_braces": ("base/extra.c", c("#define OPEN(x) { \\\n    {\nint f(void) {\n    return 1;\n}")),
    "names_in_strings": ("base/extra.c", c('const char *x = "system(1) /* " "stdout";')),
    "members_and_prefixes": ("base/extra.c", c("void f(void) {\n    x->exit(1);\n    x.puts(1);\n    _exit(1);\n}")),
    "prose_with_semicolon": ("base/extra.c", c("/* It frees it;\n * if it fails (rarely), nothing is kept; */")),
    "hash_in_code": ("base/extra.c", c('const char *x = "#12";')),
    "tests_include_anything": ("tests/extra.c", c('#include "engine/engine.h"')),
    "wide_table_in_markdown": ("docs/b.md", "| " + "x " * 80 + "|\n"),
    "corpus": ("tests/fuzz/corpus/x/extra.c", "\tanything \n"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_rule_spares(tmp_path, case):
    name, text = ALLOWED[case]
    assert tidy(tmp_path, {name: text}) == []


def test_waiver_needs_a_reason(tmp_path):
    findings = tidy(tmp_path, {"base/extra.c": function(99, "/* tidy: long, */\n")})
    assert len(findings) == 1


def test_git_ignored_files_are_left_alone(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    changes = {".gitignore": "/build/\n", "build/bad.c": "\tbad \n", "base/new.c": c("\tint x;", "new.c")}
    findings = tidy(tmp_path, changes)
    assert findings == ["base/new.c:2: a tab"]
