"""Speculative decoding in plain PyTorch, batched over prompts, to measure acceptance.

It says what a runtime should get, not how fast. Every sequence of the batch goes through the real
loop: gamma drafted tokens from a cheap view of the cache, one pass of the target over the full
cache, rejection sampling (or, when greedy, comparison of argmaxes), a token of the target's own.

Sizes: b prompts, t new tokens a call, S cache slots, h heads, d head size, w tokens a view reads.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model import BF16, Llama, after_attention, project_qkv, rotate, to_logits


class Cache:
    """The exact KV of b sequences, rotated keys at absolute positions: per layer (b, h, S, d)."""

    def __init__(self, model: Llama, b: int, slots: int, device):
        c = model.config
        shape = (c.layers, b, c.heads, slots, c.head_dim)
        self.k = torch.zeros(shape, dtype=BF16, device=device)
        self.v = torch.zeros(shape, dtype=BF16, device=device)


@dataclass
class Full:
    """Reads the whole cache."""

    def attend(self, model, layer, q, cache, positions):
        b, t = positions.shape
        slots = cache.k.shape[3]
        q = rotate_at(model, q, positions)
        mask = torch.arange(slots, device=q.device) <= positions[:, None, :, None]  # (b, 1, t, S)
        return F.scaled_dot_product_attention(q, cache.k[layer], cache.v[layer], attn_mask=mask)


@dataclass
class Streaming:
    """16 sinks and the last `budget` - 16 tokens of the exact cache, one query row at a time.

    Keys stay rotated at their absolute positions. The window keeps its true distances, so its query
    is rotated at its true position; the sinks must look as if they stood just before the window, so
    the query that meets them is rotated at its in-cache position. Nothing is copied or recomputed.
    """

    budget: int
    sinks: int = 16

    def attend(self, model, layer, q, cache, positions):
        window = self.budget - self.sinks
        at = positions[:, 0]  # (b,)
        first = (at - window + 1).clamp(min=self.sinks)
        index = first[:, None] + torch.arange(window, device=q.device)  # (b, window)
        valid = index <= at[:, None]
        index = index.clamp(max=cache.k.shape[3] - 1)
        k, v = gather(cache, layer, index[:, None].expand(-1, q.shape[1], -1))
        near = scores(rotate_at(model, q, positions), k)
        near = near.masked_fill(~valid[:, None, None], -math.inf)
        in_cache = (self.sinks + at - first)[:, None]
        sink_k, sink_v = (x[layer][:, :, : self.sinks] for x in (cache.k, cache.v))
        far = scores(rotate_at(model, q, in_cache), sink_k)
        weights = torch.cat([far, near], -1).softmax(-1).to(BF16)
        return weights @ torch.cat([sink_v, v], 2)


class SnapKV:
    """Per head the prompt tokens that the prompt's last 32 queries looked at most, and all after.

    Scores are the softmax weights of those queries over the whole prompt, summed over the queries
    and average-pooled by 5; the best `budget` - 32 earlier tokens are kept, with the last 32. They
    are chosen once, at the end of the prompt; tokens generated since are all kept.
    """

    def __init__(self, budget: int, window: int = 32, pooling: int = 5):
        self.budget, self.window, self.pooling = budget, window, pooling
        self.chosen: list[torch.Tensor] = []

    def observe(self, q, k, prompt: int):
        """Rotated q (b, h, window, d) of the prompt's end and its keys (b, h, prompt, d)."""
        seen = scores(q, k)
        later = torch.ones(self.window, self.window, device=q.device).triu(1).bool()
        seen[..., prompt - self.window :].masked_fill_(later, -math.inf)
        weights = seen.softmax(-1).sum(2)[..., : prompt - self.window]
        pooled = F.avg_pool1d(weights, self.pooling, 1, self.pooling // 2)
        self.chosen.append(pooled.topk(self.budget - self.window, -1).indices)
        self.recent = prompt - self.window

    def attend(self, model, layer, q, cache, positions):
        at = positions[:, 0]
        chosen = self.chosen[layer]  # (b, h, budget - window)
        recent = torch.arange(self.recent, int(at.max()) + 1, device=q.device)
        index = torch.cat([chosen, recent.expand(*chosen.shape[:2], -1)], -1)
        valid = index <= at[:, None, None]
        k, v = gather(cache, layer, index)
        q = rotate_at(model, q, positions)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, :, None])


def scores(q, k):
    """q (b, h, t, d), k (b, h, w, d) -> scaled products (b, h, t, w), fp32."""
    return q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])


def gather(cache: Cache, layer: int, index):
    """index (b, h, w) -> k, v (b, h, w, d)."""
    index = index[..., None].expand(-1, -1, -1, cache.k.shape[-1])
    return cache.k[layer].gather(2, index), cache.v[layer].gather(2, index)


def rotate_at(model: Llama, x, positions):
    """x (b, h, t, d) at positions (b, t)."""
    return rotate(x, model.cos[positions][:, None], model.sin[positions][:, None])


def forward(model: Llama, tokens, positions, cache: Cache, view, observers=()):
    """tokens, positions (b, t): writes their KV there and returns logits (b, t, v) fp32."""
    b, t = tokens.shape
    c = model.config
    x = F.embedding(tokens.reshape(-1), model.embed_tokens.weight)
    rows = torch.arange(b, device=tokens.device)[:, None]
    for index, layer in enumerate(model.layers):
        q, k, v = project_qkv(x, *layer.qkv_weights(), c.heads, c.eps)
        q, k, v = (y.view(b, t, c.heads, c.head_dim).transpose(1, 2) for y in (q, k, v))
        k = rotate_at(model, k, positions)
        cache.k[index, rows, :, positions] = k.transpose(1, 2)
        cache.v[index, rows, :, positions] = v.transpose(1, 2)
        for observer in observers:
            prompt = int(positions[0, -1]) + 1
            observer.observe(rotate_at(model, q, positions), cache.k[index, :, :, :prompt], prompt)
        attended = view.attend(model, index, q, cache, positions)
        attended = attended.transpose(1, 2).reshape(b * t, -1)
        x = after_attention(x, attended, *layer.rest_weights(), c.eps, 0.0)
    return to_logits(x, *model.head(), c.eps).float().view(b, t, -1)


