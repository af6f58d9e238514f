// Causal attention of many new rows over the paged cache, on Hopper. A block stays on its multiprocessor and draws
// items, each a tile of query rows of one sequence for one query head. A warp of it brings Q, K and V; two or three
// warpgroups compute 64 rows each and take turns on the tensor cores, so that one's softmax runs under the other's
// products. (Shah et al. 2407.08608 describe this schedule.)
//
// A row meets its tokens in tiles of a constant length, from token 0 on, in order, and nobody shares its sums: its
// bits depend on its own q, k and v only, not on how the prompt is cut into calls.
#include "attention_wgmma.cuh"
#include "layout.cuh"

namespace md {

struct alignas(64) TensorMap {
  uint64_t words[16];
};

struct AttentionPrefillParams {
  TensorMap q;                 // (rows, h * d) bf16 in boxes of 64 x 64, 128-byte swizzle
  bf16* out;                   // (rows, h, d)
  const int32_t* q_start;      // (b + 1)
  const int32_t* kv_len;       // (b)
  const int32_t* block_table;  // (b, max_pages)
  uint32_t* ticket;            // 0, and 0 again afterwards
  KvCache cache;
  uint32_t layer, b, heads, max_pages;
  uint32_t heads_together;  // query heads of an item order's innermost loop; a multiple of the GQA group
  float scale_log2;         // scale * log2(e)
};
static_assert(sizeof(AttentionPrefillParams) == 256);

/// A block computes 64 * kGroups query rows against kTile tokens at a time, kStageCount tiles of K and of V ahead.
template <int kDim, int kGroups, int kStageCount>
struct PrefillShape {
  static constexpr int kHeadDim = kDim, kWarpgroups = kGroups, kTile = 128, kStages = kStageCount;
  static constexpr int kRows = 64 * kWarpgroups, kPanels = kHeadDim / 64, kSubtiles = kTile / kKvTile;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kPanelBytes = 64 * 128, kSubtileBytes = kPanels * kPanelBytes;
  static constexpr int kQueryBytes = kPanels * kPanelBytes;     // of one warpgroup
  static constexpr int kTileBytes = kSubtiles * kSubtileBytes;  // of K or of V
  static constexpr int kConsumerRegisters = kWarpgroups == 2 ? 240 : 160;
  static constexpr int kProducerRegisters = kWarpgroups == 2 ? 24 : 32;
};

/// What a warpgroup needs to know of its item. No tile: there is no item any more.
struct PrefillItem {
  uint32_t row, rows;  // first query row of the warpgroup, and how many of its 64 exist
  uint32_t position;   // of the first row
  uint32_t tiles, head;
};

template <class S>
struct PrefillShared {
  alignas(1024) uint8_t q[S::kWarpgroups][S::kQueryBytes];
  alignas(1024) uint8_t k[S::kStages][S::kTileBytes];  // (panel, token, 64)
  alignas(1024) uint8_t v[S::kStages][S::kTileBytes];  // (tile of 64 tokens, panel, token, 64)
  PrefillItem items[S::kWarpgroups];
  uint64_t q_full[S::kWarpgroups], q_empty[S::kWarpgroups];
  uint64_t k_full[S::kStages], k_empty[S::kStages], v_full[S::kStages], v_empty[S::kStages];
};

#if __CUDA_ARCH__ >= 900

/// A place in a ring of stages; `phase` is the parity of the rounds before.
template <int kStages>
struct Ring {
  uint32_t stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// ---- The producer: one warp ------------------------------------------------------------------------------------

/// Which query rows an item has: tile `index` of all sequences' tiles laid end to end.
struct QueryTile {
  uint32_t sequence, row, rows, position;
};

template <int kRows>
__device__ __forceinline__ uint32_t query_tiles(const AttentionPrefillParams& p, uint32_t sequence) {
  return sequence < p.b ? (p.q_start[sequence + 1] - p.q_start[sequence] + kRows - 1) / kRows : 0;
}

__device__ __forceinline__ uint32_t scan_lanes(uint32_t x, uint32_t lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t below = __shfl_up_sync(~0u, x, step);
    if (lane >= step) x += below;
  }
  return x;
}

template <int kRows>
__device__ __forceinline__ uint32_t all_query_tiles(const AttentionPrefillParams& p, uint32_t lane) {
  uint32_t sum = 0;
#pragma unroll 1
  for (uint32_t s = lane; s < p.b; s += 32) sum += query_tiles<kRows>(p, s);
  return __reduce_add_sync(~0u, sum);
}

/// The whole warp looks; `index` is below the number of tiles.
template <int kRows>
__device__ __forceinline__ QueryTile find_query_tile(const AttentionPrefillParams& p, uint32_t index, uint32_t lane) {
  for (uint32_t base = 0;; base += 32) {
    const uint32_t mine = query_tiles<kRows>(p, base + lane), upto = scan_lanes(mine, lane);
    const uint32_t here = __shfl_sync(~0u, upto, 31);
    if (index >= here) {
      index -= here;
      continue;
    }
    const uint32_t at = __popc(__ballot_sync(~0u, upto <= index));
    const uint32_t first = (index - __shfl_sync(~0u, upto - mine, at)) * kRows;
    const uint32_t sequence = base + at;
    const uint32_t start = p.q_start[sequence], rows = p.q_start[sequence + 1] - start;
    return {sequence, start + first, min(rows - first, uint32_t(kRows)), p.kv_len[sequence] - rows + first};
  }
}

/// The next item's number; the last one drawn leaves the counter as it was found.
__device__ __forceinline__ uint32_t draw_ticket(const AttentionPrefillParams& p, uint32_t items, uint32_t lane) {
  uint32_t ticket = 0;
  if (lane == 0) {
    ticket = atomicAdd(p.ticket, 1);
    if (ticket == items + gridDim.x - 1) *p.ticket = 0;
  }
  return ticket;
}

/// One item's tokens: where tiles of 64 of them lie. Lanes hold the pages of the next 32 such tiles.
template <class S>
struct TokenSource {
  const AttentionPrefillParams& p;
  const int32_t* table;
  uint32_t kv_head, last;  // the last tile of 64 tokens that holds any
  uint32_t shift;          // log2 of such tiles to a page
  int32_t page = 0;

