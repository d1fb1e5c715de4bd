"""BatchNormStats: the running statistics of batch norms, taken again from what the compressed model computes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from laconic.calibrate.steps import BlockView
from laconic.errors import BadWeights, DataError
from laconic.method import BlockMethod, Needs, Paper

SUMS = torch.float64


@dataclass(frozen=True)
class BatchNormStats(BlockMethod):
    """Takes means and variances of batch norms again, from what comes through the compressed layers.

    The last link of a recipe for convolutional networks: `[exactobs, batchnorm]`. Compressed layers put out
    values whose mean and variance have moved; a norm that still divides by the old ones passes that on. The
    norms of a block are taken in their order, each from all sequences, so that a later one sees what the
    earlier ones now put out. Other norms have no such statistics, and blocks without any stay as they are.

    Source: post-processing of Optimal Brain Compression (Frantar et al., 2022, arXiv 2208.11580, section 6).

    Example:
        >>> BatchNormStats().settings()
        {}
    """

    paper = Paper(
        12, "Optimal brain compression: accurate post-training quantization and pruning", 2022, "2208.11580"
    )  # fmt: skip
    needs = Needs.INPUTS
    taxonomy = ("recovery", "post-training", "batch normalisation")

    def revise_block(self, view: BlockView) -> None:
        """Sets the statistics of the block of `view`, and notes how many."""
        norms = {
            path: module
            for path, module in view.live.module.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        if not norms:
            return
        if not view.sequences:
            raise DataError("batchnorm needs calibration data: give --data")
        for path, norm in norms.items():
            mean, variance = _measured(view, norm)
            _install(view, path, norm, mean, variance)
        for stats in view.stats.values():
            stats.note(f"batchnorm: statistics of {len(norms)} norms taken again")


def _measured(view: BlockView, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and variance (channels,) of what `norm` is given, over all sequences and places."""
    sums: list[Tensor] = []

    def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].transpose(0, 1).flatten(1).to(SUMS)  # (channels, places)
        sums.append(
            torch.stack([x.sum(dim=1), x.square().sum(dim=1), torch.full_like(x[:, 0], x.shape[1])])
        )

    hook = norm.register_forward_pre_hook(look)
    try:
        with torch.inference_mode():
            for sequence in view.sequences:
                view.output(sequence)
    finally:
        hook.remove()
    if not sums:
        raise DataError(f"no calibration sequence reached a norm of {view.live.block.name}")
    total, squares, count = torch.stack(sums).sum(dim=0)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return mean, variance * count / (count - 1).clamp(min=1)


def _install(view: BlockView, path: str, norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Puts the statistics into what computes, and into the file in the dtype that it has there."""
    live = view.live
    for key, value in (("running_mean", mean), ("running_var", variance)):
        name = ".".join(part for part in (live.block.name, path, key) if part)
        if not torch.isfinite(value).all():
            raise BadWeights(f"{name}: the statistics of the compressed layers are not finite")
        kept = value.to(live.tensors[name].dtype)
        live.tensors[name] = kept
        buffer = norm.get_buffer(key)
        norm._buffers[key] = kept.to(buffer.dtype)
