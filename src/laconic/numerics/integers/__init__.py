"""Transformer operators on whole numbers: products of blocks, softmax, norms, tables of functions.

Values are `code 2^-shift`; what is computed are int64 sums, products and shifts of codes, on any device.
"""
