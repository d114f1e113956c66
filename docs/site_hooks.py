"""What MkDocs does not do: notebooks are pages, and links to files of the repository outside ``docs/`` go to copies.

A notebook becomes a Markdown page of the same name, so that MkDocs checks its links. With ``FOCALNET_RUN_NOTEBOOKS=1``,
as ``make docs`` has it, it is run first, and the page has its outputs; a cell that fails ends the build.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")
NOTEBOOK = re.compile(r"(\]\([\w/.-]+)\.ipynb(?=[)#])")
SECONDS = 600  # for a cell


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Turns notebooks into pages, and adds files beside ``docs/`` that pages link to; MkDocs reports missing ones."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        add_page(notebook, files, config)
    docs = Path(config.docs_dir).resolve()
    root = docs.parent
    for page in files.documentation_pages():
        folder = (docs / page.src_uri).parent
        for target in OUTSIDE.findall(page.content_string):
            path = (folder / target).resolve()
            if path.is_file() and root in path.parents and docs not in path.parents:
                place = path.relative_to(root).as_posix()
                copy = File(
                    f"../{place}",
                    config.docs_dir,
                    config.site_dir,
                    use_directory_urls=False,
                    dest_uri=f"repository/{place}",
                    inclusion=InclusionLevel.INCLUDED,
                )
                if copy.src_uri not in files.src_uris:
                    files.append(copy)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks, which are files in a checkout, lead to their pages."""
    return NOTEBOOK.sub(r"\1.md", markdown)


def add_page(notebook: File, files: Files, config: MkDocsConfig) -> None:
    """Adds the page of a notebook and the images of its outputs."""
    content = nbformat.reads(notebook.content_string, as_version=4)
    if os.environ.get("FOCALNET_RUN_NOTEBOOKS") == "1":
        with tempfile.TemporaryDirectory() as folder:
            ExecutePreprocessor(timeout=SECONDS).preprocess(content, {"metadata": {"path": folder}})
    name = notebook.src_uri.removesuffix(".ipynb")
    resources = {"output_files_dir": f"{Path(name).name}_files"}
    text, resources = MarkdownExporter().from_notebook_node(content, resources)
    files.append(File.generated(config, f"{name}.md", content=text))
    for path, data in resources["outputs"].items():
        files.append(File.generated(config, f"{Path(name).parent.as_posix()}/{path}", content=data))
