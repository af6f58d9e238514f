// Attention over the paged cache on any GPU from sm_80 on, in every form of AttentionDesc: what the Hopper kernels
// decline. A block takes one row and one KV head and walks through its tokens in order, in tiles of 64 from the start of
// each source, so a row's bits depend on nothing but the row.
#include "layout.cuh"

namespace md {

struct AttentionPortableParams {
  const bf16* q;               // (rows, h, d)
  const bf16* q_sink;          // optional (rows, h, d)
  bf16* out;                   // (rows, h, d)
  const int32_t* q_start;      // (b + 1)
  const int32_t* kv_len;       // (b)
  const int32_t* block_table;  // (b, max_pages)
  const int32_t* prefix_table; // optional (b, max_prefix_pages)
  const int32_t* prefix_len;   // optional (b)
  const int32_t* tail_start;   // optional (b)
  const int32_t* indices;      // optional (b, h_kv, index_stride)
  KvCache cache, prefix_cache;
  uint32_t layer, prefix_layer, sinks, window;
  uint32_t sequences, heads, max_pages, max_prefix_pages, index_stride;
  float scale_log2;
};
static_assert(sizeof(AttentionPortableParams) == 184);

constexpr int kThreads = 128;
constexpr int kTile = 64;
constexpr int kGroup = 8;  // query heads of one KV head, at most
constexpr int kMaxDim = 256;

/// Tokens [begin, end) of one source, read with one query.
struct Source {
  KvCache cache;
  uint32_t layer;
  const int32_t* table;
  const int32_t* list;  // token i is list[i]; null: i itself
  uint32_t begin, end;
};

struct Shared {
  float q[kGroup][kMaxDim];  // scaled by scale * log2(e)
  float p[kGroup][kTile];
  float keep[kGroup];  // what earlier sums are multiplied by
  float maximum[kGroup], total[kGroup];
  uint32_t page[kTile], token[kTile];  // where the tile's tokens lie
};

__device__ __forceinline__ void load_query(const AttentionPortableParams& p, Shared& s, const bf16* q, uint32_t row,
                                           uint32_t head, uint32_t group) {
  const uint32_t d = p.cache.head_dim;
  const bf16* from = q + (uint64_t(row) * p.heads + head * group) * d;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < group * d; i += kThreads) {
    s.q[i / d][i % d] = __bfloat162float(from[i]) * p.scale_log2;
  }
}

/// Scores of one tile; those beyond its end are minus infinity.
__device__ __forceinline__ void score_tile(Shared& s, const Source& source, uint32_t head, uint32_t group,
                                           uint32_t tokens) {
  const uint32_t t = threadIdx.x % kTile, d = source.cache.head_dim;
  const bf16* k = t < tokens ? kv_block(source.cache, source.layer, s.page[t], 0, head) : nullptr;
  for (uint32_t g = threadIdx.x / kTile; g < group; g += kThreads / kTile) {
    float sum = 0;
    for (uint32_t i = 0; k != nullptr && i < d; i += 8) {
      const uint4 eight = *reinterpret_cast<const uint4*>(k + kv_offset(s.token[t], i, d));
      const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum = fmaf(low_bf16(words[j]), s.q[g][i + 2 * j], sum);
        sum = fmaf(high_bf16(words[j]), s.q[g][i + 2 * j + 1], sum);
      }
    }
    s.p[g][t] = k == nullptr ? -INFINITY : sum;
  }
}

/// Turns scores into weights (bf16, as they meet V elsewhere too) and moves maximum and total on. A warp a head.
__device__ __forceinline__ void weigh_tile(Shared& s, uint32_t group) {
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t g = threadIdx.x / 32; g < group; g += kThreads / 32) {
    const float a = s.p[g][lane], b = s.p[g][lane + 32];
    float top = fmaxf(a, b);
    for (int offset = 16; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
    const float before = s.maximum[g], now = fmaxf(before, top);
    const float wa = __bfloat162float(__float2bfloat16(exp2_approx(a - now)));
    const float wb = __bfloat162float(__float2bfloat16(exp2_approx(b - now)));
    s.p[g][lane] = wa;
    s.p[g][lane + 32] = wb;
    float sum = wa + wb;
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    __syncwarp();
    if (lane == 0) {
      const float keep = exp2_approx(before - now);
      s.keep[g] = keep;
      s.maximum[g] = now;
      s.total[g] = s.total[g] * keep + sum;
    }
    __syncwarp();
  }
}

