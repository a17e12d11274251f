"""Compiled repeated blocks: one graph for all layers, dense and sparse steps inside it."""

import shutil
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

import dit_accel
from dit_accel import SVG2, Schedule

SPARSE = Schedule(dense_steps=0.25, min_tokens=0)
COARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)
BACKENDS = [
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_fullgraph_blocks_equal_eager(wan, run_wan, backend: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    expected = run_wan(wan)
    wan.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    torch.testing.assert_close(run_wan(wan), expected, rtol=0, atol=2e-3)
    assert wan.attention_report().calls == {"dense": 6, "sparse": 18, "fallback": 0}
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_enabling_after_compiling_works(wan, run_wan) -> None:
    torch._dynamo.reset()
    wan.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    plain = run_wan(wan)
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    assert not torch.equal(run_wan(wan), plain)
    assert wan.attention_report().calls["sparse"] == 18
    wan.disable_sparse_attention()
    torch.testing.assert_close(run_wan(wan), plain)


def test_the_pipeline_of_a_transformer_compiled_as_a_whole_is_found(wan, run_wan) -> None:
    torch._dynamo.reset()
    settings = {"heads": "blocks.1", "interval": (0.0, 0.5)}
    with dit_accel.enable_perturbed_guidance(wan.transformer, 2.0, **settings):
        expected = run_wan(wan)
        wan.transformer = torch.compile(wan.transformer, backend="aot_eager")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Dynamo does not know how to trace")
            torch.testing.assert_close(run_wan(wan), expected, rtol=0, atol=2e-3)
