"""The examples of README.md and of the pages of the docs: their code, and what it prints, which stands right below it.

    python -m docs.examples [FILE...]

runs them and writes anew what is printed, in every file if none is named. A block of `text` right behind one of
`python` is all that this block prints, but for spaces at the ends of lines. The blocks of a file are run one after the
other, as a reader would, in a folder that is thrown away, with the bundled model where GPT-2 small cannot be had.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformer_lens

from actpatch import can_be_loaded

ROOT = Path(__file__).resolve().parents[1]
RUN_ELSEWHERE = (
    "causal-tracing.md",
    "chat.md",
    "different-lengths.md",
    "extending.md",
    "files.md",
    "what-a-head-does.md",
    "which-edges.md",
)
"""Pages whose code is parts of files, or needs a language model; tests of their own run it."""
EXAMPLE = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<printed>.*?)^```$)?", re.M | re.S)
HAS_HOOKED = "HookedTransformer" in vars(transformer_lens)
LENS_IMPORT = re.compile(r"^from transformer_lens import HookedTransformer\b.*$", re.M)
GPT2 = re.compile(r"""(HookedTransformer\.from_pretrained|load_model)\("gpt2-small"[^)]*\)""")
BUNDLED = '__import__("model_loading").load_model("tiny", device="cpu")'


@dataclass(frozen=True)
class Example:
    """A block of code."""

    code: str
    line: int
    """Number of the lines before it."""
    printed: str | None
    """What the file says that it prints; None where it says nothing."""
    span: tuple[int, int]
    """Where in the file that stands."""


def files() -> list[Path]:
    """Every file that has examples, README.md first."""
    pages = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in RUN_ELSEWHERE)
    return [path for path in (ROOT / "README.md", *pages) if examples(path.read_text(encoding="utf-8"))]


def examples(text: str) -> list[Example]:
    """All examples of a text, in order."""
    return [
        Example(found["code"], text.count("\n", 0, found.start("code")), found["printed"], found.span("printed"))
        for found in EXAMPLE.finditer(text)
    ]


def runnable(code: str) -> str:
    """The code itself, with the bundled model in the place of GPT-2 small where that cannot be had.

    Where TransformerLens has no `HookedTransformer`, as from 4.0 on, its import goes too.
    """
    if not HAS_HOOKED:
        code = LENS_IMPORT.sub("", code)
    if GPT2.search(code) and not (HAS_HOOKED and can_be_loaded("gpt2-small")):
        code = GPT2.sub(BUNDLED, code)
    return code


def run(path: Path) -> Iterator[tuple[Example, str]]:
    """Run a file's examples in the working directory; with each, what it prints."""
    namespace: dict[str, Any] = {"__name__": path.stem}
    for example in examples(path.read_text(encoding="utf-8")):
        code = compile("\n" * example.line + runnable(example.code), str(path), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, namespace)
        yield example, trimmed(out.getvalue())


def trimmed(text: str) -> str:
    """Without spaces at the ends of lines."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def write_anew(path: Path) -> bool:
    """Run a file's examples and put what they print below them. Returns whether anything changed."""
    text = path.read_text(encoding="utf-8")
    new = text
    for example, printed in reversed(list(run(path))):
        if example.printed is not None:
            start, end = example.span
            new = new[:start] + printed + new[end:]
    if new != text:
        path.write_text(new, encoding="utf-8")
    return new != text


def main() -> None:
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or files()
    for path in chosen:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            changed = write_anew(path)
        print(f"{path.relative_to(ROOT)}: {'written anew' if changed else 'as it was'}")


if __name__ == "__main__":
    main()
