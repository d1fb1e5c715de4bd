"""What each registered thing is tested with: one line for each name.

A list of settings, given to the class as keywords; the first one should be the default.
"""

METHODS = {
    "ecgptq": [{}, {"bits": 2.3, "columns": "yes"}, {"bits": 1.0, "share": "row", "order": "natural"}, {"bits": 6.0, "columns": "no", "trade": 0.0}],
    "gptq": [{}, {"bits": 2, "group": "row", "order": "natural"}, {"bits": 8, "group": "tensor", "range": "minmax"}, {"bits": 3, "group": 8, "symmetric": False, "damp": 0.1}],
    "obq": [{}, {"bits": 2, "group": "row", "range": "minmax"}, {"bits": 3, "group": 8, "symmetric": False}, {"widest": 8}],
    "obr": [{}, {"bits": 3, "group": 8, "sparsity": 0.7, "tail": "rtn", "alpha": 0.5, "order": "natural"}, {"pattern": "2:4", "symmetric": False, "rescale": False, "alpha": 1.0}],
    "exactobs": [{}, {"sparsity": 0.7, "pattern": "row", "damp": 0.1}, {"pattern": "2:4"}, {"pattern": "1x4"}, {"pattern": "1:3", "widest": 8}],
    "adaround": [{}, {"bits": 2, "group": "row", "range": "percentile", "symmetric": False, "steps": 20}, {"bits": 3, "group": 5, "range": "minmax", "steps": 0}],
    "int-factors": [{}, {"rank": 8, "left": 8, "right": 4, "steps": 20, "inputs": "none"}, {"rank": 1, "steps": 0}],
    "mlorq": [{"factors": "4 6 8"}, {"bits": 3.5, "widths": "2 4", "inputs": "none", "steps": 0}],
    "gptvq": [{}, {"bits": 3, "dim": 1, "entries": "bf16", "update": False}, {"dim": 4, "exact": False, "scale_block": 8}],
    "aqlm": [{"rounds": 3}, {"codebooks": 2, "bits": 4, "length": 8, "beam": 2, "rounds": 2}, {"bits": 3, "length": 3, "rounds": 0}],
    "nowag-vq": [{}, {"bits": 3, "dim": 1}, {"bits": 1.5, "dim": 2, "normalise": False}],
    "nowag-p": [{}, {"sparsity": 0.7, "pattern": "row"}, {"pattern": "2:4"}],
    "eora": [],  # makes nothing smaller: tests/quantize/test_eora.py
    "awq": [{}, {"bits": 2, "group": "row", "range": "mse", "grid": 3}, {"bits": 8, "group": "tensor", "symmetric": False}, {"bits": 3, "group": 8, "range": "minmax"}],
    "smoothquant": [{}, {"alpha": 0.8, "bits": 6, "group": 16}, {"group": "tensor", "inputs": "static"}],
    "hqq": [{}, {"bits": 2, "group": "row"}, {"bits": 3, "group": 5, "zero": "integer", "iterations": 3}, {"bits": 8}],
    "batchnorm": [],  # tests/tune/test_batchnorm.py
    "blocktune": [],  # tests/tune/test_blocktune.py
    "l2": [],  # tests/quantize/test_l2.py
    "mixed": [],  # tests/quantize/test_mixed.py
    "wush": [],  # tests/quantize/test_wush.py
    # make nothing smaller: tests/quantize/test_{hadamard,activations}.py run what holds for them
    "hadamard": [],
    "activations": [],
    "evopress": [{}, {"method": "rtn:range=minmax", "bits": 2.5, "generations": 2, "offspring": 4}],
    "evopress-depth": [{}, {"remove": 0.5, "unit": "block", "generations": 2}],
    "fp": [{}, {"format": "mxfp4", "range": "minmax"}, {"format": "e2m1", "group": 16}, {"format": "e4m3", "group": "tensor"}],
    "gptq-fp": [{}, {"format": "mxfp4", "order": "natural"}, {"format": "e2m1", "group": "tensor"}],
    "bct": [{}, {"wbits": 8, "tokens": 64, "parts": "linear+norm", "nonlinear": "fp", "embeddings": "row"}],
    "shift-blocks": [{}, {"bits": 2, "rows": 1, "columns": 5, "middle": False}, {"bits": 8, "search": 1, "inputs": 8, "tokens": 64}],
    "bcq": [{}, {"bits": 1}, {"bits": 4, "group": 16, "offset": True, "iterations": 3}],
    "requant": [{}, {"bits": 2, "group": 5, "power": 0.75}, {"bits": 8, "group": "tensor", "inputs": "activation"}],
    "rtn": [{}, {"bits": 2, "group": "row"}, {"bits": 8, "group": "tensor", "range": "minmax"}, {"bits": 3, "group": 8, "symmetric": False}],
    "magnitude": [{}, {"sparsity": 0.8, "pattern": "row"}, {"pattern": "2:4"}, {"pattern": "3:8"}],
    "wanda": [{}, {"sparsity": 0.7, "pattern": "layer"}, {"pattern": "2:4"}, {"sparsity": 0.75, "pattern": "1:4"}],
    "sparsegpt": [{}, {"sparsity": 0.7, "damp": 0.1}, {"pattern": "2:4"}, {"pattern": "4:8"}],
    "random": [{}, {"sparsity": 0.6, "pattern": "row", "seed": 3}, {"pattern": "2:4"}],
    "svd": [{}, {"keep": 0.3, "inputs": "none"}, {"rank": 4, "ridge": 0.0}],
}  # fmt: skip

QUANTIZERS = {
    "int": [{}, {"bits": 2, "group": 5}, {"group": "tensor", "symmetric": False}, {"bits": 8, "group": "row", "range": "mse"}],
    "static-int": [{}, {"bits": 3, "low": -0.5, "high": 2.0}, {"bits": 4, "symmetric": True}],
    "float": [
        {}, {"range": "mse"}, {"format": "mxfp4"}, {"format": "mxfp4", "range": "mse"}, {"format": "mxfp6"}, {"format": "mxfp8"},
        {"format": "e4m3"}, {"format": "e5m2", "group": "tensor"}, {"format": "e3m2", "group": 16}, {"format": "e2m1", "group": 5, "range": "mse"},
    ],
    "codebook": [
        {}, {"bits": 3, "dim": 1, "rows_per_group": 3, "columns_per_group": 4}, {"bits": 1, "dim": 8},
        {"bits": 1.25, "dim": 4, "rows_per_group": 5, "columns_per_group": 8, "entries": "int8", "scale_block": 3},
    ],
    "shift-block": [{}, {"bits": 2, "rows": 1, "columns": 5, "middle": True}, {"bits": 8, "search": 1}, {"bits": 3, "rows": 3, "columns": 16, "middle": True, "search": 4}],
    "binary": [{}, {"bits": 1}, {"bits": 4, "group": 16, "offset": True}, {"bits": 8, "iterations": 2}],
}  # fmt: skip
