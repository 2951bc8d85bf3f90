"""The one part that setup.cfg cannot describe: a piece of C, left out where no compiler is at hand."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "handlers._native",
            ["handlers/_native.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
