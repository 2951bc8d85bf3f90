"""The one part that setup.cfg cannot describe: a piece of C, left out where no compiler is at hand."""

import sysconfig

from setuptools import Extension, setup

IS_STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")
"""One build serves all later versions, but for Pythons without the lock, which have no stable interface yet."""

setup(
    ext_modules=[
        Extension(
            "handlers._native",
            ["handlers/_native.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")] if IS_STABLE else [],
            py_limited_api=IS_STABLE,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if IS_STABLE else {},
)
