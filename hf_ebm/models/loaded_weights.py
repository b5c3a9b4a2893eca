"""Check that loaded weights are those of the network, which neither library does on its own."""

from __future__ import annotations

from typing import Any


def check_same_architecture(cls: type, name: Any, info: dict[str, Any]) -> None:
    """Raise a `ValueError` if weights lack a tensor of the network, or hold one of another name or size."""
    wrong = {
        kind: sorted(key if isinstance(key, str) else key[0] for key in info[f"{kind}_keys"])
        for kind in ("missing", "unexpected", "mismatched")
    }
    if any(wrong.values()):
        found = ", ".join(f"{len(keys)} {kind} (first: {keys[0]})" for kind, keys in wrong.items() if keys)
        raise ValueError(
            f"{name} holds weights of another architecture than its config.json says; tensors: {found}. Save it again "
            f"with save_pretrained of {cls.__name__}."
        )
