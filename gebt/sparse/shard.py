"""The rows of a symmetric matrix that one rank holds, and what it asks the others for.

A product needs rows of others: the halo. They come in one exchange, during which the
rows are computed that need none of it. As the matrix is its own transpose, the gradient
of a product is the product with the gradient, and goes the same way.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gebt.kernels import Links, Part, propagate_pays, sddmm, spmm
from gebt.kernels._choose import compiled
from gebt.sparse.matrix import SparseMatrix
from gebt.sparse.pattern import NEARLY_ALL, Pattern, Same
from gebt.world import Ranks

_COLUMNS = 16
"""Columns of a dense matrix whose rows are exchanged at once."""


class Halo:
    """Rows of a vector, cut over ranks, that this rank needs and others own.

    Args:
        world: the ranks.
        index: (s,) this rank's rows that others need, those for rank 0 first.
        send: how many of these each rank gets.
        receive: how many each rank has for this one.
    """

    def __init__(
        self, world: Ranks, index: Tensor, send: list[int], receive: list[int]
    ):
        self.world = world
        self.index = index
        self.send = send
        self.receive = receive

    @classmethod
    def of(
        cls,
        world: Ranks,
        owner: Tensor,
        wanted: Tensor,
        find: Callable[[Tensor], Tensor],
    ) -> "Halo":
        """Ask for rows, once.

        Args:
            world: the ranks; all of them ask together.
            owner: (h,) ascending, the rank that owns each row needed.
            wanted: (h,) integers by which that rank knows it.
            find: given such integers, that others ask this rank for, (s,) the places
                of these rows among its own.
        """
        counts = torch.bincount(owner, minlength=world.size)
        each = [1] * world.size
        receive = counts.tolist()
        send = world.exchange(counts, each, each)().tolist()
        index = find(world.exchange(wanted, receive, send)())
        return cls(world, index.to(torch.int32), send, receive)

    @property
    def size(self) -> int:
        """H."""
        return sum(self.receive)

    def to(self, device: torch.device | str) -> "Halo":
        """A copy for tensors on another device."""
        other = copy(self)
        other.index = self.index.to(device)
        return other

    def start(self, own: Tensor, into: Tensor | None = None) -> Callable[[], Tensor]:
        """Ask for the rows; what it gives waits for them, (h, ...)."""
        sent = own.index_select(0, self.index)
        return self.world.exchange(sent, self.send, self.receive, into)

    def back(self, rows: Tensor) -> Tensor:
        """(s, ...) what others have for this rank's rows, at ``index``, of (h, ...)."""
        return self.world.exchange(rows, self.receive, self.send)()

    def extend(self, own: Tensor) -> Tensor:
        """(n + h, ...) this rank's rows, then those it needs; differentiable."""
        extended: Tensor = _Extended.apply(own, self)
        return extended

    def begin(self, own: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """As `extend`, no gradient: the rows, and what waits for those of others."""
        rows = own.new_empty((own.shape[0] + self.size, *own.shape[1:]))
        rows[: own.shape[0]] = own
        return rows, self.start(own, rows[own.shape[0] :])

    def only(self, sent: Tensor, received: Tensor, place: Tensor) -> "Halo":
        """The halo of some of the rows.

        Args:
            sent: (s,) boolean, which of those that others need.
            received: (h,) boolean, which of those that this rank needs.
            place: (n,) where each own row is among those that are left.
        """
        index = place.index_select(0, self.index[sent])
        send, receive = (
            [int(each.count_nonzero()) for each in flags.split(counts)]
            for flags, counts in ((sent, self.send), (received, self.receive))
        )
        return Halo(self.world, index.to(torch.int32), send, receive)


class _Extended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, halo: Halo) -> Tensor:
        ctx.halo = halo
        rows, wait = halo.begin(own)
        wait()
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        halo = ctx.halo
        own = grad.shape[0] - halo.size
        back = halo.back(grad[own:])
        return grad[:own].index_add(0, halo.index, back), None


