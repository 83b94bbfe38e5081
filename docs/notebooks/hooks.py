"""A page of each notebook, and its plots beside it, when the site is built.

A notebook is a Markdown page already: text, code, and outputs. Nothing is executed.
"""

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page beside every notebook, which stays for download."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            name = file.src_uri.removesuffix(".ipynb")
            notebook = json.loads(Path(file.abs_src_path).read_text("utf-8"))
            for path, content in pages(name, notebook).items():
                files.append(File.generated(config, path, content=content))
    return files


def pages(name: str, notebook: dict[str, Any]) -> dict[str, str | bytes]:
    """The page and the plots of a notebook, by path."""
    made: dict[str, str | bytes] = {}
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace(".ipynb)", ".md)"))
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output, name, made) for output in cell["outputs"]]
    file = name.rpartition("/")[2]
    parts.append(f"[Download this notebook]({file}.ipynb)")
    return {f"{name}.md": "\n\n".join(filter(None, parts)) + "\n", **made}


def _output(output: dict[str, Any], name: str, plots: dict[str, str | bytes]) -> str:
    """An output as Markdown; a plot is put among the plots."""
    data = output.get("data", {})
    if "image/png" in data:
        path = f"{name}-{len(plots)}.png"
        plots[path] = base64.b64decode("".join(data["image/png"]))
        return f"![]({path.rpartition('/')[2]})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
