// Decode and verify attention over the paged cache on Hopper: few new rows a sequence, bound by reading K and V once.
// A producer warp runs a ring of 64-token tiles of K and V ahead of 4 (or 8) warps, across all that the block reads.
// Of a tile each warp scores 16 tokens for all rows, the weights meet in shared memory, and each warp then owns a
// quarter of the output's columns, so that warps never merge results.
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
  static constexpr bool kTotalInMemory = kRowTiles * kDim > 128;   // for lack of registers
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

// ---- Results so far --------------------------------------------------------------------------------------------

/// Unnormalised output of a warp's columns, and maximum and sum of its rows. A thread has, of row tile m, rows
/// lane / 4 + 8 h and, of column tile n, columns lane % 4 * 2 + {0, 1}: out[m][n][2 h + {0, 1}].
template <class S>
struct Result {
  float out[S::kRowTiles][S::kColumnTiles][4], top[S::kRowTiles][2], sum[S::kRowTiles][2];

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][n][i] = 0;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) top[m][h] = -1.0e30f, sum[m][h] = 0;  // finite: an empty chunk's weight is 1, not NaN
    }
  }

  /// What is folded in on the right; where it saw no token nothing changes.
  __device__ void fold(const Result& right) {
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float both = fmaxf(top[m][h], right.top[m][h]);
        const float a = exp2_approx(top[m][h] - both), b = exp2_approx(right.top[m][h] - both);
        top[m][h] = both;
        sum[m][h] = __fmaf_rn(sum[m][h], a, __fmul_rn(right.sum[m][h], b));
#pragma unroll
        for (int n = 0; n < S::kColumnTiles; ++n) {
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) {
            out[m][n][i] = __fmaf_rn(out[m][n][i], a, __fmul_rn(right.out[m][n][i], b));
          }
        }
      }
    }
  }
};

template <class S>
__device__ __forceinline__ float4* partial(const AttentionDecodeParams& p, uint32_t block, uint32_t slot) {
  return p.partials + (uint64_t(block) * p.slots + slot) * S::kPartialVectors;
}

/// Of the rows' (maximum, sum), each is with 4 lanes of 4 warps; one writes.
template <class S>
__device__ __forceinline__ uint32_t row_of(int m, int h) {
  return (S::kHalves == 1 ? 0 : threadIdx.x / 128 * S::kHalfRows) + m * 16 + h * 8 + threadIdx.x % 32 / 4;
}

template <class S>
__device__ __forceinline__ void store(float4* to, const Result<S>& from) {
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < S::kColumnTiles; ++n) {
      const float* o = from.out[m][n];
      to[(m * S::kColumnTiles + n) * S::kConsumers + threadIdx.x] = make_float4(o[0], o[1], o[2], o[3]);
    }
  }
  if (threadIdx.x % 128 >= 32 || threadIdx.x % 4 != 0) return;
  auto* rows = reinterpret_cast<float2*>(to + S::kOutVectors);
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) rows[row_of<S>(m, h)] = make_float2(from.top[m][h], from.sum[m][h]);
  }
}

/// From the L2: other blocks wrote it.
template <class S>
__device__ __forceinline__ void load(Result<S>& to, const float4* from) {
  const auto* rows = reinterpret_cast<const float2*>(from + S::kOutVectors);
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < S::kColumnTiles; ++n) {
      const float4 o = __ldcg(from + (m * S::kColumnTiles + n) * S::kConsumers + threadIdx.x);
      to.out[m][n][0] = o.x, to.out[m][n][1] = o.y, to.out[m][n][2] = o.z, to.out[m][n][3] = o.w;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 row = __ldcg(rows + row_of<S>(m, h));
      to.top[m][h] = row.x, to.sum[m][h] = row.y;
    }
  }
}

// ---- The consumer warps ----------------------------------------------------------------------------------------

template <class S>
struct Consumer {
  const AttentionDecodeParams& p;
  Shared<S>& s;
  Walk& walk;
  Ring<S::kSlots> ring;
  Ring<S::kQuerySlots> queries;
  Result<S> chunk, group;

