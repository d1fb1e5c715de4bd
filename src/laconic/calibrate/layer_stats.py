"""What is known of a layer from data, as methods are given it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from laconic.calibrate.statistics import (
    SUMS,
    Collected,
    InputNorm,
    SecondMoment,
    Statistic,
    symmetric,
)
from laconic.errors import BadWeights, DataError, UsageError
from laconic.models.layout import Layer
from laconic.tensors import CompressedTensor, InputTransform
from laconic.tensors.masked import mask_of, masked_again, replaceable
from laconic.tensors.masks import Mask
from laconic.tensors.stored import Record


@dataclass
class LayerStats:
    """What is known of a layer from data; methods read it, and note here what they fell back on.

    Attributes:
        layer: which.
        collected: sums, by statistic.
        notes: for the report: fall-backs, odd shapes, damping that had to be raised.
        mask: which weights an earlier method of the chain has kept, where it pruned some.
        transform: before which these were collected, where it hides what is not in them.
    """

    layer: Layer
    collected: Mapping[Statistic, Collected] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mask: Mask | None = None
    transform: str | None = None

    def __getitem__(self, statistic: Statistic) -> dict[str, Tensor]:
        """The sums of `statistic`; raises `DataError` if it was not collected."""
        found = self.collected.get(statistic)
        if (found is None or found.sums is None) and self.transform is not None:
            raise DataError(
                f"{self.layer.name}: the {statistic.name} behind a {self.transform} cannot be told from "
                "what was measured before it: let the method that wants it come first in the chain, or "
                "give settings instead of a budget"
            )
        if found is None or found.sums is None:
            raise DataError(
                f"{self.layer.name}: there is no {statistic.name}; give calibration data that reaches "
                "the layer, or statistics that hold it"
            )
        return found.sums

    def count(self, statistic: Statistic) -> int:
        """Positions that `statistic` was summed over."""
        return self.collected[statistic].count if statistic in self.collected else 0

    def mean(self, statistic: Statistic, name: str = "moment") -> Tensor:
        """A moment over its positions, fp64, whole: `mean(SecondMoment())` is `E[x x^T]` (in, in)."""
        moment = self[statistic][name]
        whole = symmetric(moment) if moment.ndim == 2 and name != "cross" else moment
        return whole / max(1, self.count(statistic))

    def input_norm(self) -> Tensor:
        """(C,) float64: the root of the mean square of each input, which ranks as its norm does.

        Raises:
            BadWeights: the inputs hold NaN or infinity.
            DataError: neither norms nor second moments of the inputs were collected.
        """
        if InputNorm() not in self.collected and SecondMoment() in self.collected:
            square = self.mean(SecondMoment()).diagonal()  # behind a transform that is all there is
        else:
            square = self.mean(InputNorm(), "square")
        if not square.isfinite().all():
            raise BadWeights(f"{self.layer.name}: its inputs hold NaN or infinity")
        return square.clamp(min=0).sqrt()

    def keep(self) -> Tensor | None:
        """`mask` as booleans (R, C) over the rows of the weight."""
        if self.mask is None:
            return None
        return self.mask.dense().reshape(self.mask.shape[0], -1)

    def starting_from(self, record: Record, weight: Tensor) -> Tensor:
        """What a method compresses where the layer now is `record`: see `LayerMethod.revise`."""
        self.mask = mask_of(record.weight)
        if self.mask is not None:
            return record.weight.dense(weight.dtype)
        if not replaceable(record.weight):
            raise UsageError(
                f"{self.layer.name} is {record.weight.format}, which another grid would undo: leave one "
                "of the two methods out, or compress the result again"
            )
        if record.transform is not None:
            return record.transform.fold(weight).to(weight.dtype)
        return weight

    def masked(self, value: CompressedTensor) -> CompressedTensor:
        """`value` with the zeros that were there; notes where its format cannot have any."""
        again = value if self.mask is None else masked_again(value, self.mask)
        if again is None:
            self.note(f"{value.format} cannot keep the zeros that were there")
        return value if again is None else again

    def behind(self, transform: InputTransform) -> "LayerStats":
        """What is known of the transformed inputs from their second moment; extremes are not."""
        found = self.collected.get(SecondMoment())
        kept: dict[Statistic, Collected] = {}
        if found is not None and found.sums is not None:
            moment = transform.moment(symmetric(found.sums["moment"]))
            kept[SecondMoment()] = Collected(SecondMoment(), found.count, {"moment": moment})
            norms = self.collected.get(InputNorm())
            if norms is not None and norms.sums is not None:
                total = transform(norms.sums["sum"].float()[None])[0]
                sums = {"sum": total.to(SUMS), "square": moment.diagonal().clone()}
                kept[InputNorm()] = Collected(InputNorm(), norms.count, sums)
        return LayerStats(self.layer, kept, self.notes, transform=transform.kind)

    def note(self, text: str) -> None:
        """Has the report say something of this layer, once; an empty text is nothing."""
        if text and text not in self.notes:
            self.notes.append(text)
