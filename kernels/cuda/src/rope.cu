// Rotary embedding, the append to the paged cache, and what else moves whole heads of tokens. The swizzled pages of
// layout.cuh keep chunks of 8 head-dim values together, so everything here moves 16 bytes at a time.
#include "eight.cuh"
#include "layout.cuh"

namespace md {

// ---- rope_table ------------------------------------------------------------------------------------------------

struct RopeTableParams {
  const int32_t* positions;  // (rows)
  const float* inv_freq;     // (half)
  float* out;                // (rows, 2 half): cosines, then sines
  uint32_t half;
  float scale;
  uint32_t view_tokens;
  uint32_t reserved;
};
static_assert(sizeof(RopeTableParams) == 40);

/// cos and sin, right to the last bit or so of fp32 at every angle that positions give: a multiple of pi / 2 is taken
/// off in fp64 (pi / 2 in two parts, exact products by fma), and the Taylor series end below 1e-11.
__device__ __forceinline__ float2 cos_sin(float angle) {
  constexpr double kHalfPi = 0x1.921fb54442d18p+0, kHalfPiRest = 0x1.1a62633145c07p-54;
  const double x = angle, quadrant = rint(x * 0x1.45f306dc9c883p-1);
  const double r = fma(-quadrant, kHalfPiRest, fma(-quadrant, kHalfPi, x)), r2 = r * r;
  double sin = -1.0 / 39916800, cos = 1.0 / 479001600;
  sin = fma(sin, r2, 1.0 / 362880), cos = fma(cos, r2, -1.0 / 3628800);
  sin = fma(sin, r2, -1.0 / 5040), cos = fma(cos, r2, 1.0 / 40320);
  sin = fma(sin, r2, 1.0 / 120), cos = fma(cos, r2, -1.0 / 720);
  sin = fma(sin, r2, -1.0 / 6), cos = fma(cos, r2, 1.0 / 24);
  sin = fma(sin * r2, r, r), cos = fma(fma(cos, r2, -0.5), r2, 1.0);
  const int q = static_cast<int>(quadrant) & 3;
  const float turned_cos = static_cast<float>(q & 1 ? sin : cos), turned_sin = static_cast<float>(q & 1 ? cos : sin);
  return {q == 1 || q == 2 ? -turned_cos : turned_cos, q & 2 ? -turned_sin : turned_sin};
}

/// A thread makes one angle of a row, an fp32 product as in Hugging Face transformers.
__device__ __forceinline__ void rope_table(const RopeTableParams& p) {
  const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
  const float frequency = i < p.half ? p.inv_freq[i] : 0.0f;
  wait_prior();
  if (i >= p.half) return;
  int32_t position = p.positions[blockIdx.x];
  if (p.view_tokens > 0) position = static_cast<int32_t>(min(int64_t(position), int64_t(p.view_tokens) - 1));
  const float2 turn = cos_sin(static_cast<float>(position) * frequency);
  float* row = p.out + uint64_t(blockIdx.x) * 2 * p.half;
  row[i] = turn.x * p.scale;
  row[p.half + i] = turn.y * p.scale;
}

// ---- rope_append -----------------------------------------------------------------------------------------------

struct RopeAppendParams {
  KvCache cache;
  const bf16* qkv;             // (rows, (h + 2 h_kv) d)
  const float* rope;           // (rows, d): d / 2 cosines, then d / 2 sines
  const float* rope_sink;      // the same, with q_sink
  bf16* q;                     // (rows, h, d)
  bf16* q_sink;                // (rows, h, d) or null
  const int32_t* row_seq;      // (rows), -1 skips the row
  const int32_t* positions;    // (rows)
  const int32_t* block_table;  // (sequences, max_pages)
  uint32_t heads, sequences, max_pages, layer;
  uint32_t vector;  // all of these but the cache, which always is, are 16-byte aligned
  uint32_t reserved;
};
static_assert(sizeof(RopeAppendParams) == 32 + 8 * 8 + 24);

/// 8 pairs (i, i + d / 2) of one head.
struct Pairs {
  uint4 low, high;
};

template <bool kVector>
__device__ __forceinline__ Pairs rotate(const Pairs& x, const float* rope, uint32_t i, uint32_t half) {
  float cos[8], sin[8], a[8], b[8], low[8], high[8];
  load_eight<kVector>(cos, rope + i);
  load_eight<kVector>(sin, rope + half + i);
  unpack_eight(a, x.low);
  unpack_eight(b, x.high);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    // Spelt out, so that every instance rounds alike.
    low[j] = fmaf(a[j], cos[j], -(b[j] * sin[j]));
    high[j] = fmaf(b[j], cos[j], a[j] * sin[j]);
  }
  return {pack_eight(low), pack_eight(high)};
}

