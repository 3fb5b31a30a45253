"""What is public says what it is: every argument with its default, errors, papers, in sections that the API reference can parse."""

import ast
import builtins
import dataclasses
import importlib
import inspect
import re
import types
from functools import cache
from pathlib import Path

import pytest

import zokern
from zokern.optim import optimizers

PUBLIC = {  # module -> names; None: all of its __all__
    **dict.fromkeys((f"zokern{of}" for of in ("", ".noise", ".ops", ".optim", ".estimators", ".trajectory", ".hf", ".finetune")), None),
    **dict.fromkeys((f"zokern.{of}" for of in ("evolve", "engines", "engines.vllm", "tasks", "mapped")), None),
    "zokern.optim.hybrid.splits": ("Depth", "Inter", "Intra", "LISA", "Split"),
    "zokern.kernels": ("Backend", "backends", "use_backend"),
    "zokern.layout": ("Span",),
    "zokern.engines.ray": ("RayEngine",),
}
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "State", "Reference")
ENTRY = {"Args": r"\*{0,2}(\w+): \S", "Attributes": r"(\w+)(?: \([^:]+\))?: \S", "Raises": r"(\w+): \S"}
DEFAULT = re.compile(r'Default ("[^"]*"|\([^)]*\)|-?\d+(?:\.\d+)?(?:e-?\d+)?|True|False|None|torch\.\w+)')
OTHERS = re.compile(r"rguments?[^.]* (?:is that|are those) of (``[\w.]+``(?: and ``[\w.]+``)*)")  # whose arguments, too
ERRORS = {"BadInput", "Unwritable", "EngineDied"}


def is_class(found):
    return isinstance(found, type) and not isinstance(found, types.GenericAlias)


def ours(cls):
    return [base for base in cls.__mro__ if base.__module__.startswith("zokern.")]


def public():
    """name -> what is public, once each."""
    found, seen = {}, set()
    for module, names in PUBLIC.items():
        here = importlib.import_module(module)
        for name in names or here.__all__:
            it = getattr(here, name)
            if id(it) not in seen and not isinstance(it, types.ModuleType) and not name.startswith("_"):
                seen.add(id(it))
                found[f"{module}.{name}"] = it
    return found


NAMED = public()
DATA = [name for name, it in NAMED.items() if not (is_class(it) or inspect.isfunction(it))]


def members():
    """name -> (class, function) of the public methods and properties of public classes, each where it is defined."""
    found = {}
    for cls in dict.fromkeys(base for it in NAMED.values() if is_class(it) for base in ours(it)):
        for name, it in vars(cls).items():
            it = getattr(it, "__func__", None) or getattr(it, "fget", None) or getattr(it, "func", None) or it
            seen = not name.startswith("_") or name == "__call__"
            if seen and callable(it) and not is_class(it) and getattr(it, "__name__", "") == name:
                found[f"{cls.__module__}.{cls.__qualname__}.{name}"] = cls, it
    return found


MEMBERS = members()
ALL = {name: (None, it) for name, it in NAMED.items() if name not in DATA} | MEMBERS
CLASSES = {it.__name__: it for it in NAMED.values() if is_class(it)}


def doc_of(name):
    """The docstring, that of the method which it overrides where it has none; None of what a library's class has without ours."""
    owner, it = ALL[name]
    if owner is None or it.__doc__:
        return inspect.cleandoc(it.__doc__ or "")
    for base in owner.__mro__[1:]:
        other = vars(base).get(it.__name__)
        if other is not None and not base.__module__.startswith("zokern."):
            return None
        if getattr(other, "__doc__", None):
            return inspect.cleandoc(other.__doc__)
    return ""


def sections(doc):
    """{section: [[line, ...] of each entry]}: entries begin at four spaces, and go on at eight."""
    found, entries = {}, None
    for line in doc.split("\n"):
        if line.endswith(":") and line[:-1] in SECTIONS:
            entries = found[line[:-1]] = []
        elif line and not line.startswith(" "):
            entries = None
        elif entries is not None and line.strip():
            if line.startswith(" " * 8) and entries:
                entries[-1].append(line.strip())
            else:
                entries.append([line.strip()])
    return found


def entries(doc, *which):
    """name -> text, of sections of names."""
    found = {}
    for section in which:
        for lines in sections(doc).get(section, ()):
            if match := re.match(ENTRY[section], lines[0]):
                found[match[1]] = " ".join(lines).partition(": ")[2]
    return found


def signature(name):
    """name -> Parameter, of what is given by a caller; nothing of what callers do not make themselves."""
    owner, it = ALL[name]
    if "Made by ``" in (doc_of(name) or ""):
        return {}
    if owner is None and is_class(it):
        own = any("__init__" in vars(base) for base in ours(it)) or hasattr(it, "_fields")
        return dict(inspect.signature(it).parameters) if own and not getattr(it, "_is_protocol", False) else {}
    parameters = inspect.signature(it).parameters.items() if not isinstance(it, property) else ()
    return {name: p for name, p in parameters if owner is None or name not in ("self", "cls")}


