"""PAG, SoftPAG, SEG and HeadHunter's other maps equal their published formulas.

The references are explicit attention maps in double precision, written from the papers: PAG arXiv 2403.17377, SEG
arXiv 2408.00760, HeadHunter arXiv 2506.10978.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_accel import InvalidSettings, PerturbedGuidance, RunFailed
from dit_accel.guidance.joint_tokens import JointTokens
from dit_accel.guidance.perturb import soft_perturbation

GRID = (2, 5, 6)
VISUAL, TEXT, HEADS, WIDTH = 60, 7, 3, 16


def make_inputs(text: int, seed: int = 0, peak: float = 2.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, VISUAL + text, HEADS, WIDTH)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    return [peak * query, key, value]


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def scores_of(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])


def reflect(index: int, size: int) -> int:
    """Return the place inside an axis that reflection puts at an index outside of it."""
    if size == 1:
        return 0
    index %= 2 * (size - 1)
    return index if index < size else 2 * (size - 1) - index


def blur_image(image: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve an image ``[rows, columns, C]`` with the Gaussian of SEG's code, place by place."""
    weights = []
    for size in image.shape[:2]:
        length = int(np.ceil(6 * sigma))
        length += 1 - length % 2
        length = min(length, size + 1 - size % 2)
        offsets = np.arange(length) - (length - 1) // 2
        kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
        weights.append(list(zip(offsets, kernel / kernel.sum(), strict=True)))
    rows, columns = image.shape[:2]
    out = np.zeros_like(image)
    for y in range(rows):
        for x in range(columns):
            for dy, down in weights[0]:
                for dx, right in weights[1]:
                    out[y, x] += (
                        down * right * image[reflect(y + dy, rows), reflect(x + dx, columns)]
                    )
    return out


def blur(query: np.ndarray, sigma: float) -> np.ndarray:
    """Blur visual queries ``[B, H, N, D]`` frame by frame."""
    out = query.reshape(*query.shape[:2], *GRID, WIDTH).copy()
    for index in np.ndindex(*out.shape[:3]):
        out[index] = blur_image(out[index], sigma)
    return out.reshape(query.shape)


def published_map(
    name: str, query, key, visual: slice, sigma: float | None, u: float
) -> np.ndarray:
    """Return the map between A and the perturbed one at softness u, ``[B, H, S, S]``."""
    scores = scores_of(query, key)
    maps, size = softmax(scores), scores.shape[-1]
    eye = np.eye(size)
    if name == "fisher-rao":
        mixed = (u * eye + (1 - u) * np.sqrt(maps)) ** 2
        return mixed / mixed.sum(-1, keepdims=True)
    if name == "slerp":
        angle = np.arccos(np.sqrt(maps.diagonal(0, -2, -1)))[..., None]
        root = np.sin(u * angle) * eye + np.sin((1 - u) * angle) * np.sqrt(maps)
        return (root / np.sin(angle)) ** 2
    if name == "log-linear":
        dirac = eye * (1 - 1e-6 * (size - 1)) + 1e-6
        mixed = dirac**u * np.maximum(maps, 1e-12) ** (1 - u)
        return mixed / mixed.sum(-1, keepdims=True)
    perturbed = maps.copy()
    if name == "identity joint":
        perturbed[:] = eye
    elif name == "identity visual":
        only_self = np.where(eye[visual, visual] > 0, scores[..., visual, visual], -np.inf)
        changed = scores.copy()
        changed[..., visual, visual] = only_self
        perturbed = softmax(changed)
    elif name == "uniform joint":
        perturbed[:] = 1 / size
    elif name == "mean-query joint":
        perturbed[:] = softmax(scores_of(query.mean(2, keepdims=True), key))
    elif name == "mean-query visual":
        mean = query[:, :, visual].mean(2, keepdims=True)
        perturbed[:, :, visual] = softmax(scores_of(mean, key))
    elif name == "blurred-query visual":
        assert sigma is not None
        perturbed[:, :, visual] = softmax(scores_of(blur(query[:, :, visual], sigma), key))
    elif name == "renormalized-identity visual":
        mass = perturbed[..., visual, visual].sum(-1, keepdims=True)
        perturbed[..., visual, visual] = mass * eye[visual, visual]
    elif name == "zeroed-identity visual":
        perturbed[..., visual, visual] *= eye[visual, visual]
    return (1 - u) * maps + u * perturbed


CASES = [
    ("identity joint", None),
    ("identity visual", None),
    ("uniform joint", None),
    ("mean-query joint", None),
    ("mean-query visual", None),
    ("blurred-query visual", 0.4),
    ("blurred-query visual", 1.0),
    ("blurred-query visual", 30.0),
    ("renormalized-identity visual", None),
    ("zeroed-identity visual", None),
    ("fisher-rao", None),
    ("slerp", None),
    ("log-linear", None),
]