def prefill(model: Llama, prompts, cache: Cache, observers=()):
    """prompts (b, s), all but the last token of which enter the cache. The last 32 of these go
    through `forward`, where the observers see their queries."""
    b, s = prompts.shape
    bulk = s - 1 - 32
    for row in range(0, b, 8):

        def keep(layer, k, v, row=row):
            for store, value in ((cache.k, k), (cache.v, v)):
                value = value.view(-1, bulk, *value.shape[1:]).transpose(1, 2)
                store[layer, row : row + 8, :, :bulk] = value

        model.hidden(prompts[row : row + 8, :bulk], keep_kv=keep)
    positions = torch.arange(bulk, s - 1, device=prompts.device).expand(b, -1)
    forward(model, prompts[:, bulk:-1], positions, cache, Full(), observers)


def probabilities(logits, temperature: float):
    """(…, v) -> the distribution sampled from; temperature 0 is all on the argmax."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits / temperature).softmax(-1)


def draw(p, generator):
    """p (b, v) -> tokens (b,)."""
    return torch.multinomial(p, 1, generator=generator)[:, 0]


@torch.inference_mode()
def speculate(
    target, drafter, prompts, target_cache, draft_cache, view, gamma, temperature, new, seed
):
    """Generates `new` tokens for each prompt; the caches hold the prompts but for the last token.

    `drafter` is the target itself (then `draft_cache` is `target_cache`, and a verify's exact KV
    overwrites the draft's) or another model. Returns counts and the generated tokens (b, new).
    """
    device = prompts.device
    generator = torch.Generator(device).manual_seed(seed)
    b, s = prompts.shape
    current, at = prompts[:, -1].clone(), torch.full((b,), s - 1, device=device)
    out = torch.zeros(b, new + gamma + 1, dtype=torch.long, device=device)
    made = torch.zeros(b, dtype=torch.long, device=device)
    rows = torch.arange(b, device=device)
    accepted_total = tested_total = emitted_total = rounds = 0
    own_cache = draft_cache is not target_cache
    while True:
        active = made < new
        if not active.any():
            break
        drafted, beliefs, token = [], [], current
        # A drafting model needs its last token's KV too, should all be accepted: one step more.
        for step in range(gamma + 1 if own_cache else gamma):
            logits = forward(drafter, token[:, None], (at + step)[:, None], draft_cache, view)[:, 0]
            if step == gamma:
                break
            q = probabilities(logits, temperature)
            token = draw(q, generator)
            drafted.append(token)
            beliefs.append(q)
        drafted = torch.stack(drafted, 1)  # (b, gamma)
        q = torch.stack(beliefs, 1)  # (b, gamma, v)
        block = torch.cat([current[:, None], drafted], 1)
        positions = at[:, None] + torch.arange(gamma + 1, device=device)
        p = probabilities(forward(target, block, positions, target_cache, Full()), temperature)
        chosen = drafted[..., None]
        ratio = p[:, :gamma].gather(-1, chosen) / q.gather(-1, chosen)
        coin = torch.rand(b, gamma, device=device, generator=generator)
        accepted = (coin < ratio[..., 0]).long().cumprod(1).sum(1)  # (b,)
        rest = (p[:, :gamma] - q).clamp(min=0)
        last = torch.cat([rest, p[:, gamma:]], 1)[rows, accepted]
        current = draw(last, generator)
        block = torch.cat([drafted, torch.zeros_like(chosen[:, :1, 0])], 1)
        block[rows, accepted] = current
        slots = made[:, None] + torch.arange(gamma + 1, device=device)
        # Sequences that are done keep running on the same slots; nothing of them is counted.
        slots = torch.where(active[:, None], slots, new + torch.arange(gamma + 1, device=device))
        out.scatter_(1, slots.clamp(max=out.shape[1] - 1), block)
        accepted_total += int(accepted[active].sum())
        tested_total += int((accepted + 1).clamp(max=gamma)[active].sum())
        emitted_total += int((accepted + 1)[active].sum())
        rounds += int(active.sum())
        made = torch.where(active, made + accepted + 1, made)
        at = torch.where(active, at + accepted + 1, at)
    return {
        "acceptance": accepted_total / tested_total,
        "accepted_length": emitted_total / rounds,
        "rounds": rounds,
    }, out[:, :new]


def distinct4(tokens) -> float:
    """Share of the 4-grams of each row (b, new) that are different; the mean over rows."""
    shares = []
    for row in tokens.tolist():
        grams = list(zip(row, row[1:], row[2:], row[3:]))
        shares.append(len(set(grams)) / len(grams))
    return sum(shares) / len(shares)


def lookup_acceptance(prompts, tokens) -> float:
    """Share of generated tokens that a 3-gram lookup in the text so far would have foretold."""
    hits = total = 0
    for prompt, made in zip(prompts.tolist(), tokens.tolist()):
        text, seen = prompt + made, {}
        for i in range(3, len(text)):
            key = tuple(text[i - 3 : i])
            if i >= len(prompt):
                hits += seen.get(key) == text[i]
                total += 1
            seen[key] = text[i]
    return hits / total
