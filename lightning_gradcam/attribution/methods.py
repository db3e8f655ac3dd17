"""Activations and gradients of a layer to one map a sample.

Every method takes the activations ``A`` and the gradients ``G = d score / d A`` of a layer, both ``(n, c, *grid)``,
such as ``(n, c, h, w)``, and returns a map ``(n, *grid)`` before the ReLU. Sums over positions run over all cells of
the grid, sums over ``k`` over the ``c`` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from lightning_gradcam.attribution.layers import split_call
from lightning_gradcam.attribution.targets import logits

Method = Callable[[Tensor, Tensor], Tensor]
_Linear = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def positions(cells: Tensor) -> tuple[int, ...]:
    """The axes of the positions in ``(n, c, *grid)``."""
    return tuple(range(2, cells.ndim))


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: ``sum_k alpha_k A_k`` with ``alpha_k`` the mean of ``G_k`` over positions.

    Signed. For a network that ends in global average pooling and one linear layer the map sums to the score
    less the bias, so a cell is evidence for the score in the score's own unit.

    Source: Selvaraju et al., ICCV 2017, arXiv 1610.02391, equations 1 and 2 without the ReLU.
    """
    return _weighted(gradients.mean(positions(gradients)), activations)


def cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """CAM: ``sum_k w_k A_k`` with the weights ``w_k`` of the linear layer behind a global average pooling. Signed.

    There the gradient of a logit is ``w_k / Z`` in each of the ``Z`` cells, so it is Grad-CAM times ``Z``. Another
    ending has no such weights, which is what Grad-CAM was made for; :func:`check_cam` tells.

    Source: Zhou et al., CVPR 2016, arXiv 1512.04150, equation 2.
    """
    return _weighted(gradients.sum(positions(gradients)), activations)


def check_cam(
    name: str,
    model: nn.Module,
    layer: nn.Module,
    called: Sequence[nn.Module],
    activations: Tensor,
    output: Any,
) -> None:
    """Refuse CAM where the network does not go on from a layer with global average pooling and one linear layer.

    Args:
        name: Of the layer.
        model: The model.
        layer: The layer.
        called: The modules that the forward called, in the order in which they finished.
        activations: Of the layer, ``(n, c, *grid)``.
        output: What the model gave for these.

    Raises:
        ValueError: If another module with weights is called after the layer than one linear layer, or this does not
            make the logits of the mean over positions.
    """
    later = _weighted_modules_after(model, layer, split_call(name)[1], called)
    if len(later) == 1 and _is_linear(later[0]) and _is_head(later[0], activations, output):
        return
    raise ValueError(
        f'`method="cam"` needs a network that goes on from `target_layer` {name!r} with global average pooling and one '
        f"linear layer, whose weights it takes; {type(model).__name__} does not. Grad-CAM was made for such networks: "
        '`method="gradcam"` works for any, and where CAM is defined it is the same map, up to the number of cells'
    )


def _weighted_modules_after(
    model: nn.Module, layer: nn.Module, call: int | None, called: Sequence[nn.Module]
) -> list[nn.Module]:
    """The modules with parameters or buffers of their own that were called after a call of a layer, in that order."""
    around = {id(module) for module in model.modules() if any(part is layer for part in module.modules())}
    places = [place for place, module in enumerate(called) if module is layer]
    later = called[places[call - 1 if call else -1] + 1 :]
    return [module for module in later if id(module) not in around and (module._parameters or module._buffers)]


def _is_linear(module: nn.Module) -> TypeGuard[_Linear]:
    """Whether it is a linear layer, or the same in another form: a 1 x 1 convolution of what is pooled to one cell."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        plain = set(module.kernel_size) == set(module.stride) == {1} and module.groups == 1
        return plain and module.padding in (0, (0,) * len(module.kernel_size))
    return isinstance(module, nn.Linear)


def _is_head(layer: _Linear, activations: Tensor, output: Any) -> bool:
    """Whether a linear layer makes these logits of the mean over positions, to rounding."""
    try:
        scores = logits(output, len(activations)).detach()
    except ValueError:
        return False
    pooled, weight = activations.mean(positions(activations)).float(), layer.weight.detach().flatten(1).float()
    if weight.shape != (scores.shape[1], pooled.shape[1]):
        return False
    finite = pooled.isfinite().all(1) & scores.isfinite().all(1)
    made = pooled[finite] @ weight.T
    if layer.bias is not None:
        made = made + layer.bias.detach().float()
    tolerance = max(torch.finfo(dtype).eps for dtype in (scores.dtype, pooled.dtype)) ** 0.5
    size = float(made.abs().max()) if len(made) else 0.0
    return torch.allclose(made, scores[finite].float(), tolerance, tolerance * size)


def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM: ``sum_k G_k * A_k``, position by position. Signed.

    Source: Draelos and Carin 2020, arXiv 2011.08891.
    """
    return (gradients * activations).sum(1)


def gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++: ``sum_k w_k A_k`` with ``w_k`` the sum over positions of ``alpha_k relu(G_k)``.

    ``alpha_k = G_k^2 / (2 G_k^2 + (sum of A_k) G_k^3)``, of which ``G_k^2`` cancels. Has no sign: the weights are
    positive, so after a ReLU layer no cell is negative, and the sum of a map is no score.

    Source: Chattopadhay et al., WACV 2018, arXiv 1710.11063, equation 19, for the score itself.
    """
    positive = gradients.relu()
    denominator = 2 + activations.sum(positions(activations), keepdim=True) * positive
    return _weighted(torch.where(denominator == 0, 0, positive / denominator).sum(positions(positive)), activations)


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: ``sum_k relu(G_k) * A_k``, position by position.

    Has no sign: after a ReLU layer no cell is negative, and the sum of a map is no score.

    Source: Jiang et al., TIP 2021, doi 10.1109/TIP.2021.3089943.
    """
    return (gradients.relu() * activations).sum(1)


def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM: ``sum_k w_k A_k`` with ``w_k`` the mean of ``G_k`` weighted by ``A_k`` over positions.

    A channel that sums to zero has weight zero. Has no sign in the sense of :func:`gradcam`: its sum is a score
    only where the rest of the network is linear in the layer.

    Source: Fu et al., BMVC 2020, arXiv 2008.02312.
    """
    total, product = activations.sum(positions(activations)), gradients * activations
    return _weighted(torch.where(total == 0, 0, product.sum(positions(product)) / total), activations)


def _weighted(weights: Tensor, activations: Tensor) -> Tensor:
    return (weights.reshape(*weights.shape, *[1] * (activations.ndim - 2)) * activations).sum(1)


METHODS: dict[str, Method] = {
    "gradcam": gradcam,
    "cam": cam,
    "hirescam": hirescam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
    "xgradcam": xgradcam,
}
# Those whose negative cells are evidence against the target, which the counterfactual picture shows.
SIGNED_METHODS: tuple[Method, ...] = (gradcam, hirescam, cam)
# Those whose map sums to evidence in the score's own unit, which `strength` logs.
ADDITIVE_METHODS: tuple[Method, ...] = (gradcam, hirescam)


def as_method(method: str | Method) -> Method:
    """Turn the ``method`` argument into a function; raise a ``ValueError`` or ``TypeError`` where it is none."""
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {sorted(METHODS)} or a function, got {method!r}")
        return METHODS[method]
    if not callable(method):
        raise TypeError(f"`method` must be one of {sorted(METHODS)} or a function, got {type(method).__name__}")
    return method
