"""Masks to and from `torch.nn.utils.prune`, by gebt's names."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils.prune import custom_from_mask

from gebt.prune.weights import check_masks


def to_torch_prune(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Prune a model's parameters as `torch.nn.utils.prune` does, in place.

    Each becomes a product of ``NAME_orig``, which is trained, and ``NAME_mask``, made
    again before each forward of its module; `torch.nn.utils.prune.remove` undoes that.

    Args:
        model: any module.
        masks: boolean masks by parameter name, True = kept, such as a ticket's
            ``weight_masks``.

    Raises:
        ValueError: if a mask fits no parameter of the model, as after an earlier call.
    """
    check_masks(model, masks)
    for name, mask in masks.items():
        module, _, parameter = name.rpartition(".")
        custom_from_mask(model.get_submodule(module), parameter, mask)


def from_torch_prune(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model that `torch.nn.utils.prune` has pruned.

    Returns:
        Boolean masks by the names that the parameters had before and get again by
        `torch.nn.utils.prune.remove`, True = kept; as `gebt.train` takes them to
        ``keep``. Empty if nothing is pruned.
    """
    parameters = dict(model.named_parameters())
    return {
        name: mask != 0
        for key, mask in model.named_buffers()
        if (name := key.removesuffix("_mask")) != key and f"{name}_orig" in parameters
    }
