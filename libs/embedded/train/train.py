"""Trains the embedded pair: the target from the novels, then the draft from the target.

    python3 train.py target --novels novels.tar.xz --out ..
    python3 train.py draft  --novels novels.tar.xz --out ..

writes OUT/target or OUT/draft (config.json, model.safetensors, tokenizer.json, ...). --novels is a
folder of .txt files or an archive of one. The first command also trains the tokenizer, unless
--tokenizer names one; the draft takes the target's. One GPU is assumed; --device
cpu runs anywhere (days), and --smoke runs three steps of each phase to see that all is well.

A run is a fixed number of steps, so it does not depend on the machine's speed. Seeds are fixed; the
attention's backward adds in no fixed order on a GPU, so two runs agree closely, not bit for bit.
"""

import argparse
import json
import os
import pickle
import queue
import threading
import time

import torch
from tokenizers import Tokenizer

from data import BOS, Corpus, Sampler, read_novels, split_novels, train_tokenizer
from model import DRAFT, TARGET, Config, Kernels, Llama, attention_backend
from muon import make_optimizers

# What differs between the two. Phases: (sequence length, share of the steps). Longer sequences come
# later because they cost more and little is learnt from far context before near context is known;
# they must come, because beyond the trained length the loss explodes.
RECIPES = {
    "target": dict(
        config=TARGET, steps=3700, batch_tokens=49152, muon_lr=5e-3, adam_lr=2.2e-3,
        weight_decay=0.5, constant=0.20, return_share=0.7,
        phases=[(2048, 0.40), (8192, 0.34), (16384, 0.26)],
    ),
    "draft": dict(
        config=DRAFT, steps=2600, batch_tokens=65536, muon_lr=6e-3, adam_lr=2.5e-3,
        weight_decay=0.3, constant=0.35, return_share=0.5,
        phases=[(2048, 0.60), (8192, 0.20), (16384, 0.20)],
    ),
}  # fmt: skip
WARM_UP_STEPS = 60


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("role", choices=["target", "draft"])
    parser.add_argument("--novels", required=True, help="folder or archive of the novels' .txt")
    parser.add_argument("--out", required=True, help="folder that receives target/ and draft/")
    parser.add_argument("--tokenizer", help="tokenizer.json to use instead of training one")
    parser.add_argument("--target", help="for the draft: the target's folder (default OUT/target)")
    parser.add_argument("--cache", help="file that keeps the tokenised corpus between runs")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--phases", help="such as 2048:0.40,8192:0.34,16384:0.26 (shares of steps)")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--muon-lr", type=float)
    parser.add_argument("--adam-lr", type=float)
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--copies", type=int, default=4, help="renamed copies of each novel")
    parser.add_argument("--renamed-share", type=float, default=0.5, help="of the sequences")
    parser.add_argument("--return-share", type=float, help="of the sequences")
    parser.add_argument("--overlap", type=float, default=0.8, help="draft: final weight, 0 is KL")
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--attention",
        choices=["cudnn", "flash", "default"],
        default="default",
        help="fused attention to use; cudnn is fastest on Hopper where torch has it",
    )
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="three steps a phase")
    return parser.parse_args()


def load_corpus(texts: list[str], tokenizer: Tokenizer, args) -> Corpus:
    if args.cache and os.path.exists(args.cache):
        with open(args.cache, "rb") as file:
            return pickle.load(file)
    corpus = Corpus.build(texts, tokenizer, args.copies, args.seed)
    if args.cache:
        with open(args.cache, "wb") as file:
            pickle.dump(corpus, file)
    return corpus


def plan_phases(args, recipe) -> list[tuple[int, int]]:
    """[(sequence length, steps)], shortest first."""
    steps = args.steps or recipe["steps"]
    shares = recipe["phases"]
    if args.phases:
        pairs = (part.split(":") for part in args.phases.split(","))
        shares = [(int(length), float(share)) for length, share in pairs]
    plan = [(length, round(share * steps)) for length, share in shares]
    if args.smoke:
        plan = [(length, 3) for length, _ in shares]
    return plan