def elsewhere(name, doc):
    """The names of those whose arguments these are, too. Of another library: None."""
    for other in re.findall(r"``([\w.]+)``", " ".join(OTHERS.findall(" ".join(doc.split())))):
        of, _, method = other.rpartition(".")
        cls = CLASSES.get(of, None if of else ALL[name][0])
        owner = next((base for base in cls.__mro__ if method in vars(base)), None) if cls else None
        alike = [own for own in ALL if own.endswith(f".{other}")] or [other]
        known = f"{owner.__module__}.{owner.__qualname__}.{method}" if owner else alike[0]
        outside = of.partition(".")[0] in ("transformers", "torch")
        assert outside or known in ALL, f"{name}: {other} is nothing public"
        yield None if outside else known


def says(name, argument):
    """Whether it is told what an argument is: here, or where the docstring says that it is to be found."""
    doc = doc_of(name)
    listed = entries(doc, "Args", "Attributes")
    if argument in listed or ("Args" not in sections(doc) and re.search(rf"\b{argument}\b", doc)):
        return True
    return any(
        other is None or argument in signature(other) and says(other, argument) and same_default(name, other, argument)
        for other in elsewhere(name, doc)
    )


def same_default(one, other, argument):
    empty, both = inspect.Parameter.empty, [signature(name)[argument].default for name in (one, other)]
    return empty in both or both[0] == both[1]


@pytest.mark.parametrize("name", ALL)
def test_begins_with_a_sentence(name):
    doc = doc_of(name)
    assert doc is None or re.fullmatch(r"\S.*[.?]", doc.split("\n")[0]), f"{name} begins with {doc[:100]!r}"


@pytest.mark.parametrize("name", [name for name in ALL if ":\n" in (doc_of(name) or "")])
def test_sections_can_be_parsed(name):
    lines, section = (doc_of(name) or "").split("\n"), None
    for before, line, after in zip(["x", *lines], lines, [*lines[1:], ""]):
        if begins := re.match(rf"({'|'.join(SECTIONS)}|References?|Others?):", line):
            section = begins[1]
            assert line == f"{section}:" and section in SECTIONS, f"{name}: {line!r}: write the section's name alone in a line"
            assert not before, f"{name}: a blank line is due above {line!r}"
            assert after.startswith("    ") and after.strip(), f"{name}: what {line!r} holds is due below it, at four spaces"
        elif line and not line.startswith(" "):
            section = None
        elif section in ENTRY and line.strip() and not line.startswith(" " * 8):
            match = re.match(f"    {ENTRY[section]}", line)
            assert match, f"{name}: {line!r} is no entry of {section}: write one name, a colon, and what it is"
            assert section != "Raises" or match[1] in ERRORS or issubclass(getattr(builtins, match[1], int), Exception), f"{name}: {line!r}"


@pytest.mark.parametrize("name", [name for name in ALL if signature(name)])
def test_arguments_are_told(name):
    doc, given = doc_of(name), signature(name)
    if doc is None:
        return
    fields = {f.name: f for f in dataclasses.fields(ALL[name][1])} if dataclasses.is_dataclass(ALL[name][1]) else {}
    helped = {field for field, it in fields.items() if it.metadata.get("help")}
    untold = [argument for argument in given if argument not in helped and not says(name, argument)]
    assert not untold, f"{name} does not say what is {', '.join(untold)}"
    stale = entries(doc, "Args").keys() - given.keys()
    assert not stale, f"{name} tells of {', '.join(stale)}, which it does not take"


@pytest.mark.parametrize("name", [name for name in ALL if "Default" in (doc_of(name) or "")])
def test_defaults_are_those_of_the_signature(name):
    doc, given = doc_of(name), signature(name)
    for argument, text in entries(doc or "", "Args", "Attributes").items():
        told = DEFAULT.search(text)
        if told and argument in given:
            value = importlib.import_module("torch").__dict__[told[1][6:]] if told[1].startswith("torch.") else ast.literal_eval(told[1])
            assert given[argument].default == value, f"{name}: {argument}: Default {told[1]}, and it is {given[argument].default!r}"


@pytest.mark.parametrize("name", [name for name in ALL if "Attributes:" in (doc_of(name) or "")])
def test_attributes_are_there(name):
    cls = ALL[name][1]
    source = "".join(map(inspect.getsource, ours(cls)))
    for attribute in entries(doc_of(name), "Attributes"):
        own = hasattr(cls, attribute) or any(attribute in base.__dict__.get("__annotations__", ()) for base in ours(cls))
        assert own or re.search(rf"self\.{attribute}\b", source), f"{name} has no {attribute}"


@pytest.mark.parametrize("name", [name for name, cls in optimizers().items() if cls.__module__.startswith("zokern.")])
def test_optimizers_name_their_paper(name):
    assert sections(inspect.cleandoc(optimizers()[name].__doc__)).get("Reference")


@cache
def described():
    """Names with a string below their assignment, where the reference looks for it."""
    found = set()
    for path in Path(zokern.__file__).parent.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        for node, after in zip(body, body[1:]):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(after, ast.Expr) and isinstance(getattr(after.value, "value", None), str):
                found |= {getattr(target, "id", "") for target in targets}
    return found


@pytest.mark.parametrize("name", DATA)
def test_data_has_a_docstring(name):
    assert name.rpartition(".")[2] in described()
