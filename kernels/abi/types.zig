//! Every type that crosses the C ABI. Descriptors are extern structs without implicit padding; their sizes are
//! asserted at the end of this file, and their names, offsets and enum values enter `md_abi_hash`.
//!
//! Shapes in comments: b sequences, rows new tokens of all sequences together, r new rows of one sequence,
//! s tokens, h query heads, h_kv KV heads, d head dim, g gamma, v vocabulary.

pub const abi_version: u32 = 1;

/// What a call that can fail returns. The text is in `md_last_error()`.
pub const Status = enum(i32) {
    ok = 0,
    invalid_argument = 1,
    invalid_handle = 2,
    out_of_memory = 3,
    unsupported = 4,
    unavailable = 5,
    capture_violation = 6,
    io_error = 7,
    corrupt_file = 8,
    internal = 9,
};

/// `null` records every call and computes nothing; `cuda` needs an NVIDIA GPU and its driver.
pub const Backend = enum(u32) { null = 0, cpu = 1, cuda = 2 };

pub const DType = enum(u32) { f32 = 0, bf16 = 1, i32 = 2, u32 = 3, u8 = 4, f64 = 5 };

/// CPU instruction levels in one library; `auto` takes the best that the machine has, or MAGICDEC_CPU_LEVEL.
pub const CpuLevel = enum(u32) { auto = 0, baseline = 1, v3 = 2, v4 = 3, v4_bf16 = 4 };

pub const MemoryKind = enum(u32) {
    /// Where ops compute.
    device = 0,
    /// Readable by the host while the device writes it (pinned on a GPU, the same memory on a CPU).
    host = 1,
};

/// How a weight's bytes are laid out. `packed_bf16` is the backend's own order, made by `md_weight_pack`.
pub const WeightFormat = enum(u32) { packed_bf16 = 0 };

pub const Epilogue = enum(u32) {
    none = 0,
    /// Weight rows hold gate then up (2 n of them); out (rows, n) = silu(gate) * up.
    silu_mul = 1,
};

pub const Pooling = enum(u32) { average = 0, max = 1 };

pub const AcceptRule = enum(u32) {
    /// Accept while the draft equals the target's own choice for that position (greedy, and coupled sampling).
    match = 0,
    /// Rejection sampling with the residual distribution (Leviathan et al. 2211.17192, Chen et al. 2302.01318).
    rejection = 1,
};

/// Philox streams. Under `rejection` the draft's, the accept and the recovery draws must be disjoint; coupled
/// sampling shares `target` between draft and target on purpose.
pub const NoiseStream = enum(u32) { target = 0, draft = 1, accept = 2, recovery = 3 };

pub const ProbeKind = enum(u32) {
    /// GB/s of plain reads by all threads.
    read_bandwidth = 0,
    /// GFLOP/s of bf16: the level's pair dot product by all threads, operands in registers; a GPU's matrix units.
    dot_peak = 1,
    /// GFLOP/s of fp32 fused multiply-add, all threads.
    fma_peak = 2,
};

/// A dense row-major array in device memory. `data == 0` means absent where a field says optional.
/// Only the first `rank` entries of `shape` count; the others must be 0.
pub const Tensor = extern struct {
    data: u64 = 0,
    shape: [4]u32 = .{ 0, 0, 0, 0 },
    rank: u32 = 0,
    dtype: DType = .f32,
};

/// A paged KV store. Logically (layers, pages, 2, h_kv, page_size, d) bf16; the order inside one
/// (layer, page, k or v, head) block of page_size * d elements is the backend's own.
pub const KvCache = extern struct {
    data: u64 = 0,
    layers: u32 = 0,
    pages: u32 = 0,
    page_size: u32 = 0,
    kv_heads: u32 = 0,
    head_dim: u32 = 0,
    dtype: DType = .bf16,
};

/// A linear layer's weight, logically (n, k).
pub const Weight = extern struct {
    data: u64 = 0,
    bytes: u64 = 0,
    n: u32 = 0,
    k: u32 = 0,
    format: WeightFormat = .packed_bf16,
    reserved: u32 = 0,
};

pub const ContextDesc = extern struct {
    backend: Backend = .cpu,
    /// 0 is the only CPU; of the GPUs, as CUDA_VISIBLE_DEVICES counts them.
    device: u32 = 0,
    /// CPU: 0 takes all cores that the process may use.
    threads: u32 = 0,
    level: CpuLevel = .auto,
};

