"""Mask distances of every pair of epochs: Fig. 2 of You et al. 2022."""

from gebt.experiments.rows import JOINT_RATIOS, LINK_RATIOS, Items, distances
from gebt.experiments.runner import Experiment, Job, Tables, register


def _jobs(dataset: str, seed: int) -> list[Job]:
    watched = [(ratio, 0.0) for ratio in LINK_RATIOS] + list(JOINT_RATIOS[:4])
    return [Job(dataset, "gcn", "distances", *ratios, seed) for ratios in watched]


def _page(graph: str, tables: Tables) -> Items:
    yield (
        "The paper's figure, and what it rests on: distances between masks fall, so a "
        "mask is near its final form early. That says when a ticket is stable, not "
        "that it is a good one; for that see fig1 and fig4."
    )
    yield from distances(graph, tables, "fig2")


register(
    Experiment(
        "fig2",
        "mask distances of every pair of epochs",
        "Searches of 100 epochs that never stop.",
        _jobs,
        _page,
    )
)
