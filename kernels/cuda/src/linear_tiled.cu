// Linear layers of 17 rows and more on Hopper. A block stays on its multiprocessor; one warp brings weights, one
// brings tokens, and two warpgroups multiply 64 weight rows each with all tokens of a tile.
//
// Weights are the M operand, so that a tile of few tokens wastes nothing. k is cut into 8 segments of whole slabs
// (fewer where k has fewer slabs): each is one chain of tensor-core steps, and the segments' sums are added in order.
// That fixes a row's bits whoever computes which segment. Where whole tiles would leave multiprocessors idle, the last
// tiles are cut between blocks: a block's run of (tile, segment) units is contiguous, a block that holds a tile's first
// segments adds up the tile, and blocks that hold later ones hand each over through memory.
#include "linear_tiled.cuh"

namespace md {

struct LinearTiledParams {
  TensorMap x;           // (rows, k) bf16 in boxes of a tile's tokens x 64 k, 128-byte swizzle
  const bf16* weight;    // packed (n, k)
  const bf16* bias;      // optional (n)
  const bf16* residual;  // optional (rows, columns)
  void* out;             // (rows, columns) bf16 or f32
  float* partials;       // (blocks, slots, tile) sums of segments that are handed over
  uint32_t* arrivals;    // (split tiles, 8 warps) 0, and 0 again afterwards
  uint32_t rows, columns;
  uint32_t slabs, segments;             // of k
  uint32_t silu_mul, out_f32;           // silu_mul: a tile is 64 columns' gate rows and their up rows
  uint32_t weight_tiles, token_tiles;
  uint32_t whole_tiles;                 // that one block computes alone; the others are split
  uint32_t band;                        // token tiles that are computed next to each other
  uint32_t run, slots;                  // units of the split tiles to a block; those that it may hand over
};
static_assert(sizeof(LinearTiledParams) == 256);

constexpr int kWarps = 8;

template <int kTileTokens, int kWeightStageCount, int kTokenStageCount>
struct TiledShape {
  static constexpr int kTokens = kTileTokens, kWeightStages = kWeightStageCount, kTokenStages = kTokenStageCount;
  static constexpr int kSums = kTokens / 2;  // of a thread
  static constexpr int kWeightBytes = kTileSlabs * kSlabBytes, kTokenBytes = kTokens * kBoxK * 2;
  static constexpr int kTogether = kSums >= 64 ? 1 : 64 / kSums;  // partials that are read at once
};

constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
constexpr int kTurnTokens = 16;  // that pass through shared memory at once on the way out

template <class S>
struct TiledShared {
  alignas(1024) uint8_t weights[S::kWeightStages][S::kWeightBytes];  // (slab, group of 8 rows, half, 8 rows, 64 k)
  alignas(1024) uint8_t tokens[S::kTokenStages][S::kTokenBytes];     // (token, 64 k)
  alignas(128) float turn[kWarps][kTurnTokens * 16];
  uint64_t weights_full[S::kWeightStages], weights_empty[S::kWeightStages];
  uint64_t tokens_full[S::kTokenStages], tokens_empty[S::kTokenStages];
};

#if __CUDA_ARCH__ >= 900

// ---- What a block computes -------------------------------------------------------------------------------------

/// Segments [first, end) of a tile. `unit` is the first one's number among the units of split tiles.
struct Part {
  uint32_t weight_tile, token_tile, first, end, unit;
};

/// The first slab of a segment.
__device__ __forceinline__ uint32_t first_slab(const LinearTiledParams& p, uint32_t segment) {
  return p.segments == 8 ? segment * p.slabs / 8 : segment;  // below 8 a segment is one slab
}

/// The parts of this block in order: whole tiles, then its run of units. Every role walks them.
struct Walk {
  uint32_t tile, unit, unit_end;

  __device__ __forceinline__ explicit Walk(const LinearTiledParams& p) : tile(blockIdx.x) {
    const uint32_t units = (p.weight_tiles * p.token_tiles - p.whole_tiles) * p.segments;
    unit = min(blockIdx.x * p.run, units);
    unit_end = min(unit + p.run, units);
  }