template <bool kVector>
__device__ __forceinline__ void store_pairs(bf16* head, const Pairs& x, uint32_t i, uint32_t half) {
  store_eight<kVector>(head + i, x.low);
  store_eight<kVector>(head + half + i, x.high);
}

/// Writes pairs of a token's k or v to its page; a position that no page stands behind is dropped.
__device__ __forceinline__ void append_pairs(const RopeAppendParams& p, uint32_t sequence, uint32_t position,
                                             uint32_t is_v, uint32_t head, const Pairs& x, uint32_t i) {
  const uint32_t d = p.cache.head_dim, slot = position / p.cache.page_size;
  if (sequence >= p.sequences || slot >= p.max_pages) return;
  const uint32_t page = static_cast<uint32_t>(p.block_table[uint64_t(sequence) * p.max_pages + slot]);
  if (page >= p.cache.pages) return;
  bf16* block = kv_block(p.cache, p.layer, page, is_v, head);
  const uint32_t token = position % p.cache.page_size;
  store_eight<true>(block + kv_offset(token, i, d), x.low);
  store_eight<true>(block + kv_offset(token, d / 2 + i, d), x.high);
}

/// A thread takes 8 pairs of one head of one row; heads are those of q, then k, then v. What a row needs is loaded
/// before it is known whether the row is padding: one memory latency less.
template <bool kVector>
__device__ __forceinline__ void rope_append(const RopeAppendParams& p) {
  const uint32_t d = p.cache.head_dim, half = d / 2, units = half / 8;
  const uint32_t unit = blockIdx.y * blockDim.x + threadIdx.x;
  const uint32_t head = unit / units, i = unit % units * 8;
  const uint32_t first_v = p.heads + p.cache.kv_heads;
  const uint64_t row = blockIdx.x;
  wait_prior();
  if (head >= first_v + p.cache.kv_heads) return;
  const int32_t sequence = p.row_seq[row];
  const uint32_t position = static_cast<uint32_t>(p.positions[row]);
  const bf16* from = p.qkv + (row * (first_v + p.cache.kv_heads) + head) * d;
  const Pairs x = {load_eight<kVector>(from + i), load_eight<kVector>(from + half + i)};
  if (head >= first_v) {
    if (sequence >= 0) append_pairs(p, sequence, position, 1, head - first_v, x, i);
    return;
  }
  const Pairs rotated = rotate<kVector>(x, p.rope + row * d, i, half);
  if (sequence < 0) return;
  if (head >= p.heads) return append_pairs(p, sequence, position, 0, head - p.heads, rotated, i);
  const uint64_t q_head = (row * p.heads + head) * d;
  store_pairs<kVector>(p.q + q_head, rotated, i, half);
  if (p.q_sink == nullptr) return;
  store_pairs<kVector>(p.q_sink + q_head, rotate<kVector>(x, p.rope_sink + row * d, i, half), i, half);
}

// ---- keep_queries ----------------------------------------------------------------------------------------------

struct KeepQueriesParams {
  const void* q;             // (rows, units)
  const int32_t* row_seq;    // (rows), -1 is skipped
  const int32_t* positions;  // (rows)
  void* out;                 // (b, ring, units)
  uint32_t rows, ring, units;
  uint32_t reserved;
};
static_assert(sizeof(KeepQueriesParams) == 48);

constexpr uint32_t kKeepThreads = 256, kKeepWarps = kKeepThreads / 32;
constexpr uint32_t kKeepSpan = 128;    // units of a row that a block copies
constexpr uint32_t kKeepSlots = 1024;  // slots of the ring that are looked at together

/// The last position among this sequence's rows, -1 where it has none.
__device__ __forceinline__ int32_t last_position(const KeepQueriesParams& p, int32_t sequence) {
  __shared__ int32_t warp_last[kKeepWarps];
  int32_t last = -1;
  for (uint32_t row = threadIdx.x; row < p.rows; row += kKeepThreads) {
    const int32_t position = p.positions[row];
    if (p.row_seq[row] == sequence) last = max(last, position);
  }
  last = __reduce_max_sync(0xffffffffu, last);
  if (threadIdx.x % 32 == 0) warp_last[threadIdx.x / 32] = last;
  __syncthreads();
#pragma unroll
  for (uint32_t warp = 0; warp < kKeepWarps; ++warp) last = max(last, warp_last[warp]);
  return last;
}

