"""Files and hubs of files, losslessly smaller. Needs no torch.

The pieces, low to high:

- `parts`: which bytes of a file are which tensor; `zips`, `arrays` and `pickles` know the formats.
- `objects`: one run of bytes of a tensor, as small as its dtype allows.
- `manifest`: files as lists of parts, parts as lists of objects.
- `archive`: a file, or a folder of files, in one file: what `laconic pack` writes.
"""
