"""Triton kernels in Triton's interpreter: they need ``TRITON_INTERPRET=1`` before triton is imported,
so these tests have a process of their own (``make test`` starts it). Only float32, float16 and int8
are right in the interpreter: its bfloat16 products and float8 casts are wrong.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