/// out (group, d): two neighbouring columns a thread.
__device__ __forceinline__ void read_source(Shared& s, const Source& source, uint32_t head, uint32_t group,
                                            float (&out)[kGroup][2]) {
  const uint32_t d = source.cache.head_dim, page_size = source.cache.page_size, column = threadIdx.x * 2;
  for (uint32_t at = source.begin; at < source.end; at += kTile) {
    const uint32_t tokens = min(uint32_t(kTile), source.end - at);
    __syncthreads();
    if (threadIdx.x < tokens) {
      const uint32_t i = at + threadIdx.x, token = source.list == nullptr ? i : source.list[i];
      s.page[threadIdx.x] = source.table[token / page_size];
      s.token[threadIdx.x] = token % page_size;
    }
    __syncthreads();
    score_tile(s, source, head, group, tokens);
    __syncthreads();
    weigh_tile(s, group);
    __syncthreads();
    if (column >= d) continue;
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (g < group) out[g][0] *= s.keep[g], out[g][1] *= s.keep[g];
    }
    for (uint32_t t = 0; t < tokens; ++t) {
      const bf16* v = kv_block(source.cache, source.layer, s.page[t], 1, head);
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(v + kv_offset(s.token[t], column, d));
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        if (g >= group) continue;
        out[g][0] = fmaf(s.p[g][t], low_bf16(pair), out[g][0]);
        out[g][1] = fmaf(s.p[g][t], high_bf16(pair), out[g][1]);
      }
    }
  }
}

/// The sequence of a row: the one with q_start[s] <= row < q_start[s + 1]; `sequences` for a padding row.
__device__ __forceinline__ uint32_t sequence_of(const AttentionPortableParams& p, uint32_t row) {
  if (row >= p.q_start[p.sequences]) return p.sequences;
  uint32_t low = 0, high = p.sequences;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (p.q_start[middle] <= row ? low : high) = middle;
  }
  return low;
}

// Left to itself the compiler takes few registers and spills.
extern "C" __global__ void __launch_bounds__(kThreads, 4)
    md_attention_portable(const __grid_constant__ AttentionPortableParams p) {
  __shared__ Shared s;
  launch_dependents();
  wait_prior();
  const uint32_t row = blockIdx.x, head = blockIdx.y, d = p.cache.head_dim, group = p.heads / p.cache.kv_heads;
  const uint32_t seq = sequence_of(p, row);
  if (seq == p.sequences) return;
  const uint32_t length = p.kv_len[seq], position = length - (p.q_start[seq + 1] - row);
  if (threadIdx.x < kGroup) s.maximum[threadIdx.x] = -3.0e38f, s.total[threadIdx.x] = 0;
  float out[kGroup][2] = {};
  const int32_t* table = p.block_table + uint64_t(seq) * p.max_pages;
  uint32_t start = 0;
  if (p.window > 0 && position + 1 > p.sinks + p.window) {
    start = position + 1 - p.window;
    load_query(p, s, p.q_sink != nullptr ? p.q_sink : p.q, row, head, group);
    read_source(s, {p.cache, p.layer, table, nullptr, 0, p.sinks}, head, group, out);
  }
  load_query(p, s, p.q, row, head, group);
  if (p.prefix_len != nullptr) {
    start = p.tail_start[seq];
    const uint32_t count = p.prefix_len[seq];
    if (p.indices != nullptr) {
      const int32_t* list = p.indices + (uint64_t(seq) * p.cache.kv_heads + head) * p.index_stride;
      read_source(s, {p.cache, p.layer, table, list, 0, count}, head, group, out);
    } else {
      const int32_t* prefix = p.prefix_table + uint64_t(seq) * p.max_prefix_pages;
      read_source(s, {p.prefix_cache, p.prefix_layer, prefix, nullptr, 0, count}, head, group, out);
    }
  }
  read_source(s, {p.cache, p.layer, table, nullptr, start, position + 1}, head, group, out);
  __syncthreads();
  const uint32_t column = threadIdx.x * 2;
  if (column >= d) return;
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    if (g >= group) continue;
    auto* to = reinterpret_cast<uint32_t*>(p.out + (uint64_t(row) * p.heads + head * group + g) * d + column);
    *to = pack_bf16(out[g][0] / s.total[g], out[g][1] / s.total[g]);
  }
}

}  // namespace md
