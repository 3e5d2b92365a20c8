"""Graphs of any size that need no download: communities, hubs, noisy features.

A degree-corrected stochastic block model with as many distinct links as asked for.
Every draw is a whole number or an exactly rounded operation on one of NumPy's frozen
streams, so a seed gives the same graph on any number of threads and any machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from gebt._registry import DATASETS
from gebt.datasets.cache import kept
from gebt.datasets.catalogue import Dataset, Facts
from gebt.graph import Graph, Split, join
from gebt.sparse import SparseMatrix

Draw = np.random.RandomState  # the stable legacy stream
Indices = NDArray[np.int64]

_NEAR, _OF = 13, 20
"""13 of 20 links stay within a class: 65 %, as about in ogbn-arxiv."""
_HUB, _HUB_SHARE = 32, 0.4
"""No node expects more neighbours than 32 times the root of N, which is 13,168 where N
is ogbn-arxiv's, or than 0.4 of the nodes of its class."""
_SIGNAL = 1.0
"""Length of a class's direction in the features, where noise has deviation 1."""
_HALF_CIRCLE = 0
"""The seed of the directions of classes in order."""
_AT_ONCE = 2**22
"""Numbers drawn at once, to keep drafts small."""


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """What a synthetic graph is made from.

    Class sizes fall as rank ** -1.5. Every node expects two links; of the others its
    share falls as rank ** -0.75 within its class, a power law of exponent 7/3. Where
    there are at least as many links as nodes, next to no node is isolated. Features
    are noise plus the class's direction: what one node's do not tell, its neighbours'
    do. Ids are in random order.

    Attributes:
        nodes: N, at least C.
        links: E, undirected ones.
        features: F.
        classes: C, at least 2.
        split: percent of the nodes to train, validate and test on, at random.
        seed: for every draw.
        ordinal: 1 for classes in order, all of a size: links between classes join
            neighbours in that order, and features turn along half a circle, which is
            the same for all seeds. These are other graphs with the same features.

    Raises:
        ValueError: naming the value that is out of range, at birth.
    """

    nodes: int = 10_000
    links: int = 50_000
    features: int = 64
    classes: int = 10
    split: tuple[int, int, int] = (54, 18, 28)
    seed: int = 0
    ordinal: int = 0

    def __post_init__(self) -> None:
        n = self.nodes
        for key, value, lowest, highest, why in (
            ("C", self.classes, 2, math.inf, "classes"),
            ("F", self.features, 1, math.inf, "features"),
            ("N", n, self.classes, 2**31 - 1, "nodes, of every class one"),
            ("E", self.links, 1, n * (n - 1) // 2, f"links between {n} nodes"),
            ("seed", self.seed, 0, 2**32 - 1, "for the random draws"),
            ("ordinal", self.ordinal, 0, 1, "whether classes are in order"),
        ):
            if not lowest <= value <= highest:
                most = "" if highest == math.inf else f" and at most {highest}"
                raise ValueError(
                    f"a synthetic graph's {key} ({why}) must be at least {lowest}"
                    f"{most}, got {value}."
                )
        whole = len(self.split) == 3 and sum(self.split) == 100
        if not whole or min(self.split) < 0 or self.split[0] == 0:
            raise ValueError(
                "a synthetic graph's split must be three percentages that add up to "
                "100, the first above 0, such as 54-18-28, got "
                f"{'-'.join(map(str, self.split))}."
            )

    @classmethod
    def parse(cls, spec: str) -> Self:
        """From ``"N=2000,E=10000"``: any of its keys, in any order.

        By default five links a node, and no more classes than nodes.

        Raises:
            ValueError: if a key is unknown or repeated, or a value no whole number.
        """
        given: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in spec.split(","))):
            key, _, text = item.partition("=")
            name = _FIELDS.get(key.strip().lower())
            if name is None or name in given:
                wrong = "not known" if name is None else "given twice"
                raise ValueError(
                    f"{key.strip()!r} is {wrong}: a synthetic graph is named by any of "
                    f"these keys, synthetic:{_USAGE}."
                )
            try:
                if name == "split":
                    given[name] = tuple(int(percent) for percent in text.split("-"))
                else:
                    given[name] = int(text)
            except ValueError:
                kind = "three whole numbers" if name == "split" else "a whole number"
                raise ValueError(
                    f"a synthetic graph's {key.strip()} must be {kind}, got {text!r}; "
                    f"as in synthetic:{_USAGE}."
                ) from None
        n = given.get("nodes", cls.nodes)
        given.setdefault("classes", max(2, min(cls.classes, n)))
        given.setdefault("links", min(5 * n, n * (n - 1) // 2))
        return cls(**given)

    @property
    def name(self) -> str:
        """What `load` makes the same graph from."""
        split = "-".join(map(str, self.split))
        return (
            f"synthetic:N={self.nodes},E={self.links},F={self.features},"
            f"C={self.classes},split={split},seed={self.seed}"
            f"{',ordinal=1' * self.ordinal}"
        )

    def make(self, name: str | None = None) -> Graph:
        """Draw the graph; by default it is called by `name`."""
        n, draw = self.nodes, np.random.RandomState(self.seed)
        sizes = _class_sizes(n, self.classes, bool(self.ordinal))
        node = draw.permutation(n).astype(np.int32)  # of each place, class by class
        blocks = _Blocks(draw, node, sizes, self.links, bool(self.ordinal))
        links = _draw_links(blocks, self.links)
        low, high = torch.from_numpy(links // n), torch.from_numpy(links % n)
        del blocks, links
        pattern, link = join(low, high, n)
        del low, high
        y = np.empty(n, dtype=np.int64)
        y[node] = np.repeat(np.arange(self.classes), sizes)
        train, val, _ = self.split
        ends = [max(1, n * train // 100), n * (train + val) // 100]
        parts = np.split(draw.permutation(n), ends)
        if self.ordinal:
            turns = np.random.RandomState(_HALF_CIRCLE)
            directions = _half_circle(turns, self.classes, self.features)
        else:
            directions = _bell(draw, self.classes, self.features)
        return Graph(
            x=torch.from_numpy(_features(draw, y, directions)),
            adjacency=SparseMatrix(pattern, torch.ones(pattern.nnz)),
            link=link,
            num_links=self.links,
            y=torch.from_numpy(y),
            split=Split(*(torch.from_numpy(np.sort(part)) for part in parts)),
            name=name or self.name,
        )


_FIELDS = {
    "n": "nodes",
    "e": "links",
    "f": "features",
    "c": "classes",
    "split": "split",
    "seed": "seed",
    "ordinal": "ordinal",
}
_USAGE = "N=…,E=…,F=…,C=…,split=54-18-28,seed=0,ordinal=0"


def _class_sizes(nodes: int, classes: int, equal: bool) -> NDArray[np.int64]:
    """(C,) nodes of each class, at least one, the largest first."""
    rank = np.arange(classes) + 3.0
    share = np.ones(classes) if equal else 1 / (rank * np.sqrt(rank))
    return 1 + _shared_out(nodes - classes, share)


def _shared_out(count: int, share: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers that add up to ``count``, in proportion to the shares."""
    total = np.cumsum(share)
    ends = np.floor(total * (count / total[-1])).astype(np.int64)
    ends[-1] = count
    return np.diff(ends, prepend=0)


class _Blocks:
    """Where links end: each node is listed as often as its degree asks, by class.

    Args:
        draw: the stream.
        node: (N,) node ids, class by class.
        sizes: (C,) nodes of each class.
        links: how many links are wanted.
        ordered: whether links between classes are between neighbouring ones.
    """

    def __init__(
        self,
        draw: Draw,
        node: NDArray[np.int32],
        sizes: NDArray[np.int64],
        links: int,
        ordered: bool,
    ):
        n, stop = node.size, np.cumsum(sizes)
        rank = np.arange(n) + 0.5 - np.repeat(stop - sizes, sizes)
        root = np.sqrt(rank / np.repeat(sizes, sizes))
        # u ** -0.75 has mean 4 for uniform u.
        degree = (2 * links / n / 4) / (root * np.sqrt(root))
        hub = np.minimum(_HUB_SHARE * sizes, _HUB * np.sqrt(n))
        degree = np.minimum(degree, np.repeat(hub, sizes))
        # As many places as links, to start at each of them once: no node is left out.
        # Where there are fewer links than nodes, some must be.
        times = 1 + _shared_out(links - n if links >= n else n, degree)
        self.draw, self.n, self.ordered = draw, n, ordered
        self.place = np.repeat(node, times)
        ends = np.cumsum(times)[stop - 1]
        self.width = np.diff(ends, prepend=0)
        self.start = ends - self.width

    def places(self, count: int) -> Indices:
        """Random places for ``count`` links to start at."""
        return self.draw.randint(0, self.place.size, size=count, dtype=np.int64)

    def near(self, first: Indices) -> Indices:
        """Keys of links from these places into their own classes."""
        block = np.searchsorted(self.start, first, side="right") - 1
        return self._keys(first, self.start[block] + self._below(self.width[block]))

    def far(self, first: Indices) -> Indices:
        """Keys of links from these places into other classes."""
        block = np.searchsorted(self.start, first, side="right") - 1
        if self.ordered:
            # One class up or down; from the ends to the one that is there.
            last = self.width.size - 1
            beside = block + 2 * self.draw.randint(0, 2, size=block.size) - 1
            beside = np.where(beside < 0, 1, np.where(beside > last, last - 1, beside))
            return self._keys(
                first, self.start[beside] + self._below(self.width[beside])
            )
        other = self._below(self.place.size - self.width[block])
        other += np.where(other < self.start[block], 0, self.width[block])
        return self._keys(first, other)

    def anywhere(self, first: Indices) -> Indices:
        """Keys of as many links between any two nodes, all as likely."""
        pairs = self.draw.randint(0, self.n, size=(2, first.size), dtype=np.int64)
        return _keys(pairs[0], pairs[1], self.n)

    def _below(self, limit: Indices) -> Indices:
        return (self.draw.random_sample(limit.size) * limit).astype(np.int64)

    def _keys(self, first: Indices, second: Indices) -> Indices:
        return _keys(self.place[first], self.place[second], self.n)


def _keys(one: NDArray[Any], other: NDArray[Any], n: int) -> Indices:
    """``low * n + high`` of each pair of two nodes."""
    proper = one != other
    one, other = one[proper], other[proper]
    return np.minimum(one, other).astype(np.int64) * n + np.maximum(one, other)


def _draw_links(blocks: _Blocks, links: int) -> Indices:
    """Keys of exactly so many distinct links, ascending.

    Classes too small for their share of links leave it to links between classes;
    where the hubs are full too, any two nodes are joined.
    """
    everywhere_once = links == blocks.place.size
    first = np.arange(links) if everywhere_once else blocks.places(links)
    # 13 of 20, evenly spread over the places.
    stays = np.resize(np.arange(_OF) * _NEAR % _OF < _NEAR, links)
    none = np.empty(0, dtype=np.int64)
    near = int(np.count_nonzero(stays))
    found = _grow(none, near, blocks.near, first[stays], blocks)
    apart = _grow(none, links - found.size, blocks.far, first[~stays], blocks)
    del first, stays
    found = _merged(found, apart)
    found = _grow(found, links, blocks.anywhere, none, blocks)
    if missing := links - found.size:  # nearly all pairs are linked
        low, high = np.triu_indices(blocks.n, 1)
        free = np.setdiff1d(low * blocks.n + high, found, assume_unique=True)
        found = _merged(found, blocks.draw.permutation(free)[:missing])
    return found


def _grow(
    found: Indices,
    want: int,
    draw: Callable[[Indices], Indices],
    first: Indices,
    blocks: _Blocks,
) -> Indices:
    """More distinct keys, until there are enough or hardly any new ones turn up.

    Args:
        found: distinct keys, ascending.
        want: how many to end with.
        draw: links from places.
        first: where to start from, before random places.
        blocks: the places.
    """
    while missing := want - found.size:
        pieces = np.array_split(first, first.size // _AT_ONCE + 1)
        new = np.concatenate([draw(piece) for piece in pieces])
        new.sort()
        new = new[np.diff(new, prepend=-1) > 0]
        if found.size:
            at = np.searchsorted(found, new).clip(max=found.size - 1)
            new = new[found[at] != new]
        # Too many: keep evenly spread ones.
        kept = min(missing, new.size)
        found = _merged(found, new[np.arange(kept) * new.size // max(1, kept)])
        if 8 * new.size < first.size:
            break
        first = blocks.places(missing + missing // 4 + 16)
    return found


def _merged(some: Indices, others: Indices) -> Indices:
    """All of them, ascending; both are."""
    both = np.concatenate([some, others])
    both.sort(kind="stable")  # finds the two ascending runs
    return both


def _half_circle(draw: Draw, classes: int, features: int) -> NDArray[np.float32]:
    """(C, F) directions that turn from one end to its opposite, class by class."""
    one, other = _bell(draw, 2, features)
    # Without sines, which differ between machines: t is the tangent of half the angle.
    t = np.linspace(-1, 1, classes, dtype=np.float32)[:, None]
    return (2 * t * one + (1 - t * t) * other) / (1 + t * t)


def _features(
    draw: Draw, y: NDArray[np.int64], directions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(N, F) noise plus the direction (C, F) of each node's class."""
    features = directions.shape[1]
    direction = directions * np.float32(_SIGNAL / math.sqrt(features))
    x = np.empty((y.size, features), dtype=np.float32)
    rows = max(1, _AT_ONCE // features)
    for at in range(0, y.size, rows):
        part = x[at : at + rows]
        part[:] = _bell(draw, *part.shape)
        part += direction[y[at : at + rows]]
    return x


def _bell(draw: Draw, rows: int, columns: int) -> NDArray[np.float32]:
    """Noise of mean 0 and deviation 1: standardised sums of four random bytes."""
    drawn = np.frombuffer(draw.bytes(4 * rows * columns), dtype=np.uint8)
    total = drawn.reshape(4, rows, columns).sum(axis=0, dtype=np.uint16)
    deviation = math.sqrt(4 * (256**2 - 1) / 12)
    return (total.astype(np.float32) - 510) / np.float32(deviation)


def _register(name: str, about: str, *, keep: bool = False, **sizes: Any) -> None:
    def make(root: Path) -> Graph:
        asked = Synthetic(**sizes)
        draw = partial(asked.make, name)
        return kept(root / name, asked.name, draw) if keep else draw()

    sized = None if sizes else lambda spec: Synthetic.parse(spec).make()
    train, val, test = sizes.get("split", Synthetic.split)
    facts = Facts(
        group="drawn",
        task="node-classification",
        metric="accuracy",
        split=f"random: {train}% to train, {val}% to validate, {test}% to test",
    )
    dataset = Dataset(name, about, (), make, sized, facts=facts)
    DATASETS.add(name, dataset, __name__)


_register(
    "synthetic",
    "any size: synthetic:N=9000,E=40000",
)
_register(
    "arxiv-like",
    "169,343 nodes, 1,166,243 links",
    nodes=169_343,
    links=1_166_243,
    features=128,
    classes=40,
)
_register(
    "products-like",
    "2,449,029 nodes, 61,859,140 links",
    keep=True,
    nodes=2_449_029,
    links=61_859_140,
    features=100,
    classes=47,
    split=(8, 2, 90),
)
