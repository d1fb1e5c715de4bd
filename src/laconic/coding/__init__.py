"""Symbols to bytes and back: bit packing, byte planes, entropy coding, framing. Needs no torch.

The pieces, low to high:

- `bitpack`: fixed-width codes of 1 to 16 bits.
- `tables`: histograms and 12-bit frequency tables, the one table format of both engines.
- `rans` and `huffman`: the engines, `encode(symbols, table_index, tables)`; smallest and fastest.
- `planes`, `contexts` and `blocks`: a buffer of any dtype as byte planes, in chunks, each with the
  engine it deserves; what a float's mantissa owes to its exponent.
- `mixing`: symbols in the context of a plane before, by several adaptive models.
- `estimates`: how many bytes it will take, before.
- `deltas`: a buffer as its difference from one that is much like it.
- `safetensors`: what a file of tensors says of itself.
- `framing`: magic, version, sections, checksums; a short header for small things, a footer index
  for large files.
"""
