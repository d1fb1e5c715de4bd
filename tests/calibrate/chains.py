"""Small methods that show what a chain is given."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laconic.calibrate.statistics import CrossMoment, GradientMoment, SecondMoment
from laconic.method import BlockMethod, LayerMethod, Needs, Paper
from laconic.tensors import Dense, IntQuantizer
from laconic.tensors.stored import Record
from laconic.tensors.transforms import ChannelScale


@dataclass(frozen=True)
class Scale(LayerMethod):
    """Divides inputs by their root mean square before the layer."""

    paper = Paper(None, "", 2020)
    needs = Needs.INPUTS
    changes_inputs = True
    wants = (SecondMoment(),)

    def compress_weight(self, weight: Tensor, stats):
        return Dense(weight)

    def revise(self, weight, record, stats):
        scale = stats.mean(SecondMoment()).diagonal().sqrt().clamp(min=1e-3).float()
        transform = ChannelScale(scale)
        return Record(Dense(transform.fold(weight.float())), transform)


@dataclass(frozen=True)
class Weighted(LayerMethod):
    """Rounds, and notes the mean energy of its inputs."""

    bits: int = 4
    paper = Paper(None, "", 2020)
    needs = Needs.INPUTS
    wants = (SecondMoment(),)

    def compress_weight(self, weight, stats):
        energy = stats.mean(SecondMoment()).diagonal().mean().item()
        stats.note(f"energy {energy:.4f}")
        return IntQuantizer(self.bits, "row").quantize(weight)

    def options(self):
        return tuple(replace(self, bits=b) for b in (2, 4, 8))


@dataclass(frozen=True)
class Crossed(LayerMethod):
    """Multiplies by `C H^-1`: what the layer would have given of the dense model's inputs."""

    paper = Paper(None, "", 2020)
    needs = Needs.INPUTS
    wants = (SecondMoment(), CrossMoment())

    def compress_weight(self, weight, stats):
        own = stats.mean(SecondMoment())
        own = own + 0.01 * own.diagonal().mean() * torch.eye(len(own))
        cross = stats.mean(CrossMoment(), "cross")
        return Dense((weight.double() @ cross @ torch.linalg.inv(own)).to(weight.dtype))


@dataclass(frozen=True)
class Taylor(LayerMethod):
    """Keeps the half of each row that the loss depends on most."""

    paper = Paper(None, "", 2020)
    needs = Needs.GRADIENTS
    wants = (GradientMoment(),)

    def compress_weight(self, weight, stats):
        score = (weight.flatten(1) * stats[GradientMoment()]["gradient"]).abs()
        keep = score >= score.median(dim=1, keepdim=True).values
        return Dense((weight.flatten(1) * keep).to(weight.dtype).reshape(weight.shape))


@dataclass(frozen=True)
class Halves(BlockMethod):
    """Halves the weights of a block if that changes what it puts out."""

    paper = Paper(None, "", 2020)
    needs = Needs.INPUTS

    def revise_block(self, view):
        before = view.output(view.sequences[0])
        for layer in view.live.layers:
            view.live.install(layer, Record(Dense(view.live.weight(layer) * 0.5)))
        assert not torch.equal(before, view.output(view.sequences[0]))
