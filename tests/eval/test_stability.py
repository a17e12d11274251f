import pytest
import torch
from support.tiny_pipelines import TINY

from dit_accel import Schedule
from dit_accel_eval.stability import ClusterWatch, agreement, by_layer, group_labels, stability
from dit_accel_kernels import group_by_label


def test_group_labels_inverts_group_by_label() -> None:
    labels = torch.randint(0, 5, (1, 3, 37), generator=torch.Generator().manual_seed(0))
    labels[labels == 2] = 3  # Group 2 is empty.
    assert torch.equal(group_labels(*group_by_label(labels, 5)), labels[0])


def test_agreement_ignores_names_and_is_zero_for_random_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (2, 500), generator=generator)
    assert agreement(labels, (labels + 1) % 5) == pytest.approx(1.0)
    assert agreement(labels, torch.randint(0, 5, (2, 500), generator=generator)) == pytest.approx(
        0.0, abs=0.02
    )


def test_stability_has_a_row_per_watched_layer_and_step(wan) -> None:
    from dit_accel.generation.settings import RenderSettings

    case = RenderSettings("a red circle", height=32, width=32, frames=5, steps=3)
    rows = stability(wan, case)
    assert {row["step"] for row in rows} == {0, 1, 2}
    assert all(row["queries"] is None for row in rows if row["step"] == 0)
    assert all(-1 <= row["keys"] <= 1 for row in rows if row["step"])
    assert [line["layer"] for line in by_layer(rows)] == sorted({row["layer"] for row in rows})


@pytest.mark.parametrize("name", ["mochi", "hunyuan-video"])
def test_cluster_watch_runs_with_text_tokens_and_guidance(name: str) -> None:
    tiny, watch = TINY[name], ClusterWatch()
    pipe = tiny.build()
    with pipe.enable_sparse_attention(watch, schedule=Schedule(dense_steps=0.0, min_tokens=0)):
        tiny.run(pipe, cfg=True)
    assert {row["step"] for row in watch.rows} == {0, 1, 2}
    assert all((row["queries"] is None) == (row["step"] == 0) for row in watch.rows)