/// What does not apply to a device is 0, or empty.
pub const DeviceInfo = extern struct {
    total_memory: u64 = 0,
    available_memory: u64 = 0,
    /// Second-level cache of a GPU.
    l2_bytes: u64 = 0,
    threads: u32 = 0,
    level: CpuLevel = .auto,
    /// f32 lanes of one vector.
    lanes: u32 = 0,
    /// 1 where a bf16 dot-product instruction is used.
    bf16_dot: u32 = 0,
    /// 10 * major + minor: 90 stands for 9.0.
    compute_capability: u32 = 0,
    multiprocessors: u32 = 0,
    /// The newest CUDA version that the driver runs: 13000 stands for 13.0.
    driver_version: u32 = 0,
    reserved: u32 = 0,
    /// A GPU's name, UTF-8, zeros behind it.
    name: [64]u8 = @splat(0),
};

/// What md_memory_alloc gives: `address` for ops and copies, `handle` to free it.
pub const Allocation = extern struct {
    address: u64 = 0,
    handle: u32 = 0,
    reserved: u32 = 0,
};

/// Gathers rows: out[i] = table[ids[i]]. Embedding, and picking the rows whose logits are wanted.
pub const EmbeddingDesc = extern struct {
    /// (v, n) bf16
    table: Tensor,
    /// (b, r) i32; element (i, j) is at i * ids_stride + j, so a column range of a wider array can be read
    ids: Tensor,
    /// (b * r, n) bf16
    out: Tensor,
    ids_stride: u32,
    reserved: u32 = 0,
};

/// out = x * rsqrt(mean(x^2) + eps) * weight, after x += delta where delta is given (x is then updated in place).
pub const RmsNormDesc = extern struct {
    /// (rows, n) bf16
    x: Tensor,
    /// optional (rows, n) bf16
    delta: Tensor,
    /// (n) bf16
    weight: Tensor,
    /// (rows, n) bf16
    out: Tensor,
    eps: f32,
    reserved: u32 = 0,
};

/// out = epilogue(x weight^T + bias) + residual. A row's bits do not depend on the number of rows.
pub const LinearDesc = extern struct {
    /// (rows, k) bf16
    x: Tensor,
    weight: Weight,
    /// optional (n) bf16
    bias: Tensor,
    /// optional (rows, n) bf16, may be `out` itself
    residual: Tensor,
    /// (rows, n) bf16 or f32; (rows, n / 2) with silu_mul
    out: Tensor,
    epilogue: Epilogue,
    reserved: u32 = 0,
};

/// Packs rows of a row-major weight into a packed weight. `file` 0 reads `source` as device memory, otherwise
/// the bytes at `offset` of that mapped file.
pub const PackDesc = extern struct {
    /// source.shape (rows, k), dtype bf16 or f32 (rounded to nearest even); source.data is used where file is 0
    source: Tensor,
    offset: u64,
    weight: Weight,
    /// first row of the packed weight that is written, so that q, k, v share one weight
    row_offset: u32,
    file: u32,
};

/// cos and sin of each row: angle = position * inv_freq, times `scale`.
pub const RopeTableDesc = extern struct {
    /// (rows) i32
    positions: Tensor,
    /// (d / 2) f32
    inv_freq: Tensor,
    /// (rows, d) f32: d / 2 cosines, then d / 2 sines
    out: Tensor,
    scale: f32,
    /// 0, or clamp positions to at most this - 1 (in-cache positions of a streaming view of that many tokens)
    view_tokens: u32,
};

/// Splits qkv, rotates q and k (half-split pairs, as in Hugging Face Llama), appends k and v to the paged cache.
pub const RopeAppendDesc = extern struct {
    /// (rows, (h + 2 h_kv) * d) bf16
    qkv: Tensor,
    /// (rows, d) f32 from md_rope_table
    rope: Tensor,
    /// optional (rows, d) f32: the rotation of the query that meets the sinks
    rope_sink: Tensor,
    /// (rows, h, d) bf16
    q: Tensor,
    /// optional (rows, h, d) bf16, with rope_sink
    q_sink: Tensor,
    /// (rows) i32 sequence of each row; -1 is a padding row, which is skipped
    row_seq: Tensor,
    /// (rows) i32 position of each row, which is also its place in the cache
    positions: Tensor,
    /// (b, max_pages) i32
    block_table: Tensor,
    cache: KvCache,
    layer: u32,
    reserved: u32 = 0,
};