def make_settings(name: str, sigma: float | None, u: float) -> PerturbedGuidance:
    if " " in name:
        kind, mode = name.split()
        return PerturbedGuidance(softness=u, perturbation=kind, text_mode=mode, sigma=sigma)
    return PerturbedGuidance(softness=u, interpolation=name, text_mode="joint")


@pytest.mark.parametrize("text", [0, TEXT], ids=["no text", "text"])
@pytest.mark.parametrize("u", [0.25, 0.7, 1.0], ids=lambda u: f"u={u}")
@pytest.mark.parametrize(("name", "sigma"), CASES)
def test_attention_equals_the_published_map(name, sigma, u, text) -> None:
    query, key, value = make_inputs(text)
    tokens = JointTokens(query, key, value, WIDTH**-0.5, None, text, text_first=True, grid=GRID)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (query, key, value))
    ).transpose(1, 2)
    found = soft_perturbation(dense, tokens, torch.tensor([0, 2]), make_settings(name, sigma, u))
    q, k, v = (t.transpose(1, 2).double().numpy() for t in (query, key, value))
    maps = softmax(scores_of(q, k))
    visual = slice(text, None)
    if u == 1.0 and " " not in name:
        name = "identity joint"
    maps[:, [0, 2]] = published_map(name, q, k, visual, sigma, u)[:, [0, 2]]
    expected = (maps @ v).swapaxes(1, 2)
    error = np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected)
    assert error < 5e-7


@pytest.mark.parametrize("interpolation", ["fisher-rao", "slerp", "log-linear"])
def test_a_token_that_attends_to_itself_alone_keeps_its_value(interpolation: str) -> None:
    """Then A is the identity, so every path stays there, and nothing divides by the zero angle."""
    query = 40 * torch.eye(16)[None, :, None]
    value = torch.randn(1, 16, 1, 16, generator=torch.Generator().manual_seed(0))
    tokens = JointTokens(query, query, value, 1.0)
    found = soft_perturbation(value, tokens, None, make_settings(interpolation, None, 0.5))
    torch.testing.assert_close(found, value)


@pytest.mark.parametrize("mask", ["bool", "additive"])
@pytest.mark.parametrize("interpolation", ["fisher-rao", "slerp", "log-linear"])
def test_paths_leave_masked_keys_out(interpolation: str, mask: str) -> None:
    query, key, value = make_inputs(0)
    kept = slice(0, VISUAL - 9)
    allowed = torch.zeros(2, 1, 1, VISUAL, dtype=torch.bool)
    allowed[..., kept] = True
    given = allowed if mask == "bool" else torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)
    settings = make_settings(interpolation, None, 0.4)

    def run(tokens: JointTokens) -> torch.Tensor:
        dense = tokens.attend(tokens.query, slice(0, tokens.query.shape[1]))
        return soft_perturbation(dense, tokens, None, settings)

    masked = run(JointTokens(query, key, value, 0.25, given))[:, kept]
    alone = run(JointTokens(query[:, kept], key[:, kept], value[:, kept], 0.25))
    # Log-linear interpolation counts the keys for the weight of the identity, which is near 1.
    torch.testing.assert_close(masked, alone, rtol=1e-5, atol=1e-5)


def test_a_tiny_blur_changes_nothing() -> None:
    query, key, value = make_inputs(TEXT)
    tokens = JointTokens(query, key, value, WIDTH**-0.5, None, TEXT, text_first=True, grid=GRID)
    dense = tokens.attend(query, slice(0, VISUAL + TEXT))
    small = soft_perturbation(
        dense, tokens, None, PerturbedGuidance(perturbation="blurred-query", sigma=0.05)
    )
    torch.testing.assert_close(small, dense)


def test_a_blur_without_a_grid_is_refused() -> None:
    tokens = JointTokens(*make_inputs(0), 0.25)
    settings = PerturbedGuidance(perturbation="blurred-query", sigma=1.0)
    with pytest.raises(RunFailed, match="needs visual tokens that lie in a grid"):
        soft_perturbation(None, tokens, None, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perturbation": "blurred-query"}, "go together, got sigma None and blurred-query"),
        ({"sigma": 2.0}, "go together, got sigma 2.0 and identity"),
        ({"sigma": 0.0, "perturbation": "blurred-query"}, "sigma must be above 0, and finite"),
        (
            {"sigma": float("inf"), "perturbation": "blurred-query"},
            "mean-query is an infinite blur",
        ),
        (
            {"sigma": 1.0, "perturbation": "blurred-query", "text_mode": "joint"},
            "use text_mode visual",
        ),
        ({"interpolation": "slerp"}, "slerp is defined for the perturbation identity and text"),
        (
            {"interpolation": "slerp", "text_mode": "joint", "perturbation": "uniform"},
            "got uniform and joint",
        ),
        ({"interpolation": "cubic"}, "interpolation must be one of linear, fisher-rao"),
    ],
)
def test_settings_that_no_formula_defines_are_refused(settings, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message) as caught:
        PerturbedGuidance(**settings)
    assert "\n" not in str(caught.value)
