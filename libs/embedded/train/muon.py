"""Muon for the matrices, AdamW for the rest.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/): the momentum of a weight
matrix is replaced by the nearest orthogonal matrix before it is applied, so that every direction of
the matrix learns at the same rate. The update is scaled by 0.2 sqrt(max(rows, columns)), which gives
it the size of an AdamW update (Liu et al., 2025, arXiv:2502.16982).
"""

import torch


def orthogonalise(batch, iterations: int = 5):
    """Five Newton-Schulz steps on every matrix of a batch (m, rows, columns), in bf16.

    The quintic's coefficients are Jordan's: they lift small singular values quickly and leave all of
    them near 1 (0.7 to 1.2), which is as much as the method needs.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = batch.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum 0.95; matrices of one shape are orthogonalised together."""

    def __init__(self, weights, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(list(weights), dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for weight in group["params"]:
                by_shape.setdefault(weight.shape, []).append(weight)
            for shape, weights in by_shape.items():
                grads = [w.grad for w in weights]
                momenta = [
                    self.state[w].setdefault("momentum", torch.zeros_like(w)) for w in weights
                ]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
                updates = orthogonalise(torch.stack(ahead)).float().unbind(0)
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * max(shape) ** 0.5
                torch._foreach_add_(weights, updates, alpha=-group["lr"] * scale)


def make_optimizers(model, muon_lr: float, adam_lr: float, weight_decay: float):
    """Matrices of the layers to Muon; embedding and norms to AdamW without decay."""
    matrices = [w for w in model.layers.parameters() if w.ndim == 2]
    chosen = {id(w) for w in matrices}
    others = [w for w in model.parameters() if id(w) not in chosen]
    fused = others[0].is_cuda
    return [
        Muon(matrices, muon_lr, weight_decay),
        torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused),
    ]
