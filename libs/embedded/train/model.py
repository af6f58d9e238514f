"""The Llama layout, written so that training is fast and the checkpoint is plain.

Sizes in shape comments: b sequences, s tokens a sequence, n = b * s, h heads, d head size (64),
c hidden size, i intermediate size, v vocabulary.

Everything but attention works on flat rows (n, c). A training step holds the same n at every
sequence length, so the compiled pieces are built once and serve all three length phases; attention
alone sees (b, h, s, d). Parameters are named as Hugging Face names them, so saving is a plain copy.
"""

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Config:
    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int = 4096
    head_dim: int = 64
    context: int = 16384
    theta: float = 100_000.0
    eps: float = 1e-5

    def to_hugging_face(self, bos: int) -> dict:
        """config.json as transformers and the runtime read it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rope_theta": self.theta,
            "rope_scaling": None,
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "use_cache": True,
            "torch_dtype": "bfloat16",
            "dtype": "bfloat16",
            "bos_token_id": bos,
            "eos_token_id": bos,
            "pad_token_id": None,
        }

    @staticmethod
    def from_hugging_face(config: dict) -> "Config":
        return Config(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            head_dim=config["head_dim"],
            context=config["max_position_embeddings"],
            theta=config["rope_theta"],
            eps=config["rms_norm_eps"],
        )


TARGET = Config(hidden=256, layers=8, heads=4, intermediate=768)
DRAFT = Config(hidden=128, layers=4, heads=2, intermediate=384)


# --- the pieces that are compiled -------------------------------------------------------------


def rms_norm(x, weight, eps: float):
    """x (n, c) bf16 -> (n, c) bf16; the mean of squares in fp32."""
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return x32.to(x.dtype) * weight.to(x.dtype)


def rotate(x, cos, sin):
    """Rotary embedding, first half against second. x (n, h, d); cos, sin (n, 1, d/2)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def project_qkv(x, norm, wq, wk, wv, heads: int, eps: float):
    """x (n, c) -> unrotated q, k, v, each (n, h, d). One product reads the rows once."""
    qkv = F.linear(rms_norm(x, norm, eps), torch.cat([wq, wk, wv]).to(BF16))
    return qkv.view(x.shape[0], 3, heads, -1).unbind(1)


def before_attention(x, norm, wq, wk, wv, cos, sin, heads: int, eps: float):
    q, k, v = project_qkv(x, norm, wq, wk, wv, heads, eps)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def after_attention(x, attended, wo, norm, w_gate, w_up, w_down, eps: float, dropout: float):
    """Output projection, residual, SwiGLU, residual. x (n, c), attended (n, h * d) -> (n, c)."""
    x = x + F.dropout(F.linear(attended, wo.to(BF16)), dropout)
    gate_up = F.linear(rms_norm(x, norm, eps), torch.cat([w_gate, w_up]).to(BF16))
    gate, up = gate_up.chunk(2, dim=-1)
    return x + F.dropout(F.linear(F.silu(gate) * up, w_down.to(BF16)), dropout)


def to_logits(x, norm, embedding, eps: float):
    """x (n, c) -> logits (n, v) bf16; the output matrix is the embedding."""
    return F.linear(rms_norm(x, norm, eps), embedding.to(BF16))


def cross_entropy(x, norm, embedding, labels, eps: float):
    """Mean next-token loss in nats; labels (n,)."""
    return F.cross_entropy(to_logits(x, norm, embedding, eps).float(), labels)


def distillation(x, norm, embedding, target_logits, labels, overlap_weight, eps: float):
    """The draft's loss against the target's distribution p, with q the draft's.

    KL(p || q) + 0.1 x cross entropy, and, by `overlap_weight` (0 to 1), less of KL and more of
    1 - sum min(p, q): that sum is the probability that rejection sampling accepts a drafted token,
    so this term is the acceptance itself. It is taken at temperatures 1.0 and 0.6.
    Returns (loss, mean overlap at temperature 1).
    """
    logits = to_logits(x, norm, embedding, eps).float()
    target_logits = target_logits.float()
    log_q, log_p = logits.log_softmax(-1), target_logits.log_softmax(-1)
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum(-1).mean()
    overlap = torch.minimum(p, log_q.exp()).sum(-1).mean()
    cool_q, cool_p = (logits / 0.6).softmax(-1), (target_logits / 0.6).softmax(-1)
    cool_overlap = torch.minimum(cool_p, cool_q).sum(-1).mean()
    ce = -log_q.gather(-1, labels[:, None]).mean()
    loss = (1 - overlap_weight) * kl + overlap_weight * (2 - overlap - cool_overlap) + 0.1 * ce
    return loss, overlap


