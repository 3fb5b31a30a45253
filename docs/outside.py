"""A hook of mkdocs: what pages link to outside docs/ is in the site, too.

A page links as GitHub understands it, ``../examples/replay.py`` from a file in docs/. In the site docs/ is the root and everything else
keeps its path: Markdown and notebooks are pages, programs are pages that show them, other files are served as they are.
"""

import ast
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
PROGRAMS = {".py": "python", ".sh": "sh"}
GUIDE = {f"{name}.md" for name in ("first_five_minutes", "own_loop", "trainer", "command_line", "settings", "precision", "processes")}
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/quickstart.ipynb")  # of the navigation


def place(path):
    """Where a file of the repository is in the site."""
    path = path.removeprefix("docs/")
    return path + ".md" if Path(path).suffix in PROGRAMS else path


def targets(path, text):
    """The files of the repository that a page links to."""
    prose = "".join(part for part in FENCED.split(text) if not part.startswith("```"))
    return {normpath(join(dirname(path), link[2])) for link in LINK.finditer(prose) if not elsewhere(link[2])}


def elsewhere(link):
    return "://" in link or link.startswith("mailto:")


@event_priority(100)  # before the notebooks' plugin looks for them
def on_files(files, config):
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + list(ALWAYS)
    known = set(waiting) - set(ALWAYS)
    while waiting:
        path = waiting.pop()
        source = ROOT / path
        if path not in known and source.is_file():
            files.append(_file(path, source, config))
        if source.suffix == ".md" and source.is_file():
            waiting += sorted({each for each in targets(path, source.read_text()) if not each.startswith("docs/")} - known)
        known.add(path)
    return files


def _file(path, source, config):
    if source.suffix not in PROGRAMS:
        return File(path, str(ROOT), config.site_dir, config.use_directory_urls)
    text = source.read_text()
    about = f"{ast.get_docstring(ast.parse(text)) or ''}\n\n" if source.suffix == ".py" else ""
    return File.generated(config, place(path), content=f"# {path}\n\n{about}````{PROGRAMS[source.suffix]}\n{text}````\n")


def on_page_markdown(markdown, page, config, **_):
    here = page.file.src_uri
    if here == "README.md":
        page.meta["hide"] = ["navigation"]  # the home page has none of its own
    if here.startswith("bench/"):
        page.meta["search"] = {"exclude": True}
    elif here in GUIDE:
        page.meta["search"] = {"boost": 3}
    path = f"docs/{here}" if page.file.src_dir == config.docs_dir else here  # in the repository

    def moved(link):
        if elsewhere(link[2]):
            return link[0]
        target = normpath(join(dirname(path), link[2]))
        return f"{link[1]}{relpath(place(target), dirname(here) or '.')}{link[3]}"

    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in FENCED.split(markdown))
