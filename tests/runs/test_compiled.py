import jax
import pytest

from potara_jax.runs import compiled


def maps(monkeypatch, tmp_path, *, taken, limit):
    for name, text in (("_MAPS", "map\n" * taken), ("_LIMIT", f"{limit}\n")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(compiled, name, tmp_path / name)


@pytest.mark.parametrize(("taken", "forgotten"), [(50, False), (51, True)])
def test_programs_are_forgotten_once_they_take_half_of_all_maps(
    monkeypatch, tmp_path, taken, forgotten
):
    program = jax.jit(lambda x: x + 1)
    program(0)
    maps(monkeypatch, tmp_path, taken=taken, limit=100)
    assert compiled.forget_many() == forgotten
    assert program._cache_size() == 1 - forgotten
    assert program(1) == 2


def test_nothing_is_done_where_maps_are_not_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "_MAPS", tmp_path / "none")
    assert not compiled.forget_many()