@dataclass(frozen=True, eq=False)
class SharedPart(Part):
    """Only some rows of the product, from only some rows of x, on every rank.

    Places are of the rank's nodes and its halo; in x and in the gradient the rows of
    others come after the rank's own.

    Attributes:
        row_halo: of the gradient's rows.
        column_halo: of x.
    """

    row_halo: Halo | None = None
    column_halo: Halo | None = None


class Shard(SparseMatrix):
    """This rank's rows (n, n) of a symmetric matrix cut over ranks.

    Its columns are this rank's nodes in the order of its rows, then those of the halo;
    the entries of a row come in the whole matrix's order, so that its sum is the same
    on any number of ranks. ``shard @ x`` takes and gives this rank's rows. All ranks
    must multiply together.

    Args:
        pattern: (n, n + h).
        value: (E,).
        halo: of its columns.
        link_halo: of its links: those that another rank holds.
        weight: as of a `SparseMatrix`.
        inner: how many rows, the first, need none of the halo.
        entries: E of the whole matrix: of that depends how products are computed.
        mirrored: whether the values are those of a symmetric matrix, as they are where
            both directions of a link have the same.
        factor: (L,) what each value is multiplied with, by its link; or None.
        link: (E,) of each entry, the place of its link among this rank's and its
            halo's.
    """

    def __init__(
        self,
        pattern: Pattern,
        value: Tensor,
        halo: Halo,
        link_halo: Halo,
        weight: Tensor | None = None,
        *,
        inner: int,
        entries: int,
        mirrored: bool,
        factor: Tensor | None = None,
        link: Tensor | None = None,
    ):
        super().__init__(pattern, value, weight)
        self.halo = halo
        self.link_halo = link_halo
        self.inner = inner
        self._entries = entries
        self._mirrored = mirrored
        self._factor, self._link = factor, link
        self._differentiable: Tensor | None = None
        self._constant: Links | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n): of a vector it takes, and gives, this rank's rows."""
        return self.pattern.shape[0], self.pattern.shape[0]

    @property
    def value(self) -> Tensor:
        """(E,), differentiable in the factors."""
        if self._factor is None or self._link is None:
            return self._value
        if self._differentiable is None:
            each = self.of_links(self._factor, self._link)
            self._differentiable = self._value * each.to(self.dtype)
        return self._differentiable

    @property
    def factored(self) -> bool:
        """True: written out, scaled values would not be symmetric."""
        return True

    @property
    def fused(self) -> bool:
        """As of the whole matrix: all ranks must do the same."""
        return self._mirrored and propagate_pays(self._value, self._entries)

    @property
    def symmetric(self) -> bool:
        """False: of these rows alone."""
        return False

    @property
    def links(self) -> Links:
        """The entries as the kernels of symmetric matrices want them."""
        if self._constant is None:
            place = self.pattern.crow, self.pattern.col
            if self._factor is None or self._link is None:
                self._constant = Links(*place, self._value)
            else:
                each, wait = self.link_halo.begin(self._factor.detach())
                wait()
                value = (
                    each.index_select(0, self._link).to(self.dtype).mul_(self._value)
                )
                self._constant = Links(*place, value, self._link, self._value)
        return self._constant

    def _parts(self) -> tuple[Tensor, ...]:
        return (self._value, *([] if self._factor is None else [self._factor]))

    def _with(self, pattern: Pattern, value: Tensor, **changed: Any) -> "Shard":
        how: Any = {"inner": self.inner, "entries": self._entries}
        how |= {"mirrored": self._mirrored, "weight": self.weight} | changed
        return Shard(pattern, value, self.halo, self.link_halo, **how)

    def with_value(self, value: Tensor) -> "Shard":
        """The same positions with other values (E,)."""
        return self._with(self.pattern, value, mirrored=False)

    def of_links(self, values: Tensor, link: Tensor) -> Tensor:
        """(E, ...) of each entry, what ``values`` (L, ...) has for its link."""
        return self.link_halo.extend(values).index_select(0, link)

    def by_links(self, edge: Tensor, link: Tensor, links: int, how: str) -> Tensor:
        """`SparseMatrix.by_links`, of this rank's own links (L,)."""
        every = super().by_links(edge, link, links + self.link_halo.size, how)
        theirs = self.link_halo.back(every[links:])
        return every[:links].scatter_reduce(0, self.link_halo.index.long(), theirs, how)

    def times(self, factor: Tensor, link: Tensor) -> "Shard":
        """`SparseMatrix.times`, of this rank's own links (L,)."""
        return self._with(self.pattern, self.value, factor=factor, link=link)

    def detach(self) -> "Shard":
        """The same matrix with constant values."""
        factor = None if self._factor is None else self._factor.detach()
        value = self._value.detach()
        return self._with(self.pattern, value, factor=factor, link=self._link)

    def select(self, keep: Tensor) -> "Shard":
        """Only the entries that a boolean mask (E,) keeps; the halo stays.

        Both directions of a link must go together.
        """
        kept = super().select(keep)
        return self._with(kept.pattern, kept.value, weight=kept.weight)

    def at_columns(self, v: Tensor) -> Tensor:
        """(E, ...) of each entry, what ``v`` (n, ...) has for its column's node."""
        return super().at_columns(self.halo.extend(v))

    def row_sum_of_magnitudes(self) -> Tensor:
        """(n,) the sum of |value| over each row: the degrees of an adjacency."""
        if self.fused:
            total: Tensor = _Magnitudes.apply(self, self._factor)
            return total
        return super().row_sum_of_magnitudes()

    def to(self, device: torch.device | str) -> "Shard":
        """A copy on another device."""
        same = super().to(device)
        halos = self.halo.to(device), self.link_halo.to(device)
        how: Any = {"inner": self.inner, "entries": self._entries}
        how |= {"mirrored": self._mirrored, "weight": same.weight}
        return Shard(same.pattern, same.value, *halos, **how)

    def hops(self, nodes: Tensor | None, depth: int) -> tuple[None, list[Any]]:
        """`SparseMatrix.hops`; all rows are computed of all products but the last."""
        last = self if nodes is None else _Rows(self, nodes)
        return None, [*[self] * (depth - 1), last][:depth]

    def reach(self, nodes: Tensor, depth: int) -> tuple[Tensor | None, list[Part]]:
        """`SparseMatrix.reach`: on each rank its nodes that any rank's rows need."""
        recent = self.pattern._recent
        return recent.get_or(
            ("reach", Same(nodes), depth), lambda: self._reach(nodes, depth)
        )

    def _reach(self, nodes: Tensor, depth: int) -> tuple[Tensor | None, list[Part]]:
        n, halo, world = self.shape[0], self.halo, self.halo.world
        nodes_in_all = world.total(n)
        parts: list[Part] = []
        wanted: Tensor | None = nodes
        for _ in range(depth):
            if wanted is None:
                parts.append(Part())
                continue
            # Whose gradient is there, here and in the halo.
            here = torch.zeros(n, dtype=torch.bool, device=nodes.device)
            here[wanted] = True
            there = halo.start(here)()
            rows, row_place = wanted, _places(wanted, there, n)
            row_halo = halo.only(here[halo.index], there, row_place[:n])
            # Whose x is read, here and by others.
            read = torch.zeros(n + halo.size, dtype=torch.bool, device=nodes.device)
            read[wanted] = True
            for row, entries in self.pattern.blocks():
                read[self.pattern.col[entries][here[row]].long()] = True
            asked = halo.back(read[n:])
            read[halo.index[asked].long()] = True
            if world.total(int(read[:n].count_nonzero())) >= NEARLY_ALL * nodes_in_all:
                parts.append(SharedPart(rows, row_place, row_halo=row_halo))
                wanted = None
                continue
            wanted = read[:n].nonzero().squeeze(1)
            place = _places(wanted, read[n:], n)
            column_halo = halo.only(asked, read[n:], place[:n])
            both: Any = {"row_halo": row_halo, "column_halo": column_halo}
            parts.append(SharedPart(rows, row_place, wanted, place, **both))
        return wanted, parts[::-1]

    def propagate(
        self,
        left: Tensor | None,
        right: Tensor | None,
        x: Tensor,
        *,
        loops: bool,
        part: Part,
    ) -> Tensor:
        """`kernels.propagate`, of rows here and in the halo."""
        out: Tensor = _Propagate.apply(self, loops, part, left, right, self._factor, x)
        return out

    def __matmul__(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[0] != self.shape[1]:
            raise ValueError(
                f"a sparse matrix of shape {self.shape} multiplies a tensor of shape "
                f"({self.shape[1]}, F), got {tuple(x.shape)}."
            )
        if self._mirrored:
            product: Tensor = _Product.apply(self.value, x, self)
            return product
        return SparseMatrix(self.pattern, self.value) @ self.halo.extend(x)

    def multiply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, F) the product, and (n + h, F) what it was of; no gradient."""
        read, wait = self.halo.begin(x)
        n, inner = x.shape[0], self.inner
        crow, col, value = self.pattern.crow, self.pattern.col, self.value
        middle = int(crow[inner]) if inner else 0
        first = spmm(crow[: inner + 1], col[:middle], value[:middle], read[:n])
        wait()
        if inner == n:
            return first, read
        rest = spmm(crow[inner:] - middle, col[middle:], value[middle:], read)
        return torch.cat([first, rest]) if inner else rest, read


def _places(own: Tensor, halo: Tensor, n: int) -> Tensor:
    """(n + h,) int32, where among the rows that are left a node is, -1 if nowhere.

    Args:
        own: (R,) the rank's nodes that are left, which come first.
        halo: (h,) boolean, which of the halo's.
        n: nodes of the rank.
    """
    place = torch.full((n + halo.numel(),), -1, dtype=torch.int32, device=own.device)
    others = n + halo.nonzero().squeeze(1)
    every = torch.cat([own, others])
    place[every] = torch.arange(every.numel(), dtype=torch.int32, device=own.device)
    return place


class _Product(torch.autograd.Function):
    """The product with a symmetric matrix.

    The gradient of an entry's value is given to the entry of its link's other
    direction, whose row holds x: a link adds up both.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, matrix: Shard) -> Tensor:
        out, _ = matrix.multiply(x)
        ctx.matrix = matrix
        ctx.save_for_backward(x if value.requires_grad else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        pattern = ctx.matrix.pattern
        for_x, read = ctx.matrix.multiply(grad.contiguous())
        for_value = None
        if ctx.needs_input_grad[0]:
            for_value = sddmm(pattern.crow, pattern.col, x, read)
        return for_value, for_x, None


class _Propagate(torch.autograd.Function):
    """`kernels.propagate` by its loops, which see the rank's rows and its halo's.

    Some columns at a time: the rows of others are many, and not kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Shard,
        loops: bool,
        part: Part,
        left: Tensor | None,
        right: Tensor | None,
        factor: Tensor | None,
        x: Tensor,
    ) -> Tensor:
        links, halo = matrix.links, _halo(part, matrix, "column_halo")
        scales = [_extended(scale, matrix.halo, x) for scale in (left, right)]
        n, inner = matrix.shape[0], matrix.inner
        out = x.new_empty(n if part.rows is None else len(part.rows), x.shape[1])
        own, none = x.new_tensor(float(loops)), links.col.new_empty(0)
        entries = links.crow, links.col, links.value
        place = none if part.column_place is None else part.column_place
        nodes, first = part.rows, 0
        if nodes is None:
            nodes, first = torch.arange(inner, n, device=x.device), inner
        for columns in _some(x.shape[1]):
            read, wait = halo.begin(x[:, columns])
            some = out.new_empty(out.shape[0], read.shape[1])
            if first:
                how = none, place, own, read, some[:first]
                compiled("propagate", *entries, *scales, *how)
            wait()
            del wait  # and what was sent
            how = nodes, place, own, read, some[first:]
            compiled("propagate", *entries, *scales, *how)
            out[:, columns] = some
        ctx.given = matrix, own, part, left is not None, right is not None
        ctx.save_for_backward(*scales, x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        matrix, own, part, has_left, has_right = ctx.given
        left, right, x = ctx.saved_tensors
        links, link_halo = matrix.links, matrix.link_halo
        halo, needs_x = _halo(part, matrix, "row_halo"), ctx.needs_input_grad[-1]
        none = links.col.new_empty(0)
        learned = links.link is not None
        link, base = (links.link, links.base) if learned else (none, x.new_empty(0))
        factors = matrix._factor.numel() if learned else 0
        both = x.new_zeros(factors + link_halo.size if learned else 0, 2)
        own_dot = x.new_zeros(matrix.shape[0] if learned else 0)
        for_x = torch.empty_like(x) if needs_x else None
        nodes = none if part.columns is None else part.columns
        place = none if part.row_place is None else part.row_place
        for columns in _some(x.shape[1]):
            read, wait = halo.begin(grad[:, columns])
            wait()
            del wait
            some = x[:, columns].contiguous()
            for_some = torch.empty_like(some) if needs_x else x.new_empty(0, 0)
            # Of the first columns they are not there yet.
            first = columns.start == 0
            dots = both, own_dot
            if not first:
                dots = torch.zeros_like(both), torch.zeros_like(own_dot)
            compiled(
                "propagate_backward",
                *(links.crow, links.col, link, links.value, left, right),
                *(nodes, place, own, some, read, *dots, for_some),
            )
            if not first:
                both += dots[0]
                own_dot += dots[1]
            if for_x is not None:
                for_x[:, columns] = for_some
        if not learned:
            return *[None] * 6, for_x
        # The other direction of a link that ends elsewhere was computed there.
        theirs = link_halo.start(both[:factors, 0].contiguous())
        back = link_halo.back(both[factors:, 0].contiguous())
        both[link_halo.index.long(), 1] = back
        both[factors:, 1] = theirs()
        n = matrix.shape[0]
        for_left, for_right = (
            x.new_empty(n if there else 0) for there in (has_left, has_right)
        )
        for_factor = x.new_zeros(len(both))
        compiled(
            "propagate_links",
            *(links.crow, links.col, link, base, links.value, left, right, own),
            *(both, own_dot, for_left, for_right, for_factor),
        )
        return (
            *[None] * 3,
            for_left if has_left else None,
            for_right if has_right else None,
            for_factor[:factors],
            for_x,
        )


def _some(width: int) -> list[slice]:
    """All columns, in a few equal blocks."""
    blocks = max(1, -(-width // _COLUMNS))
    step = max(1, -(-width // blocks))
    return [slice(at, at + step) for at in range(0, max(1, width), step)]


class _Magnitudes(torch.autograd.Function):
    """`kernels.row_magnitudes` by its loops."""

    @staticmethod
    def forward(ctx: Any, matrix: Shard, factor: Tensor | None) -> Tensor:
        links = matrix.links
        out = links.value.new_empty(matrix.shape[0])
        compiled("row_magnitudes", links.crow, links.value, out)
        ctx.matrix = matrix
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        matrix = ctx.matrix
        links, factors = matrix.links, matrix._factor.numel()
        read, wait = matrix.halo.begin(grad.contiguous())
        wait()
        out = grad.new_zeros(factors + matrix.link_halo.size)
        arrays = links.crow, links.col, links.link, links.base, links.value
        compiled("row_magnitudes_backward", *arrays, read, out)
        return None, out[:factors]


def _halo(part: Part, matrix: Shard, name: str) -> Halo:
    return getattr(part, name, None) or matrix.halo


def _extended(scale: Tensor | None, halo: Halo, like: Tensor) -> Tensor:
    """(n + h,) a scale of the rank's nodes and the halo's; none for None."""
    if scale is None:
        return like.new_empty(0)
    both, wait = halo.begin(scale.detach())
    wait()
    return both


class _Rows:
    """Some rows of a shard's product, of which all are computed.

    Args:
        matrix: the shard.
        nodes: (R,) which of its rows.
    """

    def __init__(self, matrix: Shard, nodes: Tensor):
        self.matrix = matrix
        self.own = nodes
        self.nodes = matrix.of_nodes(nodes)
        self.shape = nodes.numel(), matrix.shape[1]
        self.dtype = matrix.dtype

    def __matmul__(self, x: Tensor) -> Tensor:
        return (self.matrix @ x).index_select(0, self.own)
