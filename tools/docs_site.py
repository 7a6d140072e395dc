"""Hooks of the documentation site's build: diagrams, links into the repository, no other hosts."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LIBRARY = Path(".cache/docs/npm/node_modules/@mermaid-js/tiny/dist/mermaid.tiny.js")
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>(?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")

LOADED = re.compile(
    r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=["']?(https?://[^"'\s>]+)"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds Mermaid to the site, so that browsers load it from no other host."""
    source = Path(config.config_file_path).parent / LIBRARY
    files.append(File.generated(config, "assets/mermaid.js", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces links to files of the repository by their paths, because the site lacks these files.

    A link to a missing file remains, and fails the build.
    """
    docs = Path(config.docs_dir).resolve()
    folder = (docs / page.file.src_uri).parent

    def path_in_repository(link: re.Match[str]) -> str:
        target = (folder / link["target"]).resolve()
        if target.is_relative_to(docs) or not target.exists():
            return link[0]
        path = target.relative_to(docs.parent)
        text = link["text"].strip("`")
        return f"`{path}`" if text == str(path) else f"{link['text']} (`{path}`)"

    return LINK.sub(path_in_repository, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuses a page that makes a browser load something from another host."""
    if found := LOADED.findall(output):
        raise PluginError(f"{page.file.src_uri} loads {', '.join(found)}: put it under docs/")
    return output