  /// K of tile `i` of 64 tokens, i within the tiles of 64 that make up tile j. Beyond the last tile it is the last
  /// one again: masked, but finite. The whole warp asks.
  __device__ __forceinline__ const bf16* k(uint32_t j, uint32_t i, uint32_t lane) {
    const uint32_t first = j * S::kSubtiles, at = min(first + i, last);
    if (first % 32 == 0) page = table[min(first + lane, last) >> shift];
    const uint32_t in_page = at & ((1u << shift) - 1);
    return kv_block(p.cache, p.layer, __shfl_sync(~0u, page, at % 32), 0, kv_head) +
           in_page * (kKvTile * S::kHeadDim);
  }
};

template <class S>
__device__ __forceinline__ void load_queries(const AttentionPrefillParams& p, PrefillShared<S>& shared,
                                             const QueryTile& tile, uint32_t kv_tiles, uint32_t head, uint32_t phase,
                                             uint32_t lane) {
  for (uint32_t w = 0; w < S::kWarpgroups; ++w) {
    barrier_wait(&shared.q_empty[w], phase);
    if (lane == 0) {
      const uint32_t skip = w * 64;
      shared.items[w] = {tile.row + skip, tile.rows > skip ? tile.rows - skip : 0, tile.position + skip, kv_tiles,
                         head};
      barrier_expect(&shared.q_full[w], S::kQueryBytes);
      for (uint32_t panel = 0; panel < S::kPanels; ++panel) {
        tensor_load(shared.q[w] + panel * S::kPanelBytes, &p.q, head * S::kHeadDim + panel * 64, tile.row + skip,
                    &shared.q_full[w]);
      }
    }
  }
}

template <class S>
__device__ __forceinline__ void produce(const AttentionPrefillParams& p, PrefillShared<S>& shared, uint32_t lane) {
  const uint32_t tiles = all_query_tiles<S::kRows>(p, lane), items = tiles * p.heads;
  const uint32_t group = p.heads / p.cache.kv_heads;
  const uint32_t shift = 31 - __clz(p.cache.page_size / kKvTile);
  const uint64_t v_distance = uint64_t(p.cache.kv_heads) * p.cache.page_size * S::kHeadDim;
  // A lane copies the K of one panel of 64 tokens, to where that panel continues; of V, all panels of 64 tokens.
  const uint32_t k_subtile = lane / S::kPanels % S::kSubtiles, k_panel = lane % S::kPanels;
  const uint32_t v_subtile = lane % S::kSubtiles;

  Ring<S::kStages> k, v;
  uint32_t q_phase = 1;
  uint32_t ticket = __shfl_sync(~0u, draw_ticket(p, items, lane), 0);
  for (; ticket < items; q_phase ^= 1) {
    // Longest first: from the last tile down, and there all heads that go together.
    const uint32_t together = tiles * p.heads_together, part = ticket / together, rest = ticket % together;
    const uint32_t width = min(p.heads_together, p.heads - part * p.heads_together);
    const uint32_t head = part * p.heads_together + rest % width;
    const QueryTile tile = find_query_tile<S::kRows>(p, tiles - 1 - rest / width, lane);
    const uint32_t end = tile.position + tile.rows, kv_tiles = (end + S::kTile - 1) / S::kTile;
    TokenSource<S> tokens{p, p.block_table + uint64_t(tile.sequence) * p.max_pages, head / group, (end - 1) / kKvTile,
                          shift};
    const bf16* v_from = nullptr;
    for (uint32_t j = 0; j <= kv_tiles; ++j) {  // K of tile j, then V of tile j - 1, as they are needed
      const bf16* v_next = v_from;
      if (j < kv_tiles) {
        const bf16* mine = tokens.k(j, v_subtile, lane);
        v_next = mine + v_distance;
        const uint64_t k_from = __shfl_sync(~0u, reinterpret_cast<uint64_t>(mine), k_subtile);
        barrier_wait(&shared.k_empty[k.stage], k.phase ^ 1);
        if (lane == 0) barrier_expect(&shared.k_full[k.stage], S::kTileBytes);
        __syncwarp();
        if (lane < S::kSubtiles * S::kPanels) {
          bulk_load(shared.k[k.stage] + (k_panel * S::kSubtiles + k_subtile) * S::kPanelBytes,
                    reinterpret_cast<const uint8_t*>(k_from) + k_panel * S::kPanelBytes, S::kPanelBytes,
                    &shared.k_full[k.stage]);
        }
        k.next();
      }
      if (j == 0) load_queries(p, shared, tile, kv_tiles, head, q_phase, lane);
      if (j + 1 == kv_tiles) ticket = draw_ticket(p, items, lane);  // arrives while V is waited for
      if (j > 0) {
        barrier_wait(&shared.v_empty[v.stage], v.phase ^ 1);
        if (lane == 0) barrier_expect(&shared.v_full[v.stage], S::kTileBytes);
        __syncwarp();
        if (lane < S::kSubtiles) {
          bulk_load(shared.v[v.stage] + v_subtile * S::kSubtileBytes, v_from, S::kSubtileBytes,
                    &shared.v_full[v.stage]);
        }
        v.next();
      }
      v_from = v_next;
    }
    ticket = __shfl_sync(~0u, ticket, 0);
  }
  for (uint32_t w = 0; w < S::kWarpgroups; ++w) {
    barrier_wait(&shared.q_empty[w], q_phase);
    if (lane == 0) {
      shared.items[w].tiles = 0;
      barrier_arrive(&shared.q_full[w]);
    }
  }
}

// ---- The consumers: warpgroups of 64 rows ----------------------------------------------------------------------
// A thread holds two rows (g = lane / 4, and g + 8 of the warp's 16); in each 8 columns its pair 2 * (lane % 4).

/// Softmax of the rows so far, base 2: the largest score, this thread's share of the sum, and what the sums so far
/// are to be multiplied by.
struct RowState {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f}, keep[2];
};

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

