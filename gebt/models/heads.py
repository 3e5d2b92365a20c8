"""What of a model depends on the number of its outputs: its head."""

from collections.abc import Mapping
from typing import Any

import torch

from gebt.models import build_model


def with_outputs(described: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """The description of the same model with so many outputs.

    Args:
        described: by `gebt.models.describe_model`.
        outputs: how many.

    Raises:
        ValueError: if its constructor takes no ``num_outputs``.
    """
    arguments = described.get("arguments")
    if not arguments:
        return dict(described)  # which `build_model` refuses
    if "num_outputs" not in arguments:
        raise ValueError(
            f"a {described['class']} has no `num_outputs` to give each task a head of "
            "its own. Let its constructor take it."
        )
    return {**described, "arguments": {**arguments, "num_outputs": outputs}}


def head_of(described: Mapping[str, Any]) -> set[str]:
    """The parameters whose shape depends on the number of outputs.

    Args:
        described: by `gebt.models.describe_model`.

    Raises:
        ValueError: if gebt cannot build such a model.
    """
    with torch.device("meta"):
        one, other = (
            build_model(with_outputs(described, outputs)).state_dict()
            for outputs in (1, 2)
        )
    return {name for name, tensor in one.items() if tensor.shape != other[name].shape}
