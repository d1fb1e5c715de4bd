"""What the tests of this folder share: moving nested values, and comparing them."""

from dataclasses import fields, is_dataclass

import torch


def moved(value, device):
    """`value` with all tensors in it on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    return value


def leaves(value):
    """All tensors in `value`, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    if is_dataclass(value):
        return [leaf for field in fields(value) for leaf in leaves(getattr(value, field.name))]
    return []


def assert_near(found, expected, device, rtol=1e-4, atol=1e-5):
    """All tensors of `found` are on `device` and near those of `expected`."""
    ours, theirs = leaves(found), leaves(expected)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one.device.type == torch.device(device).type
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        one, other = one.detach().cpu().double(), other.detach().cpu().double()
        scale = float(other.nan_to_num(0, 0, 0).abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(
            one, other, rtol=rtol, atol=atol * max(scale, 1.0), equal_nan=True
        )


def alike(found, expected):
    """Share of the entries that are the same."""
    return float((found.cpu() == expected.cpu()).double().mean())
