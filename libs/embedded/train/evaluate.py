"""Measures a trained pair on a text that it has not seen: loss, use of far context, acceptance.

    python3 evaluate.py --models .. --text moby-dick.txt --novels novels.tar.xz --out results.json

--models is the folder with target/ and draft/ (with no draft, only the target is measured); --text
is plain text, here Moby-Dick; --novels gives the held-out novels and may be left out. All runs use
the shipped bf16 weights with bf16 activations; probabilities and losses are taken in fp32.
"""

import argparse
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from data import encode, read_novels, split_novels
from model import Llama, to_logits
from speculate import (
    Cache, Full, SnapKV, Streaming, distinct4, lookup_acceptance, prefill, speculate,
)  # fmt: skip

CONTEXT = 16384
PREFIX = 8000
HEADING = "[Wakefield 47]"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--novels")
    parser.add_argument("--out", required=True, help="the results, JSON")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new", type=int, default=128, help="tokens generated for each prompt")
    parser.add_argument("--gammas", default="4")
    parser.add_argument("--losses-only", action="store_true")
    parser.add_argument("--no-transformers", action="store_true", help="skip the cross-check")
    parser.add_argument("--context", type=int, default=CONTEXT, help="less, for a quick trial")
    parser.add_argument("--prefix", type=int, default=PREFIX)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


# --- loss -------------------------------------------------------------------------------------