/// Scores become exp(score - top), unnormalised.
template <int kCount>
__device__ __forceinline__ void softmax(float (&s)[kCount], RowState& rows, float scale_log2) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float high[2] = {s[2 * r], s[2 * r + 1]};
#pragma unroll
    for (int i = 4; i < kCount; i += 4) {
      high[0] = fmaxf(high[0], s[i + 2 * r]);
      high[1] = fmaxf(high[1], s[i + 2 * r + 1]);
    }
    const float top = fmaxf(rows.top[r], quad_max(fmaxf(high[0], high[1])));
    rows.keep[r] = exp2_approx((rows.top[r] - top) * scale_log2);
    rows.top[r] = top;
    const float shift = -top * scale_log2;
    float sum[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      s[i + 2 * r] = exp2_approx(fmaf(s[i + 2 * r], scale_log2, shift));
      s[i + 2 * r + 1] = exp2_approx(fmaf(s[i + 2 * r + 1], scale_log2, shift));
      sum[0] += s[i + 2 * r];
      sum[1] += s[i + 2 * r + 1];
    }
    rows.sum[r] = fmaf(rows.sum[r], rows.keep[r], sum[0] + sum[1]);
  }
}

/// `limit` is the last column that the thread's first row may see, less the thread's own first column.
template <int kCount>
__device__ __forceinline__ void mask(float (&s)[kCount], int limit) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int column = i / 4 * 8 + i % 2, below = i % 4 / 2 * 8;
    if (column > limit + below) s[i] = -INFINITY;
  }
}

