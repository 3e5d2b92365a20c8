"""Make gebt/datasets/imports.npz: which files of PyTorch import which.

    python data/make_imports.py

A node is a Python file of the installed torch, a link an import between two of them, a
feature a word that its identifiers are made of, a class one of torch's packages. Only
parsed, never imported; equal sources give equal arrays.
"""

import ast
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent.parent / "gebt" / "datasets" / "imports.npz"
CLASS_FILES = 40
"""Files that a package needs to be a class; the next smaller one has 34."""
FOREIGN = ("_vendor",)  # other projects' code, under their licences
WORD_FILES, WORD_SHARE = 20, 0.2
"""A word is a feature if at least so many files, and at most this share, have it."""
TRAIN, VALIDATE = 20, 500
"""Nodes of each class to train on; of the others, to validate on. The rest: test."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

Module = tuple[str, ...]


def find_modules(root: Path) -> dict[Module, Path]:
    """Every file of a package, by its dotted name."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        name = (root.name, *path.relative_to(root).with_suffix("").parts)
        modules[name[:-1] if name[-1] == "__init__" else name] = path
    return modules


def parse(path: Path) -> ast.Module | None:
    """A file's syntax; None if it needs a newer Python than gebt's oldest."""
    text = path.read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its literals
        try:
            return ast.parse(text, feature_version=(3, 11))
        except SyntaxError:
            return None


def imported(tree: ast.Module, package: Module) -> Iterator[Module]:
    """What a file of a package imports, wherever in it, by absolute names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package itself, each further one a package above.
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield (*base, alias.name)


def find_words(tree: ast.Module) -> set[str]:
    """The words of all identifiers but those that are imported: links tell of these."""
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            continue
        for field in ("id", "attr", "name", "arg"):
            if isinstance(identifier := getattr(node, field, None), str):
                words.update(word.lower() for word in WORD.findall(identifier))
    return {word for word in words if len(word) > 1}


def make(root: Path) -> dict[str, np.ndarray]:
    """The arrays of the file.

    Returns:
        ``words`` (N, F / 8), one bit a word; ``classes`` (N,); ``links`` (L, 2), each
        once; ``train``, ``val`` and ``test``, nodes.
    """
    modules = find_modules(root)
    trees = {name: tree for name, path in modules.items() if (tree := parse(path))}
    packages = Counter(name[1] for name in trees if len(name) > 1)
    classes = sorted(
        package
        for package, files in packages.items()
        if files >= CLASS_FILES and package not in FOREIGN
    )
    names = sorted(name for name in trees if len(name) > 1 and name[1] in classes)
    words = {name: find_words(trees[name]) for name in names}
    links = set()
    for name in names:
        package = name if modules[name].name == "__init__.py" else name[:-1]
        for target in imported(trees[name], package):
            while target and target not in modules:  # a name in the module before it
                target = target[:-1]
            if target in words and target != name:
                links.add((min(name, target), max(name, target)))
    # Empty files that nothing imports have nothing to learn from.
    joined = {name for link in links for name in link}
    names = [name for name in names if words[name] or name in joined]

    # A class's own name would tell it.
    told = {word for package in classes for word in package.strip("_").split("_")}
    files = Counter(word for name in names for word in words[name])
    most = WORD_SHARE * len(names)
    vocabulary = sorted(
        word
        for word, count in files.items()
        if WORD_FILES <= count <= most and word not in told
    )
    has = np.array([[word in words[name] for word in vocabulary] for name in names])
    place = {name: i for i, name in enumerate(names)}
    y = np.array([classes.index(name[1]) for name in names])
    drawn = np.random.RandomState(0).permutation(len(y))  # the stable legacy stream
    train = np.concatenate([drawn[y[drawn] == c][:TRAIN] for c in range(len(classes))])
    rest = drawn[~np.isin(drawn, train)]
    print(
        f"{len(names)} files, {len(links)} imports, {len(vocabulary)} words, classes "
        f"{' '.join(classes)}",
        file=sys.stderr,
    )
    return {
        "words": np.packbits(has, axis=1),
        "classes": y.astype(np.uint8),
        "links": np.array(
            sorted((place[a], place[b]) for a, b in links), dtype=np.uint16
        ),
        "train": np.sort(train).astype(np.uint16),
        "val": np.sort(rest[:VALIDATE]).astype(np.uint16),
        "test": np.sort(rest[VALIDATE:]).astype(np.uint16),
    }


if __name__ == "__main__":
    torch = Path(str(distribution("torch").locate_file("torch")))
    np.savez_compressed(OUT, **make(torch))