/// Attention of the new rows over a paged cache that already holds their own k and v; causal by position.
/// Row i of sequence s (its q_start[s] + i) stands at position kv_len[s] - (q_start[s+1] - q_start[s]) + i = p and reads, of the
/// main cache, tokens [start, p], and besides them a prefix:
///  - window == 0, no prefix cache: start = 0 (full attention);
///  - window > 0 (a view): where p + 1 > sinks + window, start = p + 1 - window and tokens [0, sinks) of the same cache are read with
///    q_sink (q where absent); otherwise start = 0;
///  - prefix_cache given: start = tail_start[s], and tokens [0, prefix_len[s]) of the prefix cache are read with q;
///  - indices given (prefix_cache absent): start = tail_start[s], and tokens indices[s, kv head, 0 .. prefix_len[s]) of the main
///    cache are read with q.
/// KV is cut at multiples of a constant chunk length of each source and partials are merged in a fixed order, so a row's bits depend on
/// nothing but its own inputs.
pub const AttentionDesc = extern struct {
    /// (rows, h, d) bf16
    q: Tensor,
    /// optional (rows, h, d) bf16
    q_sink: Tensor,
    /// (rows, h, d) bf16
    out: Tensor,
    /// (b + 1) i32
    q_start: Tensor,
    /// (b) i32, new rows included; 0 where a sequence has no row
    kv_len: Tensor,
    /// (b, max_pages) i32
    block_table: Tensor,
    /// optional (b, max_prefix_pages) i32
    prefix_table: Tensor,
    /// optional (b) i32
    prefix_len: Tensor,
    /// optional (b) i32
    tail_start: Tensor,
    /// optional (b, h_kv, n) i32, ascending
    indices: Tensor,
    /// (bytes) u8 from md_attention_workspace; 64-byte aligned
    workspace: Tensor,
    cache: KvCache,
    prefix_cache: KvCache,
    layer: u32,
    prefix_layer: u32,
    sinks: u32,
    window: u32,
    scale: f32,
    reserved: u32 = 0,
};

/// out = silu(gate) * up, where gate_up holds gate then up in each row.
pub const SiluMulDesc = extern struct {
    /// (rows, 2 n) bf16
    gate_up: Tensor,
    /// (rows, n) bf16
    out: Tensor,
};

/// out = a + b, elementwise, bf16; out may be a or b.
pub const AddDesc = extern struct { a: Tensor, b: Tensor, out: Tensor };

/// out = source in another dtype (bf16 to f32, f32 to bf16 by nearest even).
pub const CastDesc = extern struct { source: Tensor, out: Tensor };

/// Copies `count` runs of `bytes` bytes; run i from source + i * source_stride to out + i * out_stride.
pub const CopyDesc = extern struct {
    source: u64,
    out: u64,
    bytes: u64,
    source_stride: u64,
    out_stride: u64,
    count: u32,
    reserved: u32 = 0,
};

/// From the lengths: positions[s * r + i] = lens[s] + offset + i and kv_len[s] = lens[s] + offset + r.
pub const PositionsDesc = extern struct {
    /// (b) i32 tokens whose KV is exact
    lens: Tensor,
    /// (b * r) i32
    positions: Tensor,
    /// (b) i32
    kv_len: Tensor,
    offset: i32,
    reserved: u32 = 0,
};

/// Keeps the last queries of each sequence for SnapKV: out[s, position % ring] = q[row].
pub const KeepQueriesDesc = extern struct {
    /// (rows, h, d) bf16
    q: Tensor,
    /// (rows) i32, -1 is skipped
    row_seq: Tensor,
    /// (rows) i32
    positions: Tensor,
    /// (b, ring, h, d) bf16
    out: Tensor,
};

/// SnapKV scores: softmax(scale q k^T), causal, of the last `window` queries of each sequence (from the ring of KeepQueriesDesc, positions
/// len - window .. len - 1), summed over these queries and the GQA group, for context tokens [0, len - window).
pub const SnapScoreDesc = extern struct {
    /// (b, ring, h, d) bf16
    queries: Tensor,
    /// (b) i32 tokens in the cache
    lens: Tensor,
    /// (b, max_pages) i32
    block_table: Tensor,
    /// (b, h_kv, max_tokens) f32; entries from len - window on are not written
    scores: Tensor,
    cache: KvCache,
    layer: u32,
    window: u32,
    scale: f32,
    reserved: u32 = 0,
};

/// Pools the scores along the tokens, takes the `budget - window` best of each KV head (ties: the earlier token) and writes them ascending.
/// prefix_len[s] = min(budget - window, max(len - window, 0)), tail_start[s] = max(len - window, 0); where len <= budget: prefix_len = 0
/// and tail_start = 0 (the whole cache is read).
pub const SnapSelectDesc = extern struct {
    /// (b, h_kv, max_tokens) f32
    scores: Tensor,
    /// (b) i32
    lens: Tensor,
    /// (b, h_kv, n) i32
    indices: Tensor,
    /// (b) i32
    prefix_len: Tensor,
    /// (b) i32
    tail_start: Tensor,
    /// (b, h_kv, max_tokens) f32 scratch
    pooled: Tensor,
    budget: u32,
    window: u32,
    kernel: u32,
    pooling: Pooling,
};

