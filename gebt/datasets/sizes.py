"""How large graphs are, known before they are on disk: what `gebt plan` begins with."""

import re
from dataclasses import dataclass

from gebt._checks import check_count
from gebt._registry import parse_table
from gebt.datasets.synthetic import Synthetic


@dataclass(frozen=True)
class Size:
    """What memory and time of an epoch depend on.

    Attributes:
        nodes: N.
        links: undirected ones, two directed entries each.
        features: F.
        stored: how many features of all nodes are not zero, where they are kept as a
            sparse matrix; None for dense ones.
        train: nodes to learn from, which decide what an epoch need compute; None for
            about half.
    """

    nodes: int
    links: int
    features: int
    stored: int | None = None
    train: int | None = None

    def __post_init__(self) -> None:
        check_count("N", self.nodes)
        check_count("E", self.links, self.nodes * (self.nodes - 1) // 2)
        check_count("F", self.features)


SIZES = {
    "digits": Size(1_797, 10_071, 64, train=200),
    "imports": Size(1_683, 7_292, 1_435, 105_744, train=240),
    "cora": Size(2_708, 5_278, 1_433, 49_216, train=140),
    "citeseer": Size(3_327, 4_552, 3_703, 105_165, train=120),
    "roman-empire": Size(22_662, 32_927, 300),
    "amazon-ratings": Size(24_492, 93_050, 300),
    "minesweeper": Size(10_000, 39_402, 7, 10_000),
    "tolokers": Size(11_758, 519_000, 10),
    "questions": Size(48_921, 153_540, 301),
    "reddit": Size(232_965, 57_307_946, 602, train=153_431),
    "ogbn-arxiv": Size(169_343, 1_157_799, 128, train=90_941),
    "ogbn-products": Size(2_449_029, 61_859_012, 100, train=196_615),
    "arxiv-like": Size(169_343, 1_166_243, 128),
    "products-like": Size(2_449_029, 61_859_140, 100, train=195_922),
}
"""Of the graphs whose every number is known."""


def size_of(name: str) -> Size:
    """The size of a graph by name, of `SIZES` or drawn, or of ``"N,E,F"``.

    Raises:
        ValueError: if it is not known, or there can be no such graph.
    """
    if numbers(name):
        return Size(*map(int, name.split(",")))
    kind, _, rest = name.partition(":")
    if kind == "synthetic":
        asked = Synthetic.parse(rest)
        train = asked.nodes * asked.split[0] // 100
        return Size(asked.nodes, asked.links, asked.features, train=max(1, train))
    if re.match(r"[\d.e+-]+,", name):
        raise ValueError(
            f"{name!r} is not N,E,F: three whole numbers of at most 12, 12 and 9 "
            "digits, such as 11758,519000,10."
        )
    if kind not in SIZES or parse_table(name):
        raise ValueError(
            f"the size of {name!r} is not known before it is loaded. Give nodes, links "
            "and features, such as 11758,519000,10."
        )
    return SIZES[kind]


def numbers(name: str) -> bool:
    """Whether it is ``"N,E,F"``."""
    return re.fullmatch(r"\d{1,12},\d{1,12},\d{1,9}", name) is not None