  __device__ __forceinline__ bool next(const LinearTiledParams& p, Part& part) {
    if (tile < p.whole_tiles) {
      // A band of token tiles stays in the L2 while weight tiles pass.
      const uint32_t band = tile / (p.band * p.weight_tiles), in_band = tile % (p.band * p.weight_tiles);
      const uint32_t width = min(p.band, p.token_tiles - band * p.band);
      part = {in_band / width, band * p.band + in_band % width, 0, p.segments, 0};
      tile += gridDim.x;
      return true;
    }
    if (unit == unit_end) return false;
    // Weight tiles innermost: blocks that share one's weights reach it at the same time.
    const uint32_t done = p.whole_tiles / p.token_tiles, left = p.weight_tiles - done;
    const uint32_t split = unit / p.segments, first = unit % p.segments;
    const uint32_t end = min(p.segments, first + unit_end - unit);
    part = {done + split % left, split / left, first, end, unit};
    unit += end - first;
    return true;
  }
};

// ---- Producers: a warp for the weights, a warp for the tokens --------------------------------------------------

/// Weights are constants, so this runs ahead of the kernels before.
template <class S>
__device__ __forceinline__ void produce_weights(const LinearTiledParams& p, TiledShared<S>& shared, uint32_t lane) {
  const uint32_t slabs_wide = p.columns / kSlabRows;
  const bool once = p.token_tiles == 1;
  Ring<S::kWeightStages> ring;
  Walk walk(p);
  for (Part part; walk.next(p, part);) {
    const uint32_t column = p.silu_mul ? part.weight_tile * 4 + lane % 4 : part.weight_tile * 8 + lane;
    const uint32_t row = p.silu_mul && lane >= 4 ? slabs_wide + column : column;
    const bool mine = lane < kTileSlabs && column < slabs_wide;
    const uint32_t bytes = __popc(__ballot_sync(~0u, mine)) * kSlabBytes;
    const uint32_t begin = first_slab(p, part.first);
    const bf16* from = p.weight + (uint64_t(row) * p.slabs + begin) * kSlabElements;
    for (uint32_t left = first_slab(p, part.end) - begin; left > 0; --left) {
      barrier_wait(&shared.weights_empty[ring.stage], ring.phase ^ 1);
      if (lane == 0) barrier_expect(&shared.weights_full[ring.stage], bytes);
      __syncwarp();
      if (mine) {
        uint8_t* to = shared.weights[ring.stage] + lane * kSlabBytes;
        if (once) {
          bulk_load_once(to, from, kSlabBytes, &shared.weights_full[ring.stage]);
        } else {
          bulk_load(to, from, kSlabBytes, &shared.weights_full[ring.stage]);
        }
      }
      from += kSlabElements;
      ring.next();
    }
  }
}

template <class S>
__device__ __forceinline__ void produce_tokens(const LinearTiledParams& p, TiledShared<S>& shared) {
  Ring<S::kTokenStages> ring;
  Walk walk(p);
  for (Part part; walk.next(p, part);) {
    const uint32_t end = first_slab(p, part.end) * kSlabK;
    for (uint32_t k = first_slab(p, part.first) * kSlabK; k < end; k += kBoxK) {
      barrier_wait(&shared.tokens_empty[ring.stage], ring.phase ^ 1);
      barrier_expect(&shared.tokens_full[ring.stage], S::kTokenBytes);
      tensor_load(shared.tokens[ring.stage], &p.x, k, part.token_tile * S::kTokens, &shared.tokens_full[ring.stage]);
      ring.next();
    }
  }
}

// ---- Consumers: warpgroups of 64 weight rows -------------------------------------------------------------------

template <class S>
struct Consumer {
  const LinearTiledParams& p;
  TiledShared<S>& shared;
  const uint32_t thread, warp, lane;
  TileProduct<S, TiledShared<S>> product;

  /// This thread's four sums i.. of a unit that is handed over, in the order that both ends use.
  __device__ __forceinline__ float4* partial(uint32_t unit, int i) {
    const uint32_t block = unit / p.run, slot = unit % p.run;
    float* tile = p.partials + (uint64_t(block) * p.slots + slot) * (kTileRows * S::kTokens);
    return reinterpret_cast<float4*>(tile) + i / 4 * (kWarps * 32) + thread;
  }

