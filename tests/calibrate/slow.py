"""GPTQ that takes its time, so that a run can be killed in the middle."""

import time
from dataclasses import dataclass

from laconic.quantize.gptq import GPTQ

CALLS = []


@dataclass(frozen=True)
class Slow(GPTQ):
    """Waits before every layer behind the first block."""

    def compress_weight(self, weight, stats):
        CALLS.append(stats.layer.name)
        if ".layers.1." in stats.layer.name:
            time.sleep(0.3)
        return super().compress_weight(weight, stats)
