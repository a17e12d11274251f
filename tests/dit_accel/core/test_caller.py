"""A warning from inside a pipeline names the line of the program."""

import threading
import warnings

from dit_accel.core.caller import caller_stacklevel

WARN = "warnings.warn('one call ran dense', stacklevel=caller_stacklevel())"


def library(name: str, body: str, **names: object):
    """Return a function ``run`` of a module."""
    module = {"__name__": name, "warnings": warnings, "caller_stacklevel": caller_stacklevel}
    exec(compile(f"def run():\n    {body}", f"/{name}.py", "exec"), module | names, names)
    return names["run"]


def test_the_line_that_called_the_pipeline_is_named() -> None:
    warn = library("dit_accel.runtime.guard", WARN)
    forward = library("torch.nn.modules.module", "inner()", inner=warn)
    pipeline = library("diffusers.pipelines.wan", "inner()", inner=forward)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline()
    assert caught[0].filename == __file__


def test_a_thread_of_a_library_names_the_warning() -> None:
    warn = library("dit_accel.runtime.guard", WARN)
    worker = library("torch.worker", "inner()", inner=warn)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=worker)
        thread.start()
        thread.join()
    assert caught[0].filename.endswith("threading.py"), "the frame that a program's thread has"