  __device__ __forceinline__ void hand_over(const float (&sums)[S::kSums], uint32_t unit) {
#pragma unroll
    for (int i = 0; i < S::kSums; i += 4) {
      __stcg(partial(unit, i), make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
    }
  }

  /// Warps meet only the same warps of other blocks.
  __device__ __forceinline__ uint32_t* arrivals(uint32_t unit) {
    return p.arrivals + unit / p.segments * kWarps + warp;
  }

  __device__ __forceinline__ void announce(uint32_t unit, uint32_t count) {
    __syncwarp();
    if (lane == 0) add_arrivals(arrivals(unit), count);
  }

  __device__ __forceinline__ void await(uint32_t unit, uint32_t count) {
    if (lane == 0) {
      await_arrivals(arrivals(unit), count);
      *arrivals(unit) = 0;
    }
    __syncwarp();
  }

  /// total += the sums of units [unit, unit + count), in order.
  __device__ __forceinline__ void add_partials(float (&total)[S::kSums], uint32_t unit, uint32_t count) {
    await(unit, count);
    for (uint32_t done = 0; done < count; done += S::kTogether) {
      float4 sums[S::kTogether][S::kSums / 4];
#pragma unroll
      for (int j = 0; j < S::kTogether; ++j) {
        if (done + j < count) {
#pragma unroll
          for (int i = 0; i < S::kSums; i += 4) sums[j][i / 4] = __ldcg(partial(unit + done + j, i));
        }
      }
#pragma unroll
      for (int j = 0; j < S::kTogether; ++j) {
        if (done + j < count) {
#pragma unroll
          for (int i = 0; i < S::kSums; i += 4) {
            total[i] += sums[j][i / 4].x;
            total[i + 1] += sums[j][i / 4].y;
            total[i + 2] += sums[j][i / 4].z;
            total[i + 3] += sums[j][i / 4].w;
          }
        }
      }
    }
  }

  // On the way out 16 tokens x 16 columns of a warp are turned in shared memory, so that four lanes write the 16
  // columns of a token. Two tokens fill the 32 banks; chunks of 4 columns are exchanged so that writes, four pairs of
  // tokens at a time, meet no conflict either.

  __device__ __forceinline__ void turn_in(const float* sums) {
    float* to = shared.turn[warp] + lane % 4 * 32 + lane / 16 * 4 + lane / 4 % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int eight = i / 4, below = i % 4 / 2, odd = i % 2;
      to[eight * 128 + ((odd * 4 + below * 2) ^ (lane % 4 * 2)) * 4] = sums[i];
    }
  }

  /// Columns 4 * (lane % 4).. of token `eight` * 8 + lane / 4.
  __device__ __forceinline__ float4 turn_out(uint32_t of_warp, uint32_t eight) {
    const uint32_t pair = lane / 8, chunk = lane % 8 ^ pair * 2;
    return *reinterpret_cast<const float4*>(shared.turn[of_warp] + eight * 128 + pair * 32 + chunk * 4);
  }

  __device__ __forceinline__ float4 four(const bf16* from) { return four(*reinterpret_cast<const uint2*>(from)); }
  __device__ __forceinline__ float4 four(uint2 bits) {
    return {low_bf16(bits.x), high_bf16(bits.x), low_bf16(bits.y), high_bf16(bits.y)};
  }

  __device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
  }

  __device__ __forceinline__ float silu_times(float x, float up) {
    return __fmul_rn(__fdiv_rn(x, __fadd_rn(1.0f, __expf(-x))), up);
  }

  __device__ __forceinline__ void store(float4 v, uint64_t at) {
    if (p.out_f32) {
      *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = v;
    } else {
      *reinterpret_cast<uint2*>(static_cast<bf16*>(p.out) + at) =
          make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    }
  }

