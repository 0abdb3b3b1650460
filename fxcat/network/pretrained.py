"""Models that are saved with a configuration, and made of it again: once they are smaller, that no longer fits."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from fxcat.network.recipe import attached_recipe, parse


def told_when_saved(base: type[nn.Module]) -> dict[str, Any]:
    """The method `save_pretrained` for a subclass, if `base` has it and `from_pretrained`.

    It does what it did (a trainer's checkpoints are loaded into the network that wrote them), and warns that
    `from_pretrained` would give what is missing new random values.
    """
    if not (hasattr(base, "save_pretrained") and hasattr(base, "from_pretrained")):
        return {}

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        text = attached_recipe(self)
        if text is not None and any(any(stage.closed) or stage.biases for stage in parse(text)[0]):
            warnings.warn(
                f"this {base.__name__} is smaller than its configuration says: from_pretrained() cannot load it. "
                "fxcat.save(small, path) and fxcat.load(path, model) can",
                stacklevel=2,
            )
        return base.save_pretrained(self, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    return {"save_pretrained": save_pretrained}
