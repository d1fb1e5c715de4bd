"""Codes of additive codebooks by what the layer puts out: residual k-means to start, beam search to improve.

A weight W (R, C) is approximated by Q with `Q[r, g v : g v + g] = s_r sum_m codebook_m[code[r, v, m]]`. The
loss is tr((W - Q) H (W - Q)^T), so that codes of all groups of a row depend on each other; rows do not.
"""

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite, check_shape, check_square
from laconic.numerics.kmeans import kmeans, nearest, subsample
from laconic.numerics.parallel import parallel_map

POINTS_PER_ENTRY = 128  # that k-means is given, at most
ROWS_AT_ONCE = 128  # of a worker; fixed, so that the bits repeat


def residual_kmeans(
    vectors: Tensor, codebooks: int, entries: int, *, iterations: int = 25, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Codebook after codebook, each fitted to what those before it leave.

    Args:
        vectors: (N, g).
        codebooks: M, at least 1.
        entries: K of each, at most N.
        iterations: of each k-means.
        seed: of the points that it starts from.

    Returns:
        Codebooks (M, K, g) float32 and codes (N, M) int64.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> tables, codes = residual_kmeans(points, 2, 2)
        >>> sum(tables[m][codes[:, m]] for m in range(2)).flatten()
        tensor([ 0.,  1., 10., 11.])
    """
    left = vectors.detach().float()
    tables, codes = [], []
    for m in range(codebooks):
        generator = torch.Generator().manual_seed(seed + m)
        points, _ = subsample(left[None], None, POINTS_PER_ENTRY * entries, seed + m)
        found = kmeans(points, entries, iterations=iterations, generator=generator)
        index, _ = nearest(left[None], found.centroids)
        tables.append(found.centroids[0])
        codes.append(index[0])
        left = left - tables[-1][index[0]]
    return torch.stack(tables), torch.stack(codes, dim=1)


def beam_search(
    weight: Tensor, moment: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor,
    *, beam: int = 1, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Goes once over all codes, and gives each the value with which the layer loses least.

    Of every row `beam` hypotheses are kept; each is the former codes with changes. With one, no step can
    make the loss greater; with more, the best of the last is never worse than the start
    (AQLM, Egiazarian et al., 2024, section 3.2).

    Args:
        weight: (R, C), W; C a multiple of g.
        moment: (C, C), H.
        codes: (R, V, M) int64, V = C / g.
        codebooks: (M, K, g).
        scale: (R,), s.
        beam: hypotheses of a row, at least 1.
        seed: of the order of groups and codebooks.

    Returns:
        Codes (R, V, M) int64 and losses (R,) float32.

    Raises:
        UsageError: shapes that do not fit.
        BadWeights: NaN or infinity.
    """
    (rows, columns), (count, _, length) = weight.shape, codebooks.shape
    check_shape("codes", codes, (rows, columns // length, count))
    check_shape("scale", scale, (rows,))
    check_square("the second moment", moment, columns)
    for name, value in (
        ("the weight", weight),
        ("the codebooks", codebooks),
        ("the second moment", moment),
    ):
        check_finite(name, value)
    if columns % length or beam < 1:
        raise UsageError(
            f"vectors of {length} do not fill {columns} columns, or beam {beam!r} is below 1"
        )
    generator = torch.Generator().manual_seed(seed)
    order = [
        (int(v), torch.randperm(count, generator=generator).tolist())
        for v in torch.randperm(columns // length, generator=generator)
    ]
    h, tables = moment.float(), codebooks.float()
    # c^T H_vv c of every entry, by group: (V, M, K)
    at = torch.arange(columns, device=h.device).reshape(-1, length)
    blocks = h[at.unsqueeze(2), at.unsqueeze(1)]
    energy = torch.einsum("mkg,vgh,mkh->vmk", tables, blocks, tables)
    step = ROWS_AT_ONCE if weight.device.type == "cpu" else max(1, rows)
    parts = [slice(r, r + step) for r in range(0, rows, step)]
    found = parallel_map(
        lambda part: _search(
            weight[part].float(), h, codes[part].long(), tables, scale[part].float(), energy, blocks, order, beam
        ),
        parts,
    )  # fmt: skip
    if not found:
        return codes.clone(), weight.new_zeros(0)
    return torch.cat([one for one, _ in found]), torch.cat([loss for _, loss in found])


def additive_values(codes: Tensor, codebooks: Tensor, scale: Tensor) -> Tensor:
    """Q (R, V * g) of codes (R, V, M), codebooks (M, K, g) and scales (R,)."""
    total = sum(codebooks[m][codes[:, :, m]] for m in range(len(codebooks)))
    assert isinstance(total, Tensor)
    return total.reshape(len(codes), -1) * scale.unsqueeze(1)


def _search(
    w: Tensor, h: Tensor, codes: Tensor, tables: Tensor, scale: Tensor, energy: Tensor, blocks: Tensor,
    order: list[tuple[int, list[int]]], beam: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of `beam_search`: hypotheses (r, b, ...), best first."""
    length, entries = tables.shape[2], tables.shape[1]
    row = torch.arange(len(w), device=w.device).unsqueeze(1)
    s = scale[:, None, None]
    off = (w - additive_values(codes, tables, scale)).unsqueeze(1)  # (r, b, C), W - Q
    pulled = off @ h  # (r, b, C)
    loss = (off * pulled).sum(dim=2)  # (r, b)
    chosen = codes.unsqueeze(1).clone()  # (r, b, V, M)
    for v, books in order:
        here = slice(v * length, v * length + length)
        pull = h[here]  # (g, C)
        start = pulled[:, :, here]
        moved = torch.zeros_like(start)  # what the group's error gained so far
        for m in books:
            old = tables[m][chosen[:, :, v, m]]  # (r, b, g)
            gradient = (
                start + moved @ blocks[v] + s * (old @ blocks[v])
            )  # with the old part taken out
            cost = s * s * energy[v, m] - 2 * s * (gradient @ tables[m].T)  # (r, b, K)
            base = loss - cost.gather(2, chosen[:, :, v, m, None]).squeeze(2)
            total = (base.unsqueeze(2) + cost).flatten(1)
            keep = min(beam, total.shape[1])
            loss, index = (
                total.min(dim=1, keepdim=True) if keep == 1 else total.topk(keep, largest=False)
            )
            parent, code = index // entries, index % entries
            if parent.any() or keep != chosen.shape[1]:
                chosen, old = chosen[row, parent], old[row, parent]
                start, moved = start[row, parent], moved[row, parent]
                pulled = pulled[row, parent]
            chosen[:, :, v, m] = code
            moved = moved + s * (old - tables[m][code])
        pulled = pulled + moved @ pull
    best = loss.argmin(dim=1)
    rows = torch.arange(len(w), device=w.device)
    return chosen[rows, best], loss[rows, best]
