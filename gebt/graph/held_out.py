"""Links that leave the graph, to be found again."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gebt.graph.splits import LinkSplit, moved

if TYPE_CHECKING:
    from gebt.graph.graph import Graph


def hold_out(graph: "Graph", val: float, test: float, seed: int) -> "Graph":
    """`Graph.hold_out_links`."""
    if (present := graph.links_kept) < graph.num_links:
        raise ValueError(
            f"the graph {graph.name!r} is already pruned: it has {present} of its "
            f"{graph.num_links} links. Hold out links of the full graph."
        )
    possible = 0 < val < 1 and 0 < test < 1 and val + test < 1
    counts = [int(share * graph.num_links) for share in (val, test) if possible]
    if not possible or 0 in counts:
        raise ValueError(
            "`val` and `test` must be positive shares that add up to less than 1 "
            f"and hold at least one of {graph.num_links} links each, got {val} and "
            f"{test}."
        )
    held_out = sum(counts)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(graph.num_links, generator=draw)
    pattern, link = graph.adjacency.pattern, graph.link.cpu()
    # An undirected link has two entries; the last one gives its pair.
    entry = torch.zeros(graph.num_links, dtype=torch.int64).scatter_reduce(
        0, link, torch.arange(link.numel()), "amax"
    )
    ends = torch.stack([pattern.col, pattern.row], dim=1).long().cpu()
    pairs = ends.index_select(0, entry)
    stays = torch.ones(graph.num_links, dtype=torch.bool)
    stays[order[:held_out]] = False
    negative = _not_linked(graph, 2 * held_out, draw)
    middle = counts[0]
    split = LinkSplit(
        train=pairs[stays],
        val=pairs[order[:middle]],
        val_negative=negative[:held_out],
        test=pairs[order[middle:held_out]],
        test_negative=negative[held_out:],
    )
    device = graph.adjacency.device
    kept = graph.keep_links(stays.to(device))
    number = (stays.cumsum(0) - 1).to(device)
    return replace(
        kept,
        link=number.index_select(0, kept.link),
        num_links=graph.num_links - held_out,
        split=moved(split, device),
    )


def _not_linked(graph: "Graph", count: int, draw: torch.Generator) -> Tensor:
    """(count, 2) different pairs of different nodes that have no link, drawn."""
    n = graph.num_nodes
    pattern = graph.adjacency.pattern
    col, row = pattern.col.long().cpu(), pattern.row.long().cpu()
    taken = torch.unique(torch.minimum(col, row) * n + torch.maximum(col, row))
    # At least half of the pairs without a link are left over, or draws get rare.
    if count > (n * (n - 1) // 2 - taken.numel()) // 2:
        raise ValueError(
            f"the graph {graph.name!r} has too few pairs of nodes without a link to "
            f"draw {count} from. Hold out fewer links."
        )
    found = torch.empty(0, dtype=torch.int64)
    while found.numel() < count:
        source, target = torch.randint(n, (2, 2 * count), generator=draw)
        low, high = torch.minimum(source, target), torch.maximum(source, target)
        free = ~torch.isin(low * n + high, taken) & (low != high)
        found = torch.unique(torch.cat([found, (low * n + high)[free]]))
    found = found[torch.randperm(found.numel(), generator=draw)[:count]]
    return torch.stack([found // n, found % n], dim=1)