class Kernels:
    """The pieces above, compiled or as they are. One instance a process."""

    def __init__(self, compiled: bool):
        build = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.before_attention = build(before_attention)
        self.after_attention = build(after_attention)
        self.to_logits = build(to_logits)
        self.cross_entropy = build(cross_entropy)
        self.distillation = build(distillation)


EAGER = Kernels(compiled=False)


# --- attention --------------------------------------------------------------------------------


@contextmanager
def attention_backend(name: str):
    """Which fused attention torch may use: "cudnn", "flash" or "default"."""
    if name == "default":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[name]
    with sdpa_kernel([backend]):
        yield


def causal_attention(q, k, v, b: int):
    """q, k, v (n, h, d) of b sequences -> (n, h * d)."""
    n, h, d = q.shape
    q, k, v = (t.view(b, n // b, h, d).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(n, h * d)


# --- the module -------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        width = c.heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden, width, bias=False)
        self.k_proj = nn.Linear(c.hidden, width, bias=False)
        self.v_proj = nn.Linear(c.hidden, width, bias=False)
        self.o_proj = nn.Linear(width, c.hidden, bias=False)


class Mlp(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.down_proj = nn.Linear(c.intermediate, c.hidden, bias=False)


class Norm(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = Mlp(c)
        self.input_layernorm = Norm(c.hidden)
        self.post_attention_layernorm = Norm(c.hidden)

    def qkv_weights(self):
        a = self.self_attn
        return self.input_layernorm.weight, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight

    def rest_weights(self):
        m = self.mlp
        return (
            self.self_attn.o_proj.weight,
            self.post_attention_layernorm.weight,
            m.gate_proj.weight,
            m.up_proj.weight,
            m.down_proj.weight,
        )


class Llama(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = Norm(config.hidden)
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        angles = torch.outer(
            torch.arange(config.context, dtype=torch.float64), config.theta**-steps
        )
        self.register_buffer("cos", angles.cos().float(), persistent=False)  # (context, d/2)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    @torch.no_grad()
    def initialise(self, seed: int) -> "Llama":
        """Embedding at 0.02, matrices uniform by fan-in, the two that write the residual at 0."""
        generator = torch.Generator().manual_seed(seed)
        self.embed_tokens.weight.normal_(std=0.02, generator=generator)
        for name, weight in self.layers.named_parameters():
            if weight.ndim == 2:
                bound = 0.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                bound *= weight.shape[1] ** -0.5
                weight.uniform_(-bound, bound, generator=generator)
        return self

    def hidden(self, tokens, kernels: Kernels = EAGER, dropout: float = 0.0, keep_kv=None):
        """tokens (b, s) -> rows before the last norm (b * s, c) bf16.

        `keep_kv(layer, k, v)`, where given, receives each layer's rotated k and v (n, h, d).
        """
        b, s = tokens.shape
        cfg = self.config
        cos = self.cos[:s].repeat(b, 1)[:, None]
        sin = self.sin[:s].repeat(b, 1)[:, None]
        x = F.embedding(tokens.reshape(-1), self.embed_tokens.weight).to(BF16)
        for index, layer in enumerate(self.layers):
            weights = layer.qkv_weights()
            q, k, v = kernels.before_attention(x, *weights, cos, sin, cfg.heads, cfg.eps)
            if keep_kv is not None:
                keep_kv(index, k, v)
            attended = causal_attention(q, k, v, b)
            x = kernels.after_attention(x, attended, *layer.rest_weights(), cfg.eps, dropout)
        return x

    def head(self):
        """What the loss functions take after x: the last norm and the embedding."""
        return self.norm.weight, self.embed_tokens.weight

    def save(self, folder: str, bos: int) -> None:
        os.makedirs(folder, exist_ok=True)
        tensors = {
            f"model.{name}": weight.detach().to(BF16).cpu().contiguous()
            for name, weight in self.named_parameters()
        }
        save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
        with open(f"{folder}/config.json", "w") as file:
            json.dump(self.config.to_hugging_face(bos), file, indent=2)
            file.write("\n")

    @staticmethod
    def load(folder: str, device: str) -> "Llama":
        """The model as shipped: bf16 weights."""
        with open(f"{folder}/config.json") as file:
            model = Llama(Config.from_hugging_face(json.load(file)))
        tensors = load_file(f"{folder}/model.safetensors")
        model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items()})
        for weight in model.parameters():
            weight.data = weight.data.to(BF16)
        return model.to(device).eval().requires_grad_(False)
