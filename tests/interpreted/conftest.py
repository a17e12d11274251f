"""Run Triton kernels in Triton's interpreter.

The interpreter needs ``TRITON_INTERPRET=1`` before triton is imported, so these tests run in a process of
their own, which ``make test`` starts. They use float32, float16 and int8 only, because bfloat16 products
and float8 casts are wrong in the interpreter.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
