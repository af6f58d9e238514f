// Decode and verify attention over the paged cache on Hopper: few new rows a sequence, bound by reading K and V once.
// A producer warp runs a ring of 64-token tiles of K and V ahead of 4 (or 8) warps, across all that the block reads.
// Of a tile each warp scores 16 tokens for all rows, the weights meet in shared memory, and each warp then owns a
// quarter of the output's columns, so that warps never merge results.
#include "attention_decode_result.cuh"

namespace md {

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

  /// Reads the segment into `total` and into partial results: of an item's start the total and, in
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
        if (first) total.clear();
        total.fold(group);
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
    } else {
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
