#!/usr/bin/env python3
"""tidy.py: holds the rules of the code base that a program can check. Prints file:line: message, fails if any.

Usage: tools/tidy.py [ROOT]. A C file or function that must be longer says why in a comment inside or right above it:
"tidy: long, <reason>" (for a file: in the comment it begins with).
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

LAYERS = "base math device comm model kv forward plan engine serve cli".split()
OUTSIDE = {  # These see libringspan as its users do.
    "serve": {"base", "serve"},
    "cli": {"base", "serve", "cli"},
    "examples": {"examples"},
}
FILE_LINES_MAX = 1000
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 120
PUBLIC_MAX = 36  # 30 for one machine, the rest for clusters of them

TEXT_SUFFIXES = {".c", ".h", ".py", ".md", ".txt", ".cmake", ".sh", ".json", ".in", ".1", ".yml", ""}
UNTOUCHED = ("tests/data/", "tests/golden/", "tests/fuzz/corpus/", "LICENSE")
TWINS = {"CMakeLists.txt", "README.md", "__init__.py", "conftest.py"}
CONTROL_WORDS = {"if", "for", "while", "switch", "return", "sizeof", "do", "else"}

BANNED_CALLS = "strcpy strcat sprintf vsprintf gets alloca system"
BANNED_BELOW_CLI = "exit abort printf vprintf puts putchar getenv"
BANNED_WORDS = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
WAIVER = re.compile(r"tidy: long, [^\s*]")


def calls(names):
    return re.compile(r"(?<![\w.>])(" + names.replace(" ", "|") + r")\s*\(")


BANNED = calls(BANNED_CALLS)
BANNED_BELOW = re.compile(calls(BANNED_BELOW_CLI).pattern + r"|\b(stdout)\b")
CODE_IN_COMMENT = re.compile(
    r"""^(?:\#\s*(?:include|define|if|endif)\b
      | (?:if|for|while|switch)\s*\(.*\)\s*\{?$
      | .*\b\w+\([^()]*(?:\([^()]*\)[^()]*)*\);$
      | [\w\s*.>\[\]-]+\s[-+*/|&]?=\s.*;$
      | (?:return\b.*|break|continue|goto\s+\w+);$
      | (?:static|const|int|char|float|double|void|size_t|u?int\d+_t)\s.*[;{]$)""", re.X)


def list_files(root):
    """Files of the project: what git knows or would add; every file where there is no git."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        return sorted({name for name in names if name and (root / name).is_file()})
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def blank(text):
    """Spaces for everything but line ends."""
    return re.sub(r"[^\n]", " ", text)


TOKEN = re.compile(r"""/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.S)


class Source:
    """A C file: its text, its code without comments and literals, and its comments; offsets are the same in all."""

    def __init__(self, name, text):
        self.name, self.text, self.comments = name, text, []
        self.folder = name.split("/")[0]
        self.code = TOKEN.sub(self.strip, text)

    def strip(self, match):
        token = match.group()
        if token[0] == "/":
            self.comments.append((match.start(), token))
            return blank(token)
        return token[0] + blank(token[1:-1]) + token[-1]

    def line(self, offset):
        return self.text.count("\n", 0, offset) + 1


def functions(source):
    """(start of the item, line of the signature, name, line of the closing brace, end) of each function definition."""
    code = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda match: blank(match.group()), source.code, flags=re.M)
    found, depth, start, opened = [], 0, 0, None
    for match in re.finditer(r"[{};]", code):
        mark, at = match.group(), match.start()
        head = code[start:at]
        if mark == "{" and depth == 0 and re.search(r'\bextern\s+"\s*"\s*$', head):
            start = at + 1  # What extern "C" holds counts as top level; its closing brace is ignored below.
        elif mark == "{":
            if depth == 0:
                name = re.search(r"(\w+)\s*\(", head)
                is_function = head.rstrip().endswith(")") and "=" not in head and name
                opened = (start, at, name.group(1)) if is_function else None
            depth += 1
        elif mark == "}" and depth > 0:
            depth -= 1
            if depth == 0 and opened:
                begin, brace, name = opened
                first = begin + len(code[begin:brace]) - len(code[begin:brace].lstrip())
                found.append((begin, source.line(first), name, source.line(at), at))
                start = at + 1
        elif depth == 0:
            start = at + 1
    return found


# ---- Rules: each yields (line, message)


def check_text(name, text):
    is_make = Path(name).name == "Makefile"
    fenced_or_table = re.compile(r"^\s*\||\]\(|https?://")
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line and not is_make:
            yield number, "a tab"
        if line != line.rstrip():
            yield number, "blanks at the end of the line"
        if len(line) > COLUMNS_MAX and not name.endswith((".json", ".in")):
            if not (name.endswith(".md") and fenced_or_table.search(line)):
                yield number, f"{len(line)} columns, at most {COLUMNS_MAX}"
        word = BANNED_WORDS.search(line)
        if word:
            yield number, f"{word.group()}: finish it or write an issue"
        if name.endswith((".py", ".cmake", ".sh", "CMakeLists.txt", "Makefile")) and re.search(r"#.*\s#\d+\b", line):
            yield number, "an issue number in a comment: say what it says"
    if text and not text.endswith("\n"):
        yield text.count("\n") + 1, "no line end at the end of the file"


def check_size(source):
    lines = source.text.count("\n")
    head = source.comments[0][1] if source.comments else ""
    if lines >= FILE_LINES_MAX and not WAIVER.search(head):
        yield 1, f"{lines} lines, less than {FILE_LINES_MAX} wanted (or 'tidy: long, <reason>' in the first comment)"
    for begin, first, name, last, end in functions(source):
        if last - first + 1 >= FUNCTION_LINES_MAX and not WAIVER.search(source.text[begin:end]):
            yield first, f"{name} has {last - first + 1} lines, less than {FUNCTION_LINES_MAX} wanted"


def check_first_line(source):
    base = Path(source.name).name
    if not re.match(rf"/\* {re.escape(base)}: \S", source.text):
        yield 1, f"the first line must be '/* {base}: what it is for'"


def check_includes(source):
    folder = source.folder
    for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]*)"', source.text, re.M):
        line, path = source.line(match.start()), match.group(1)
        target = path.split("/")[0]
        if path == "ringspan.h" or folder == "tests":
            continue
        if folder == "include":
            yield line, f"the public header includes {path}"
        elif folder in OUTSIDE:
            if target not in OUTSIDE[folder]:
                seen = ", ".join(["ringspan.h", *sorted(OUTSIDE[folder])])
                yield line, f"{folder} includes {path}; it sees {seen} only"
        elif "/" not in path or target not in LAYERS:
            yield line, f'{path}: include "<layer>/<file>.h"'
        elif folder in LAYERS and LAYERS.index(target) > LAYERS.index(folder):
            yield line, f"{folder} includes {path}, which is above it"


def check_calls(source):
    for match in BANNED.finditer(source.code):
        yield source.line(match.start()), f"{match.group(1)} is banned"
    if source.folder in LAYERS[: LAYERS.index("cli")]:
        for match in BANNED_BELOW.finditer(source.code):
            yield source.line(match.start()), f"{match.group(1) or match.group(2)} is for cli/ only"


def check_comments(source):
    for start, comment in source.comments:
        body = comment[2:-2] if comment.startswith("/*") else comment[2:]
        for number, line in enumerate(body.split("\n"), source.line(start)):
            content = re.sub(r"^\s*\*?\s*|\s+$", "", line)
            if CODE_IN_COMMENT.match(content):
                yield number, "code in a comment"
            if re.search(r"(?<![\w&])#\d+\b", content):
                yield number, "an issue number in a comment: say what it says"


def check_guard(source):
    if not source.name.endswith(".h"):
        return
    path = source.name.removeprefix("include/")
    guard = re.sub(r"\W", "_", path.upper())
    if not guard.startswith("RINGSPAN"):
        guard = "RS_" + guard
    if not re.search(rf"^#ifndef {guard}\n#define {guard}\n.*^#endif\s*$", source.code, re.M | re.S):
        yield 1, f"no include guard {guard}"


def check_public(source):
    """ringspan.h: few functions, and a comment in the paragraph of each."""
    if source.name != "include/ringspan.h":
        return
    names = []
    for match in re.finditer(r"^(?!typedef)[a-z][\w *]*?\b(rs_\w+)\(", source.code, re.M):
        names.append(match.group(1))
        before = source.text.rfind("\n\n", 0, match.start())
        after = source.text.find("\n\n", match.start())
        if "/*" not in source.text[before:after]:
            yield source.line(match.start()), f"{match.group(1)} is not documented"
    if len(names) > PUBLIC_MAX:
        yield 1, f"{len(names)} public functions, at most {PUBLIC_MAX}"


def check_python(name, text):
    if text.count("\n") >= FILE_LINES_MAX:
        yield 1, f"{text.count(chr(10))} lines, less than {FILE_LINES_MAX} wanted"
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield error.lineno or 1, f"no Python: {error.msg}"
        return
    if ast.get_docstring(tree) is None:
        yield 1, "no docstring that says what the file is for"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines >= FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name} has {lines} lines, less than {FUNCTION_LINES_MAX} wanted"


def anchors(text):
    """The fragment names that GitHub and others give to the headings of a Markdown text."""
    headings = re.findall(r"^#+\s+(.*?)\s*#*$", without_code(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(text):
    text = re.sub(r"^(```|~~~).*?^\1[^\n]*$", lambda match: blank(match.group()), text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", lambda match: blank(match.group()), text)


def check_links(root, name, text):
    for match in re.finditer(r"\[[^\]\n]*\]\(([^)\s]+)[^)]*\)", without_code(text)):
        target, line = match.group(1), text.count("\n", 0, match.start()) + 1
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (root / name).parent / path if path else root / name
        if not file.exists():
            yield line, f"link to {target}: no such file"
        elif fragment and file.suffix == ".md" and fragment not in anchors(file.read_text()):
            yield line, f"link to {target}: no such heading"


def check_names(names):
    """Yields (file, message). A name is used once; x.c and x.h lie together."""
    seen = {}
    for name in names:
        path = Path(name)
        if path.name in TWINS or path.name.startswith("."):
            continue
        if path.name in seen:
            yield name, f"{seen[path.name]} has the same name"
            continue
        seen[path.name] = name
        if path.suffix in (".c", ".h"):
            twin = seen.setdefault((path.stem, "C"), name)
            if Path(twin).parent != path.parent:
                yield name, f"{twin} has the same name in another folder"


SOURCE_CHECKS = (check_size, check_first_line, check_includes, check_calls, check_comments, check_guard, check_public)


def check_file(root, name, text):
    yield from check_text(name, text)
    if name.endswith((".c", ".h")):
        source = Source(name, text)
        for check in SOURCE_CHECKS:
            yield from check(source)
    if name.endswith(".py") or text.startswith("#!/usr/bin/env python3"):
        yield from check_python(name, text)
    if name.endswith(".md"):
        yield from check_links(root, name, text)


def check_tree(root):
    names = [name for name in list_files(root) if not name.startswith(UNTOUCHED)]
    for name, message in check_names(names):
        yield name, 1, message
    for name in names:
        if Path(name).suffix not in TEXT_SUFFIXES:
            continue
        try:
            text = (root / name).read_bytes().decode()
        except UnicodeDecodeError:
            yield name, 1, "not UTF-8"
            continue
        for line, message in check_file(root, name, text):
            yield name, line, message


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    findings = sorted(set(check_tree(root)))
    for name, line, message in findings:
        print(f"{name}:{line}: {message}")
    print(f"tidy: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
