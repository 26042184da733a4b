"""The tree itself: nothing generated or of one machine in it, packages have headers, compiled code has its twin."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import slipstream

ROOT = Path(__file__).resolve().parents[2]
FAST = ROOT / "slipstream" / "_fast"
PACKAGE = ROOT / "slipstream"
GENERATED = {".c", ".so", ".pyd", ".o", ".pyc", ".whl", ".gz", ".coverage"}

# Written in two halves, so that this file does not name them itself.
HOMES = ["ro" + "ot", "wo" + "rk", "ho" + "me", "Use" + "rs"]
HOSTS = ["pypi" + r"\.org", "files" + r"\.pythonhosted", "deb" + r"\.debian", "registry" + r"\.npmjs"]
MACHINE_PATHS = re.compile(rf"(?<![\w.}}])/(?:{'|'.join(HOMES)})/\w")
REGISTRY_HOSTS = re.compile("|".join(HOSTS))
DIRECTIVES_OF_SETUP = re.compile(r"^#\s*cython:.*\b(boundscheck|initializedcheck|wraparound|cdivision)\b", re.MULTILINE)


def tracked() -> list[Path]:
    """The files under version control."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if git("rev-parse", "--show-toplevel").strip() != str(ROOT):
        pytest.skip("not a git checkout")
    return [path for name in git("ls-files", "-z").split("\0") if name and (path := ROOT / name).is_file()]


def git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout



def packages() -> list[Path]:
    return sorted({path.parent for path in (ROOT / "slipstream").rglob("*.py")})


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_nothing_generated_is_tracked() -> None:
    assert [relative(path) for path in tracked() if path.suffix in GENERATED or "__pycache__" in path.parts] == []


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRY_HOSTS], ids=["paths", "hosts"])
def test_nothing_of_one_machine_is_tracked(pattern: re.Pattern[str]) -> None:
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{relative(path)}:{n}" for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    assert found == []


@pytest.mark.parametrize("package", packages(), ids=relative)
def test_package_has_a_header(package: Path) -> None:
    init = package / "__init__.py"
    assert init.is_file()
    assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))


def test_version_is_the_installed_one() -> None:
    try:
        installed = importlib.metadata.version("slipstream-gateway")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == slipstream.__version__, "install again"


@pytest.mark.parametrize("source", sorted(FAST.glob("*.pyx")), ids=lambda path: path.stem)
def test_compiled_module_has_docs_and_twin(source: Path) -> None:
    assert source.with_suffix(".pyi").is_file()
    assert (FAST / "_pure" / f"{source.stem}.py").is_file()


@pytest.mark.parametrize("built", sorted(PACKAGE.rglob("*.so")), ids=lambda path: path.name.split(".")[0])
def test_what_is_compiled_is_what_is_written(built: Path) -> None:
    """A module that lies here compiled is imported so, whatever its source says by now."""
    stem = built.with_name(built.name.split(".")[0])
    sources = [path for path in map(stem.with_suffix, (".py", ".pyx", ".pxd")) if path.is_file()]
    assert sources, f"{built.name} is left over: remove it"
    newest = max(path.stat().st_mtime for path in sources)
    assert newest <= built.stat().st_mtime, "run: python setup.py -q build_ext --inplace"


@pytest.mark.parametrize("source", sorted([*FAST.glob("*.pyx"), *PACKAGE.rglob("*.pxd")]), ids=lambda path: path.name)
def test_directives_are_those_of_setup(source: Path) -> None:
    """A header comment wins over setup.py, so the debug build would not check bounds."""
    assert not DIRECTIVES_OF_SETUP.search(source.read_text(encoding="utf-8"))
