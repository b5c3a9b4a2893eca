"""Save and load a model, and check that nothing is lost."""

import torch


def reload_bit_exact(model, folder, variant):
    """`model` as it comes back from `folder`, without a pickle there and with the very same tensors."""
    model.save_pretrained(folder, variant=variant)
    assert not list(folder.glob("*.bin"))
    again = type(model).from_pretrained(folder, variant=variant)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key
    return again
