"""What is published holds what it needs, and nothing else. It is built and tried by `make wheels smoke`."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_string
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import zokern

pytest.importorskip("setuptools", minversion="77.0.1", reason="an older setuptools does not read this pyproject.toml")

ROOT = Path(__file__).parent.parent
BESIDE = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "NOTICE", "README.md", "pyproject.toml", "setup.py"}
WRITTEN = re.compile(r"PKG-INFO|setup\.cfg|zokern\.egg-info/.*")


def run(*command, cwd):
    environment = {**os.environ, "ZOKERN_CUDA": "0"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree():
    """Files of the project, as git has them or will have them."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no clone: git says what is in the project")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {path for path in listed.splitlines() if (ROOT / path).is_file()}


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory):
    """The folder of a source, made from a copy of the project in which a build has left things."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("sdist")
    for path in tree:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    for left in ("zokern/_cpu.so", "zokern/noise/__pycache__/key.cpython-311.pyc", "csrc/cpu/scalar.so", "zokern-finetune/run.py"):
        (copy / left).parent.mkdir(parents=True, exist_ok=True)
        (copy / left).touch()
    run("setup.py", "-q", "sdist", "-d", out, cwd=copy)
    (archive,) = out.iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(out)
    return out / archive.name.removesuffix(".tar.gz")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_source_is_what_a_build_needs(sdist, tree):
    needed = {path for path in tree if path.startswith(("csrc/", "zokern/"))} | BESIDE
    assert {path for path in files(sdist) if not WRITTEN.fullmatch(path)} == needed


def test_a_wheel_is_the_package(sdist, tree, tmp_path):
    run("setup.py", "-q", "build_py", "--build-lib", tmp_path, cwd=sdist)
    assert files(tmp_path) == {path for path in tree if path.startswith("zokern/")}


def test_every_source_is_compiled_once(sdist):
    code = "import setuptools\nfrom distutils.core import run_setup\n"
    code += "for ext in run_setup('setup.py', stop_after='init').ext_modules: print(*ext.sources, sep='\\n')"
    sources = [str(path.relative_to(ROOT)) for kind in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(kind)]
    assert sorted(run("-c", code, cwd=sdist).split()) == sorted(sources)


def test_what_is_left_out_may_be_left_out_twice(sdist):
    """As an editable installation does, which settles the options of a build anew."""
    code = "import setuptools\nfrom distutils.core import run_setup\nbuild = run_setup('setup.py', stop_after='init')\n"
    code += "for _ in range(2): command = build.reinitialize_command('build_ext'); command.ensure_finalized()\n"
    code += "print(*(ext.name for ext in command.extensions))"
    assert run("-c", code, cwd=sdist).splitlines()[-1] == "zokern._cpu"


def test_a_folder_of_its_name_does_not_hide_it(tmp_path):
    """Such as that of a clone, seen from the folder around it."""
    (tmp_path / "zokern").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import zokern; print(zokern.MeZO.__name__)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["MeZO"], done.stderr


def test_metadata(sdist):
    said = message_from_string((sdist / "PKG-INFO").read_text())
    assert (said["Name"], said["Version"]) == ("zokern", zokern.__version__)
    assert said["License-Expression"] == "Apache-2.0" and said.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert said["Description-Content-Type"] == "text/markdown" and said.get_payload().lstrip().startswith("# zokern")
    for name in ("Summary", "Keywords", "Author"):
        assert said[name]
    assert not said.get_all("Project-URL")  # an address that is not there is worse than none
    classifiers = said.get_all("Classifier")
    assert "Typing :: Typed" in classifiers and not [c for c in classifiers if c.startswith("License ::")]
    pythons = {c.rpartition(" ")[2] for c in classifiers if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", c)}
    assert pythons == {"3.10", "3.11", "3.12", "3.13"}
    assert all(SpecifierSet(said["Requires-Python"]).contains(python) for python in pythons)


def test_without_extras_torch_and_numpy_are_all(sdist):
    said = message_from_string((sdist / "PKG-INFO").read_text())
    required = [Requirement(line) for line in said.get_all("Requires-Dist")]
    assert {r.name for r in required if r.marker is None} == {"torch", "numpy"}


def test_the_build_asks_for_no_torch(sdist):
    requires = re.search(r"^requires = (.*)", (sdist / "pyproject.toml").read_text(), re.M)[1]
    assert {Requirement(line).name for line in ast.literal_eval(requires)} == {"setuptools", "pybind11", "ninja"}
    included = {path for path in (sdist / "csrc").rglob("*.*pp") if re.search(r"#include.*(torch|ATen|c10)/", path.read_text())}
    assert not included and "import torch" not in (sdist / "setup.py").read_text()


ALWAYS = {"torch", "numpy"}
HF = ALWAYS | {"transformers", "accelerate", "peft", "datasets", "sklearn", "safetensors"}  # (transformers requires safetensors)
DEMO = HF | {"matplotlib", "typer", "rich", "yaml"}
ROOMS = {"hf": HF, "tasks": HF, "finetune": HF, "evolve": HF, "cli": DEMO, "kernels/triton": ALWAYS | {"triton"}}


def test_what_a_file_imports_at_once_comes_with_its_extra():
    """zokern.hf with zokern[hf], zokern.cli with zokern[demo], and the rest with torch and NumPy."""
    for path in (ROOT / "zokern").rglob("*.py"):
        within = path.relative_to(ROOT / "zokern").as_posix()
        allowed = next((names for room, names in ROOMS.items() if within.startswith(f"{room}/")), ALWAYS)
        for node in ast.parse(path.read_text()).body:
            absolute = isinstance(node, ast.ImportFrom) and not node.level
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if absolute else []
            assert {name.split(".")[0] for name in names} <= allowed | sys.stdlib_module_names | {"zokern"}, within


def test_one_place_says_the_version():
    assert (ROOT / "zokern" / "version.py").read_text() == f'__version__ = "{zokern.__version__}"\n'
    others = [ROOT / name for name in ("pyproject.toml", "setup.py", "Makefile", "packaging/build.sh", "packaging/smoke.py")]
    others += [path for path in (ROOT / "zokern").rglob("*.py") if path.name != "version.py"]
    for path in others:
        assert not re.search(rf"(?<![\d.]){re.escape(zokern.__version__)}(?![\d.])", path.read_text()), path
    assert re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == zokern.__version__
    assert version("zokern") == zokern.__version__, "pip install -e . again"
