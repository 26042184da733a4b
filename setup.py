"""Builds the compiled hot path: ``slipstream/_fast/*.pyx``, and the modules that an ordinary request passes: plain
Python, with a ``.pxd`` beside each that says what of it is C (attributes, calls between them).

Owns the extension list and the compiler flags, nothing else (metadata: pyproject.toml).

* Cythonize runs inside ``build_extension``, on a copy of the source list: ``sdist`` asks ``build_ext`` for its sources
  too and must see the ``.pyx``, not the generated ``.c``.
* ``SLIPSTREAM_DEBUG=1`` makes the debug build: Cython's bounds checks on, ``-O1``, undefined behaviour aborts (UBSan:
  the cores work on raw pointers, which Cython does not check). A ``# cython:`` comment in a ``.pyx`` would win over
  ``DIRECTIVES``: no file may set there what is set here (tests/packaging keeps watch).
* ``-O3`` without ``-ffast-math`` (it flips denormals for the whole interpreter) and without ``-march=native`` (wheels
  must run elsewhere).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython import __version__ as cython_version
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as _build_ext

DEBUG = os.environ.get("SLIPSTREAM_DEBUG") == "1"
FAST = Path("slipstream/_fast")
WITH_PXD = [path.with_suffix(".py") for path in sorted(Path("slipstream").glob("[a-z]*/*.pxd")) if path.parent != FAST]
BUILD = Path("build")  # generated C goes here, never beside the sources

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "binding": True,
    "embedsignature": False,
    "freethreading_compatible": True,
}
PLAIN = {"wraparound": True, "boundscheck": True, "cdivision": False, "annotation_typing": False, "nonecheck": True}
"""For the ``.py``: what is written there means what Python says, and ``None`` has no attributes."""
ANNOTATED = {"slipstream/engine/account.py", "slipstream/engine/attempt.py", "slipstream/engine/pipeline.py"}
"""Here the annotations of parameters count too, where the .pxd knows the class: it cannot say that of a coroutine."""
WARNINGS = ["-std=c11", "-Wall", "-Wno-unused-function"]
RELEASE_FLAGS = ["-O3", "-g0", "-fno-plt"]
SANITIZE = ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
DEBUG_FLAGS = ["-O1", "-g", "-UNDEBUG", *SANITIZE]


class build_ext(_build_ext):
    """``build_ext`` that cythonizes what it is about to compile."""

    def run(self) -> None:
        # Time stamps tell of a changed .pyx or .pxd, not of another kind of build: then everything is made anew.
        kind = f"{DIRECTIVES} {PLAIN} {cython_version}"
        stamp = BUILD / f"kind-{sys.implementation.cache_tag}"
        self.force = self.force or not stamp.exists() or stamp.read_text() != kind
        stamp.unlink(missing_ok=True)  # a build that fails half-way leaves none
        super().run()
        BUILD.mkdir(exist_ok=True)
        stamp.write_text(kind)

    def build_extension(self, ext: Extension) -> None:
        source = ext.sources[0]
        directives = {**DIRECTIVES, **PLAIN} if source.endswith(".py") else DIRECTIVES
        if source in ANNOTATED:
            directives = {**directives, "annotation_typing": True}
        ext.sources = cythonize(
            [ext], compiler_directives=directives, build_dir=str(BUILD / "cython"), force=self.force, quiet=True
        )[0].sources
        super().build_extension(ext)


setup(
    ext_modules=[
        Extension(
            ".".join(source.with_suffix("").parts),
            [source.as_posix()],
            extra_compile_args=[*(DEBUG_FLAGS if DEBUG else RELEASE_FLAGS), *WARNINGS],
            extra_link_args=SANITIZE if DEBUG else [],
            define_macros=[("SLIPSTREAM_DEBUG", "1")] if DEBUG else [],
        )
        for source in [*sorted(FAST.glob("*.pyx")), *WITH_PXD]
    ],
    cmdclass={"build_ext": build_ext},
)