/// A block copies kKeepSpan units of each kept row of one sequence. Rows of a prefill longer than the ring fall into
/// the same slots: only those of the last `ring` positions are kept, so nothing depends on the order of rows.
template <typename Unit>
__device__ __forceinline__ void keep_queries(const KeepQueriesParams& p) {
  __shared__ int32_t slot_row[kKeepSlots];
  const int32_t sequence = blockIdx.x;
  const uint32_t warp = threadIdx.x / 32, first_unit = blockIdx.y * kKeepSpan + threadIdx.x % 32;
  launch_dependents();
  wait_prior();
  const int32_t last = last_position(p, sequence);
  if (last < 0) return;
  for (uint32_t base = 0; base < p.ring; base += kKeepSlots) {
    const uint32_t slots = min(kKeepSlots, p.ring - base);
    for (uint32_t slot = threadIdx.x; slot < slots; slot += kKeepThreads) slot_row[slot] = -1;
    __syncthreads();
    for (uint32_t row = threadIdx.x; row < p.rows; row += kKeepThreads) {
      const int32_t position = p.positions[row];
      if (p.row_seq[row] != sequence || position < 0 || position <= int64_t(last) - p.ring) continue;
      const uint32_t slot = uint32_t(position) % p.ring - base;
      if (slot < slots) atomicMax(&slot_row[slot], static_cast<int32_t>(row));
    }
    __syncthreads();
    for (uint32_t slot = warp; slot < slots; slot += kKeepWarps) {
      if (slot_row[slot] < 0) continue;
      const Unit* from = static_cast<const Unit*>(p.q) + uint64_t(slot_row[slot]) * p.units;
      Unit* to = static_cast<Unit*>(p.out) + (uint64_t(sequence) * p.ring + base + slot) * p.units;
      Unit values[kKeepSpan / 32];
#pragma unroll
      for (uint32_t j = 0; j < kKeepSpan / 32; ++j) {
        if (first_unit + 32 * j < p.units) values[j] = from[first_unit + 32 * j];
      }
#pragma unroll
      for (uint32_t j = 0; j < kKeepSpan / 32; ++j) {
        if (first_unit + 32 * j < p.units) to[first_unit + 32 * j] = values[j];
      }
    }
    __syncthreads();
  }
}

// ---- gather_kv -------------------------------------------------------------------------------------------------

struct GatherKvParams {
  KvCache source, out;
  const int32_t* indices;       // (b, h_kv, n)
  const int32_t* prefix_len;    // (b)
  const int32_t* source_table;  // (b, source_max_pages)
  const int32_t* out_table;     // (b, out_max_pages)
  uint32_t n, source_max_pages, out_max_pages, source_layer, out_layer;
  uint32_t reserved;
};
static_assert(sizeof(GatherKvParams) == 2 * 32 + 4 * 8 + 24);

constexpr uint32_t kGatherThreads = 256;

/// Where a picked token's k lies; block is null where there is no token.
struct PickedToken {
  const bf16* block;
  uint32_t token;
};

__device__ __forceinline__ PickedToken picked_token(const GatherKvParams& p, uint32_t list, uint32_t i,
                                                    uint32_t length) {
  if (i >= length) return {nullptr, 0};
  const uint32_t s = list / p.source.kv_heads, head = list % p.source.kv_heads;
  const uint32_t token = static_cast<uint32_t>(p.indices[uint64_t(list) * p.n + i]);
  const uint32_t slot = token / p.source.page_size;
  if (slot >= p.source_max_pages) return {nullptr, 0};
  const uint32_t page = static_cast<uint32_t>(p.source_table[uint64_t(s) * p.source_max_pages + slot]);
  if (page >= p.source.pages) return {nullptr, 0};
  return {kv_block(p.source, p.source_layer, page, 0, head), token % p.source.page_size};
}

struct TileChunk {
  uint32_t is_v, token, i;
};

