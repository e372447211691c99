"""Count the library's lines of code: ``python -m benchmarks.code_size``.

A line counts if it holds code: docstrings, comments and blank lines do not. The longest functions
and the files past 450 lines (all lines) are listed behind the counts.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "sklconv"
MOST_CODE_LINES = 6000
LONG_FILE = 450
LONG_FUNCTION = 40
N_LONGEST = 10

NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(tree):
    """Line numbers of every docstring in a syntax tree."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.update(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def code_lines(source):
    """Line numbers that hold code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(ast.parse(source))


def function_sizes(source, counted):
    """Pairs (lines of code, name) of all functions and methods, nested ones included."""
    sizes = []

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, WITH_DOCSTRING):
                visit(child, prefix)
                continue
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                body = range(child.lineno, child.end_lineno + 1)
                sizes.append((len(counted.intersection(body)), name))
            visit(child, f"{name}.")

    visit(ast.parse(source), "")
    return sizes


def main():
    total, functions, long_files = 0, [], []
    print(f"{'code':>6} {'all':>6}  file")
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        name = path.relative_to(PACKAGE.parent)
        counted, n_lines = code_lines(source), len(source.splitlines())
        total += len(counted)
        print(f"{len(counted):6,} {n_lines:6,}  {name}")
        if n_lines > LONG_FILE:
            long_files.append(f"{name} ({n_lines})")
        functions += [(n, f"{name}: {f}") for n, f in function_sizes(source, counted)]
    print(f"{total:6,}         in all, of {MOST_CODE_LINES:,} allowed\n")

    print(f"files past {LONG_FILE} lines: {', '.join(long_files) or 'none'}")
    sizes = sorted(n for n, _ in functions)
    if sizes:
        print(
            f"{len(sizes)} functions: half within {sizes[len(sizes) // 2]} lines of code, nine of "
            f"ten within {sizes[int(0.9 * len(sizes))]}, "
            f"{sum(n > LONG_FUNCTION for n in sizes)} past {LONG_FUNCTION}; the longest:"
        )
    for n, name in sorted(functions, reverse=True)[:N_LONGEST]:
        print(f"{n:6}  {name}")
    return int(total > MOST_CODE_LINES)


if __name__ == "__main__":
    sys.exit(main())
