"""What MkDocs does not do: links from pages to files of the repository outside ``docs/`` go to copies in the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the files that pages link to and that lie beside ``docs/``; MkDocs reports those that do not exist."""
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
