// Linear layers of 17 to 32 rows on Hopper: a stream of weights through clusters of eight blocks.
//
// A cluster computes 128 weight rows x all tokens together: block r takes segment r of k, so every
// block of the chip reads its share whatever the layer's shape, and no tile is cut through memory. The eight segments'
// sums meet in shared memory: each warp sends its 16 weight rows to one of the blocks (st.async), which adds the segments
// up in order, the order of linear_tiled.cu and linear_skinny.cu, and writes the result, while the next tile is
// multiplied already.
#include "linear_output.cuh"
#include "linear_tiled.cuh"

namespace md {

struct LinearClusterParams {
  TensorMap x;           // (rows, k) bf16 in boxes of kTokens x 64 k, 128-byte swizzle
  const bf16* weight;    // packed (n, k)
  const bf16* bias;      // optional (n)
  const bf16* residual;  // optional (rows, columns)
  void* out;             // (rows, columns) bf16 or f32
  uint32_t rows, columns, slabs;
  uint32_t silu_mul, out_f32;  // silu_mul: a tile is 64 columns' gate rows and their up rows
  uint32_t weight_tiles;
};
static_assert(sizeof(LinearClusterParams) == 192);

constexpr int kSegments = 8;
// Warps: eight multiply, four add up and write, one brings weights, one tokens.
constexpr int kMultipliers = 8, kAdders = 4;
constexpr int kThreads = (kMultipliers + kAdders + 4) * 32;

template <int kTileTokens, int kWeightStageCount, int kTokenStageCount, int kReceiveCount>
struct ClusterShape {
  static constexpr int kTokens = kTileTokens, kWeightStages = kWeightStageCount, kTokenStages = kTokenStageCount;
  static constexpr int kReceives = kReceiveCount;  // tiles whose sums may be on their way
  static constexpr int kSums = kTokens / 2;        // of a thread
  static constexpr int kWeightBytes = kTileSlabs * kSlabBytes, kTokenBytes = kTokens * kBoxK * 2;
  static constexpr int kHalfGroups = kTokens / 16;               // groups of 8 tokens in half a tile
  static constexpr int kPartFloats = kHalfGroups * 128;          // 16 weight rows x half the tokens
  static constexpr int kReceiveBytes = kSegments * 2 * kPartFloats * 4;
};

template <class S>
struct ClusterShared {
  alignas(1024) uint8_t weights[S::kWeightStages][S::kWeightBytes];
  alignas(1024) uint8_t tokens[S::kTokenStages][S::kTokenBytes];
  alignas(128) float sums[S::kReceives][kSegments][2][S::kPartFloats];  // (group of 8 tokens, lane, 4)
  uint64_t weights_full[S::kWeightStages], weights_empty[S::kWeightStages];
  uint64_t tokens_full[S::kTokenStages], tokens_empty[S::kTokenStages];
  uint64_t sums_full[S::kReceives];   // all blocks' sums have come here
  uint64_t sums_empty[S::kReceives];  // all blocks have read what was sent to them
};

#if __CUDA_ARCH__ >= 900

// ---- Clusters --------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
/// Where an address of this block's shared memory is in another block of the cluster.
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t rank) {
  uint32_t r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
  return r;
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
__device__ __forceinline__ void send(uint32_t to, float a, float b, float c, float d, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to), "f"(a),
      "f"(b), "f"(c), "f"(d), "r"(barrier)
      : "memory");
}
/// Not .release.cluster, which waits for all of this warp's memory operations for about a microsecond: what has to come
/// before is what this block has read of its own shared memory, and a barrier of the block has seen to that.
__device__ __forceinline__ void arrive_in_block(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// ---- What a cluster computes -----------------------------------------------------------------------------------

/// The weight tiles of this cluster in order.
struct TileWalk {
  uint32_t tile, count, clusters;
  __device__ __forceinline__ explicit TileWalk(const LinearClusterParams& p)
      : tile(blockIdx.x / kSegments), count(p.weight_tiles), clusters(gridDim.x / kSegments) {}
  __device__ __forceinline__ bool more() const { return tile < count; }
  __device__ __forceinline__ void next() { tile += clusters; }
};

template <class S>
__device__ __forceinline__ void produce_weights(const LinearClusterParams& p, ClusterShared<S>& shared, uint32_t begin,
                                                uint32_t slabs, uint32_t lane) {
  const uint32_t slabs_wide = p.columns / kSlabRows;
  Ring<S::kWeightStages> ring;
  for (TileWalk walk(p); walk.more(); walk.next()) {
    const uint32_t column = p.silu_mul ? walk.tile * 4 + lane % 4 : walk.tile * 8 + lane;
    const uint32_t row = p.silu_mul && lane >= 4 ? slabs_wide + column : column;
    const bool mine = lane < kTileSlabs && column < slabs_wide;
    const uint32_t bytes = __popc(__ballot_sync(~0u, mine)) * kSlabBytes;
    const bf16* from = p.weight + (uint64_t(row) * p.slabs + begin) * kSlabElements;
    for (uint32_t i = 0; i < slabs; ++i) {
      barrier_wait(&shared.weights_empty[ring.stage], ring.phase ^ 1);
      if (lane == 0) barrier_expect(&shared.weights_full[ring.stage], bytes);
      __syncwarp();
      if (mine) {
        uint8_t* to = shared.weights[ring.stage] + lane * kSlabBytes;
        bulk_load_once(to, from, kSlabBytes, &shared.weights_full[ring.stage]);
      }
      from += kSlabElements;
      ring.next();
    }
  }
}

template <class S>
__device__ __forceinline__ void produce_tokens(const LinearClusterParams& p, ClusterShared<S>& shared, uint32_t begin,
                                               uint32_t slabs) {
  Ring<S::kTokenStages> ring;
  for (TileWalk walk(p); walk.more(); walk.next()) {
    for (uint32_t k = begin * kSlabK; k < (begin + slabs) * kSlabK; k += kBoxK) {
      barrier_wait(&shared.tokens_empty[ring.stage], ring.phase ^ 1);
      barrier_expect(&shared.tokens_full[ring.stage], S::kTokenBytes);
      tensor_load(shared.tokens[ring.stage], &p.x, k, 0, &shared.tokens_full[ring.stage]);
      ring.next();
    }
  }
}

// ---- Multiplying -----------------------------------------------------------------------------------------------

template <class S>
struct Multiplier {
  ClusterShared<S>& shared;
  const uint32_t warp, lane;
  TileProduct<S, ClusterShared<S>> product;

  /// A warp's rows go to the block of their number; with SiLU gate and up rows of the same columns meet in one block,
  /// half the tokens in each of two.
  __device__ __forceinline__ void run(const LinearClusterParams& p, uint32_t rank, uint32_t slabs) {
    Ring<S::kReceives> ring;
    float sums[S::kSums];
    for (TileWalk walk(p); walk.more(); walk.next()) {
      product.multiply(sums, slabs);
      barrier_wait(&shared.sums_empty[ring.stage], ring.phase ^ 1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t to = p.silu_mul ? warp % 4 + half * 4 : warp, part = p.silu_mul ? warp / 4 : half;
        const uint32_t address = in_block(shared_address(&shared.sums[ring.stage][rank][part][lane * 4]), to);
        const uint32_t barrier = in_block(shared_address(&shared.sums_full[ring.stage]), to);
#pragma unroll
        for (int i = 0; i < S::kHalfGroups; ++i) {
          const float* four = sums + (half * S::kHalfGroups + i) * 4;
          send(address + i * 512, four[0], four[1], four[2], four[3], barrier);
        }
      }
      ring.next();
    }
  }
};

// ---- Adding up -------------------------------------------------------------------------------------------------

template <class S>
struct Adder {
  const LinearClusterParams& p;
  ClusterShared<S>& shared;
  const uint32_t thread, lane, rank;

  /// Four sums of one part over the segments, left to right.
  __device__ __forceinline__ float4 total(uint32_t stage, uint32_t part, uint32_t at) const {
    float4 s[kSegments];
#pragma unroll
    for (int r = 0; r < kSegments; ++r) s[r] = *reinterpret_cast<const float4*>(&shared.sums[stage][r][part][at * 4]);
    float4 t = s[0];
#pragma unroll
    for (int r = 1; r < kSegments; ++r) {
      t = {__fadd_rn(t.x, s[r].x), __fadd_rn(t.y, s[r].y), __fadd_rn(t.z, s[r].z), __fadd_rn(t.w, s[r].w)};
    }
    return t;
  }

  __device__ __forceinline__ void write(uint32_t token, uint32_t column, float4 v, float4 up) const {
    const float values[4] = {v.x, v.y, v.z, v.w}, ups[4] = {up.x, up.y, up.z, up.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t t = token + i % 2, c = column + i / 2 * 8;
      if (t < p.rows) write_output(p, p.silu_mul, t, c, values[i], ups[i]);
    }
  }

  __device__ __forceinline__ void run() {
    constexpr uint32_t kItems = S::kHalfGroups * 32;  // of one part
    Ring<S::kReceives> ring;
    for (TileWalk walk(p); walk.more(); walk.next()) {
      if (thread == 0) barrier_expect(&shared.sums_full[ring.stage], S::kReceiveBytes);
      barrier_wait(&shared.sums_full[ring.stage], ring.phase);
      const uint32_t token = lane % 4 * 2;
      if (p.silu_mul) {
        const uint32_t column = walk.tile * 64 + rank % 4 * 16 + lane / 4;
        for (uint32_t at = thread; at < kItems; at += kAdders * 32) {
          const float4 v = total(ring.stage, 0, at), up = total(ring.stage, 1, at);
          if (column - lane / 4 < p.columns) {
            write(token + (rank / 4 * S::kHalfGroups + at / 32) * 8, column, v, up);
          }
        }
      } else {
        const uint32_t column = walk.tile * 128 + rank * 16 + lane / 4;
        for (uint32_t at = thread; at < 2 * kItems; at += kAdders * 32) {
          const float4 v = total(ring.stage, at / kItems, at % kItems);
          if (column - lane / 4 < p.columns) write(token + at / 32 * 8, column, v, {});
        }
      }
      asm volatile("bar.sync 1, %0;" ::"n"(kAdders * 32) : "memory");
      if (thread < kSegments) arrive_in_block(in_block(shared_address(&shared.sums_empty[ring.stage]), thread));
      ring.next();
    }
  }
};

template <class S>
__device__ __forceinline__ void linear_cluster(const LinearClusterParams& p) {
  launch_dependents();
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<ClusterShared<S>*>(raw + (-shared_address(raw) & 1023));
  if (threadIdx.x == 0) {
    tensor_prefetch(&p.x);
    for (int i = 0; i < S::kWeightStages; ++i) {
      barrier_init(&shared.weights_full[i], 1);
      barrier_init(&shared.weights_empty[i], kMultipliers);
    }
    for (int i = 0; i < S::kTokenStages; ++i) {
      barrier_init(&shared.tokens_full[i], 1);
      barrier_init(&shared.tokens_empty[i], kMultipliers);
    }
    for (int i = 0; i < S::kReceives; ++i) {
      barrier_init(&shared.sums_full[i], 1);
      barrier_init(&shared.sums_empty[i], kSegments);
    }
    barrier_init_fence();
  }
  __syncthreads();
  cluster_arrive();
  const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, rank = cluster_rank();
  const uint32_t begin = rank * p.slabs / kSegments, slabs = (rank + 1) * p.slabs / kSegments - begin;
  if (warp < kMultipliers) {
    cluster_wait();  // the others' barriers stand
    Multiplier<S>{shared, warp, lane, {shared, warp, lane}}.run(p, rank, slabs);
  } else if (warp < kMultipliers + kAdders) {
    cluster_wait();
    wait_prior();
    Adder<S>{p, shared, threadIdx.x - kMultipliers * 32, lane, rank}.run();
  } else {
    if (warp == kMultipliers + kAdders) produce_weights<S>(p, shared, begin, slabs, lane);
    if (warp == kMultipliers + kAdders + 1) {
      wait_prior();
      if (lane == 0) produce_tokens<S>(p, shared, begin, slabs);
      __syncwarp();
    }
    cluster_wait();
  }
  // Shared memory stays until nobody sends or arrives here any more.
  cluster_arrive();
  cluster_wait();
}

#endif

}  // namespace md

#if __CUDA_ARCH__ >= 900
#define MD_LINEAR_CLUSTER(p, ...) md::linear_cluster<md::ClusterShape<__VA_ARGS__>>(p)
#else
#define MD_LINEAR_CLUSTER(p, ...)
#endif

extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(md::kThreads, 1)
    md_linear_cluster_32(const __grid_constant__ md::LinearClusterParams p) {
  MD_LINEAR_CLUSTER(p, 32, 5, 6, 2);
}