@torch.inference_mode()
def token_losses(model: Llama, rows: np.ndarray, device: str) -> np.ndarray:
    """rows (m, s + 1) -> the loss of every next token (m, s) in nats."""
    losses = []
    per_batch = max(1, 65536 // rows.shape[1])
    for at in range(0, len(rows), per_batch):
        tokens = torch.from_numpy(rows[at : at + per_batch].astype(np.int64)).to(device)
        x = model.hidden(tokens[:, :-1])
        labels = tokens[:, 1:].reshape(-1)
        parts = [
            F.cross_entropy(to_logits(part, *model.head(), model.config.eps).float(), label, reduction="none")
            for part, label in zip(x.split(32768), labels.split(32768))
        ]  # fmt: skip
        losses.append(torch.cat(parts).view(tokens.shape[0], -1).cpu().numpy())
    return np.concatenate(losses)


def with_bos(ids: np.ndarray, starts, length: int) -> np.ndarray:
    """(m, 1 + length): BOS and `length` tokens from each start."""
    return np.stack([np.concatenate([[0], ids[at : at + length]]) for at in starts])


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of every entry: byte-level BPE writes each byte as one character."""
    sizes = [len(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    sizes[0] = 0
    return np.array(sizes)


def window_losses(model, documents: list[np.ndarray], sizes, context: int, device: str) -> dict:
    """Mean loss over windows of `context` tokens that do not overlap, and by position."""
    windows = [with_bos(d, range(0, len(d) - context + 1, context), context) for d in documents]
    rows = np.concatenate(windows)
    losses = token_losses(model, rows, device)
    edges = [e for e in (0, 64, 256, 1024, 2048, 4096, 8192, 16384) if e < context] + [context]
    return {
        "tokens": int(losses.size),
        "nats": float(losses.mean()),
        "bits_per_byte": float(losses.sum() / math.log(2) / sizes[rows[:, 1:]].sum()),
        "nats_by_position": {
            f"{a}-{b}": float(losses[:, a:b].mean()) for a, b in zip(edges, edges[1:])
        },
    }


def truncated_losses(model, ids, context: int, device: str) -> dict:
    """The same last 512 tokens of each stretch of text, with less and less context before them."""
    ends = range(context, len(ids) + 1, 4096)
    result = {}
    for kept in (640, 1024, 2048, 4096, 8192, 16384):
        if kept <= context:
            rows = with_bos(ids, [end - kept for end in ends], kept)
            result[str(kept)] = float(token_losses(model, rows, device)[:, -512:].mean())
    return result


# --- returning passages -----------------------------------------------------------------------


def with_return(ids, end, context, distance, length, newline, heading=None):
    """A prompt of `context` tokens, BOS first, whose end repeats what it said long before.

    Text up to ids[end], a paragraph break, and then the first `length` tokens of a paragraph that
    began about `distance` tokens earlier; with a `heading`, both stand under it.
    Returns (prompt, what followed the passage's first `length` tokens in the text).
    """
    gap = np.array([newline, newline])
    head = np.concatenate([heading, gap]) if heading is not None else np.array([], dtype=np.int64)
    body = ids[end - (context - 3 - 2 * len(head) - length) : end].astype(np.int64)
    breaks = np.flatnonzero((body[:-1] == newline) & (body[1:] != newline)) + 1
    source = int(breaks[np.searchsorted(breaks, len(body) - distance)])
    passage = body[source : source + length]
    prompt = np.concatenate([[0], body[:source], head, body[source:], gap, head, passage])
    return prompt, body[source + length :]


def return_losses(model, ids, tokenizer, context: int, device: str) -> dict:
    """Loss on the last 112 of 128 returned tokens by distance, with and without the first place.

    "without" sees only the last 512 tokens of the prompt, so it can not look the passage up.
    """
    newline = tokenizer.token_to_id("Ċ")
    heading = encode(tokenizer, [HEADING])[0]
    ends = np.linspace(context, len(ids), 32).astype(int)
    result = {}
    for name, head in (("plain", None), ("headed", heading)):
        for distance in (1024, 2048, 4096, 8192, 15000):
            if distance < context - 1024:
                made = [with_return(ids, e, context, distance, 128, newline, head)[0] for e in ends]
                rows = np.stack(made)
                short = np.concatenate([np.zeros((len(rows), 1), rows.dtype), rows[:, -511:]], 1)
                full = token_losses(model, rows, device)[:, -128:]
                cut = token_losses(model, short, device)[:, -128:]
                result[f"{name} {distance}"] = {
                    "nats": float(full[:, 16:].mean()),
                    "nats_first_16": float(full[:, :16].mean()),
                    "without": float(cut[:, 16:].mean()),
                }
    return result


# --- acceptance -------------------------------------------------------------------------------


@torch.inference_mode()
def teacher_forced_overlap(target, draft, ids, context: int, device: str) -> dict:
    """Mean of sum min(p, q) over the text: the acceptance where the text is not the models' own."""
    rows = with_bos(ids, range(0, len(ids) - context, len(ids) // 6), context)
    sums = {"1.0": 0.0, "0.6": 0.0, "argmax": 0.0}
    for row in rows:
        tokens = torch.from_numpy(row[None, :-1].astype(np.int64)).to(device)
        p, q = (
            to_logits(m.hidden(tokens), *m.head(), m.config.eps).float() for m in (target, draft)
        )
        for t in (1.0, 0.6):
            overlap = torch.minimum((p / t).softmax(-1), (q / t).softmax(-1)).sum(-1)
            sums[str(t)] += overlap.mean().item() / len(rows)
        sums["argmax"] += (p.argmax(-1) == q.argmax(-1)).float().mean().item() / len(rows)
    return sums


def acceptance(target, draft, prompts, new, gammas, temperatures, device, expected=None) -> list:
    """One record for each draft, temperature and gamma; `expected` (b, new) is what a copy says."""
    prompts = torch.from_numpy(prompts).to(device)
    b, s = prompts.shape
    slots = s + new + max(gammas) + 8
    snap = {budget: SnapKV(budget) for budget in (256, 512)}
    cache = Cache(target, b, slots, device)
    with torch.inference_mode():
        prefill(target, prompts, cache, tuple(snap.values()))
    cells = [(f"streaming {n}", target, cache, Streaming(n)) for n in (256, 512)]
    cells += [(f"snapkv {n}", target, cache, view) for n, view in snap.items()]
    if draft is not None:
        own = Cache(draft, b, slots, device)
        with torch.inference_mode():
            prefill(draft, prompts, own)
        cells.append(("draft model, full cache", draft, own, Full()))
        cells.append(("draft model, streaming 256", draft, own, Streaming(256)))
    if expected is not None:
        # A copy needs the tokens after the one attended to: pooling this wide keeps them.
        wide = SnapKV(256, pooling=33)
        with torch.inference_mode():
            prefill(target, prompts, cache, (wide,))
        cells.insert(4, ("snapkv 256, pooling 33", target, cache, wide))
    records = []
    for temperature in temperatures:
        for gamma in gammas:
            for name, drafter, kv, view in cells:
                counts, tokens = speculate(
                    target, drafter, prompts, cache, kv, view, gamma, temperature, new, seed=11
                )
                record = {"draft": name, "temperature": temperature, "gamma": gamma} | counts
                record["distinct_4"] = distinct4(tokens)
                record["lookup"] = lookup_acceptance(prompts, tokens)
                if expected is not None:
                    record["copied"] = float((tokens.cpu().numpy() == expected).mean())
                records.append(record)
                print(
                    f"{name:28} T {temperature:.1f} gamma {gamma}  rate {counts['acceptance']:.3f}  "
                    f"length {counts['accepted_length']:.2f}  distinct-4 {record['distinct_4']:.2f}  "
                    f"lookup {record['lookup']:.2f}  copied {record.get('copied', math.nan):.2f}",
                    flush=True,
                )
    return records


# --- the cross-check --------------------------------------------------------------------------


def transformers_check(folder: str, model: Llama, ids, device: str) -> dict:
    """The same 2,048 tokens through transformers' own Llama: mean losses, and argmax agreement."""
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    row = torch.from_numpy(with_bos(ids, [5000], 2048).astype(np.int64)).to(device)
    with torch.inference_mode():
        theirs = other(row[:, :-1]).logits[0].float()
        ours = to_logits(model.hidden(row[:, :-1]), *model.head(), model.config.eps).float()
    return {
        "loss_here": F.cross_entropy(ours, row[0, 1:]).item(),
        "loss_transformers": F.cross_entropy(theirs, row[0, 1:]).item(),
        "argmax_agreement": (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
    }


def save(results: dict, args, began: float) -> None:
    """Called after each part, so that a run that is cut short leaves what it had."""
    results["seconds"] = round(time.time() - began, 1)
    results["device"] = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    with open(args.out, "w") as file:
        json.dump(results, file, indent=1)
        file.write("\n")


def main():
    args = parse_arguments()
    began = time.time()
    device, context = args.device, args.context
    target = Llama.load(f"{args.models}/target", device)
    draft = None
    if os.path.exists(f"{args.models}/draft/model.safetensors"):
        draft = Llama.load(f"{args.models}/draft", device)
    tokenizer = Tokenizer.from_file(f"{args.models}/target/tokenizer.json")
    sizes = token_bytes(tokenizer)
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    ids = encode(tokenizer, [text])[0]
    held_out = None
    if args.novels:
        _, kept = split_novels(read_novels(args.novels))
        held_out = encode(tokenizer, list(kept.values()))
    results = {"text_tokens": len(ids), "text_bytes": len(text.encode())}
    for name, model in (("target", target), ("draft", draft)):
        if model is None:
            continue
        report = {"text": window_losses(model, [ids], sizes, context, device)}
        if held_out is not None:
            report["held_out"] = window_losses(model, held_out, sizes, min(context, 8192), device)
        report["truncated"] = truncated_losses(model, ids, context, device)
        report["returns"] = return_losses(model, ids, tokenizer, context, device)
        if not args.no_transformers:
            report["transformers"] = transformers_check(f"{args.models}/{name}", model, ids, device)
        results[name] = report
        print(name, json.dumps(report, default=str), f"{time.time() - began:.1f} s", flush=True)
    if draft is not None:
        results["overlap"] = teacher_forced_overlap(target, draft, ids, context, device)
        print("overlap", results["overlap"], flush=True)
    save(results, args, began)
    if not args.losses_only:
        n, new = args.prefix, args.new
        gammas = [int(g) for g in args.gammas.split(",")]
        ends = np.linspace(n, len(ids) - new, args.prompts).astype(int)
        plain = with_bos(ids, ends - (n - 1), n - 1).astype(np.int64)
        print("acceptance", flush=True)
        results["acceptance"] = acceptance(
            target, draft, plain, new, gammas, (0.6, 1.0, 0.0), device
        )
        save(results, args, began)
        newline = tokenizer.token_to_id("Ċ")
        heading = encode(tokenizer, [HEADING])[0]
        rng = np.random.default_rng(7)
        made = [
            with_return(ids, end, n, int(rng.integers(n // 8, n - n // 8)), 16, newline, heading)
            for end in ends
        ]
        prompts = np.stack([prompt for prompt, _ in made])
        expected = np.stack([following[:new] for _, following in made])
        print("acceptance on returning passages", flush=True)
        results["acceptance_returns"] = acceptance(
            target, draft, prompts, new, gammas, (0.6, 0.0), device, expected
        )
    save(results, args, began)


if __name__ == "__main__":
    main()
