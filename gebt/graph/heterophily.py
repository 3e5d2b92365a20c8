"""How a graph's links and classes go together, in a few numbers.

Platonov, Kuznedelev, Babenko and Prokhorenkova: Characterizing Graph Datasets for Node
Classification, 2022 (arXiv 2209.06177). With q_c the share of the links' ends that have
class c, and p_cd the share of links, each taken both ways, that lead from c to d:

1. Edge homophily: h = sum_c p_cc.
2. Adjusted homophily: (h - sum_c q_c^2) / (1 - sum_c q_c^2). At most 1, and 0 where
   links pay no heed to classes, whatever their number and sizes.
3. Label informativeness, LI_edge: sum_cd p_cd log(p_cd / (q_c q_d)) over
   -sum_c q_c log q_c. What a neighbour's class tells of a node's own, from 0 (nothing)
   to 1 (all of it), whether like joins like or not.
"""

from dataclasses import dataclass

import torch

from gebt.graph.graph import Graph


@dataclass(frozen=True)
class Heterophily:
    """A graph's numbers; None where it has no classes, or they tell nothing.

    Attributes:
        mean_degree: neighbours of a node; of a directed graph those it hears from.
        classes: how many there are, or labels where a node may have several.
        homophily: by definition 1, in [0, 1].
        adjusted: by definition 2; None if all ends have one class.
        informativeness: by definition 3, in [0, 1]; None if all ends have one class.
    """

    mean_degree: float
    classes: int | None
    homophily: float | None = None
    adjusted: float | None = None
    informativeness: float | None = None

    def facts(self) -> dict[str, str]:
        """What is known, by its name, to be read."""
        found = {
            "mean degree": f"{self.mean_degree:.1f}",
            "classes": None if self.classes is None else str(self.classes),
        }
        for name, value in (
            ("edge homophily", self.homophily),
            ("adjusted homophily", self.adjusted),
            ("label informativeness", self.informativeness),
        ):
            found[name] = None if value is None else f"{value:z.2f}"
        return {name: text for name, text in found.items() if text is not None}


def heterophily(graph: Graph) -> Heterophily:
    """The numbers of a graph, of its links between nodes that have a class.

    Weights of links do not count. Nodes that may have several labels have no class.
    """
    pattern = graph.adjacency.pattern
    degree = pattern.nnz / graph.num_nodes
    if graph.y is None:
        return Heterophily(degree, None)
    known = Heterophily(degree, classes := graph.num_classes)
    if graph.y.dim() == 2:
        return known
    ends = torch.stack([graph.y[pattern.row.long()], graph.y[pattern.col.long()]])
    source, target = ends[:, (ends >= 0).all(dim=0)]  # negative: no class
    pairs = (source * classes + target).bincount(minlength=classes**2)
    p = pairs.reshape(classes, classes).double()
    if not (total := float(p.sum())):
        return known
    p = (p + p.T) / (2 * total)
    q = p.sum(dim=1)
    same, chance = float(p.diag().sum()), float(q.square().sum())
    if int((q > 0).sum()) < 2:
        return Heterophily(degree, classes, same)
    return Heterophily(
        degree,
        classes,
        same,
        (same - chance) / (1 - chance),
        # Mutual information is 2 H(q) - H(p).
        2 - _entropy(p) / _entropy(q),
    )


def _entropy(shares: torch.Tensor) -> float:
    return float(torch.special.entr(shares).sum())
