"""Head sets: their notation, their files, and invalid ones."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_pipelines import TINY

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import fingerprint, read_card
from dit_accel.guidance import HeadSet, ModelShape, make_head_set, parse_heads, select_all_heads
from dit_accel_pipelines import find_family

MODEL = ModelShape("Toy", {"dual": 3, "single.blocks": 12}, 4, 16)


def test_shape_of_a_transformer(wan) -> None:
    shape = ModelShape.from_transformer(wan.transformer, find_family(wan.transformer))
    assert shape == ModelShape("WanTransformer3DModel", {"blocks": 3}, 2, 16)


@pytest.mark.parametrize(
    ("spec", "heads"),
    [
        ("dual.1", {("dual", 1): (0, 1, 2, 3)}),
        ("dual.1:*", {("dual", 1): (0, 1, 2, 3)}),
        ("single.blocks.11:3,0", {("single.blocks", 11): (0, 3)}),
        ("single.blocks.1:2; dual.2:1", {("dual", 2): (1,), ("single.blocks", 1): (2,)}),
        ("dual.0:1;dual.0:1,2", {("dual", 0): (1, 2)}),
    ],
)
def test_parse_heads(spec, heads) -> None:
    head_set = parse_heads(spec, MODEL)
    assert dict(head_set.heads) == heads
    assert list(head_set.heads) == [b for b in MODEL.ordered_blocks() if b in heads], (
        "order of execution"
    )
    assert parse_heads(head_set.to_spec(), MODEL) == head_set
    assert len(head_set) == len(list(head_set)) == sum(map(len, heads.values()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "written like \"blocks.7:0,4; blocks.9:.*\", got ''"),
        ("dual", "got 'dual'"),
        ("dual.1:", "got 'dual.1:'"),
        ("dual.1:0-2", "got 'dual.1:0-2'"),
        ("dual.[12]", "written like"),
        ("dual.1.*", "written like"),
        ("dual.1:4", r"no head 4 in dual.1: heads are 0 to 3"),
        ("dual.3", r"no block dual.3: Toy has dual.0 to dual.2, single.blocks.0 to single.blocks"),
        ("blocks.1", "no block blocks.1"),
    ],
    ids=repr,
)
def test_invalid_specs(spec, message) -> None:
    with pytest.raises(InvalidSettings, match=message):
        parse_heads(spec, MODEL)


def test_names_are_exact() -> None:
    assert list(parse_heads("single.blocks.1", MODEL).heads) == [("single.blocks", 1)]


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (None, [("single.blocks", 4)]),
        ("0", [("dual", 0)]),
        ("2-3", [("dual", 2), ("single.blocks", 0)]),
        ("-1", [("single.blocks", 11)]),
    ],
    ids=str,
)
def test_all_heads_of_layers(layers, blocks) -> None:
    assert list(select_all_heads(layers, MODEL).heads) == blocks


def test_invalid_layers() -> None:
    with pytest.raises(InvalidSettings, match="layers must be written like"):
        select_all_heads("first", MODEL)
    for layers, missing in (("15-20", 15), ("0,99", 99), ("-16", -16), ("3-15", 15)):
        with pytest.raises(InvalidSettings, match=f"no layer {missing}: layers are 0 to 14"):
            select_all_heads(layers, MODEL)
    with pytest.raises(InvalidSettings, match="layers goes with heads='all'"):
        make_head_set("dual.1", "0", MODEL)


def test_file_keeps_every_value(tmp_path) -> None:
    settings = {"scale": 2.5, "softness": 0.5, "interval": (0.0, 0.4), "perturbation": "uniform"}
    head_set = HeadSet(
        MODEL, {("dual", 2): (3, 1)}, settings, {"reward": "sharpness", "seeds": [0]}
    )
    path = tmp_path / "heads.json"
    head_set.save(path)
    assert HeadSet.load(path) == head_set == make_head_set(str(path), None, MODEL)
    assert json.loads(path.read_text())["heads"] == [["dual", 2, [1, 3]]]


def test_settings_of_a_file_are_converted() -> None:
    written = {"scale": "2", "interval": [0, "0.5"], "rescale": 1}
    head_set = HeadSet.from_dict({**parse_heads("dual.1", MODEL).to_dict(), "settings": written})
    assert head_set.settings == {"scale": 2.0, "interval": (0.0, 0.5), "rescale": 1.0}
    assert type(head_set.settings["scale"]) is float


def test_file_with_sorted_keys_gives_the_order_of_execution(tmp_path) -> None:
    tiny = TINY["flux"]
    pipe = tiny.build()
    model = ModelShape.from_transformer(pipe.transformer, find_family(pipe.transformer))
    head_set = parse_heads("transformer_blocks.1; single_transformer_blocks.0", model)
    path = tmp_path / "sorted.json"
    path.write_text(json.dumps(head_set.to_dict(), sort_keys=True))
    assert list(HeadSet.load(path).fit_to(model).heads) == list(head_set.heads)
    with pipe.enable_perturbed_guidance(2.0, heads=head_set):
        expected = tiny.run(pipe)
    with pipe.enable_perturbed_guidance(2.0, heads=path):
        assert torch.equal(tiny.run(pipe), expected)
        assert pipe.attention_report().guidance["shared_blocks"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer": "Other"}, "transformer Other instead of Toy"),
        ({"heads": 8}, "heads 8 instead of 4"),
        ({"blocks": {"dual": 3}}, "blocks"),
    ],
    ids=str,
)
def test_head_set_of_another_model_is_invalid(change, message) -> None:
    other = ModelShape(**{**vars(MODEL), **change})
    with pytest.raises(InvalidSettings, match=f"belongs to another model: here {message}"):
        make_head_set(parse_heads("dual.1", MODEL), None, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "with format 1"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"heads": []}, "at least one head"),
        ({"heads": [["dual", 1]]}, "heads must be like"),
        ({"heads": None}, "heads must be like"),
        ({"heads": [["dual", 1, "12"]]}, "heads must be like"),
        ({"heads": [["dual", 1.9, [1]]]}, "heads must be like"),
        ({"heads": [["dual", 1, [True]]]}, "heads must be like"),
        ({"heads": [["dual", 1, [9]]]}, "no head 9"),
        ({"heads": [["dual", 1, []]]}, "no heads for dual.1"),
        ({"settings": {"scal": 1}}, "unknown setting 'scal'"),
        ({"settings": {"softness": 2}}, r"softness must be in \[0, 1\]"),
        ({"settings": []}, "settings of a head set must be a JSON object"),
        ({"model": {"transformer": "Toy"}}, "head set model"),
    ],
    ids=str,
)
def test_invalid_files(tmp_path, change, message) -> None:
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({**parse_heads("dual.1", MODEL).to_dict(), **change}))
    with pytest.raises(InvalidSettings, match=f"head set {path}: .*{message}"):
        HeadSet.load(path)


def test_missing_file_and_invalid_json(tmp_path) -> None:
    with pytest.raises(InvalidSettings, match="cannot read head set"):
        HeadSet.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InvalidSettings, match="cannot read head set"):
        HeadSet.load(tmp_path / "broken.json")


@given(
    st.dictionaries(
        st.sampled_from(MODEL.ordered_blocks()),
        st.sets(st.integers(0, 3), min_size=1).map(tuple),
        min_size=1,
    )
)
def test_specs_and_files_round_trip(heads) -> None:
    head_set = HeadSet(MODEL, heads)
    assert parse_heads(head_set.to_spec(), MODEL) == head_set
    assert HeadSet.from_dict(json.loads(json.dumps(head_set.to_dict()))) == head_set


def test_bundled_head_set_fits_the_bundled_model() -> None:
    card = read_card("tiny-world")
    shape = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
    head_set = make_head_set("tiny-world", None, shape)
    assert len(head_set) >= 1
    assert head_set.provenance["weights"] == fingerprint(card.source)
    assert head_set.provenance["score"] > head_set.provenance["score_without_guidance"]
    with pytest.raises(InvalidSettings, match="belongs to another model"):
        make_head_set("tiny-world", None, MODEL)
