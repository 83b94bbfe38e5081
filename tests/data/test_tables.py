"""Tables of numbers."""

import gzip

import numpy as np
import pytest

from potara_jax.data import tables


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_columns_are_numbers_by_name(tmp_path, name):
    content = "acid;sugar;2\n1;-2.5;3\n\n1e3;0;4\n"
    content = content.replace(";", "\t" if "tsv" in name else ",").encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    columns = tables.read_numbers(path)
    assert list(columns) == ["acid", "sugar", "2"]
    np.testing.assert_array_equal(columns["acid"], [1, 1000])
    np.testing.assert_array_equal(columns["sugar"], [-2.5, 0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a,b\n1,2\n1,north\n", "line 3: b is 'north', which is no number"),
        ("a,b\n1,\n", "line 2: b is '', which is no number"),
        ("a,b\n1,nan\n", "line 2: b is 'nan', which is no number"),
        ("a,b\n1,2,3\n", "line 2 has 3 columns, but the first line 2"),
        ("a,b\n", "has no rows below the names"),
        ("", "has no rows below the names"),
    ],
)
def test_a_cell_that_is_no_number_is_named(tmp_path, content, reason):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        tables.read_numbers(path)
    assert str(path) in str(error.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"b\.csv is not a file"):
        tables.read_numbers(tmp_path / "b.csv")
