"""Links that leave a graph, to be found again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gebt.graph.splits import LinkSplit
from gebt.sparse import Pattern


def hold_out(
    name: str, pattern: Pattern, link: Tensor, counts: Sequence[int], seed: int
) -> tuple[Tensor, LinkSplit]:
    """Draw links to validate and to test on, and as many negatives for each part.

    Args:
        name: of the graph, for the error.
        pattern: (N, N), of all L links.
        link: (E,) link id of each entry.
        counts: links of the two parts.
        seed: for the draw.

    Returns:
        (L,) boolean, the links that stay, and the pairs of each part, on CPU.

    Raises:
        ValueError: if the graph is too dense to draw the negatives from.
    """
    draw = torch.Generator().manual_seed(seed)
    link = link.cpu()
    num_links = int(link.max()) + 1
    order = torch.randperm(num_links, generator=draw)
    # An undirected link has two entries; the last one gives its pair.
    entry = torch.zeros(num_links, dtype=torch.int64).scatter_reduce(
        0, link, torch.arange(link.numel()), "amax"
    )
    ends = torch.stack([pattern.col, pattern.row], dim=1).long().cpu()
    pairs = ends.index_select(0, entry)
    stays = torch.ones(num_links, dtype=torch.bool)
    middle, held_out = counts[0], sum(counts)
    stays[order[:held_out]] = False
    negative = _not_linked(name, pattern, 2 * held_out, draw)
    return stays, LinkSplit(
        train=pairs[stays],
        val=pairs[order[:middle]],
        val_negative=negative[:held_out],
        test=pairs[order[middle:held_out]],
        test_negative=negative[held_out:],
    )


def _not_linked(
    name: str, pattern: Pattern, count: int, draw: torch.Generator
) -> Tensor:
    """(count, 2) different pairs of different nodes that have no link, drawn."""
    n = pattern.shape[0]
    col, row = pattern.col.long().cpu(), pattern.row.long().cpu()
    taken = torch.unique(torch.minimum(col, row) * n + torch.maximum(col, row))
    # At least half of the pairs without a link are left over, or draws get rare.
    if count > (n * (n - 1) // 2 - taken.numel()) // 2:
        raise ValueError(
            f"the graph {name!r} has too few pairs of nodes without a link to draw "
            f"{count} from. Hold out fewer links."
        )
    found = torch.empty(0, dtype=torch.int64)
    while found.numel() < count:
        source, target = torch.randint(n, (2, 2 * count), generator=draw)
        low, high = torch.minimum(source, target), torch.maximum(source, target)
        free = ~torch.isin(low * n + high, taken) & (low != high)
        found = torch.unique(torch.cat([found, (low * n + high)[free]]))
    found = found[torch.randperm(found.numel(), generator=draw)[:count]]
    return torch.stack([found // n, found % n], dim=1)
