"""A policy's weights into a running model of vLLM's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from trainer.errors import RunFailed
from trainer.rollout.vllm.start import Core


@torch.no_grad()
def load(core: Core, tensors: Iterable[tuple[str, Tensor]]) -> frozenset[str]:
    """Put weights into the running model, in place, and return their names.

    Raises RunFailed where one of the model's own was not among them.

    vLLM's layer-wise way: kernels may keep weights in another shape than checkpoints do, and a bare `load_weights`
    would write into the wrong one. It is always given the weights: without any it reads the model's folder again, and
    the engine would go on sampling from the policy that the run began with.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload

    model, runner = core.model, core.runner
    expected = {name for name, _ in model.named_parameters()}
    names: set[str] = set()
    with set_current_vllm_config(core.llm.vllm_config):  # layers ask for it while they repack
        initialize_layerwise_reload(model)
        try:
            loaded = model.load_weights(_noted(tensors, names))
        finally:
            finalize_layerwise_reload(model, runner.model_config)
    if missing := expected - (loaded or set()):
        raise RunFailed(
            f"{len(missing)} weights of vLLM's model got no new values (such as {min(missing)}), so it would sample "
            "from another policy than the trainer's; choose hf for sampling.engine"
        )
    _repack_head(model)
    return frozenset(names)


def _noted(tensors: Iterable[tuple[str, Tensor]], names: set[str]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        names.add(name)
        yield name, tensor


def _repack_head(model: torch.nn.Module) -> None:
    """On a CPU the output layer keeps a packed copy of its weight, which a tied one does not renew by itself."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            module.quant_method.process_weights_after_loading(module)
