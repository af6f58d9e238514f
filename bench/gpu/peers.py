"""What the libraries under PyTorch reach at the shapes of `bench:kernels --device cuda`, on the same GPU.

python3 bench/gpu/peers.py [--out FILE] [filter ...]

Linear layers by cuBLAS and cuBLASLt, attention by cuDNN and FlashAttention-2, each as a CUDA graph over data that no cache
holds; of several ways to ask for the same result the fastest counts, and its name is kept. Rows carry the op and shape that
`bench:kernels` prints, for its --compare. About 40 s; 30 GB of GPU memory.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
HIDDEN, INTERMEDIATE, VOCAB = 4096, 14336, 128256
LAYERS = 16
REPLAYS = 7
DEVICE = "cuda"


def graph_us(calls, enqueue):
    """Microseconds of a call: the median over replays of a graph of `calls` calls, each after another replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(min(calls, 2)):
            enqueue(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            enqueue(i)
    samples = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / calls)
    del graph
    return samples


class Rows:
    """Collects rows; a variant that a library refuses is one that it does not have."""

    def __init__(self, filters):
        self.filters = filters
        self.rows = []

    def wanted(self, op, shape):
        return not self.filters or any(all(w in f"{op} {shape}" for w in f.split()) for f in self.filters)

    def add(self, op, shape, variants, **extra):
        if not self.wanted(op, shape):
            return
        best, refused = None, []
        for by, (calls, enqueue) in variants.items():
            try:
                samples = graph_us(calls, enqueue)
            except (RuntimeError, ValueError) as error:
                refused.append(f"{by}: {str(error).splitlines()[0][:80]}")
                torch.cuda.synchronize()
                continue
            if best is None or statistics.median(samples) < best["us"]:
                best = {"us": statistics.median(samples), "by": by, "samplesUs": samples}
        if best is None:
            print(f"{op} {shape}: {'; '.join(refused)}", file=sys.stderr)
            return
        self.rows.append({"op": op, "shape": shape, **best, **extra})
        print(f"{op} {shape}: {best['us']:.1f} us, {best['by']}", file=sys.stderr)


def normal(*shape, scale=1.0):
    return torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_(0, scale)


@contextlib.contextmanager
def blas(name):
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(name)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def linear_variants(weights, rows):
    """Each library, asked for x W^T and for W x^T, over sets of weights that are used one after the other."""
    inputs = [normal(rows, w.shape[1]) for w in weights[0]]

    def enqueue(library, transposed):
        def call(i):
            with blas(library):
                for x, w in zip(inputs, weights[i]):
                    torch.mm(w, x.t()) if transposed else F.linear(x, w)

        return call

    return {
        f"{library}{' W x^T' if transposed else ''}": (len(weights), enqueue(library, transposed))
        for library in ("cublas", "cublaslt")
        for transposed in (False, True)
    }


def linears(rows):
    shapes = {
        "qkv": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
        "o": (HIDDEN, HEADS * HEAD_DIM),
        "gate_up": (2 * INTERMEDIATE, HIDDEN),
        "down": (HIDDEN, INTERMEDIATE),
    }
    layers = [[normal(n, k, scale=0.02) for n, k in shapes.values()] for _ in range(LAYERS)]
    for m in (1, 8, 16, 32, 64, 128, 256, 512):
        rows.add("linear", f"layer m={m} 8b", linear_variants(layers, m))
        for i, name in enumerate(shapes):
            alone = [[layer[i]] for layer in layers]
            rows.add("linear", f"{name} m={m} 8b", linear_variants(alone, m))
    del layers
    heads = [[normal(VOCAB, HIDDEN, scale=0.02)] for _ in range(4)]
    for m in (1, 8, 32, 64, 128, 256):
        rows.add("linear", f"lm_head m={m} 8b", linear_variants(heads, m))


def attention_variants(k_pool, v_pool, batch, tokens, q_rows, causal=False):
    """
    cuDNN and FlashAttention-2, with query heads in groups, and with a group's heads as rows of one head (not causal then,
    which costs the same). Sets of K and V are taken from the pools one after the other.
    """
    elements = batch * KV_HEADS * tokens * HEAD_DIM
    sets = 1 if causal else max(1, min(LAYERS, k_pool.numel() // elements))
    cut = lambda pool, i: pool[i * elements : (i + 1) * elements].view(batch, KV_HEADS, tokens, HEAD_DIM)
    group = HEADS // KV_HEADS
    q = normal(batch, HEADS, q_rows, HEAD_DIM)
    packed = q.view(batch, KV_HEADS, group * q_rows, HEAD_DIM)

    def enqueue(backend, pack):
        def call(i):
            with sdpa_kernel(backend):
                k, v = cut(k_pool, i), cut(v_pool, i)
                if pack:
                    F.scaled_dot_product_attention(packed, k, v)
                else:
                    F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

        return call

    backends = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention-2": SDPBackend.FLASH_ATTENTION}
    return {
        f"{name}{' packed' if pack else ''}": (sets, enqueue(backend, pack))
        for name, backend in backends.items()
        for pack in ((False,) if causal else (False, True))
    }


def attentions(rows):
    k_pool, v_pool = (normal(4 * 524288 * KV_HEADS * HEAD_DIM) for _ in range(2))
    for q_rows in (1, 4, 8):
        for batch, tokens in ((32, 16384), (16, 32768), (4, 131072), (1, 16384), (1, 131072)):
            variants = attention_variants(k_pool, v_pool, batch, tokens, q_rows)
            rows.add("attention", f"q={q_rows} {batch}x{tokens} 8b", variants)
    for batch in (1, 8, 32):
        for budget in (513, 2049):
            variants = attention_variants(k_pool, v_pool, batch, budget, 1)
            rows.add("attention", f"draft view {budget} {batch}x16384 8b", variants)
    for tokens in (4096, 16384, 65536):
        variants = attention_variants(k_pool, v_pool, 1, tokens, tokens, causal=True)
        rows.add("attention", f"prefill 1x{tokens} 8b", variants)


def limits(rows):
    """Reading, copying and multiplying by themselves."""
    count = 1 << 31
    source = torch.empty(count, dtype=torch.int32, device=DEVICE).random_()
    rows.add("limit", "read 8.6 GB", {"torch amax": (1, lambda i: torch.amax(source))}, bytes=4 * count)
    target = torch.empty_like(source)
    rows.add("limit", "copy 8.6 GB", {"torch copy": (1, lambda i: target.copy_(source))}, bytes=8 * count)
    del source, target
    n = 8192
    rows.add("limit", f"gemm {n}^3", linear_variants([[normal(n, n)]], n), flops=2 * n**3)


def gpu_state():
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        values = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")
        return dict(zip(fields.split(","), values))
    except (OSError, subprocess.CalledProcessError):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="file for the JSON; standard output by default")
    parser.add_argument("filters", nargs="*", metavar="filter", help="only rows that contain all words of one of these")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("peers.py: expected a CUDA GPU that PyTorch can use, found none")
    rows = Rows(arguments.filters)
    started = time.time()
    for part in (limits, linears, attentions):
        part(rows)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    provenance = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python3", *sys.argv]),
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu": gpu_state(),
        "seconds": round(time.time() - started, 1),
    }
    text = json.dumps({"provenance": provenance, "rows": rows.rows}, indent=1)
    if arguments.out is None:
        print(text)
    else:
        with open(arguments.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