/// Chunks of a tile of k, then those of v; neighbours are neighbours in a token.
template <uint32_t kHeadDim>
__device__ __forceinline__ TileChunk tile_chunk(uint32_t at) {
  constexpr uint32_t kChunks = kHeadDim / 8, kHalfTile = kKvTile * kChunks;
  return {at / kHalfTile, at % kHalfTile / kChunks, at % kChunks * 8};
}

/// A block fills one tile of one (sequence, KV head), k then v; what remains of a last tile becomes zeros.
template <uint32_t kHeadDim>
__device__ __forceinline__ void gather_kv(const GatherKvParams& p) {
  constexpr uint32_t kHalfTile = kKvTile * kHeadDim / 8;  // chunks
  __shared__ PickedToken picked[kKvTile];
  const uint32_t tiles = (p.n + kKvTile - 1) / kKvTile;
  const uint32_t list = blockIdx.x / tiles, first = blockIdx.x % tiles * kKvTile;
  const uint32_t s = list / p.out.kv_heads, head = list % p.out.kv_heads;
  launch_dependents();
  wait_prior();
  const uint32_t length = min(static_cast<uint32_t>(max(p.prefix_len[s], 0)), p.n);
  const uint32_t slot = first / p.out.page_size;
  if (first >= length || slot >= p.out_max_pages) return;
  const uint32_t page = static_cast<uint32_t>(p.out_table[uint64_t(s) * p.out_max_pages + slot]);
  if (page >= p.out.pages) return;
  if (threadIdx.x < kKvTile) picked[threadIdx.x] = picked_token(p, list, first + threadIdx.x, length);
  __syncthreads();
  bf16* tile = kv_block(p.out, p.out_layer, page, 0, head) + first % p.out.page_size * kHeadDim;
  const uint64_t source_v = uint64_t(p.source.kv_heads) * p.source.page_size * kHeadDim;  // from k to v
  const uint64_t out_v = uint64_t(p.out.kv_heads) * p.out.page_size * kHeadDim;
  constexpr uint32_t kBatch = kHeadDim / 16 < 8 ? kHeadDim / 16 : 8;  // chunks of a thread in flight
  static_assert(2 * kHalfTile % (kGatherThreads * kBatch) == 0);
  for (uint32_t start = threadIdx.x; start < 2 * kHalfTile; start += kGatherThreads * kBatch) {
    uint4 chunks[kBatch];
#pragma unroll
    for (uint32_t j = 0; j < kBatch; ++j) {
      const TileChunk at = tile_chunk<kHeadDim>(start + j * kGatherThreads);
      const PickedToken from = picked[at.token];
      chunks[j] = {0, 0, 0, 0};
      if (from.block == nullptr) continue;
      chunks[j] = load_eight<true>(from.block + at.is_v * source_v + kv_offset(from.token, at.i, kHeadDim));
    }
#pragma unroll
    for (uint32_t j = 0; j < kBatch; ++j) {
      const TileChunk at = tile_chunk<kHeadDim>(start + j * kGatherThreads);
      store_eight<true>(tile + at.is_v * out_v + kv_offset(at.token, at.i, kHeadDim), chunks[j]);
    }
  }
}

}  // namespace md

extern "C" __global__ void __launch_bounds__(128) md_rope_table(const __grid_constant__ md::RopeTableParams p) {
  md::launch_dependents();
  md::rope_table(p);
}

extern "C" __global__ void __launch_bounds__(128) md_rope_append(const __grid_constant__ md::RopeAppendParams p) {
  md::launch_dependents();
  if (p.vector) {
    md::rope_append<true>(p);
  } else {
    md::rope_append<false>(p);
  }
}

// One kernel a width of access.
extern "C" __global__ void __launch_bounds__(md::kKeepThreads)
    md_keep_queries_16(const __grid_constant__ md::KeepQueriesParams p) {
  md::keep_queries<uint4>(p);
}
extern "C" __global__ void __launch_bounds__(md::kKeepThreads)
    md_keep_queries_2(const __grid_constant__ md::KeepQueriesParams p) {
  md::keep_queries<uint16_t>(p);
}

// One kernel a head dim.
#define MD_GATHER_KV(d)                                                   \
  extern "C" __global__ void __launch_bounds__(md::kGatherThreads)        \
      md_gather_kv_##d(const __grid_constant__ md::GatherKvParams p) {    \
    md::gather_kv<d>(p);                                                  \
  }
MD_GATHER_KV(64)
MD_GATHER_KV(96)
MD_GATHER_KV(128)
MD_GATHER_KV(256)
