"""Builds the compiled hot path (slipstream/_fast/*.pyx).

Owns the extension list and the compiler flags, nothing else (metadata: pyproject.toml).

* Cythonize runs inside ``build_ext``, never at import: otherwise ``sdist`` would record the generated
  ``.c`` files in place of the ``.pyx`` sources (setuptools rewrites ``Extension.sources``).
* ``SLIPSTREAM_DEBUG=1`` makes the debug build: bounds checks and invariants on, ``-O1``.
* ``-O3`` without ``-ffast-math`` (it flips denormals for the whole interpreter) and without
  ``-march=native`` (wheels must run elsewhere).
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as _build_ext

DEBUG = os.environ.get("SLIPSTREAM_DEBUG") == "1"
FAST = Path("slipstream/_fast")

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


class build_ext(_build_ext):
    """``build_ext`` that cythonizes first, in the build directory."""

    def finalize_options(self) -> None:
        from Cython.Build import cythonize

        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules,
            compiler_directives=DIRECTIVES,
            compile_time_env=None,
            build_dir="build/cython",
            quiet=True,
            force=DEBUG,
        )
        super().finalize_options()


def extensions() -> list[Extension]:
    flags = ["-O1", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0", "-fno-plt"]
    macros = [("SLIPSTREAM_DEBUG", "1")] if DEBUG else []
    return [
        Extension(
            f"slipstream._fast.{pyx.stem}",
            [pyx.as_posix()],
            extra_compile_args=[*flags, "-std=c11", "-Wall", "-Wno-unused-function"],
            define_macros=macros,
        )
        for pyx in sorted(FAST.glob("*.pyx"))
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": build_ext})
