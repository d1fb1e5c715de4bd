"""What searches measure: a whole model in memory, and how far its answers are from the dense ones."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.allocate.evolution import State
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.outline import call, outline_of
from laconic.errors import DataError, UsageError
from laconic.models.layout import Layer
from laconic.models.sink import tie_heads
from laconic.models.source import ModelSource
from laconic.numerics.parallel import one_thread, parallel_map
from laconic.progress import SILENT, Progress
from laconic.tensors import Dense, InputTransform
from laconic.tensors.decoded import decode_slots
from laconic.tensors.dtypes import to_raw
from laconic.tensors.modules import CompressedEmbedding, CompressedModule
from laconic.tensors.stored import Record

PRECISION = torch.float32  # of logits and log-probabilities; sums are fp64
POSITIONS_AT_ONCE = 1024  # whose probabilities are in memory together
WHOLE_BYTES = 2 << 30  # of dense logits that are kept whole
KEPT = 128  # most likely classes of each position that are kept where there are more

Inputs = Sequence[Mapping[str, Tensor]]


class LiveModel:
    """A copy of a model that computes in fp32 and whose layers can be swapped; the source stays.

    Args:
        source: the model.
        device: where to compute.

    Attributes:
        module: computes.
        layers: those of the blocks, by name, in order.
    """

    def __init__(self, source: ModelSource, device: str = "cpu") -> None:
        self.module, self.device = outline_of(source, device), device
        self._blocks: dict[str, LiveBlock] = {}
        self.layers: dict[str, Layer] = {}
        for block in source.blocks:
            live = LiveBlock(source, block, device)
            self.module.set_submodule(block.name, live.module)
            for layer in block.layers:
                self._blocks[layer.name], self.layers[layer.name] = live, layer

    def weight(self, name: str) -> Tensor:
        """The dense weight (out, in, ...) of a layer."""
        return self._blocks[name].weight(self.layers[name])

    def install(self, name: str, record: Record | None) -> None:
        """Makes a layer compute with `record`, decoded once; with its dense weight for None."""
        whole = Record(Dense(self.weight(name))) if record is None else record
        value = Dense(whole.weight.dense(PRECISION).to(self.device))
        decoded = Record(value, self._moved(whole.transform), whole.activation)
        self._blocks[name].install(self.layers[name], decoded)

    def put(self, path: str, slots: Mapping[str, Record]) -> dict[str, Record]:
        """Makes the module at `path` compute with `slots`, decoded once; returns what it had before."""
        module = self.module.get_submodule(path)
        assert isinstance(module, CompressedModule)
        before = {slot: module.records[slot] for slot in slots}
        for slot, record in slots.items():
            weight, transform = record.weight.to(self.device), self._moved(record.transform)
            module.records[slot] = Record(weight, transform, record.activation)
        decode_slots(module)
        if isinstance(module, CompressedEmbedding):
            tie_heads(self.module)
        return before

    def _moved(self, transform: InputTransform | None) -> InputTransform | None:
        return None if transform is None else transform.to(self.device)


class DenseKL:
    """KL divergence of a model's answers from those that it gave when this was made: a `Fitness`.

    Mean over positions of `KL(dense || now)`, nats; for classifiers over examples. Sequences go
    through the model one by one, each on one thread, so that no result depends on their number. A
    draw takes whole sequences in random order without repetition; of the last one a causal model is
    shown only the positions that are still wanted. All of them are taken in order where at least as
    many samples are asked for as there are, and what was measured then is remembered by state.

    Args:
        model: as it should answer; it is asked at once, and again in whatever state it is in then.
        inputs: arguments by name, one sequence each (batch dimension 1).
        top: classes of each position that count, the dense model's most likely ones, with both
            distributions renormalised over them (sparse KL); 0 for all. Where all would take more
            than 2 GiB they are 128.
        device: where the model is.
        progress: follows the first run.

    Raises:
        DataError: no sequences, or answers that are not logits or not finite.
        UsageError: `top` below 0.

    Attributes:
        samples: how many positions (examples) there are.
        top: as above, 0 for all.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs,
        *, top: int = 0, device: str = "cpu", progress: Progress = SILENT,
    ) -> None:  # fmt: skip
        if not inputs:
            raise DataError("there are no sequences to compare answers on")
        if top < 0:
            raise UsageError(f"top must be 0 (all) or more classes, found {top}")
        self._model, self._device = model, device
        self._inputs = [dict(given) for given in inputs]
        can_generate = getattr(model, "can_generate", None)
        self._causal = bool(can_generate is not None and can_generate())
        with one_thread():  # alone: what is read on the first call is read by one thread
            first = self._answer(self._inputs[0])
        wanted = math.prod(first.shape) * len(inputs) * PRECISION.itemsize
        self.top = top if top or wanted <= WHOLE_BYTES else KEPT
        self.top = 0 if self.top >= first.shape[-1] else self.top
        numbers = progress.track(range(len(inputs)), "asking the dense model")
        self._dense = parallel_map(lambda n: self._reduced(self._answer(self._inputs[n])), numbers)
        self._lengths = [len(values) for values, _ in self._dense]
        self.samples = sum(self._lengths)
        self._known: dict[State, float] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Of the data and of the dense model's answers: a log of a search knows its fitness by it."""
        digest = xxhash.xxh3_128(str(self.top).encode())
        for values, _ in self._dense:
            digest.update(to_raw(values).data)
        return digest.hexdigest()

    def __call__(self, state: State, samples: int, seed: int) -> float:
        """The mean divergence on `samples` positions (examples) drawn by `seed`."""
        if samples < self.samples:
            return self._mean(self._draw(samples, seed))
        if state not in self._known:
            self._known[state] = self.measure()
        return self._known[state]

    def measure(self) -> float:
        """The mean divergence on everything, of the model as it is now."""
        return self._mean(list(enumerate(self._lengths)))

    def _mean(self, parts: Sequence[tuple[int, int]]) -> float:
        sums = parallel_map(lambda part: self._divergence(*part), parts)
        return sum(sums) / sum(length for _, length in parts)

    def _draw(self, samples: int, seed: int) -> list[tuple[int, int]]:
        """(sequence, positions of it) for each sequence of a draw of fewer than there are."""
        parts, left = [], samples
        for number in np.random.default_rng(seed).permutation(len(self._inputs)).tolist():
            if left > 0:
                length = min(left, self._lengths[number]) if self._causal else self._lengths[number]
                parts.append((number, length))
                left -= length
        return parts

    def _divergence(self, number: int, length: int) -> float:
        """Summed over the first `length` positions of a sequence."""
        given = self._inputs[number]
        if length < self._lengths[number]:
            given = {name: value[:, :length] for name, value in given.items()}
        logits = self._answer(given)
        values, classes = (None if t is None else t[:length] for t in self._dense[number])
        assert values is not None
        total = 0.0
        for start in range(0, length, POSITIONS_AT_ONCE):
            part = slice(start, start + POSITIONS_AT_ONCE)
            log_q, now = values[part].to(logits.device), logits[part]
            if classes is not None:
                now = now.gather(1, classes[part].to(logits.device, torch.long))
            log_p = F.log_softmax(now, dim=-1)
            total += (log_q.exp() * (log_q - log_p)).sum(dim=-1).double().sum().item()
        return total

    @torch.inference_mode()
    def _answer(self, given: Mapping[str, Tensor]) -> Tensor:
        """Logits (T, V) fp32 of a sequence; (1, C) of an example."""
        output = call(self._model, dict(given), self._device)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
            raise DataError(f"{type(self._model).__name__} gives no logits to compare")
        return logits.reshape(-1, logits.shape[-1]).to(PRECISION)

    def _reduced(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of dense logits (T, V): all, or the greatest's and their classes."""
        if not torch.isfinite(logits).all():
            raise DataError(
                "the dense model's answers are not finite; check the data and the model"
            )
        if not self.top:
            return F.log_softmax(logits, dim=-1).cpu(), None
        values, classes = logits.topk(self.top, dim=-1)
        return F.log_softmax(values, dim=-1).cpu(), classes.to(torch.int32).cpu()