def rate(step: int, total: int, constant: float) -> float:
    """Learning rate as a share of its peak: warm-up, constant, then linear to 0."""
    warm_up = min(WARM_UP_STEPS, total // 10 + 1)
    done = step / total
    falling = 1.0 if done <= constant else (1.0 - done) / (1.0 - constant)
    return min(1.0, (step + 1) / warm_up) * falling


def stream_batches(corpus: Corpus, plan, args):
    """Yields the (b, s + 1) batches of the whole plan, made ahead by a thread."""
    ready: queue.Queue = queue.Queue(maxsize=16)

    def work():
        try:
            for s, steps in plan:
                b = max(1, args.batch_tokens // s)
                sampler = Sampler(corpus, s, b, args.seed, args.renamed_share, args.return_share)
                for _ in range(steps):
                    batch = torch.from_numpy(sampler.batch())
                    ready.put(batch.pin_memory() if args.device == "cuda" else batch)
        except Exception as error:
            ready.put(error)

    threading.Thread(target=work, daemon=True).start()
    for _ in range(sum(steps for _, steps in plan)):
        batch = ready.get()
        if isinstance(batch, Exception):
            raise batch
        yield batch.to(args.device, non_blocking=True)


def target_loss(model, kernels, rows, dropout: float):
    x = model.hidden(rows[:, :-1], kernels, dropout)
    return kernels.cross_entropy(x, *model.head(), rows[:, 1:].reshape(-1), model.config.eps)


def draft_loss(model, teacher, kernels, rows, overlap_weight: float):
    with torch.no_grad():
        y = teacher.hidden(rows[:, :-1], kernels)
        wanted = kernels.to_logits(y, *teacher.head(), teacher.config.eps)
    x = model.hidden(rows[:, :-1], kernels)
    weight = torch.tensor(overlap_weight, device=rows.device)
    labels = rows[:, 1:].reshape(-1)
    return kernels.distillation(x, *model.head(), wanted, labels, weight, model.config.eps)[0]


def overlap_ramp(done: float, final: float) -> float:
    """KL alone for the first 35 % of the steps, then a straight rise to `final` at 70 %."""
    return final * min(1.0, max(0.0, (done - 0.35) / 0.35))


def train(model, teacher, corpus, plan, recipe, args) -> dict:
    """Runs the plan; returns the log."""
    kernels = Kernels(compiled=not args.no_compile and args.device == "cuda")
    optimizers = make_optimizers(model, args.muon_lr, args.adam_lr, args.weight_decay)
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    total = sum(steps for _, steps in plan)
    ends, end = [], 0
    for _, steps in plan:
        end += steps
        ends.append(end)
    log = {"losses": [], "seconds_by_phase": []}
    started = mark = time.time()
    smooth = None
    for step, rows in enumerate(stream_batches(corpus, plan, args)):
        if teacher is None:
            loss = target_loss(model, kernels, rows, args.dropout)
        else:
            loss = draft_loss(
                model, teacher, kernels, rows, overlap_ramp(step / total, args.overlap)
            )
        loss.backward()
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * rate(step, total, recipe["constant"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smooth = loss.detach() if smooth is None else torch.lerp(smooth, loss.detach(), 0.05)
        if step % 100 == 99 or step + 1 in ends or step == 0:
            value, seconds = smooth.item(), time.time() - started
            log["losses"].append([step + 1, round(value, 4), round(seconds, 1)])
            print(f"step {step + 1}/{total}  loss {value:.4f}  {seconds:.1f} s", flush=True)
        if step + 1 in ends:
            now = time.time()
            s, steps = plan[ends.index(step + 1)]
            log["seconds_by_phase"].append([s, steps, round(now - mark, 1)])
            speed = steps * rows.shape[0] * s / (now - mark)
            print(
                f"  length {s}: {steps} steps, {now - mark:.1f} s, {speed:.3g} tokens/s", flush=True
            )
            mark = now
    log["seconds"] = round(time.time() - started, 1)
    return log


def save_tokenizer(tokenizer: Tokenizer, folder: str, context: int) -> int:
    """tokenizer.json and the two small files that transformers looks for; returns BOS's id."""
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(f"{folder}/tokenizer.json")
    bos = tokenizer.token_to_id(BOS)
    for name, content in (
        (
            "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": BOS,
                "eos_token": BOS,
                "model_max_length": context,
                "clean_up_tokenization_spaces": False,
            },
        ),
        ("generation_config.json", {"bos_token_id": bos, "eos_token_id": bos}),
    ):
        with open(f"{folder}/{name}", "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
    return bos


def main():
    args = parse_arguments()
    recipe = RECIPES[args.role]
    for name in ("batch_tokens", "muon_lr", "adam_lr", "weight_decay", "return_share"):
        if getattr(args, name) is None:
            setattr(args, name, recipe[name])
    config: Config = recipe["config"]
    torch.manual_seed(args.seed)
    began = time.time()
    texts, _ = split_novels(read_novels(args.novels))
    texts = list(texts.values())
    teacher = None
    if args.role == "draft":
        source = args.target or f"{args.out}/target"
        teacher = Llama.load(source, args.device)
        tokenizer = Tokenizer.from_file(f"{source}/tokenizer.json")
    elif args.tokenizer:
        tokenizer = Tokenizer.from_file(args.tokenizer)
    else:
        tokenizer = train_tokenizer(texts)
    corpus = load_corpus(texts, tokenizer, args)
    plan = plan_phases(args, recipe)
    seen = sum(steps * max(1, args.batch_tokens // s) * s for s, steps in plan)
    print(
        f"{len(texts)} novels, {corpus.tokens} tokens; {seen} tokens to read, "
        f"{seen / corpus.tokens:.1f} passes; data ready after {time.time() - began:.1f} s",
        flush=True,
    )
    model = Llama(config).initialise(args.seed).to(args.device)
    print(f"{sum(w.numel() for w in model.parameters())} parameters", flush=True)
    with attention_backend(args.attention):
        log = train(model, teacher, corpus, plan, recipe, args)
    folder = f"{args.out}/{args.role}"
    bos = save_tokenizer(tokenizer, folder, config.context)
    model.save(folder, bos)
    log |= {
        "arguments": {
            k: v for k, v in vars(args).items() if k not in ("novels", "out", "target", "tokenizer")
        },
        "plan": plan,
        "corpus_tokens": corpus.tokens,
        "passes": round(seen / corpus.tokens, 2),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    with open(f"{args.out}/{args.role}-log.json", "w") as file:
        json.dump(log, file, indent=1)
        file.write("\n")
    print(f"wrote {folder}; {time.time() - began:.1f} s in all", flush=True)


if __name__ == "__main__":
    main()
