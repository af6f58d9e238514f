// The loading warp of the decode attention kernel: finds this block's part of the work, hands it to the other warps as
// runs, and copies K and V into the ring as far ahead of them as it has room, across runs.
#pragma once
#include "attention_decode.cuh"

namespace md {

constexpr uint32_t kLanes = 32;

/// A full barrier counts the lanes of the loading warp, each of which may have copies of its own under way.
__device__ __forceinline__ void expect_copies(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
  asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(kLanes) : "memory");
}
/// Arrives once this lane's copies by cp_async_16 are there.
__device__ __forceinline__ void arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ uint32_t sum_lanes(uint32_t x) {
  return __reduce_add_sync(~0u, x);
}
__device__ __forceinline__ uint32_t scan_lanes(uint32_t x) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, x, distance);
    if (threadIdx.x % kLanes >= distance) x += other;
  }
  return x;
}

template <class Shape>
struct Loader {
  static constexpr uint32_t kDim = Shape::kDim;

  const AttentionDecodeParams& p;
  DecodeShared<Shape>& shared;
  const uint32_t lane = threadIdx.x % kLanes;
  Place<Shape::kSlots> slot;
  Place<kRuns> run_slot;

  __device__ __forceinline__ void work() {
    const Sequence mine = Sequence::read<Shape::kRows>(p, lane);
    shared.sequences[lane] = mine;
    __syncwarp();
    uint32_t total = sum_lanes(mine.tiles() * mine.jobs);
#pragma unroll 1
    for (uint32_t s = kLanes; s < p.sequences; s += kLanes) {
      const Sequence more = Sequence::read<Shape::kRows>(p, s + lane);
      total += sum_lanes(more.tiles() * more.jobs);
    }
    const Cut cut = {total, gridDim.x};
    if (lane == 0) shared.cut = cut;
    const uint32_t begin = cut.begin(blockIdx.x), end = cut.begin(blockIdx.x + 1);
    uint32_t before = 0;
#pragma unroll 1
    for (uint32_t s = 0; s < p.sequences && before < end; s += kLanes) {
      if (s > 0) {
        __syncwarp();
        shared.sequences[lane] = Sequence::read<Shape::kRows>(p, s + lane);
        __syncwarp();
      }
      const uint32_t tiles = shared.sequences[lane].tiles() * shared.sequences[lane].jobs, scan = scan_lanes(tiles);
      const uint32_t base = before + scan - tiles;
      uint32_t touched = __ballot_sync(~0u, tiles > 0 && base < end && base + tiles > begin);
#pragma unroll 1
      for (; touched != 0; touched &= touched - 1) {
        const uint32_t at = __ffs(touched) - 1;
        share(shared.sequences[at], s + at, __shfl_sync(~0u, base, at), begin, end);
      }
      before += __shfl_sync(~0u, scan, kLanes - 1);
    }
    barrier_wait(&shared.run_empty[run_slot.index], run_slot.parity ^ 1);
    if (lane == 0) {
      shared.runs[run_slot.index].end = 0;
      barrier_arrive(&shared.run_full[run_slot.index]);
    }
  }

  /// This block's chunks of one sequence, whose first tile is `base`.
  __device__ __forceinline__ void share(const Sequence& x, uint32_t s, uint32_t base, uint32_t begin, uint32_t end) {
    const uint32_t tiles = x.tiles();
    uint32_t k = begin > base ? (begin - base) / tiles : 0;
#pragma unroll 1
    for (; k < x.jobs && base + k * tiles < end; ++k) {
      const Job job = {base + k * tiles, x.prefix_tiles(), x.main_first(), x.main_tiles()};
      const uint32_t first = job.chunk_from(begin), last = job.chunk_from(end);
      if (first >= last) continue;
      barrier_wait(&shared.run_empty[run_slot.index], run_slot.parity ^ 1);
      Run& run = shared.runs[run_slot.index];
      if (lane == 0) {
        const uint32_t row = k % x.row_blocks * Shape::kRows;
        run = {.job = job,
               .begin = first,
               .end = last,
               .head = k / x.row_blocks,
               .first_row = x.first_row,
               .row = row,
               .rows = min(uint32_t(Shape::kRows), (x.length - x.position) * (p.heads / p.cache.kv_heads) - row),
               .position = x.position,
               .prefix_tokens = x.prefix_tokens,
               .start = x.start,
               .length = x.length};
        barrier_arrive(&shared.run_full[run_slot.index]);
      }
      __syncwarp();
      load(run, s);  // it stands until this warp needs its place
      run_slot.next();
    }
  }

  /// One source of a run: its pages, and the tokens that are read of it.
  struct Source {
    const bf16* data;
    const int32_t* table;
    uint32_t first_block;  // of (page 0, K, the head)
    uint32_t tile_shift;   // log2 of tiles a page
    uint32_t begin, end;   // tokens

    /// Number in the cache of K's tile that holds a token.
    __device__ __forceinline__ uint32_t tile_of(uint32_t token, uint32_t kv_heads) const {
      const uint32_t tile = token / kKvTile;
      const uint32_t page = __ldcg(table + (tile >> tile_shift));
      return ((first_block + page * 2 * kv_heads) << tile_shift) + (tile & ((1u << tile_shift) - 1));
    }
  };

  __device__ __forceinline__ Source source(const Run& run, uint32_t s, bool prefix) const {
    const bool other = prefix && p.prefix_cache.data != nullptr;
    const KvCache& cache = other ? p.prefix_cache : p.cache;
    const uint32_t layer = other ? p.prefix_layer : p.layer;
    Source x;
    x.data = cache.data;
    x.table = other ? p.prefix_table + uint64_t(s) * p.max_prefix_pages : p.block_table + uint64_t(s) * p.max_pages;
    x.first_block = layer * cache.pages * 2 * cache.kv_heads + run.head;
    x.tile_shift = 31 - __clz(cache.page_size / kKvTile);
    x.begin = prefix ? 0 : run.start;
    x.end = prefix ? run.prefix_tokens : run.length;
    return x;
  }

