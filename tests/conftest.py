"""The order of the tests: those that take minutes first, so that no process idles."""

_LONG = ("test_run.py", "test_compare.py", "test_study.py", "test_algorithms.py")


def pytest_collection_modifyitems(items):
    """Sort by file, the long ones first."""
    items.sort(key=lambda item: item.path.name not in _LONG)
