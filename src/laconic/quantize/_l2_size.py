"""How many bytes a student's codes take, and how they are made to take as many as are wanted."""

import json
import math

import torch

from laconic.coding.tables import entropy_bits
from laconic.errors import BudgetError
from laconic.models.source import ModelSource
from laconic.quantize._l2_student import Student
from laconic.tensors import Dense
from laconic.tensors.deadzone import FARTHEST, dead_zone_codes
from laconic.tensors.stored import encode

ZONE = 0.6  # half of the dead zone in steps, at the start
WIDEST = 16  # octaves that a grid is made coarser or finer at most, in one go
BISECTIONS = 18  # of the octave; 2^-13 is left of it
ROUNDS = 3  # of coding what was found, and correcting for what coding adds
NEAR = 2e-3  # of the wanted bits, at which that ends
REACH, CORRECTIONS = 0.3, 8  # octaves around, halved so often on the coded bytes themselves
CLOSE = 0.02  # while grids and weights are still to change
MISSED = 0.05  # of the wanted bits, which is too far
ENTRY = 72  # bytes of a tensor in the header of a file, beside its name
SMALLEST = 1e-12  # deviation of a layer


@torch.no_grad()
def start(student: Student, bits: float) -> None:
    """Gives every layer steps by its deviation, so that all have about the same bits, `bits` together.

    Raises:
        BudgetError: as `settle`.
    """
    spread = [latent.std(correction=0) for latent in student.latents.values()]
    student.log_step.copy_(torch.stack(spread).clamp(min=SMALLEST).log())
    student.log_edge.copy_(student.log_step + math.log(ZONE))
    settle(student, bits)


@torch.no_grad()
def settle(student: Student, bits: float, *, near: float = CLOSE) -> float:
    """Makes all grids coarser or finer by one factor, so that what is stored takes `bits` a weight.

    Found by bisection of the codes' entropy, what coding adds to it being measured on the coded bytes;
    on these themselves where that misses `bits` by more than `near` of it.

    Returns:
        The bits that are taken, all side information included.

    Raises:
        BudgetError: `bits` cannot be reached: headers and tables alone take more.
    """
    wanted = bits * student.weights
    octave, taken = _nearest(student, wanted, near)
    if taken > (1 + MISSED) * wanted:
        least = stored_bits(student, WIDEST) / student.weights
        raise BudgetError(
            f"{bits:.4g} bits a weight cannot be reached: headers and tables of "
            f"{len(student.names)} layers alone take {least:.4g}; ask for more than that"
        )
    student.beside = taken - entropy(student, octave)
    for grid in (student.log_edge, student.log_step):
        grid.add_(octave * math.log(2))
    return taken / student.weights


def stored_bits(student: Student, octave: float = 0.0) -> float:
    """Bits of all coded layers as they are written, on grids coarser by `octave`s."""
    sizes = [student.value(number, octave).stored_bytes for number in range(len(student.names))]
    return 8.0 * sum(sizes)


@torch.no_grad()
def entropy(student: Student, octave: float = 0.0) -> float:
    """Bits of all codes by how often each occurs in its layer, on grids coarser by `octave`s."""
    total = 0.0
    for number, latent in enumerate(student.latents.values()):
        edge, step = (side * 2.0**octave for side in student.grid(number))
        codes = dead_zone_codes(latent, edge, step).round().clamp(-FARTHEST, FARTHEST).flatten()
        counts = torch.bincount((codes - codes.min()).long())
        total += float(entropy_bits(counts.cpu().numpy()))
    return total


def bits_for_ratio(source: ModelSource, ratio: float) -> float:
    """Bits a weight of the blocks' layers at which the whole file is 1 / `ratio` of 32 bits a parameter.

    Raises:
        BudgetError: what is not compressed alone takes more.
    """
    layers = [layer for block in source.blocks for layer in block.layers]
    touched = {layer.parameter for layer in layers}
    state = source.skeleton.state_dict()
    whole: int = 4 * sum(state[name].numel() for name in source.sizes())
    rest = 8 + sum(len(json.dumps(name)) + ENTRY for name in source.sizes())
    rest += sum(size for name, size in source.sizes().items() if name not in touched)
    for layer in source.extra_layers:  # these are kept without loss, but smaller where they can be
        tensor = source.read([layer.parameter])[layer.parameter]
        rest += len(encode(Dense(tensor))) - tensor.nbytes
    left = whole / ratio - rest
    if left <= 0:
        raise BudgetError(
            f"a file {ratio:g} times smaller than {whole} bytes cannot be: the tensors outside of the "
            f"blocks' layers take {rest}; the ratio must be below {whole / rest:.3g}"
        )
    weights: int = sum(layer.shape.numel() for layer in layers)
    return 8 * left / weights


def _nearest(student: Student, wanted: float, near: float) -> tuple[float, float]:
    """The octave whose coded bits come nearest to `wanted`, and these."""
    beside, tried = 0.0, {}
    for _ in range(ROUNDS):
        octave = _bisect(student, wanted - beside)
        tried[octave] = stored_bits(student, octave)
        if abs(tried[octave] - wanted) <= NEAR * wanted:
            return octave, tried[octave]
        beside = tried[octave] - entropy(student, octave)
    best = min(tried.items(), key=lambda pair: abs(pair[1] - wanted))
    if abs(best[1] - wanted) <= near * wanted:
        return best
    low, high = min(tried) - REACH, max(tried) + REACH
    for _ in range(CORRECTIONS):  # small layers: what coding adds jumps
        octave = (low + high) / 2
        tried[octave] = stored_bits(student, octave)
        low, high = (octave, high) if tried[octave] > wanted else (low, octave)
    return min(tried.items(), key=lambda pair: abs(pair[1] - wanted))


def _bisect(student: Student, bits: float) -> float:
    """The octave at which the codes' entropy is `bits`; the widest if it never is so low."""
    low, high = -1.0, 1.0
    while low > -WIDEST and entropy(student, low) < bits:
        low *= 2
    while high < WIDEST and entropy(student, high) > bits:
        high *= 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if entropy(student, middle) > bits:
            low = middle
        else:
            high = middle
    return high
