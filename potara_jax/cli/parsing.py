"""Types that are made at run time, for tyro to parse."""

from __future__ import annotations

from typing import Annotated, Any, Union

import tyro

annotated: Any = Annotated
union: Any = Union
BARE = tyro.conf.arg(name="")  # options of what it marks have no prefix
