"""What each registered thing is tested with: one line for each name.

A list of settings, given to the class as keywords; the first one should be the default.
"""

METHODS = {
    "rtn": [{}, {"bits": 2, "group": "row"}, {"bits": 8, "group": "tensor", "range": "minmax"}, {"bits": 3, "group": 8, "symmetric": False}],
}  # fmt: skip

QUANTIZERS = {
    "int": [{}, {"bits": 2, "group": 5}, {"group": "tensor", "symmetric": False}, {"bits": 8, "group": "row", "range": "mse"}],
}  # fmt: skip
