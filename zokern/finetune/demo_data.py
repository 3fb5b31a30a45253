"""Text that lies on every machine: the first sentences of the docstrings of installed packages, labelled by package."""

import ast
import random
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ..errors import BadInput

PACKAGES = ("networkx", "sympy")  # torch requires both, so that whoever can run zokern has them
SENTENCE = re.compile(r"(.+?[.!?])(?=\s|$)")


def docstring_sentences(packages: tuple[str, ...] = PACKAGES, each: int = 800, seed: int = 0) -> list[dict[str, str]]:
    """Balanced, distinct sentences from the source of installed packages, which is read and never imported.

    A sentence that names one of the packages is left out: the text must not tell its own label.

    Args:
        packages: names of installed packages. Default networkx and sympy.
        each: sentences a package, at most; the package with the fewest decides for all. Default 800.
        seed: which files are read and in what order the rows come. Default 0.

    Returns:
        rows {"text": sentence, "label": package} in random order, as many of each label.

    Raises:
        BadInput: a package is not installed or has fewer than 20 such sentences.
    """
    named = re.compile("|".join(map(re.escape, packages)), re.IGNORECASE)
    seen: set[str] = set()
    found: dict[str, list[str]] = {package: [] for package in packages}
    for package, texts in found.items():
        for text in _sentences(package, seed):
            if text.lower() not in seen and not named.search(text):
                seen.add(text.lower())
                texts.append(text)
            if len(texts) == each:
                break
        if len(texts) < 20:
            raise BadInput(f"package {package!r} has {len(texts)} usable docstrings, 20 are needed: name another package")
    size = min(map(len, found.values()))
    rows = [{"text": text, "label": package} for package, texts in found.items() for text in texts[:size]]
    random.Random(seed).shuffle(rows)
    return rows


def _sentences(package: str, seed: int) -> Iterator[str]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"package {package!r} is not installed: pip install {package}, or pass --data")
    root = Path(spec.submodule_search_locations[0])
    files = sorted(path for path in root.rglob("*.py") if not {"tests", "benchmarks"} & set(path.relative_to(root).parts))
    random.Random(seed).shuffle(files)  # so that the sentences come from all over the package
    for path in files:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):  # a file for another version of Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
                sentence = SENTENCE.match(" ".join(paragraph.split()))
                if sentence and len(sentence[1]) <= 100 and sentence[1].count(" ") >= 4:
                    yield sentence[1]
