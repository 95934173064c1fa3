"""Density in tables: a column beside each if a model has zeros inside kept units."""

from dataclasses import replace

from tabled import NAME, record

from cfsp.tables.compare import comparisons
from cfsp.tables.formats import render
from cfsp.tables.frame import frame


def table(form, *densities):
    found = [
        replace(record(method, share, 5.0 + place), density=density)
        for place, (method, density) in enumerate(zip(("cfsp", "flap"), densities, strict=True))
        for share in (0.2, 0.5)
    ]
    return render(comparisons(frame(found), NAME, "method"), form)


def test_density_has_a_column_beside_each_if_a_model_has_zeros():
    text = table("markdown", 0.614, None)
    head = next(line for line in text.splitlines() if "% removed" in line)
    names = [name.strip() for name in head.split("|")[2:-1]]
    assert names == ["20% removed", "density, 20% removed", "50% removed", "density, 50% removed"]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if "flap" in line or "cfsp" in line
    ]
    assert [[row[0], row[2], row[4]] for row in rows] == [["cfsp", "61.4%", "61.4%"], ["flap", "-", "-"]]
    assert "density: the fraction of the blocks' weights that are not zero" in text
    assert "density" in table("csv", 0.614, 1.0).splitlines()[0]


def test_models_without_zeros_have_none():
    for form in ("markdown", "csv", "latex", "html"):
        assert "density" not in table(form, 1.0, None)