template <int kCount>
__device__ __forceinline__ void pack(uint32_t (&to)[kCount / 2], const float (&s)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) to[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

/// Each row decides for itself: where its largest score stands, `keep` is 1 and its sums are left alone, which are the
/// bits that a product with 1 gives. After the first tiles that is nearly every row, and most warps skip it all.
template <int kCount>
__device__ __forceinline__ void rescale(float (&o)[kCount], const RowState& rows) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows.keep[r] == 1.f) continue;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      o[i + 2 * r] *= rows.keep[r];
      o[i + 2 * r + 1] *= rows.keep[r];
    }
  }
  __syncwarp();
}

/// Within each four lanes, lane a's x[b] becomes lane b's x[a].
__device__ __forceinline__ void transpose_quad(uint32_t (&x)[4], uint32_t lane) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool odd = lane & step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const uint32_t other = __shfl_xor_sync(~0u, odd ? x[i] : x[i + step], step);
      (odd ? x[i] : x[i + step]) = other;
    }
  }
}

/// The finished rows; four lanes write 64 bytes of a row at a time.
template <class S, int kCount>
__device__ __forceinline__ void store_rows(const AttentionPrefillParams& p, const PrefillItem& item,
                                           const float (&o)[kCount], const RowState& rows, uint32_t thread) {
  const uint32_t lane = thread % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float share = __fdividef(1.f, quad_sum(rows.sum[r]));
    const uint32_t row = thread / 32 * 16 + lane / 4 + 8 * r;
    bf16* to = p.out + (uint64_t(item.row + row) * p.heads + item.head) * S::kHeadDim + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < kCount; i += 16) {
      uint32_t x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = pack_bf16(o[i + 4 * j + 2 * r] * share, o[i + 4 * j + 2 * r + 1] * share);
      transpose_quad(x, lane);
      if (row < item.rows) *reinterpret_cast<uint4*>(to + i * 2) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

/// Starts S = Q K^T.
template <class S>
__device__ __forceinline__ void start_scores(float (&s)[S::kTile / 2], const uint8_t* q, const uint8_t* k) {
  const uint64_t a = panel_descriptor(shared_address(q), 1024, 0), b = panel_descriptor(shared_address(k), 1024, 0);
#pragma unroll
  for (int i = 0; i < S::kHeadDim / 16; ++i) {
    const uint64_t a_at = (i / 4 * S::kPanelBytes + i % 4 * 32) >> 4;
    const uint64_t b_at = (i / 4 * S::kSubtiles * S::kPanelBytes + i % 4 * 32) >> 4;
    if (i == 0) {
      wgmma_scores<false>(s, a, b);
    } else {
      wgmma_scores<true>(s, a + a_at, b + b_at);
    }
  }
  wgmma_commit();
}

/// Starts O += P V.
template <class S, int kCount, int kPacked>
__device__ __forceinline__ void start_values(float (&o)[kCount], const uint32_t (&p)[kPacked], const uint8_t* v) {
  const uint64_t b = panel_descriptor(shared_address(v), 1024, S::kPanelBytes);
#pragma unroll
  for (int i = 0; i < S::kTile / 16; ++i) {
    wgmma_values(o, p + 4 * i, b + ((i / 4 * S::kSubtileBytes + i % 4 * 2048) >> 4));
  }
  wgmma_commit();
}

/// One arrival a warp: each warp's own products have read the stage.
__device__ __forceinline__ void release(uint64_t* barrier, uint32_t lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(barrier);
}

template <class S>
__device__ __forceinline__ void consume(const AttentionPrefillParams& p, PrefillShared<S>& shared, uint32_t warpgroup,
                                        uint32_t thread) {
  const uint32_t lane = thread % 32;
  const int my_turn = 1 + warpgroup, next_turn = 1 + (warpgroup + 1) % S::kWarpgroups;
  if (warpgroup == S::kWarpgroups - 1) turn_pass(next_turn);
  const uint8_t* q = shared.q[warpgroup];

  Ring<S::kStages> k, v;
  for (uint32_t q_phase = 0;; q_phase ^= 1) {
    barrier_wait(&shared.q_full[warpgroup], q_phase);
    const PrefillItem item = shared.items[warpgroup];
    if (item.tiles == 0) return;
    const uint32_t unmasked = (item.position + 1) / S::kTile;  // tiles that all 64 rows see in full
    const int limit = item.position + thread / 32 * 16 + lane / 4 - lane % 4 * 2;

    float s[S::kTile / 2], o[S::kHeadDim / 2] = {};
    uint32_t weights[S::kTile / 4];
    RowState rows;
    // O += P V has ended, if it was started, and its registers may be touched again.
    const auto finish_values = [&](bool started) {
      wgmma_wait<0>();
      pin(o);
      pin(weights);
      if (!started) return;
      release(&shared.v_empty[v.stage], lane);
      v.next();
    };

    barrier_wait(&shared.k_full[k.stage], k.phase);
    wgmma_fence();
    start_scores<S>(s, q, shared.k[k.stage]);
    wgmma_wait<0>();
    pin(s);
    release(&shared.k_empty[k.stage], lane);
    k.next();
    if (item.tiles == 1) release(&shared.q_empty[warpgroup], lane);
    if (unmasked == 0) mask(s, limit);
    softmax(s, rows, p.scale_log2);
    pin(s);

    for (uint32_t j = 1; j < item.tiles; ++j) {
      barrier_wait(&shared.k_full[k.stage], k.phase);
      finish_values(j > 1);
      pack(weights, s);
      pin(weights);
      turn_wait(my_turn);
      pin(s);
      wgmma_fence();
      start_scores<S>(s, q, shared.k[k.stage]);
      rescale(o, rows);
      barrier_wait(&shared.v_full[v.stage], v.phase);
      pin(o);
      pin(weights);
      wgmma_fence();
      start_values<S>(o, weights, shared.v[v.stage]);
      turn_pass(next_turn);
      wgmma_wait<1>();
      pin(s);
      release(&shared.k_empty[k.stage], lane);
      k.next();
      if (j + 1 == item.tiles) release(&shared.q_empty[warpgroup], lane);
      if (j >= unmasked) mask(s, limit - int(j * S::kTile));
      softmax(s, rows, p.scale_log2);
      pin(s);
    }
    finish_values(item.tiles > 1);
    pack(weights, s);
    rescale(o, rows);
    barrier_wait(&shared.v_full[v.stage], v.phase);
    pin(o);
    pin(weights);
    wgmma_fence();
    start_values<S>(o, weights, shared.v[v.stage]);
    finish_values(true);
    store_rows<S>(p, item, o, rows, thread);
  }
}

template <class S>
__device__ __forceinline__ void attention_prefill(const AttentionPrefillParams& p) {
  launch_dependents();
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<PrefillShared<S>*>(raw + (-shared_address(raw) & 1023));
  if (threadIdx.x == 0) {
    tensor_prefetch(&p.q);
    for (int w = 0; w < S::kWarpgroups; ++w) {
      barrier_init(&shared.q_full[w], 1);
      barrier_init(&shared.q_empty[w], 4);
    }
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&shared.k_full[i], 1);
      barrier_init(&shared.v_full[i], 1);
      barrier_init(&shared.k_empty[i], 4 * S::kWarpgroups);
      barrier_init(&shared.v_empty[i], 4 * S::kWarpgroups);
    }
    barrier_init_fence();
  }
  __syncthreads();
  wait_prior();
  const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), warpgroup = warp / 4;
  if (warpgroup == S::kWarpgroups) {
    give_registers<S::kProducerRegisters>();
    if (warp % 4 == 0) produce<S>(p, shared, threadIdx.x % 32);
  } else {
    take_registers<S::kConsumerRegisters>();
    consume<S>(p, shared, warpgroup, threadIdx.x % 128);
  }
}

#endif

}  // namespace md

extern "C" __global__ void __launch_bounds__(384, 1)
    md_attention_prefill_128(const __grid_constant__ md::AttentionPrefillParams p) {
#if __CUDA_ARCH__ >= 900
  md::attention_prefill<md::PrefillShape<128, 2, 2>>(p);
#endif
}

extern "C" __global__ void __launch_bounds__(512, 1)
    md_attention_prefill_64(const __grid_constant__ md::AttentionPrefillParams p) {
#if __CUDA_ARCH__ >= 900
  md::attention_prefill<md::PrefillShape<64, 3, 3>>(p);
#endif
}
