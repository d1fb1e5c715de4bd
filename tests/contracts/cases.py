"""What each registered thing is tested with: one line for each name.

A list of settings, given to the class as keywords; the first one should be the default.
"""

METHODS = {
    "gptq": [{}, {"bits": 2, "group": "row", "order": "natural"}, {"bits": 8, "group": "tensor", "range": "minmax"}, {"bits": 3, "group": 8, "symmetric": False, "damp": 0.1}],
    "evopress": [{}, {"method": "rtn:range=minmax", "bits": 2.5, "generations": 2, "offspring": 4}],
    "evopress-depth": [{}, {"remove": 0.5, "unit": "block", "generations": 2}],
    "rtn": [{}, {"bits": 2, "group": "row"}, {"bits": 8, "group": "tensor", "range": "minmax"}, {"bits": 3, "group": 8, "symmetric": False}],
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
    "binary": [{}, {"bits": 1}, {"bits": 4, "group": 16, "offset": True}, {"bits": 8, "iterations": 2}],
}  # fmt: skip
