"""Positions, and what is derived from them: built at its first use, and kept.

The transpose, the self-loops, the rows that a loss can see.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from gebt.kernels import Part
from gebt.kernels._csr import entry_rows
from gebt.kernels.hashing import column_keys, row_keys

T = TypeVar("T")
_changing = Lock()  # held while what is kept changes
INT32_MAX = 2**31 - 1
BLOCK = 2**22  # entries that are looked at together where all would take much memory
NEARLY_ALL = 0.9  # above this share of all rows, restricting to them saves nothing


class Recent(dict[Any, Any]):
    """The results of the last few calls, by key; for any number of threads."""

    def get_or(self, key: Any, build: Callable[[], T]) -> T:
        """What is kept for the key, else built and kept."""
        found = self.get(key, self)
        if found is self:
            # What is kept must serve training too.
            with torch.inference_mode(False):
                found = build()
            with _changing:
                if len(self) >= 8:
                    del self[next(iter(self))]
                self[key] = found
        return found


class Pattern:
    """Positions of a sparse matrix, by compressed rows.

    Args:
        crow: (N + 1,) row starts.
        col: (E,) column of each entry. Both become int32 where that is enough.
        shape: (N, M).
        own: (N,) the column that stands for each row's own node; by default row i
            and column i are the same node.
        nodes: (N,) which of the graph's nodes each row is; by default row i is node i.
    """

    def __init__(
        self,
        crow: Tensor,
        col: Tensor,
        shape: tuple[int, int],
        own: Tensor | None = None,
        nodes: Tensor | None = None,
    ):
        # Sizes that a traced program is given are no int: nothing is known of them.
        sizes = (col.numel(), *shape)
        fits = all(isinstance(n, int) and n <= INT32_MAX for n in sizes)
        dtype = torch.int32 if fits else torch.int64
        self.crow = crow.to(dtype)
        self.col = col.to(dtype)
        self.shape = shape
        self.own = own
        self.nodes = nodes
        self._recent = Recent()

    @classmethod
    def from_sorted(cls, row: Tensor, col: Tensor, shape: tuple[int, int]) -> "Pattern":
        """From coordinates that are sorted by row."""
        crow = torch.zeros(shape[0] + 1, dtype=torch.int64, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=shape[0]), 0, out=crow[1:])
        return cls(crow, col, shape)

    @property
    def nnz(self) -> int:
        """E, the number of entries."""
        return self.col.numel()

    @cached_property
    def row(self) -> Tensor:
        """(E,) the row of each entry."""
        with torch.inference_mode(False):
            return entry_rows(self.crow, self.nnz)

    def blocks(self) -> Iterator[tuple[Tensor, slice]]:
        """The rows (B,) of some consecutive entries, and which entries; all in turn."""
        starts = torch.arange(0, self.nnz, BLOCK, device=self.crow.device)
        firsts = torch.searchsorted(self.crow, starts, right=True) - 1
        for first, end in pairwise([*firsts.tolist(), self.shape[0]]):
            if first < end:  # not inside one long row
                start, stop = int(self.crow[first]), int(self.crow[end])
                rows = entry_rows(self.crow[first : end + 1], stop - start) + first
                yield rows, slice(start, stop)

    def mirrors(self, data: Tensor) -> bool:
        """Whether for each entry (i, j) there is one (j, i) with the same data.

        By sums of hashes of 64 bits that must be equal both ways, so no sort: with a
        chance of 2^-64 the answer for others is yes.

        Args:
            data: (E,) of integers or floating, compared bit by bit.
        """
        if self.shape[0] != self.shape[1]:
            return False
        bits = data.detach().view(_BITS[data.dtype.itemsize])
        balance = 0
        for row, entries in self.blocks():
            row, col = row.long(), self.col[entries].long()
            own = bits[entries].long() * _ODD[2]
            there = _mixed(row * _ODD[0] + col * _ODD[1] + own)
            back = _mixed(col * _ODD[0] + row * _ODD[1] + own)
            balance += int((there - back).sum())
        return balance % 2**64 == 0

    def pairs(self, link: Tensor) -> bool:
        """Whether each link is one entry (i, j), i < j, and one (j, i), and no other.

        Args:
            link: (E,) integers, which link each entry is.
        """
        return self._recent.get_or(("pairs", Same(link)), lambda: self._pairs(link))

    def _pairs(self, link: Tensor) -> bool:
        if not self.mirrors(link):
            return False
        above = sum(
            int((rows < self.col[entries]).sum()) for rows, entries in self.blocks()
        )
        most = int(link.bincount().max()) if link.numel() else 0
        return most <= 2 and 2 * above == link.numel()

    @cached_property
    def edge_index(self) -> Tensor:
        """(2, E) int64, the source and target of each entry, as PyG has it."""
        with torch.inference_mode(False):
            return torch.stack([self.col, self.row]).long()

    @cached_property
    def transpose(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(crow, col, order)``; its entry ``e`` is entry ``order[e]`` here."""
        with torch.inference_mode(False):
            col, order = self.col.sort(stable=True)
            row = self.row.index_select(0, order)
            turned = Pattern.from_sorted(col, row, (self.shape[1], self.shape[0]))
            return turned.crow, turned.col, order.to(self.col.dtype)

    @cached_property
    def keys(self) -> Tensor:
        """(E,) int32, what the hash of a dropout knows each entry by."""
        with torch.inference_mode(False):
            of_rows = row_keys(self.shape[0], self.col.device, self.nodes)
            return column_keys(of_rows.index_select(0, self.row), self.col)

    def find(self, row: Tensor, col: Tensor) -> Tensor:
        """(K,) int64, where the positions (row, col) are entries; -1 if they are not.

        Args:
            row: (K,) int64.
            col: (K,) int64.
        """
        key, entry = self._sorted_keys
        inside = (row >= 0) & (row < self.shape[0]) & (col >= 0) & (col < self.shape[1])
        wanted = torch.where(inside, row * self.shape[1] + col, -1)
        # Past the last key is what no entry equals.
        place = torch.searchsorted(key, wanted)
        return torch.where(key[place] == wanted, entry[place], -1)

    @cached_property
    def _sorted_keys(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            key, entry = (self.row.long() * self.shape[1] + self.col).sort(stable=True)
            end = key.new_tensor([torch.iinfo(key.dtype).max])
            return torch.cat([key, end]), torch.cat([entry, end])

    def with_diagonal(self) -> tuple["Pattern", Tensor]:
        """This square pattern with (i, i) added at each row's end; places of the old.

        Returns:
            The pattern of E + N entries, and (E,) where each old entry went.
        """
        return self._recent.get_or("diagonal", self._with_diagonal)

    def _with_diagonal(self) -> tuple["Pattern", Tensor]:
        n = self.shape[0]
        each = torch.arange(n + 1, device=self.col.device, dtype=self.col.dtype)
        place = (torch.arange(self.nnz, device=self.col.device) + self.row).long()
        col = self.col.new_empty(self.nnz + n)
        col[place] = self.col
        col[(self.crow[1:] + each[:-1]).long()] = each[:-1]
        crow = self.crow + each
        return Pattern(crow, col, self.shape, nodes=self.nodes), place

    def repeat(self, times: int) -> "Pattern":
        """The block-diagonal pattern of ``times`` copies, one after the other."""
        return self._recent.get_or(("repeat", times), lambda: self._repeat(times))

    def _repeat(self, times: int) -> "Pattern":
        n, m = self.shape
        each = torch.arange(times, device=self.col.device)[:, None]
        crow = (self.crow[1:] + each * self.nnz).flatten()
        col = (self.col + each * m).flatten()
        own = None if self.own is None else (self.own + each * m).flatten()
        shape = (times * n, times * m)
        return Pattern(torch.cat([crow.new_zeros(1), crow]), col, shape, own)

    def select(self, entries: Tensor) -> "Pattern":
        """The pattern of some entries, given by ascending positions."""
        crow = torch.searchsorted(entries, self.crow.to(entries.dtype))
        col = self.col.index_select(0, entries)
        return Pattern(crow, col, self.shape, nodes=self.nodes)

    def renumbered(self, order: Tensor) -> tuple["Pattern", Tensor]:
        """This square pattern with row and column i what ``order[i]`` is here.

        Args:
            order: (N,) int64, a permutation.

        Returns:
            The pattern, and (E,) where each of its entries is here.
        """
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        n = self.shape[0]
        start = self.crow.index_select(0, order).long()
        count = self.crow.diff().index_select(0, order).long()
        crow = torch.cat([count.new_zeros(1), count.cumsum(0)])
        turned = Pattern(crow, torch.empty_like(self.col), self.shape)
        entries = torch.empty_like(self.col)
        for rows, at in turned.blocks():  # of a few rows each, so sorts are small
            rows = rows.long()
            here = torch.arange(at.start, at.stop, device=order.device)
            here += (start - crow[:-1]).index_select(0, rows)
            col = place.index_select(0, self.col.index_select(0, here))
            key, sorted_by = ((rows - rows[0]) * n + col).sort()
            turned.col[at] = key.remainder_(n)
            entries[at] = here.index_select(0, sorted_by)
        return turned, entries

    def rows(self, nodes: Tensor) -> tuple["Pattern", Tensor]:
        """The pattern of some rows, in that order, and (E',) its entries here."""
        return self._recent.get_or(("rows", Same(nodes)), lambda: self.take_rows(nodes))

    def take_rows(self, nodes: Tensor) -> tuple["Pattern", Tensor]:
        """As `rows`, and not kept."""
        start = self.crow.index_select(0, nodes).long()
        count = self.crow.index_select(0, nodes + 1).long() - start
        crow = torch.cat([count.new_zeros(1), count.cumsum(0)])
        entries = torch.arange(int(crow[-1]), device=crow.device)
        entries += (start - crow[:-1]).repeat_interleave(count)
        col = self.col.index_select(0, entries)
        shape = (nodes.numel(), self.shape[1])
        nodes = self.of_nodes(nodes)
        return Pattern(crow, col, shape, nodes=nodes), entries.to(self.col.dtype)

    def hops(
        self, nodes: Tensor, depth: int
    ) -> tuple[Tensor | None, list[tuple["Pattern", Tensor | None]]]:
        """The entries that ``depth`` products with this square matrix read.

        Args:
            nodes: (R,) the rows wanted of the last product.
            depth: how many times the matrix is applied.

        Returns:
            The rows of the first product's input that are read (None: all), and
            per product, first one first, a pattern over just the rows that it must
            compute and reads, with its entries' places here (None: all). A product
            reads at least the nodes whose rows it computes, at ``own``.
        """
        key = ("hops", Same(nodes), depth)
        return self._recent.get_or(key, lambda: self._hops(nodes, depth))

    def _hops(
        self, nodes: Tensor, depth: int
    ) -> tuple[Tensor | None, list[tuple["Pattern", Tensor | None]]]:
        blocks: list[tuple[Pattern, Tensor | None]] = []
        wanted: Tensor | None = nodes
        for _ in range(depth):
            if wanted is None:
                blocks.append((self, None))
                continue
            block, entries = self.take_rows(wanted)
            read = torch.unique(torch.cat([block.col.long(), wanted]))
            if read.numel() < NEARLY_ALL * self.shape[1]:
                place = torch.empty(self.shape[1], dtype=block.col.dtype)
                place = place.to(read.device)
                place[read] = torch.arange(
                    read.numel(), device=read.device, dtype=place.dtype
                )
                shape = (wanted.numel(), read.numel())
                own = place[wanted].long()
                col = place[block.col]
                block = Pattern(block.crow, col, shape, own, block.nodes)
                wanted = read
            else:
                shape = block.shape
                block = Pattern(block.crow, block.col, shape, wanted, block.nodes)
                wanted = None
            blocks.append((block, entries))
        return wanted, blocks[::-1]

    def reach(self, nodes: Tensor, depth: int) -> tuple[Tensor | None, list[Part]]:
        """`hops` as parts of this symmetric pattern, of which nothing is copied.

        Args:
            nodes: (R,) the rows wanted of the last product, distinct.
            depth: how many times the matrix is applied.
        """
        key = ("reach", Same(nodes), depth)
        return self._recent.get_or(key, lambda: self._reach(nodes, depth))

    def _reach(self, nodes: Tensor, depth: int) -> tuple[Tensor | None, list[Part]]:
        parts: list[Part] = []
        wanted: Tensor | None = nodes
        place: Tensor | None = self._places(nodes)
        for _ in range(depth):
            if wanted is None or place is None:
                parts.append(Part())
                continue
            reached = torch.zeros_like(place, dtype=torch.bool)
            reached[wanted] = True
            for rows, entries in self.blocks():
                read = place.index_select(0, rows) >= 0
                reached[self.col[entries][read].long()] = True
            if reached.count_nonzero() >= NEARLY_ALL * self.shape[1]:
                parts.append(Part(wanted, place))
                wanted = place = None
                continue
            columns = reached.nonzero().squeeze(1)
            column_place = self._places(columns)
            parts.append(Part(wanted, place, columns, column_place))
            wanted, place = columns, column_place
        return wanted, parts[::-1]

    def _places(self, nodes: Tensor) -> Tensor:
        """(N,) int32, where in ``nodes`` a node is, -1 if nowhere."""
        place = torch.full((self.shape[1],), -1, device=nodes.device, dtype=torch.int32)
        place[nodes] = torch.arange(
            nodes.numel(), device=nodes.device, dtype=torch.int32
        )
        return place

    def to(self, device: torch.device | str) -> "Pattern":
        """A copy on another device."""
        own = None if self.own is None else self.own.to(device)
        nodes = None if self.nodes is None else self.nodes.to(device)
        place = self.crow.to(device), self.col.to(device)
        return Pattern(*place, self.shape, own, nodes)

    def of_nodes(self, rows: Tensor) -> Tensor:
        """(R,) which of the graph's nodes some rows are."""
        return rows if self.nodes is None else self.nodes.index_select(0, rows)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = (-7046029254386353131, -4417276706812531889, 1609587929392839161)


def _mixed(key: Tensor) -> Tensor:
    """A hash of each integer of 64 bits, in place."""
    key ^= key >> 32
    key *= -4658895280553007687
    key ^= key >> 29
    key *= -7723592293110705685
    return key.bitwise_xor_(key >> 32)


class Same:
    """A dictionary key that is equal only for the very same tensor, unchanged."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.version = None if tensor.is_inference() else tensor._version

    def __hash__(self) -> int:
        return id(self.tensor)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Same)
            and other.tensor is self.tensor
            and other.version == self.version
        )
