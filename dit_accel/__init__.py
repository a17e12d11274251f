"""Make diffusers' video and image diffusion transformers faster with one line, and report what it cost.

Importing this package gives every ``DiffusionPipeline`` the verbs ``enable_sparse_attention``,
``enable_quantized_attention``, ``enable_perturbed_guidance``, ``enable_acceleration``, their inverses and
``attention_report``. The same verbs are functions of this package, which also take bare transformers and modular
pipelines.

The public names are listed in ``__init__.pyi``. Each is imported when it is first used.

Example:
    >>> import dit_accel
    >>> pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-14B-Diffusers", dtype=torch.bfloat16)
    >>> pipe.to("cuda").enable_sparse_attention("svg2")
    >>> video = pipe("a red fox in the snow").frames[0]
    >>> print(pipe.attention_report())
"""

import lazy_loader
import wrapt

from dit_accel.verbs import add_verbs

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


# Pipelines get the verbs as soon as diffusers defines their base class, before or after this import.
wrapt.register_post_import_hook(add_verbs, "diffusers.pipelines.pipeline_utils")
