"""Compiles csrc/ into one shared library without torch or Python in it; pyproject.toml holds the rest.

kernels.cpp is compiled once for each instruction set. Without a working C++ compiler the package installs all the
same, without the library.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# -ffp-contract=off: a fused multiply-add rounds once where torch rounds twice, and near ties would come out otherwise.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-pthread",
]
AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
# instruction set: (bytes of a vector, flags)
BUILDS = {"plain": (16, [])}
if platform.machine().lower() in {"x86_64", "amd64"}:
    BUILDS |= {"avx2": (32, AVX2), "avx512": (64, AVX512)}
    FLAGS.append("-DPOINT_KERNELS_X86")


class BuildLibrary(build_ext):
    """One library, from the same source with different flags."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        def compile_source(source, folder, flags):
            return self.compiler.compile(
                [source], str(Path(self.build_temp, folder)), depends=ext.depends, extra_postargs=[*FLAGS, *flags]
            )

        objects = compile_source("csrc/dispatch.cpp", "dispatch", [])
        for name, (vector_bytes, flags) in BUILDS.items():
            macros = [f"-DPOINT_KERNELS_ISA={name}", f"-DPOINT_KERNELS_VECTOR_BYTES={vector_bytes}"]
            objects += compile_source("csrc/kernels.cpp", name, [*flags, *macros])
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=["-pthread"], target_lang="c++"
        )


class AnyPythonWheel(bdist_wheel):
    """The library is of one platform, and of every Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "point_kernels.libpoint_kernels",
            sources=["csrc/dispatch.cpp", "csrc/kernels.cpp"],
            depends=sorted(map(str, Path("csrc").glob("*.h"))),
            language="c++",
            optional=True,
        )
    ]
    if sys.platform != "win32"  # the vector extensions of GCC and Clang
    else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel},
)
