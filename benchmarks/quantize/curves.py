"""Size against quality of every format, in files and in memory; and one budget over them beside their envelope.

Language models are calibrated on the first 128 windows of text/train.txt and measured on text/valid.txt. A
budget over formats is held against the lower envelope of all single formats: their losses window by window,
interpolated at the budget's size.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import ROOT, Bench
from benchmarks.paired import COMPARED, difference, envelope, measured, quality, spelt
from laconic.method import Method
from laconic.quantize.alphatuning import BCQ
from laconic.quantize.aqlm import AQLM
from laconic.quantize.awq import AWQ
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.floats import Floats
from laconic.quantize.gptq import GPTQ
from laconic.quantize.gptvq import GPTVQ
from laconic.quantize.mixed import IN_FILES, IN_MEMORY, Mixed
from laconic.quantize.nowag import NoWagVQ
from laconic.quantize.obc import OBQ
from laconic.quantize.obr import OBR
from laconic.quantize.rtn import RTN
from laconic.quantize.wush import WUSH

FORMATS: Mapping[str, Sequence[Sequence[Method]]] = {
    "RTN": [[RTN(2)], [RTN(3)], [RTN(4)]],
    "GPTQ": [[GPTQ(2)], [GPTQ(2, 32)], [GPTQ(3, "row")], [GPTQ(3)], [GPTQ(4, "row")], [GPTQ(4)]],
    "entropy-coded GPTQ": [[ECGPTQ(b)] for b in (1.5, 2.0, 2.5, 3.0, 4.0)],
    "AWQ": [[AWQ(2)], [AWQ(3)], [AWQ(4)]],
    "OBQ": [[OBQ(2)], [OBQ(3)], [OBQ(4)]],
    "GPTVQ 2D": [[GPTVQ(1.5, 2)], [GPTVQ(2, 2)], [GPTVQ(2.5, 2)], [GPTVQ(3, 2)]],
    "GPTVQ 4D": [[GPTVQ(1, 4)], [GPTVQ(1.5, 4)], [GPTVQ(2, 4)]],
    "NoWag-VQ": [[NoWagVQ(1.5)], [NoWagVQ(2)], [NoWagVQ(3)]],
    "AQLM": [[AQLM(1, 8, 8)], [AQLM(1, 8, 4)], [AQLM(2, 8, 8)], [AQLM(3, 8, 8)]],
    "OBR 50 %": [[OBR(2)], [OBR(3)], [OBR(4)]],
    "BCQ": [[BCQ(2)], [BCQ(3)], [BCQ(4)]],
    "FP4": [[Floats("mxfp4")], [Floats("nvfp4")]],
    "WUSH, GPTQ": [[WUSH(), GPTQ(2)], [WUSH(), GPTQ(3)], [WUSH(), GPTQ(4)]],
}  # fmt: skip
BUDGETS = (1.8, 2.2, 2.8)
#: Of a budget: what it counts, the formats that it chooses from, and the unit behind its number.
AXES = {"bits": (IN_FILES, "bit"), "resident_bits": (IN_MEMORY, "bit resident")}
WORDS = {"bits": "in files", "resident_bits": "in memory"}


def prove(bench: Bench) -> None:
    rows: list[list[Any]] = []
    for name, model in bench.language_models().items():
        whole = measured(bench, name, model, ())
        runs = {
            family: [measured(bench, name, model, chain) for chain in chains]
            for family, chains in FORMATS.items()
        }
        with tempfile.TemporaryDirectory() as tables:
            # the first budget of three measures the layers
            mixed = {
                axis: [
                    measured(bench, name, model, Mixed(formats), f"{bits}{unit}", tables=tables)
                    for bits in BUDGETS
                ]
                for axis, (formats, unit) in AXES.items()
            }
        single = [run for found in runs.values() for run in found]
        for axis, found in mixed.items():
            for bits, run in zip(BUDGETS, found):
                _check(bench, f"{name}: {bits} bits {WORDS[axis]}", run, single, axis, whole)
        shown = runs | {f"one budget {WORDS[axis]}": found for axis, found in mixed.items()}
        rows += [_row(name, family, run, whole) for family, found in shown.items() for run in found]
        picture = ROOT / "docs" / "assets" / f"curves-{name}.png"
        _draw(picture, f"{name}: what formats lose at a size", shown, whole)
    bench.table("formats, and one budget over them", COMPARED, rows)


def _check(
    bench: Bench, what: str, run: dict[str, Any], single: list[dict[str, Any]], axis: str,
    whole: dict[str, Any],
) -> None:  # fmt: skip
    theirs = envelope(single, run[axis], axis)
    found = difference(run, theirs)
    bench.check(
        f"{what}: one budget over all formats loses no more than the envelope of single ones",
        found["verdict"] != "worse", size=run[axis],
        ours=difference(run, whole)["difference"], theirs=difference(theirs, whole)["difference"],
        ci=spelt(found),
    )  # fmt: skip


def _row(name: str, family: str, run: dict[str, Any], whole: dict[str, Any]) -> list[Any]:
    found = difference(run, whole)
    return [
        name, family, run["bits"], run["resident_bits"], quality(run), found["difference"], spelt(found),
        run["error"], run["seconds"],
    ]  # fmt: skip


def _draw(
    file: Path, title: str, runs: Mapping[str, list[dict[str, Any]]], whole: dict[str, Any]
) -> None:
    """Two charts: excess nats against stored and against resident bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained", sharey=True)
    figure.suptitle(title)
    colours = pyplot.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for ax, axis in zip(axes, AXES):
        for number, (family, found) in enumerate(runs.items()):
            budget = family.startswith("one budget")
            if budget and WORDS[axis] not in family:
                continue
            points = sorted((run[axis], difference(run, whole)["difference"]) for run in found)
            x, y = np.array(points).T
            style = {"color": "black", "marker": "*", "linewidth": 2} if budget else {
                "color": colours[number % len(colours)], "marker": "o", "markersize": 3, "linewidth": 1,
            }  # fmt: skip
            ax.plot(x, y, label="one budget over all" if budget else family, **style)
        ax.set(xlabel=f"bits a weight {WORDS[axis]}", xlim=(1, 4.6), yscale="log")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("excess log-perplexity (nats)")
    axes[1].legend(frameon=False, fontsize=7)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
