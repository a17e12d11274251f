import pytest
import torch

from dit_accel_pipelines import SizeRule, TokenLayout, UnknownFamily, families, find_family


def test_wan_layout_and_modules(wan) -> None:
    family = find_family(wan.transformer)
    assert family.name == "wan"
    names = [name for name, _ in family.attention_modules(wan.transformer)]
    assert names == [f"blocks.{i}.attn1" for i in range(3)]
    hidden = torch.zeros(2, 8, 5, 8, 12)
    layout = family.layout({"hidden_states": hidden}, wan.transformer.config)
    assert layout == TokenLayout(5, 4, 6)
    assert layout.visual_tokens == 120


def test_subclasses_belong_to_the_family(wan) -> None:
    class MyTransformer(type(wan.transformer)):
        pass

    assert find_family(MyTransformer.__new__(MyTransformer)).name == "wan"


def test_unknown_transformer_says_what_is_known() -> None:
    with pytest.raises(
        UnknownFamily, match=r"no family declares UNet; declared are Wan.*register_family"
    ):
        find_family("UNet")
    assert {f.name for f in families()} >= {"wan"}


@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        ((128, 128, 17), None),
        ((16, 16, 1), None),
        ((100, 128, 17), "height 100 is not divisible by 16: use 96 or 112"),
        ((128, 8, 17), "width 8 is not divisible by 16: use 16 or 32"),
        ((128, 128, 16), "frames 16 is not 4k+1: use 13 or 17"),
        ((128, 128, 0), "frames 0 is not 4k+1: use 1 or 5"),
    ],
    ids=str,
)
def test_size_rule(size: tuple[int, int, int], complaint: str | None) -> None:
    assert SizeRule(multiple=16, frame_step=4).complaint(*size) == complaint


def test_sizes_of_a_model_without_a_short_first_frame() -> None:
    rule = SizeRule(multiple=16, frame_step=4, first_frames=0)
    assert rule.complaint(16, 16, 88) is None
    assert rule.complaint(16, 16, 85) == "frames 85 is not a multiple of 4: use 84 or 88"
    assert rule.complaint(16, 16, 1) == "frames 1 is not a multiple of 4: use 4 or 8"
    assert rule.grid(88, 32, 48) == TokenLayout(22, 2, 3)