  static __device__ uint32_t half() { return S::kHalves == 1 ? 0 : threadIdx.x / 128; }
  static __device__ uint32_t warp() { return threadIdx.x % 128 / 32; }
  static __device__ uint32_t lane() { return threadIdx.x % 32; }
  static __device__ void half_sync() {
    if (half() == 0) {
      warps_sync<1, 128>();
    } else {
      warps_sync<2, 128>();
    }
  }
  static __device__ void all_sync() { warps_sync<3, S::kConsumers>(); }

  __device__ void release(uint64_t* empty) {
    __syncwarp();
    if (lane() == 0) barrier_arrive(empty);
  }

  /// The warp's 16 tokens of the next tile of K against all rows.
  __device__ void score(float (&scores)[S::kRowTiles][2][4]) {
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[m][i / 4][i % 4] = 0;
    }
    const uint32_t l = lane(), token = warp() * 16 + l / 16 * 8 + l % 8;
    const uint32_t k = shared_address(s.tiles[ring.slot]) + token * 128, k_chunk = (l / 8 % 2 ^ token % 8) * 16;
    const uint32_t q = shared_address(s.queries[queries.slot]) +
                       (half() * S::kHalfRows + l % 16) * S::kQueryStride + l / 16 * 16;
    barrier_wait(&s.full[ring.slot], ring.phase);
#pragma unroll
    for (int i = 0; i < S::kDim / 16; ++i) {
      uint32_t kb[4];
      ldmatrix_x4(kb, k + i / 4 * S::kPanelBytes + (k_chunk ^ (i % 4 * 32)));
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m) {
        uint32_t qa[4];
        ldmatrix_x4(qa, q + m * 16 * S::kQueryStride + i * 32);
        mma_16x8x16(scores[m][0], qa, kb[0], kb[1]);
        mma_16x8x16(scores[m][1], qa, kb[2], kb[3]);
      }
    }
    release(&s.empty[ring.slot]);
    ring.next();
  }

  /// Takes the tokens from scores that a row does not see.
  __device__ void hide(float (&scores)[S::kRowTiles][2][4], uint32_t tile, bool prefix) {
    const Sequence& seq = walk.sequence;
    const bool apart = p.prefix_len != nullptr;
    const uint32_t first = tile * kKvTile + warp() * 16 + lane() % 4 * 2;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t sees = seq.least() + (walk.segment.row_block * S::kRows + row_of<S>(m, h)) / p.group;
        const uint32_t start = view_start(p, sees);
        const uint32_t begin = prefix ? 0 : apart ? seq.main_start : start;
        const uint32_t end = !prefix ? sees : apart || start > 0 ? seq.prefix_tokens : 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t token = first + i / 2 * 8 + i % 2;
          if (token < begin || token >= end) scores[m][i / 2][2 * h + i % 2] = -INFINITY;
        }
      }
    }
  }

  /// Scales scores and leaves the warp's maxima in shared memory.
  __device__ void scale(float (&scores)[S::kRowTiles][2][4]) {
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* low = &scores[m][0][2 * h];
        float* high = &scores[m][1][2 * h];
        low[0] *= p.scale_log2, low[1] *= p.scale_log2, high[0] *= p.scale_log2, high[1] *= p.scale_log2;
        float top = fmaxf(fmaxf(low[0], low[1]), fmaxf(high[0], high[1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        if (lane() % 4 == 0) s.maxima[row_of<S>(m, h)][warp()] = top;
      }
    }
  }

  /// Turns scores into weights in shared memory, moves the chunk's maxima and this thread's share of its sums on.
  __device__ void weigh(const float (&scores)[S::kRowTiles][2][4]) {
    uint8_t* weights = s.weights[half()];
    const uint32_t g = lane() / 4;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float4 tops = *reinterpret_cast<const float4*>(s.maxima[row_of<S>(m, h)]);
        const float before = chunk.top[m][h];
        const float now = fmaxf(before, fmaxf(fmaxf(tops.x, tops.y), fmaxf(tops.z, tops.w)));
        const float keep = exp2_approx(before - now);
        const float a = exp2_approx(scores[m][0][2 * h] - now), b = exp2_approx(scores[m][0][2 * h + 1] - now);
        const float c = exp2_approx(scores[m][1][2 * h] - now), d = exp2_approx(scores[m][1][2 * h + 1] - now);
        chunk.top[m][h] = now;
        chunk.sum[m][h] = __fmaf_rn(chunk.sum[m][h], keep, (a + b) + (c + d));
        uint8_t* row = weights + (m * 16 + h * 8 + g) * 128 + lane() % 4 * 4;
        *reinterpret_cast<uint32_t*>(row + (2 * warp() ^ g) * 16) = pack_bf16(a, b);
        *reinterpret_cast<uint32_t*>(row + ((2 * warp() + 1) ^ g) * 16) = pack_bf16(c, d);
#pragma unroll
        for (int n = 0; n < S::kColumnTiles; ++n) chunk.out[m][n][2 * h] *= keep, chunk.out[m][n][2 * h + 1] *= keep;
      }
    }
  }

  /// All rows' weights times the warp's columns of the next tile of V.
  __device__ void add_values() {
    const uint32_t l = lane();
    const uint32_t weights = shared_address(s.weights[half()]) + l % 16 * 128, w_chunk = (l / 16 ^ l % 8) * 16;
    const uint32_t chunk_of_8 = warp() * S::kColumnTiles, token = l % 16;
    const uint32_t v = shared_address(s.tiles[ring.slot]) + chunk_of_8 / 8 * S::kPanelBytes + token * 128;
    const uint32_t v_chunk = ((chunk_of_8 % 8 + l / 16) ^ token % 8) * 16;
    barrier_wait(&s.full[ring.slot], ring.phase);
#pragma unroll
    for (int i = 0; i < kKvTile / 16; ++i) {
      uint32_t wa[S::kRowTiles][4];
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m) ldmatrix_x4(wa[m], weights + m * 16 * 128 + (w_chunk ^ (i * 32)));
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; n += 2) {
        uint32_t vb[4];
        ldmatrix_x4_trans(vb, v + i * 16 * 128 + (v_chunk ^ (n * 16)));
#pragma unroll
        for (int m = 0; m < S::kRowTiles; ++m) {
          mma_16x8x16(chunk.out[m][n], wa[m], vb[0], vb[1]);
          mma_16x8x16(chunk.out[m][n + 1], wa[m], vb[2], vb[3]);
        }
      }
    }
    release(&s.empty[ring.slot]);
    ring.next();
  }

  /// Tiles of one chunk. The barrier before the weights also keeps a warp from the next tile's maxima, and the one
  /// before the values from the next tile's weights, until all have read this one's.
  __device__ void read_chunk(uint2 tiles, bool prefix) {
    const Sequence& seq = walk.sequence;
    chunk.clear();
    const uint32_t least = view_start(p, seq.least()), most = view_start(p, seq.length);
    const bool apart = p.prefix_len != nullptr;
    const uint32_t begin = prefix ? 0 : apart ? seq.main_start : most;  // what all rows see is in [begin, end)
    const uint32_t end = !prefix ? seq.least() : apart || least > 0 ? seq.prefix_tokens : 0;
    for (uint32_t t = tiles.x; t < tiles.y; ++t) {
      float scores[S::kRowTiles][2][4];
      score(scores);
      if (t * kKvTile < begin || (t + 1) * kKvTile > end) hide(scores, t, prefix);
      scale(scores);
      half_sync();
      weigh(scores);
      half_sync();
      add_values();
    }
    add_sums();
  }

  /// The warps' shares of each row's sum, in order.
  __device__ void add_sums() {
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = chunk.sum[m][h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane() % 4 == 0) s.sums[row_of<S>(m, h)][warp()] = sum;
      }
    }
    half_sync();
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float4 sums = *reinterpret_cast<const float4*>(s.sums[row_of<S>(m, h)]);
        chunk.sum[m][h] = (sums.x + sums.y) + (sums.z + sums.w);
      }
    }
  }

  /// The group that just ended into the item's total, which is the block's partial result 0 where in memory.
  __device__ void fold_total(Result<S>& total, bool first) {
    if constexpr (!S::kTotalInMemory) {
      if (first) total.clear();
      total.fold(group);
    } else {
      float4* memory = partial<S>(p, blockIdx.x, 0);
      Result<S> sum;
      if (first) {
        sum.clear();
      } else {
        load<S>(sum, memory);
      }
      sum.fold(group);
      half_sync();  // all have read it
      store<S>(memory, sum);
      half_sync();
    }
  }

  __device__ void write_out(const Result<S>& total) {
    const Sequence& seq = walk.sequence;
    const Segment& segment = walk.segment;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t packed = segment.row_block * S::kRows + row_of<S>(m, h);
        const uint32_t row = packed / p.group;
        if (row >= seq.rows) continue;
        const uint64_t head = (uint64_t(seq.first_row + row) * p.cache.kv_heads + segment.head) * p.group +
                              packed % p.group;
        bf16* to = p.out + head * S::kDim + warp() * (S::kDim / 4) + lane() % 4 * 2;
        const float scale = 1.0f / total.sum[m][h];
#pragma unroll
        for (int n = 0; n < S::kColumnTiles; ++n) {
          const float* o = &total.out[m][n][2 * h];
          *reinterpret_cast<uint32_t*>(to + n * 8) = pack_bf16(o[0] * scale, o[1] * scale);
        }
      }
    }
  }

  /// Whether all other blocks that read this item have written their partial results.
  __device__ bool arrives_last(uint32_t ticket, uint32_t blocks) {
    __threadfence();
    all_sync();
    if (threadIdx.x == 0) {
      s.merges = atomicAdd(p.tickets + ticket, 1) + 1 == blocks;
      if (s.merges) p.tickets[ticket] = 0;
      __threadfence();
    }
    all_sync();
    return s.merges;
  }

  /// Folds the partial results of an item, by blocks from `block` to `last`, as one block would have.
  __device__ void merge(Result<S>& total, uint32_t block, uint32_t last) {
    const Sequence& seq = walk.sequence;
    const Cut cut = walk.cut();
    const uint32_t item_unit = walk.segment.item_unit;
    uint32_t at = cut.start(block + 1) - item_unit;
    load<S>(total, partial<S>(p, block, 0));
    bool open = !seq.starts_group(at);
    if (open) load<S>(group, partial<S>(p, block, 1));
    while (++block <= last) {
      const uint32_t end = min(seq.chunks, cut.start(block + 1) - item_unit);
      for (uint32_t slot = 2; at < end; ++slot) {
        load<S>(chunk, partial<S>(p, block, slot));
        if (!seq.starts_group(at)) {
          group.fold(chunk);
          ++at;
          continue;
        }
        if (open) total.fold(group);
        group = chunk, open = true;
        do ++at;
        while (at < end && !seq.starts_group(at));
      }
    }
    if (open) total.fold(group);
  }

  /// Reads the segment into `total` (see fold_total) and into partial results: of an item's start the total and, in
  /// slot 1, an unfinished group; of the rest from slot 2 on the chunks of a group begun elsewhere, then a group each.
  __device__ void read_segment(Result<S>& total) {
    const Sequence& seq = walk.sequence;
    const Segment& segment = walk.segment;
    bool open = false, first = true;
    uint32_t slot = 2;
    for (uint32_t c = segment.first; c < segment.last; ++c) {
      const uint32_t in_main = c - seq.prefix_chunks;
      const bool prefix = c < seq.prefix_chunks;
      if (c == segment.first || in_main == 0) barrier_wait(&s.query_full[queries.slot], queries.phase);
      read_chunk(prefix ? seq.prefix_tiles(c, c + 1) : seq.main_tiles(in_main, in_main + 1), prefix);
      if (c + 1 == segment.last || c + 1 == seq.prefix_chunks) {
        release(&s.query_empty[queries.slot]);
        queries.next();
      }
      if (seq.starts_group(c)) group.clear(), open = true;
      if (!open) {
        store<S>(partial<S>(p, blockIdx.x, slot++), chunk);
        continue;
      }
      group.fold(chunk);
      if (!seq.ends_group(c)) continue;
      if (segment.first == 0) {
        fold_total(total, first);
        first = false;
      } else {
        store<S>(partial<S>(p, blockIdx.x, slot++), group);
      }
      open = false;
    }
    if (open) store<S>(partial<S>(p, blockIdx.x, segment.first == 0 ? 1 : slot), group);
    if (segment.first > 0 || segment.last == seq.chunks) return;
    if (first) {
      group.clear();
      store<S>(partial<S>(p, blockIdx.x, 0), group);
    } else if (!S::kTotalInMemory) {
      store<S>(partial<S>(p, blockIdx.x, 0), total);
    }
  }

  __device__ void run() {
    walk.begin(p, s.plan, S::kRows);
    while (walk.next(p, S::kRows)) {
      Result<S> total;
      read_segment(total);
      const uint32_t chunks = walk.sequence.chunks, unit = walk.segment.item_unit;
      if (walk.segment.first > 0 || walk.segment.last < chunks) {
        const uint32_t block = walk.cut().owner(unit), last = walk.cut().owner(unit + chunks - 1);
        if (!arrives_last(walk.ticket(p, S::kRows), last - block + 1)) continue;
        merge(total, block, last);
      } else if (S::kTotalInMemory) {
        load<S>(total, partial<S>(p, blockIdx.x, 0));
      }
      write_out(total);
    }
  }
};

