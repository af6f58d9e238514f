// The decode kernel's shapes, its shared memory, and the warp that loads (attention_decode.cu).
#pragma once
#include "attention_decode_work.cuh"

namespace md {

/// `tiles` row tiles of 16 for each of `halves` x 4 warps.
template <int kDim_, int kRowTiles_, int kHalves_, int kSlots_, int kQuerySlots_>
struct Shape {
  static constexpr int kDim = kDim_, kRowTiles = kRowTiles_, kHalves = kHalves_;
  static constexpr int kSlots = kSlots_, kQuerySlots = kQuerySlots_;  // tiles of K or V, and sets of queries
  static constexpr int kHalfRows = 16 * kRowTiles, kRows = kHalfRows * kHalves;
  static constexpr int kConsumers = 128 * kHalves, kThreads = kConsumers + 32;
  static constexpr int kTileBytes = kKvTile * kDim * 2, kPanelBytes = kKvTile * 128, kPanels = kDim / 64;
  static constexpr int kQueryStride = kDim * 2 + 16;  // ldmatrix meets no bank twice
  static constexpr int kColumnTiles = kDim / 32;      // of 8 columns, a warp's
  static constexpr int kOutVectors = kRowTiles * kColumnTiles * kConsumers;
  static constexpr int kPartialVectors = kOutVectors + kRows / 2;  // then (maximum, sum) of each row
};

template <class S>
struct Shared {
  alignas(1024) uint8_t tiles[S::kSlots][S::kTileBytes];
  uint8_t weights[S::kHalves][S::kHalfRows * 128];  // bf16 (rows, 64 tokens), swizzled as a panel
  uint8_t queries[S::kQuerySlots][S::kRows * S::kQueryStride];
  float maxima[S::kRows][4], sums[S::kRows][4];  // a column a warp
  uint64_t full[S::kSlots], empty[S::kSlots], query_full[S::kQuerySlots], query_empty[S::kQuerySlots];
  Schedule plan;
  Walk walks[S::kThreads / 32];  // each warp its own, here to spare registers
  uint32_t merges;
};

template <int kSlots>
struct Ring {
  uint32_t slot = 0, phase = 0;
  __device__ void next() {
    if (++slot == kSlots) slot = 0, phase ^= 1;
  }
};

template <int kId, int kThreads>
__device__ __forceinline__ void warps_sync() {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

// ---- The producer warp -----------------------------------------------------------------------------------------

template <class S>
struct Producer {
  const AttentionDecodeParams& p;
  Shared<S>& s;
  Walk& walk;
  uint32_t lane = threadIdx.x % 32;
  Ring<S::kSlots> ring;
  Ring<S::kQuerySlots> queries;

  __device__ void load_queries(const bf16* q, const Sequence& seq, const Segment& segment) {
    const uint32_t base = segment.row_block * S::kRows, rows = min(uint32_t(S::kRows), seq.rows * p.group - base);
    uint64_t* full = &s.query_full[queries.slot];
    barrier_wait(&s.query_empty[queries.slot], queries.phase ^ 1);
    if (lane == 0) barrier_expect(full, rows * S::kDim * 2);
    __syncwarp();
    for (uint32_t i = lane; i < rows; i += 32) {
      const uint32_t row = seq.first_row + (base + i) / p.group, g = (base + i) % p.group;
      const uint64_t head = uint64_t(row) * p.cache.kv_heads * p.group + segment.head * p.group + g;
      bulk_load(s.queries[queries.slot] + i * S::kQueryStride, q + head * S::kDim, S::kDim * 2, full);
    }
    queries.next();
  }

  /// Tokens [first, end) of a tile; what a slot held before them stays, which is finite and meets weights of 0.
  __device__ void load_tile(const bf16* from, uint32_t first, uint32_t end) {
    uint64_t* full = &s.full[ring.slot];
    uint8_t* to = s.tiles[ring.slot];
    barrier_wait(&s.empty[ring.slot], ring.phase ^ 1);
    if (end - first == kKvTile) {
      barrier_expect(full, S::kTileBytes);
      bulk_load_once(to, from, S::kTileBytes, full);
    } else {
      const uint32_t bytes = (end - first) * 128;
      barrier_expect(full, bytes * S::kPanels);
      for (int i = 0; i < S::kPanels; ++i) {
        const uint32_t offset = i * S::kPanelBytes + first * 128;
        bulk_load_once(to + offset, from + offset / 2, bytes, full);
      }
    }
    ring.next();
  }

  /// Tiles [tiles.x, tiles.y) of one head, of them tokens [begin, end).
  __device__ void load_tiles(const KvCache& cache, uint32_t layer, const int32_t* table, uint32_t head, uint2 tiles,
                             uint32_t begin, uint32_t end) {
    const uint32_t shift = 31 - __clz(cache.page_size / kKvTile), in_page = cache.page_size / kKvTile - 1;
    const uint64_t to_v = uint64_t(cache.kv_heads) * cache.page_size * S::kDim;
    const bf16* base = kv_block(cache, layer, 0, 0, head);
    uint32_t known = (tiles.x >> shift) - 32, pages = 0;  // lane i holds page known + i of the table
    const uint32_t last_page = (tiles.y - 1) >> shift;
    for (uint32_t t = tiles.x; t < tiles.y; ++t) {
      const uint32_t page = t >> shift;
      if (page - known >= 32) {
        known = page;
        pages = table[min(known + lane, last_page)];
      }
      const uint64_t id = __shfl_sync(~0u, pages, page - known);
      if (lane == 0) {
        const bf16* k = base + id * 2 * to_v + (t & in_page) * (kKvTile * S::kDim);
        const uint32_t from = max(begin, t * kKvTile) - t * kKvTile, to = min(end - t * kKvTile, uint32_t(kKvTile));
        load_tile(k, from, to);
        load_tile(k + to_v, from, to);
      }
    }
  }

  __device__ void run() {
    walk.begin(p, s.plan, S::kRows);
    while (walk.next(p, S::kRows)) {
      const Sequence& seq = walk.sequence;
      const Segment& segment = walk.segment;
      const int32_t* table = p.block_table + uint64_t(walk.s) * p.max_pages;
      if (segment.first < seq.prefix_chunks) {
        const uint2 tiles = seq.prefix_tiles(segment.first, min(segment.last, seq.prefix_chunks));
        const bool apart = p.prefix_len != nullptr;
        const int32_t* prefix = apart ? p.prefix_table + uint64_t(walk.s) * p.max_prefix_pages : table;
        load_queries(!apart && p.q_sink != nullptr ? p.q_sink : p.q, seq, segment);
        load_tiles(apart ? p.prefix_cache : p.cache, apart ? p.prefix_layer : p.layer, prefix, segment.head, tiles, 0,
                   seq.prefix_tokens);
      }
      if (segment.last > seq.prefix_chunks) {
        const uint32_t from = max(segment.first, seq.prefix_chunks) - seq.prefix_chunks;
        const uint2 tiles = seq.main_tiles(from, segment.last - seq.prefix_chunks);
        load_queries(p.q, seq, segment);
        load_tiles(p.cache, p.layer, table, segment.head, tiles, seq.main_start, seq.length);
      }
    }
  }
};

}  // namespace md