  /// Fetches the tiles of a run's chunks.
  __device__ __forceinline__ void load(const Run& run, uint32_t s) {
    const uint32_t first = run.job.chunk_tile(run.begin), end = run.job.chunk_tile(run.end);
    const uint32_t prefix = run.job.prefix_tiles;
    if (first < prefix) {
      const Source x = source(run, s, true);
      if (p.indices != nullptr) {
        load_listed(x, p.indices + (uint64_t(s) * p.cache.kv_heads + run.head) * p.index_stride, first, min(end, prefix));
      } else {
        load_tiles(x, first, min(end, prefix));
      }
    }
    if (end > prefix) {
      const uint32_t shift = run.job.main_first - prefix;
      load_tiles(source(run, s, false), max(first, prefix) + shift, end + shift);
    }
  }

  /// Tiles [first, end) of a source. A lane looks up one of the next 32 while the last 32 are fetched.
  __device__ __forceinline__ void load_tiles(const Source& x, uint32_t first, uint32_t end) {
    const uint32_t kv_heads = p.cache.kv_heads, v_tiles = kv_heads << x.tile_shift;
    uint32_t tile = first + lane < end ? x.tile_of((first + lane) * kKvTile, kv_heads) : 0;
#pragma unroll 1
    for (uint32_t at = first; at < end; at += kLanes) {
      const uint32_t later = at + kLanes + lane;
      const uint32_t next = later < end ? x.tile_of(later * kKvTile, kv_heads) : 0;
#pragma unroll 1
      for (uint32_t i = at; i < min(at + kLanes, end); ++i) {
        const uint32_t k = __shfl_sync(~0u, tile, i - at);
        const uint32_t low = max(x.begin, i * kKvTile) - i * kKvTile, high = min(x.end - i * kKvTile, uint32_t(kKvTile));
        if (lane == 0) {
          load_tile(x.data + uint64_t(k) * (kKvTile * kDim), slot, low, high);
          auto v_slot = slot;
          v_slot.next();
          load_tile(x.data + uint64_t(k + v_tiles) * (kKvTile * kDim), v_slot, low, high);
        }
        slot.next();
        slot.next();
      }
      tile = next;
    }
  }

  /// Tokens [low, high) of one tile of K or V: one copy, or one a panel.
  __device__ __forceinline__ void load_tile(const bf16* from, Place<Shape::kSlots> to, uint32_t low, uint32_t high) {
    uint8_t* tile = shared.tiles[to.index];
    uint64_t* full = &shared.full[to.index];
    barrier_wait(&shared.empty[to.index], to.parity ^ 1);
    if (p.indices != nullptr) async_proxy_fence();  // load_listed wrote here with ordinary stores
    expect_copies(full, (high - low) * kDim * 2);
    if (high - low == kKvTile) return bulk_load_once(tile, from, Shape::kTileBytes, full);
#pragma unroll
    for (uint32_t column = 0; column < kDim; column += 64) {
      const uint32_t width = min(kDim - column, 64u);
      const uint32_t offset = column * kKvTile + low * width;
      bulk_load_once(tile + offset * 2, from + offset, (high - low) * width * 2, full);
    }
  }

  /// The same for tokens that a list names: 64 of its entries make a tile.
  __device__ __forceinline__ void load_listed(const Source& x, const int32_t* list, uint32_t first, uint32_t end) {
    const uint32_t kv_heads = p.cache.kv_heads, v_tiles = kv_heads << x.tile_shift;
    // Of entries `lane` and `lane` + 32: K's tile and the token in it.
    struct Pair {
      uint32_t tile[2], token[2];
    };
    const auto look_up = [&](uint32_t tile) {
      Pair y = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t entry = tile * kKvTile + lane + i * kLanes;
        if (entry >= x.end) continue;
        const uint32_t token = __ldcg(list + entry);
        y.token[i] = token % kKvTile;
        y.tile[i] = x.tile_of(token, kv_heads);
      }
      return y;
    };
    Pair pair = look_up(first);
#pragma unroll 1
    for (uint32_t i = first; i < end; ++i) {
      const Pair next = i + 1 < end ? look_up(i + 1) : Pair{};
      const uint32_t count = min(x.end - i * kKvTile, uint32_t(kKvTile));
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        barrier_wait(&shared.empty[slot.index], slot.parity ^ 1);
        const uint32_t to = shared_address(shared.tiles[slot.index]);
        constexpr uint32_t kChunks = kDim / 8;
#pragma unroll 1
        for (uint32_t at = lane; at < kKvTile * kChunks; at += kLanes) {
          const uint32_t token = at / kChunks, panel = at % kChunks / 8, c = at % kChunks % 8;
          const bool upper = token >= kLanes;
          const uint32_t tile = __shfl_sync(~0u, upper ? pair.tile[1] : pair.tile[0], token % kLanes);
          const uint32_t inside = __shfl_sync(~0u, upper ? pair.token[1] : pair.token[0], token % kLanes);
          if (token >= count) continue;
          const auto* from = reinterpret_cast<const uint8_t*>(x.data + uint64_t(tile + v * v_tiles) * (kKvTile * kDim));
          cp_async_16(to + chunk_offset<kDim>(token, panel, c), from + chunk_offset<kDim>(inside, panel, c), true);
        }
        arrive_after_copies(&shared.full[slot.index]);
        slot.next();
      }
      pair = next;
    }
  }
};

}  // namespace md