template <class S>
__device__ __forceinline__ void attend(const AttentionDecodeParams& p) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  Shared<S>& s = *reinterpret_cast<Shared<S>*>(bytes);
  launch_dependents();
  // No slot may hold what is not finite: a tile that is read in part leaves the rest of it.
  auto* tiles = reinterpret_cast<uint4*>(s.tiles);
  for (int i = threadIdx.x; i < S::kSlots * S::kTileBytes / 16; i += S::kThreads) tiles[i] = make_uint4(0, 0, 0, 0);
  async_proxy_fence();
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kSlots; ++i) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], S::kConsumers / 32);
    for (int i = 0; i < S::kQuerySlots; ++i) {
      barrier_init(&s.query_full[i], 1), barrier_init(&s.query_empty[i], S::kConsumers / 32);
    }
    barrier_init_fence();
    s.plan.longest = 0;
  }
  __syncthreads();
  wait_prior();
  make_schedule<S::kThreads>(p, S::kRows, s.plan);
  if (threadIdx.x >= S::kConsumers) {
    Producer<S>{p, s, s.walks[S::kConsumers / 32]}.run();
  } else {
    Consumer<S>{p, s, s.walks[threadIdx.x / 32]}.run();
  }
}

// Two blocks an SM fill the shared memory; with 64 rows one does.
template <int kDim> using Rows16 = Shape<kDim, 1, 1, 6 * 128 / kDim, 2>;
template <int kDim> using Rows32 = Shape<kDim, 1, 2, 10 * 128 / kDim, 2>;

#define MD_ATTENTION_DECODE(name, shape, blocks)                                                          \
  static_assert(blocks * (sizeof(Shared<shape>) + 1024) <= 228 * 1024);                                   \
  extern "C" __global__ void __launch_bounds__(shape::kThreads, blocks)                                   \
      md_attention_decode_##name(const __grid_constant__ AttentionDecodeParams p) { attend<shape>(p); }

MD_ATTENTION_DECODE(d64_r16, Rows16<64>, 2)
MD_ATTENTION_DECODE(d64_r32, Rows32<64>, 1)
MD_ATTENTION_DECODE(d128_r16, Rows16<128>, 2)
MD_ATTENTION_DECODE(d128_r32, Rows32<128>, 1)

}  // namespace md
