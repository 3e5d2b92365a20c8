"""A detector that keeps its masks decides as any other, and compares them all."""

import torch

from gebt import MaskDistanceDetector
from gebt.tickets.recording import RecordingDetector


def test_the_distances_of_all_pairs_by_hand():
    detector = RecordingDetector()
    for mask in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]):
        detector.update({"graph": torch.tensor(mask, dtype=torch.bool)})
    # Two kept and two dropped: 4 is the largest distance.
    found = {(r["epoch"], r["other"]): r["distance"] for r in detector.pairs()}
    assert found == {(2, 1): 0.5, (3, 1): 1.0, (3, 2): 0.5}


def test_it_reads_as_the_plain_detector_does():
    draw = torch.Generator().manual_seed(0)
    plain, recording = MaskDistanceDetector(), RecordingDetector()
    for _ in range(5):
        groups = {"graph": torch.rand(20, generator=draw) > 0.5}
        groups["graph"][0] = True
        assert repr(plain.update(groups)) == repr(recording.update(groups))


def test_of_many_epochs_some_sixty_are_compared():
    detector = RecordingDetector()
    for epoch in range(150):
        detector.update({"weights": {"a": torch.arange(9) > epoch % 2}})
    epochs = {row["epoch"] for row in detector.pairs()}
    assert len(epochs) == 49 and max(epochs) == 148


def test_of_a_very_large_group_nothing_is_kept():
    detector = RecordingDetector()
    mask = torch.ones(2**24 + 1, dtype=torch.bool)
    mask[0] = False
    detector.update({"graph": mask})
    assert detector.pairs() == []
