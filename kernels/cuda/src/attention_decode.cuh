// What the two halves of the decode attention kernel share: its parameters, its shared memory and the work that the
// loading warp hands to the others.
#pragma once
#include "attention_decode_plan.cuh"
#include "layout.cuh"

namespace md {

struct AttentionDecodeParams {
  const bf16* q;                // (rows, h, d)
  const bf16* q_sink;           // (rows, h, d); q where there is no other
  bf16* out;                    // (rows, h, d)
  const int32_t* q_start;       // (b + 1)
  const int32_t* kv_len;        // (b)
  const int32_t* block_table;   // (b, max_pages)
  const int32_t* prefix_table;  // optional (b, max_prefix_pages)
  const int32_t* prefix_len;    // optional (b)
  const int32_t* tail_start;    // optional (b)
  const int32_t* indices;       // optional (b, h_kv, index_stride)
  float* partials;              // (blocks, slots) partials
  uint32_t* tickets;            // (2, blocks) zeros, left as zeros: cut groups, then jobs, by the block they begin in
  KvCache cache, prefix_cache;
  uint32_t layer, prefix_layer, sinks, window;
  uint32_t sequences, heads, max_pages, max_prefix_pages, index_stride;
  uint32_t slots;  // of one block
  float scale_log2;
  uint32_t reserved;
};
static_assert(sizeof(AttentionDecodeParams) == 208);

/// Whether a view leaves out tokens for a row at `position`.
__device__ __forceinline__ bool slides(const AttentionDecodeParams& p, uint32_t position) {
  return position + 1 > p.sinks + p.window;
}

/// The work of one sequence.
struct Sequence {
  uint32_t first_row, position, length, prefix_tokens, start;
  uint32_t row_blocks;
  uint32_t jobs;  // row_blocks x KV heads; 0 where there is nothing to do

  __device__ __forceinline__ uint32_t prefix_tiles() const { return ceil_div(prefix_tokens, kKvTile); }
  __device__ __forceinline__ uint32_t main_first() const { return start / kKvTile; }
  __device__ __forceinline__ uint32_t main_tiles() const {
    return start < length ? ceil_div(length, kKvTile) - main_first() : 0;
  }
  __device__ __forceinline__ uint32_t tiles() const { return prefix_tiles() + main_tiles(); }

