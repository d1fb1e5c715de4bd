"""One GPTQ run in a process of its own, as `LACONIC_BENCH` says: threads and batch, or Ray workers."""

import os

import torch

WINDOWS = 32


def compress(model: str, out: str, data: str) -> None:
    from laconic.calibrate.options import RunOptions
    from laconic.cli._common import quiet_libraries
    from laconic.compression import compress as run
    from laconic.quantize.gptq import GPTQ

    quiet_libraries()
    label = os.environ["LACONIC_BENCH"]
    farm = None
    if label.startswith("ray"):
        from laconic.calibrate.ray_farm import RayFarm

        torch.set_num_threads(1)
        farm = RayFarm(int(label[3:]))
        options = RunOptions(farm=farm)
    else:
        threads, batch = (int(word[1:]) for word in label.split())
        torch.set_num_threads(threads)
        options = RunOptions(batch=batch)
    run(model, GPTQ(bits=3), data, out=out, windows=WINDOWS, options=options)
    if farm is not None:
        farm.close()
