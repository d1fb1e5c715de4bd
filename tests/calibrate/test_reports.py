from laconic.calibrate.reports import TOLD, LayerReport, common_notes


def row(*notes):
    return LayerReport("l", "int4", 1, 4.0, 4.0, 0.0, 0, notes)


def test_notes_of_layers_are_counted_and_cut_short():
    told = common_notes([row("often", *[f"once {i}"] * (i < 6)) for i in range(9)])
    assert told[0] == "often (9 layers)" and told[1] == "once 0 (1 layer)"
    assert len(told) == TOLD + 1 and told[-1].startswith("and 3 more notes")
    assert common_notes([row()]) == []
