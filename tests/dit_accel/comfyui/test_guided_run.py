"""Perturbed guidance beside caches that skip a transformer's forward, without ComfyUI."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from support.comfyui_calls import SIGMAS, dense_attention, make_options, make_tensors
from torch import Tensor

from dit_accel.comfyui import guided_run
from dit_accel.comfyui.guided_run import ForwardWatch, GuidedRun
from dit_accel.comfyui.model_call import OVERRIDE_KEY
from dit_accel.guidance import PerturbedGuidance


@pytest.fixture(autouse=True)
def comfyui(monkeypatch) -> None:
    """ComfyUI's names of wrappers."""
    kinds = SimpleNamespace(APPLY_MODEL="apply_model", DIFFUSION_MODEL="diffusion_model")
    extension = SimpleNamespace(WrappersMP=kinds)
    monkeypatch.setitem(sys.modules, "comfy", SimpleNamespace(patcher_extension=extension))
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)


def run_wrappers(wrappers: list[Callable], inner: Callable) -> Callable:
    """Return a function inside wrappers, the first of which is the outermost, as ComfyUI runs them."""
    for wrapper in reversed(wrappers):
        inner = (lambda w, f: lambda *a, **n: w(f, *a, **n))(wrapper, inner)
    return inner


def make_forward() -> Callable:
    """Return ComfyUI's ``apply_model`` of a transformer beside a cache in ``transformer_options``."""

    def apply_model(
        x: Tensor, t: Tensor, concat: Any, text: Any, control: Any, options: dict
    ) -> Tensor:
        by_key = options["wrappers"]["diffusion_model"]
        wrappers = [w for listed in by_key.values() for w in listed]
        forward = run_wrappers(wrappers, lambda y, **_: 2 * y)
        return forward(x, transformer_options=options)

    return apply_model


@pytest.mark.parametrize("skips", [False, True], ids=["computed", "skipped"])
def test_watch_sees_whether_a_cache_skips_the_forward(skips: bool) -> None:
    def cache(executor: Callable, x: Tensor, **named: Any) -> Tensor:
        return x if skips else executor(x, **named)

    first, second = ForwardWatch(), ForwardWatch()
    options = {"uuids": ["a", "b"], "wrappers": {"diffusion_model": {"cache": [cache]}}}
    call = run_wrappers([first.build_wrapper(), second.build_wrapper()], make_forward())
    call(torch.ones(2), torch.ones(2), None, None, None, options)
    for watch in (first, second):
        assert watch.works is not skips
        watch.works = True
        reached = watch.take()
        assert reached == {"a": not skips, "b": not skips}
        assert watch.was_skipped(reached, ["a"]) is skips
        assert not watch.was_skipped(reached, ["other"])
        assert watch.take() == {}
    assert set(options["wrappers"]["diffusion_model"]) == {"cache"}, "the caller's options changed"


def test_model_that_runs_no_inner_wrappers_is_never_skipped() -> None:
    assert not ForwardWatch().was_skipped({"a": False}, ["a"])


class Steps:
    """Steps of a flow model whose extra pass perturbs some layers by a known prediction."""

    def __init__(self, monkeypatch, run: GuidedRun, layers: tuple[int, ...] = (1,)) -> None:
        self.run, self.passes, self.condition = run, [], {"uuid": uuid4()}
        self.reached = True

        def predict(arguments: dict, conditions: list[dict], override: Any) -> Tensor:
            self.passes.append(conditions[0]["uuid"])
            if self.reached:
                override.perturbed_layers.update(layers)
            run.watch.reached[conditions[0]["uuid"]] = self.reached
            return arguments["cond_denoised"] - float(arguments["sigma"])

        monkeypatch.setattr(guided_run, "predict_perturbed", predict)
        run.watch.works = True

    def step(self, sigma: float, clean: bool = True) -> float:
        """Return the term that guidance adds at a step."""
        sampling = SimpleNamespace(
            calculate_denoised=lambda s, out, x: x - out * s.view(-1, 1, 1, 1)
        )
        prediction = torch.zeros(1, 4, 3, 5)
        arguments = {
            "denoised": prediction,
            "cond_denoised": prediction + 1,
            "cond": [self.condition],
            "sigma": torch.tensor([sigma]),
            "model": SimpleNamespace(model_sampling=sampling),
        }
        guided = self.run.guide(arguments, {self.condition["uuid"]: clean})
        assert guided.std() < 1e-6
        return float(guided.mean())


def make_run() -> GuidedRun:
    return GuidedRun(PerturbedGuidance(scale=3.0), {1: None})


def test_extra_pass_has_its_own_conditions_and_is_skipped_with_the_clean_one(monkeypatch) -> None:
    steps = Steps(monkeypatch, make_run())
    assert steps.step(0.9, clean=False) == 0.0
    assert steps.step(0.8) == pytest.approx(3 * 0.8)
    # The kept output of the transformer has the weight sigma.
    assert steps.step(0.4, clean=False) == pytest.approx(3 * 0.4)
    assert len(steps.passes) == 1
    assert steps.step(0.2) == pytest.approx(3 * 0.2)
    assert len(set(steps.passes)) == 1
    assert steps.condition["uuid"] not in steps.passes
    steps.reached = False
    # A cache skips only the extra pass.
    assert steps.step(0.1) == pytest.approx(3 * 0.1)
    steps.run.begin_run()
    steps.run.watch.works = True
    assert steps.step(0.05, clean=False) == 0.0


def test_missing_layers_warn_once_and_cost_one_pass(monkeypatch, caplog) -> None:
    steps = Steps(monkeypatch, make_run(), layers=())
    assert [steps.step(sigma) for sigma in (0.9, 0.5, 0.1)] == [0.0, 0.0, 0.0]
    assert len(steps.passes) == 1
    assert caplog.text.count("the model has no self-attention [1] over the image") == 1
    steps.run.begin_run()
    steps.run.watch.works = True
    assert steps.step(0.9) == 0.0
    assert len(steps.passes) == 2


def test_one_missing_layer_of_two_warns_once_and_the_other_guides(monkeypatch, caplog) -> None:
    run = GuidedRun(PerturbedGuidance(scale=3.0), {1: None, 13: None})
    steps = Steps(monkeypatch, run)
    assert steps.step(0.9) == pytest.approx(2.7)
    assert steps.step(0.5) == pytest.approx(1.5)
    assert caplog.text.count("no self-attention [13]") == 1


def test_automatic_layer_is_the_middle_one() -> None:
    run = GuidedRun(PerturbedGuidance(scale=3.0), None)
    calls = []

    def apply_model(x: Tensor, *arguments: Any) -> Tensor:
        options = arguments[-1]
        calls.append(OVERRIDE_KEY in options)
        for layer in range(5):
            if OVERRIDE_KEY in options:
                tensors = make_tensors(seed=layer)
                options[OVERRIDE_KEY](dense_attention, *tensors, 2, transformer_options=options)
        return x

    count = run.build_counter()
    x = torch.zeros(1, 4, 3, 8, 12)
    for _ in range(2):
        count(apply_model, x, SIGMAS[:1], None, None, None, make_options())
    # Only the first call of a run is counted.
    assert calls == [True, False]
    assert run.choose_layers() == {2: None}
    run.begin_run()
    assert run.num_layers == 0
    assert "0 extra passes" in run.report()
