"""The choices that training and searches leave open, without torch."""

from typing import Literal

Decay = Literal["first", "all"]
Scope = Literal["global", "layer"]
Unit = Literal["element", "row", "column"]