  template <int kRows>
  __device__ __forceinline__ static Sequence read(const AttentionDecodeParams& p, uint32_t s) {
    Sequence x = {};
    if (s >= p.sequences) return x;
    const int32_t begin = __ldcg(p.q_start + s), end = __ldcg(p.q_start + s + 1), length = __ldcg(p.kv_len + s);
    const int32_t listed = p.prefix_len == nullptr ? 0 : __ldcg(p.prefix_len + s);
    const int32_t tail = p.prefix_len == nullptr ? 0 : __ldcg(p.tail_start + s);
    if (end <= begin || length < end - begin) return x;
    x.first_row = begin;
    x.length = length;
    x.position = length - (end - begin);
    x.prefix_tokens = max(listed, 0);
    x.start = min(max(tail, 0), length);
    if (p.window > 0) {
      x.prefix_tokens = slides(p, length - 1) ? p.sinks : 0;
      x.start = slides(p, x.position) ? x.position + 1 - p.window : 0;
    }
    if (x.tiles() == 0) return x;
    x.row_blocks = ceil_div(uint32_t(end - begin) * (p.heads / p.cache.kv_heads), kRows);
    x.jobs = x.row_blocks * p.cache.kv_heads;
    return x;
  }
};

/// kRowTiles x kRowWarps tiles of 16 query rows go over K and V together. kRowWarps times four warps compute: a warp has
/// kRowTiles tiles, and with its three neighbours shares out first the tokens of a tile, then the columns of V. One
/// more warp loads; it stands in a warpgroup of its own, because registers are moved by warpgroups.
template <int kDim_, int kRowTiles_, int kRowWarps_, int kSlots_, int kBlocks_>
struct DecodeShape {
  static constexpr int kDim = kDim_, kRowTiles = kRowTiles_, kRowWarps = kRowWarps_;
  static constexpr int kSlots = kSlots_;    // tiles of K or V in shared memory
  static constexpr int kBlocks = kBlocks_;  // on one multiprocessor
  static constexpr int kRows = 16 * kRowTiles * kRowWarps;
  static constexpr int kConsumers = 128 * kRowWarps, kThreads = kConsumers + 128;
  static constexpr int kLoadRegisters = 64;
  static constexpr int kLaunchRegisters = 65536 / (kThreads * kBlocks) / 8 * 8;
  static constexpr int kSpare = kLaunchRegisters * (kRowWarps + 1) - kLoadRegisters;
  static constexpr int kComputeRegisters = kSpare / kRowWarps / 8 * 8 < 240 ? kSpare / kRowWarps / 8 * 8 : 240;
  static constexpr int kColumns = kDim / 4, kColumnTiles = kColumns / 8;  // of one warp
  static constexpr int kSteps = kDim / 16;                                // of 16 along d
  static constexpr int kTileBytes = kKvTile * kDim * 2;
  // Tiles, then for each row weights, queries and maxima, then barriers and what the loading warp hands over.
  static constexpr int kSharedBytes =
      (kSlots * kTileBytes + kRows * (kKvTile * 2 + kDim * 2 + 16) + kSlots * 16 + 1196 + 1023) / 1024 * 1024;
  static constexpr bool kHoldsTotal = kRowTiles * kDim <= 128;  // or in the workspace
  // Steps along d whose queries stay in registers, as many as there are; the others are read for each tile.
  static constexpr int kHeld = kRowTiles == 1 ? (kSteps < 8 ? kSteps : 8) : kBlocks == 1 ? 4 : 0;
};

/// Chunks [begin, end) of a job: what one block does of it.
struct Run {
  Job job;
  uint32_t begin, end;  // end is 0 after the last run
  uint32_t head;        // KV head
  uint32_t first_row;   // the sequence's first new row
  uint32_t row, rows;   // of the sequence's packed rows (new row, head in group), those of this job
  uint32_t position;    // of the sequence's first new row
  uint32_t prefix_tokens;
  uint32_t start, length;  // tokens of the main cache that any row reads
};
static_assert(sizeof(Run) == 56);

constexpr int kRuns = 4;

/// Of Shape::kSharedBytes, as tiles.zig counts them too.
template <class Shape>
struct DecodeShared {
  alignas(1024) uint8_t tiles[Shape::kSlots][Shape::kTileBytes];
  alignas(128) uint8_t weights[Shape::kRowWarps][Shape::kRowTiles * 16 * kKvTile * 2];
  uint4 queries[Shape::kRowWarps][Shape::kRowTiles][Shape::kSteps][32];  // by lane, as mma wants them
  float4 maxima[Shape::kRowWarps][Shape::kRowTiles * 16];  // of a row, by warp
  uint64_t full[Shape::kSlots], empty[Shape::kSlots];
  uint64_t run_full[kRuns], run_empty[kRuns];
  Run runs[kRuns];
  Sequence sequences[32];  // the loading warp's, by lane
  Cut cut;
  uint32_t is_last;
};

/// A place in a ring, and the parity of its barriers.
template <int kSize>
struct Place {
  uint32_t index = 0, parity = 0;

  __device__ __forceinline__ void next() {
    if (++index == kSize) index = 0, parity ^= 1;
  }
};

/// Byte offset of 16-byte chunk c of a panel in a tile.
template <int kDim>
__device__ __forceinline__ uint32_t chunk_offset(uint32_t token, uint32_t panel, uint32_t c) {
  if (kDim % 64 != 0 && panel == kDim / 64) return panel * 8192 + token * 64 + ((c ^ (token / 2 % 4)) * 16);
  return panel * 8192 + token * 128 + ((c ^ (token % 8)) * 16);
}

}  // namespace md
