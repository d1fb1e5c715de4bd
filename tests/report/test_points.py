import json

import pytest
from rich.console import Console

from laconic.errors import CorruptFile, DataError
from laconic.files import save_json
from laconic.report.axes import quality_axis, resident_axis, size_axis
from laconic.report.points import Point, collect
from laconic.report.table import COLUMNS, print_table, row
from laconic.report.write import write_report

LAYER = {"name": "a.</script>", "format": "int4 g64", "weights": 10, "bits_per_weight": 3.7, "resident_bits_per_weight": 4.2, "error": 0.01}  # fmt: skip
COMPRESSION = {
    "kind": "compression", "method": "rtn", "settings": {"bits": 4}, "out": "runs/small", "stored_bytes": 100,
    "kept": 0.25, "bits_per_weight": 3.7, "resident_bits_per_weight": 4.2, "layers": [LAYER], "budget": None,
}  # fmt: skip
EVALUATION = {
    "kind": "evaluation", "model": "runs/small", "stored_bytes": 100, "resident_bytes": 120, "perplexity": 11.0,
    "accuracy": 0.5,
    "against": {"model": "dense", "excess_log_perplexity": 0.1, "ci95": [0.05, 0.15], "flips": 0.2, "speed_ratio": 0.5,
                "accuracy_change": -0.1, "stored_bytes": 400, "resident_bytes": 400},
}  # fmt: skip


@pytest.fixture
def points(tmp_path):
    save_json(tmp_path / "a.json", COMPRESSION)
    save_json(tmp_path / "b.json", EVALUATION)
    return collect([tmp_path])


def test_runs_of_one_model_become_one_point_and_the_dense_model_another(points):
    small, dense = points
    assert small.name == "small" and small.method == "rtn bits=4" and small.layers == [LAYER]
    assert small.quality == 11.0 and small.excess == 0.1 and small.ci95 == (0.05, 0.15)
    assert dense.name == "dense" and dense.stored_bytes == 400 and dense.kept == 1.0
    assert dense.quality == pytest.approx(11.0 * 2.718281828**-0.1)


def test_order_of_files_does_not_matter(tmp_path, points):
    other = collect([tmp_path / "b.json", tmp_path / "a.json"])
    assert [p.to_json() for p in other] == [p.to_json() for p in points]


def test_table_fits_a_narrow_terminal(points, capsys):
    print_table(points, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(len(line) <= 80 for line in lines) and "…" not in "".join(lines)
    assert len(row(points[0])) == len(COLUMNS)


def test_axes(points):
    assert size_axis(points).label == "stored bits per weight"
    assert resident_axis(points).label == "bits per weight in memory"
    assert quality_axis(points).values == [0.1, None] and quality_axis(points).log
    assert size_axis([Point("x", stored_bytes=2_000_000), Point("y"), Point("z")]).values == [
        2.0,
        None,
        None,
    ]
    assert quality_axis([Point("x", quality=0.5, metric="accuracy")]).label == "accuracy"


def test_page_is_self_contained_and_cannot_be_broken_by_names(points, tmp_path):
    page, picture = write_report(points, tmp_path / "out" / "r.html", "<b>title</b>")
    html = page.read_text()
    assert "&lt;b&gt;title" in html and 'src="' not in html.split("<script>")[0]
    data = html.split("const data = ")[1].split(";\n")[0]
    assert (
        "</script" not in data
        and json.loads(data)["points"][0]["layers"][0]["name"] == "a.</script>"
    )
    assert picture.stat().st_size > 5_000


def test_nothing_to_draw(tmp_path):
    with pytest.raises(DataError, match="nothing to draw"):
        write_report([Point("x")], tmp_path / "r.html", "t")


@pytest.mark.parametrize(
    "content", ["[]", "nonsense", '{"kind": "other"}', '{"kind": "evaluation"}', "null"]
)
def test_files_that_are_no_runs(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(CorruptFile, match=r"x\.json"):
        collect([tmp_path])


def test_save_json_leaves_no_temporary_file(tmp_path):
    save_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.json"]