  __device__ __forceinline__ void finish(const float (&total)[S::kSums], const Part& part) {
    const uint32_t first = p.silu_mul ? part.weight_tile * 64 + warp % 4 * 16 : part.weight_tile * 128 + warp * 16;
    if (first >= p.columns) return;  // both warps of a pair
    const uint32_t column = first + lane % 4 * 4, token = part.token_tile * S::kTokens + lane / 4;
    const uint64_t at = uint64_t(token) * p.columns + column, step = uint64_t(p.columns) * 8;
    const bool biased = p.bias != nullptr;
    const float4 bias = biased ? four(p.bias + column) : float4{};

    if (p.silu_mul) {
      const float4 up_bias = biased ? four(p.bias + p.columns + column) : float4{};
      const uint32_t mine = warp / 4, gate = warp % 4;
#pragma unroll
      for (int i = 0; i < S::kTokens / 8; i += 2) {
        turn_in(total + i * 4);
        pair_sync();
        float4 v = turn_out(gate, mine), up = turn_out(gate + 4, mine);
        pair_sync();
        if (biased) v = plus(v, bias), up = plus(up, up_bias);
        v = {silu_times(v.x, up.x), silu_times(v.y, up.y), silu_times(v.z, up.z), silu_times(v.w, up.w)};
        if (token + (i + mine) * 8 < p.rows) {
          if (p.residual != nullptr) v = plus(v, four(p.residual + at + (i + mine) * step));
          store(v, at + (i + mine) * step);
        }
      }
      return;
    }

    constexpr int kBatch = S::kTokens > 64 ? S::kTokens / 16 : S::kTokens / 8;  // residuals read at once
#pragma unroll
    for (int start = 0; start < S::kTokens / 8; start += kBatch) {
      uint2 residual[kBatch];
      if (p.residual != nullptr) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const bool exists = token + (start + i) * 8 < p.rows;
          residual[i] = exists ? *reinterpret_cast<const uint2*>(p.residual + at + (start + i) * step) : uint2{};
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; i += 2) {
        turn_in(total + (start + i) * 4);
        __syncwarp();
        float4 v[2] = {turn_out(warp, 0), turn_out(warp, 1)};
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (biased) v[j] = plus(v[j], bias);
          if (p.residual != nullptr) v[j] = plus(v[j], four(residual[i + j]));
          if (token + (start + i + j) * 8 < p.rows) store(v[j], at + (start + i + j) * step);
        }
      }
    }
  }

  /// The warps that hold the gate and the up rows of the same columns.
  __device__ __forceinline__ void pair_sync() {
    __syncwarp();
    asm volatile("bar.sync %0, 64;" ::"r"(1 + warp % 4) : "memory");
  }

  __device__ __forceinline__ void run() {
    float total[S::kSums], sums[S::kSums];
    Walk walk(p);
    for (Part part; walk.next(p, part);) {
#pragma unroll
      for (int i = 0; i < S::kSums; ++i) total[i] = 0.f;
      for (uint32_t s = part.first; s < part.end; ++s) {
        product.multiply(sums, first_slab(p, s + 1) - first_slab(p, s));
        if (part.first > 0) {
          hand_over(sums, part.unit + s - part.first);
        } else if (s == 0) {
#pragma unroll
          for (int i = 0; i < S::kSums; ++i) total[i] = sums[i];
        } else {
#pragma unroll
          for (int i = 0; i < S::kSums; ++i) total[i] = __fadd_rn(total[i], sums[i]);
        }
      }
      if (part.first > 0) {
        announce(part.unit, part.end - part.first);
        continue;
      }
      if (part.end < p.segments) add_partials(total, part.unit + part.end, p.segments - part.end);
      finish(total, part);
    }
  }
};

template <class S>
__device__ __forceinline__ void linear_tiled(const LinearTiledParams& p) {
  launch_dependents();
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<TiledShared<S>*>(raw + (-shared_address(raw) & 1023));
  if (threadIdx.x == 0) {
    tensor_prefetch(&p.x);
    for (int i = 0; i < S::kWeightStages; ++i) {
      barrier_init(&shared.weights_full[i], 1);
      barrier_init(&shared.weights_empty[i], kWarps);
    }
    for (int i = 0; i < S::kTokenStages; ++i) {
      barrier_init(&shared.tokens_full[i], 1);
      barrier_init(&shared.tokens_empty[i], kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (warp >= kWarps) {
    give_registers<kProducerRegisters>();
    if (warp == kWarps) produce_weights<S>(p, shared, lane);
    wait_prior();
    if (warp == kWarps + 1 && lane == 0) produce_tokens<S>(p, shared);
  } else {
    take_registers<kConsumerRegisters>();
    wait_prior();
    Consumer<S>{p, shared, threadIdx.x, warp, lane, {shared, warp, lane}}.run();
  }
}

#endif

}  // namespace md

#if __CUDA_ARCH__ >= 900
#define MD_LINEAR_TILED(p, ...) md::linear_tiled<md::TiledShape<__VA_ARGS__>>(p)
#else
#define MD_LINEAR_TILED(p, ...)
#endif

extern "C" __global__ void __launch_bounds__(384, 1)
    md_linear_tiled_32(const __grid_constant__ md::LinearTiledParams p) {
  MD_LINEAR_TILED(p, 32, 5, 12);
}

extern "C" __global__ void __launch_bounds__(384, 1)
    md_linear_tiled_64(const __grid_constant__ md::LinearTiledParams p) {
  MD_LINEAR_TILED(p, 64, 5, 6);
}

extern "C" __global__ void __launch_bounds__(384, 1)
    md_linear_tiled_128(const __grid_constant__ md::LinearTiledParams p) {
  MD_LINEAR_TILED(p, 128, 4, 5);
}
