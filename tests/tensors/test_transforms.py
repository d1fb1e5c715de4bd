import torch

from laconic.tensors.compressed import from_state
from laconic.tensors.transforms import ChannelScale


def test_divides_channels_in_the_dtype_of_the_input():
    scale = torch.tensor([1.0, 2.0, 4.0])
    x = torch.full((2, 5, 3), 8.0)
    y = ChannelScale(scale)(x)
    assert torch.equal(y[0, 0], torch.tensor([8.0, 4.0, 2.0]))
    assert ChannelScale(scale)(x.bfloat16()).dtype == torch.bfloat16


def test_undoes_what_was_done_to_the_weight():
    scale, weight, x = torch.rand(7) + 0.5, torch.randn(4, 7), torch.randn(3, 7)
    expected = x @ weight.T
    assert torch.allclose(ChannelScale(scale)(x) @ (weight * scale).T, expected, atol=1e-5)


def test_state_and_tensors():
    transform = ChannelScale(torch.rand(7))
    assert torch.equal(from_state(transform.state()).scale, transform.scale)
    assert transform.resident_bytes == 28
    assert transform.to("meta").scale.device.type == "meta"