/// Copies the selected tokens' k and v into a compact cache: token indices[s, head, i] of `source` becomes token i of `out`.
pub const GatherKvDesc = extern struct {
    /// (b, h_kv, n) i32
    indices: Tensor,
    /// (b) i32
    prefix_len: Tensor,
    /// (b, max_pages) i32
    source_table: Tensor,
    /// (b, max_pages) i32
    out_table: Tensor,
    source: KvCache,
    out: KvCache,
    source_layer: u32,
    out_layer: u32,
};

/// How one sequence samples; temperature 0 is greedy. `sequence` and the seed key the noise, with the position.
pub const SamplingParams = extern struct {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    /// 0 keeps all
    top_k: u32,
    seed_low: u32,
    seed_high: u32,
    sequence: u32,
    reserved: u32 = 0,
};

/// Draws a token from each row: argmax(logits / temperature + Gumbel noise) over what top-k, top-p and min-p leave (Gumbel-max, which draws
/// from exactly that softmax). Noise is Philox4x32-10 keyed by (seed, sequence, position of the drawn token, stream, vocabulary entry).
pub const SampleDesc = extern struct {
    /// (b * r, v) f32
    logits: Tensor,
    /// (b, 8) u32: SamplingParams of each sequence; row i belongs to sequence i / r
    params: Tensor,
    /// (b * r) i32: position of each row's input token; the drawn token stands at this + 1
    positions: Tensor,
    /// (b, r) i32; element (i, j) is written at i * out_stride + j
    out: Tensor,
    /// optional (b, r, v) f32: the distribution drawn from, element (i, j) at (i * probs_stride + j) * v (rejection needs the draft's)
    probs: Tensor,
    out_stride: u32,
    probs_stride: u32,
    stream: NoiseStream,
    reserved: u32 = 0,
};

/// Decides how many drafted tokens stand and moves each sequence on, on the device. With chain (b, g + 2) = [previous, current, d1 .. dg]:
/// count n in 1 .. g + 1, out[s, 0 .. n) the emitted tokens (entries from n on are -1), lens[s] += n, chain[s, 0] = token before the last
/// emitted one, chain[s, 1] = last emitted. A sequence with active[s] == 0 is left alone, with count 0.
pub const AcceptDesc = extern struct {
    /// (b, g + 2) i32, row stride g + 2, in and out
    chain: Tensor,
    /// match: (b, g + 1) i32, the target's choice after each chain token from the current one on
    target_tokens: Tensor,
    /// rejection: (b * (g + 1), v) f32
    target_logits: Tensor,
    /// rejection: (b, g, v) f32 from SampleDesc.probs
    draft_probs: Tensor,
    /// (b, 8) u32 SamplingParams
    params: Tensor,
    /// (b) i32
    active: Tensor,
    /// (b) i32 in and out
    lens: Tensor,
    /// (b) i32
    count: Tensor,
    /// (b, g + 1) i32
    out: Tensor,
    rule: AcceptRule,
    reserved: u32 = 0,
};

/// Appends a record to a ring that the host reads: ring[counter % slots] = record, counter += 1.
pub const PublishDesc = extern struct {
    /// (bytes) u8
    record: Tensor,
    /// (slots, bytes) u8
    ring: Tensor,
    /// (1) u32
    counter: Tensor,
};

comptime {
    const assert = @import("std").debug.assert;
    assert(@sizeOf(Tensor) == 32);
    assert(@sizeOf(KvCache) == 32);
    assert(@sizeOf(Weight) == 32);
    assert(@sizeOf(SamplingParams) == 32);
    assert(@sizeOf(EmbeddingDesc) == 3 * 32 + 8);
    assert(@sizeOf(RmsNormDesc) == 4 * 32 + 8);
    assert(@sizeOf(LinearDesc) == 5 * 32 + 8);
    assert(@sizeOf(PackDesc) == 2 * 32 + 16);
    assert(@sizeOf(RopeTableDesc) == 3 * 32 + 8);
    assert(@sizeOf(RopeAppendDesc) == 9 * 32 + 8);
    assert(@sizeOf(AttentionDesc) == 13 * 32 + 24);
    assert(@sizeOf(CopyDesc) == 48);
    assert(@sizeOf(PositionsDesc) == 3 * 32 + 8);
    assert(@sizeOf(SnapScoreDesc) == 5 * 32 + 16);
    assert(@sizeOf(SnapSelectDesc) == 6 * 32 + 16);
    assert(@sizeOf(GatherKvDesc) == 6 * 32 + 8);
    assert(@sizeOf(SampleDesc) == 5 * 32 + 16);
    assert(@sizeOf(AcceptDesc) == 9 * 32 + 8);
    assert(@sizeOf(PublishDesc) == 3 * 32);
}
