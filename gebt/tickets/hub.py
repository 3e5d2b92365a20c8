"""Tickets on the Hugging Face Hub, by its own mixin."""

from pathlib import Path
from typing import Any

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the Hugging Face Hub needs huggingface_hub: pip install 'gebt[hub]'",
        name="huggingface_hub",
    ) from error

from gebt.tickets.ticket import FILE, Ticket

_CARD = """---
{{ card_data }}
---

# {{ ticket }}

A [graph early-bird ticket](https://arxiv.org/abs/2103.00794): which links of a graph
and which weights of a model, {{ ticket.model["class"] }}, to keep. Load it by
`gebt.Ticket.from_pretrained`.
"""


_ABOUT: dict[str, Any] = {
    "library_name": "gebt",
    "tags": ["graph-neural-networks", "pruning"],
    "model_card_template": _CARD,
}


class HubTicket(ModelHubMixin, **_ABOUT):
    """A ticket where the mixin wants a class that inherits it.

    A repository holds the file of `Ticket.save`, as it is, and a model card.
    """

    ticket: Ticket

    @classmethod
    def of(cls, ticket: Ticket) -> "HubTicket":
        """Hold a ticket."""
        held = cls()  # what is given here the mixin would write as JSON
        held.ticket = ticket
        return held

    def generate_model_card(self, *args: Any, **more: Any) -> Any:
        """The page of the repository."""
        return super().generate_model_card(*args, ticket=self.ticket, **more)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.ticket.save(save_directory / FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **how: Any) -> "HubTicket":
        return cls.of(Ticket.load(hf_hub_download(model_id, FILE, **how)))
