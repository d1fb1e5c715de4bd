import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.cur import CUR, cur, cur_link, deim, leverage_scores, qdeim
from laconic.numerics.svd import truncated_svd
from tests.numerics.layers import layer


def problem(rows=48, columns=64, seed=0):
    """A matrix with a falling spectrum, and channels of very different size."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, rows, generator=generator).double()).Q
    v = torch.linalg.qr(torch.randn(columns, rows, generator=generator).double()).Q
    weight = u * torch.logspace(0, -2, rows, dtype=torch.float64) @ v.T
    return weight, torch.randn(columns, generator=generator).double().exp() ** 2


def loss(weight, found, moment):
    left = weight - weight[:, found.columns] @ found.link @ weight[found.rows]
    root = moment.sqrt() if moment.ndim == 1 else torch.linalg.cholesky(moment)
    return (left * root if moment.ndim == 1 else left @ root).norm()


def test_deim_follows_its_definition():
    """Each vector's row is where it differs most from its interpolation by those before."""
    basis = torch.linalg.qr(torch.randn(30, 8).double()).Q
    rows = [int(basis[:, 0].abs().argmax())]
    for k in range(1, 8):
        before = basis[:, :k]
        residual = basis[:, k] - before @ torch.linalg.solve(before[rows], basis[rows, k])
        rows.append(int(residual.abs().argmax()))
    assert deim(basis).tolist() == rows


def test_qdeim_takes_the_pivots_of_qr():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    basis = torch.linalg.qr(torch.randn(30, 8).double()).Q
    pivots = scipy_linalg.qr(basis.T.numpy(), pivoting=True)[2][:8]
    assert qdeim(basis).tolist() == pivots.tolist()


@pytest.mark.parametrize("select", [deim, qdeim])
def test_rows_are_distinct_even_where_nothing_is_left(select):
    assert sorted(select(torch.zeros(4, 4)).tolist()) == [0, 1, 2, 3]
    flat = torch.ones(6, 1) @ torch.randn(1, 3)
    assert len(set(select(flat).tolist())) == 3
    assert select(torch.zeros(4, 0)).shape == (0,)


def test_link_is_the_best_one():
    weight, moment = problem()
    found = cur(weight, 10, moment=moment)
    best = loss(weight, found, moment)
    for _ in range(10):
        other = found.link + 1e-3 * found.link.abs().mean() * torch.randn(10, 10).double()
        assert loss(weight, found._replace(link=other), moment) > best
    plain = found._replace(link=cur_link(weight, found.rows, found.columns))
    assert loss(weight, plain, moment) > 1.02 * best
    assert torch.equal(found.link, cur_link(weight, found.rows, found.columns, moment=moment))


def test_a_diagonal_and_its_matrix_link_alike():
    weight, moment = problem()
    found = cur(weight, 8, moment=moment)
    assert torch.equal(found.rows, cur(weight, 8, moment=torch.diag(moment)).rows)
    again = cur_link(weight, found.rows, found.columns, moment=torch.diag(moment))
    assert torch.allclose(found.link, again, rtol=1e-6)


def test_a_full_moment_serves_the_outputs():
    total = {"aware": 0.0, "blind": 0.0, "by V": 0.0}
    for seed in range(6):
        weight, size = problem(seed=seed)
        moment = layer(2, 64, seed=seed)[1] * size.sqrt() * size.sqrt().unsqueeze(1)
        values, vectors = torch.linalg.eigh(moment)
        left, _, right = truncated_svd(
            weight @ (vectors * values.clamp(min=0).sqrt()) @ vectors.T, 12
        )
        rows, columns = qdeim(left), qdeim(right)
        by_v = CUR(rows, columns, cur_link(weight, rows, columns, moment=moment))
        found = {"aware": cur(weight, 12, moment=moment), "blind": cur(weight, 12), "by V": by_v}
        for name, one in found.items():
            total[name] += loss(weight, one, moment).item()
    assert total["aware"] < total["by V"] < total["blind"]


def test_choices_in_the_order_of_the_sheet():
    """Q-DEIM near DEIM, both above largest norms, all above chance (sheet 010, step 5 of the proof)."""
    total = dict.fromkeys(("bound", "qdeim", "deim", "norms", "chance"), 0.0)
    for seed in range(10):
        weight, moment = problem(seed=seed)
        seen = weight * moment.sqrt()
        left, _, right = truncated_svd(seen, 12)
        generator = torch.Generator().manual_seed(seed)
        pairs = {
            "qdeim": (qdeim(left), qdeim(right)),
            "deim": (deim(left), deim(right)),
            "norms": (seen.norm(dim=1).topk(12).indices, seen.norm(dim=0).topk(12).indices),
            "chance": (
                torch.randperm(48, generator=generator)[:12],
                torch.randperm(64, generator=generator)[:12],
            ),
        }
        total["bound"] += torch.linalg.svdvals(seen)[12:].norm().item()
        for name, (rows, columns) in pairs.items():
            link = cur_link(weight, rows, columns, moment=moment)
            left_over = (weight - weight[:, columns] @ link @ weight[rows]) * moment.sqrt()
            total[name] += left_over.norm().item()
    assert total["bound"] < total["qdeim"] < 1.05 * total["deim"]
    assert total["qdeim"] < total["norms"] < total["chance"]


def test_exact_where_the_rank_suffices():
    weight = torch.randn(20, 5) @ torch.randn(5, 30)
    found = cur(weight, 5)
    back = weight.double()[:, found.columns] @ found.link @ weight.double()[found.rows]
    assert torch.allclose(back, weight.double(), atol=1e-5)
    assert (cur(torch.zeros(4, 6), 2).link == 0).all()


def test_leverage_scores():
    matrix = torch.randn(12, 20)
    rows, columns = leverage_scores(matrix, 5)
    assert rows.sum().item() == pytest.approx(5)
    assert columns.sum().item() == pytest.approx(5)
    assert rows.max() <= 1 + 1e-12
    whole, _ = leverage_scores(matrix, 12)
    assert torch.allclose(whole, torch.ones(12).double())


def test_the_same_bits_on_any_number_of_threads(same_bits):
    weight, moment = problem(200, 300)
    same_bits(lambda: cur(weight, 20, moment=torch.diag(moment)))
    same_bits(lambda: deim(weight[:, :50]))
    same_bits(lambda: leverage_scores(weight, 10))


def test_bad_input():
    weight, moment = problem(6, 8)
    for bad in (
        lambda: cur(weight, 0),
        lambda: cur(weight, 7),
        lambda: cur(weight[0], 1),
        lambda: cur(weight, 2, moment=moment[:5]),
        lambda: cur(weight, 2, moment=torch.eye(5)),
        lambda: cur_link(weight, torch.tensor([6]), torch.tensor([0])),
        lambda: cur_link(weight, torch.tensor([0]), torch.tensor([-1])),
        lambda: deim(weight),
        lambda: qdeim(weight[0]),
        lambda: leverage_scores(weight, 7),
    ):
        with pytest.raises(UsageError):
            bad()
    for bad in (
        lambda: cur(weight * torch.nan, 2),
        lambda: cur(weight, 2, moment=-moment),
        lambda: cur(weight, 2, moment=moment / 0),
        lambda: deim(weight.T * torch.nan),
    ):
        with pytest.raises(BadWeights):
            bad()
