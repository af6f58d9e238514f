// SnapKV (Li et al. 2404.14469): how much attention the last queries pay to each token of the context, and the choice
// of the tokens that they attend to most.
//
// A softmax over the whole context needs its sum before the first weight is known, so K is read twice: once for every
// query row's maximum and sum in a chunk of tokens, then, with the chunks merged, for the weights. A chunk's length is
// constant, so a score's bits do not depend on the batch.
#include "layout.cuh"

namespace md {

constexpr uint32_t kScoreThreads = 128, kScoreWarps = kScoreThreads / 32;
/// Query rows of a warp, held in registers against all of a chunk's K.
constexpr uint32_t kWarpRows = 32, kBlockRows = kWarpRows * kScoreWarps;
constexpr uint32_t kChunk = 1024, kChunkTiles = kChunk / kKvTile;
constexpr uint32_t kStages = 3;

struct SnapScoreParams {
  KvCache cache;
  const bf16* queries;         // (b, ring, h, d)
  const int32_t* lens;         // (b)
  const int32_t* block_table;  // (b, max_pages)
  float* scores;               // (b, h_kv, max_tokens)
  float2* partials;            // (sequences of this launch, h_kv, chunks, rows): maximum and sum, in octaves
  float* normalisers;          // (sequences of this launch, h_kv, rows): log2 of the sum of weights
  uint32_t ring, heads, max_pages, max_tokens, layer, window, chunks;
  float scale;
  /// First sequence of this launch.
  uint32_t begin, reserved;
};
static_assert(sizeof(SnapScoreParams) == 32 + 6 * 8 + 10 * 4);

/// One (sequence, KV head), and the chunk of its tokens that a block takes.
struct SnapHead {
  uint32_t s, head, group, rows, length, context;
  uint64_t slot;

  __device__ __forceinline__ SnapHead(const SnapScoreParams& p, uint32_t head, uint32_t sequence)
      : s(p.begin + sequence), head(head), group(p.heads / p.cache.kv_heads), rows(p.window * group),
        length(max(p.lens[s], 0)), context(length > p.window ? length - p.window : 0),
        slot(uint64_t(sequence) * p.cache.kv_heads + head) {}
};

/// What a block holds while it goes over a chunk.
template <int D>
class SnapChunk {
 public:
  static constexpr uint32_t kTileBytes = kKvTile * D * 2;

  const SnapScoreParams& p;
  const SnapHead& at;
  const uint32_t begin, tiles;

  /// Tokens [begin, end); `stages` is shared memory for kStages tiles.
  __device__ SnapChunk(const SnapScoreParams& p, const SnapHead& at, uint32_t begin, uint32_t end, uint32_t* pages,
                       const void* stages)
      : p(p), at(at), begin(begin), tiles((end - begin + kKvTile - 1) / kKvTile), pages_(pages),
        stages_(shared_address(stages)) {
    if (threadIdx.x < tiles) {
      const uint32_t token = begin + threadIdx.x * kKvTile;
      pages_[threadIdx.x] = uint32_t(p.block_table[uint64_t(at.s) * p.max_pages + token / p.cache.page_size]);
    }
    __syncthreads();
  }

  /// Calls step(tile, half, scores) for each half tile of 32 tokens, with the products q k of this warp's 32 rows from
  /// `row` on. Element [m][n][2 i + e] is that of row 16 m + 8 i + lane / 4 and token 8 n + 2 (lane % 4) + e.
  template <class Step>
  __device__ __forceinline__ void for_each(uint32_t row, Step step) const {
    const bool has_rows = row < at.rows;
    uint32_t q[2][D / 16][4];
    if (has_rows) load_queries(row, q);
#pragma unroll
    for (uint32_t i = 0; i + 1 < kStages; i++) fetch(i);
    for (uint32_t tile = 0; tile < tiles; tile++) {
      cp_async_wait<kStages - 2>();
      __syncthreads();
      fetch(tile + kStages - 1);
      if (!has_rows) continue;
      const uint32_t k = stages_ + tile % kStages * kTileBytes;
#pragma unroll 1  // both at once do not fit in the registers
      for (uint32_t half = 0; half < 2; half++) {
        float scores[2][4][4] = {};
        multiply(q, k, half, scores);
        step(tile, half, scores);
      }
    }
    cp_async_wait<0>();
    __syncthreads();
  }

 private:
  uint32_t* pages_;
  const uint32_t stages_;

  __device__ __forceinline__ void fetch(uint32_t tile) const {
    if (tile < tiles) {
      const uint32_t token = begin + tile * kKvTile;
      const bf16* k = kv_block(p.cache, p.layer, pages_[tile], 0, at.head) + token % p.cache.page_size * D;
      const uint32_t to = stages_ + tile % kStages * kTileBytes;
      for (uint32_t i = threadIdx.x; i < kTileBytes / 16; i += kScoreThreads) cp_async_16(to + i * 16, k + i * 8, true);
    }
    cp_async_commit();
  }

  __device__ __forceinline__ void load_queries(uint32_t row, uint32_t (&q)[2][D / 16][4]) const {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t r = row + i * 8 + lane / 4;
      const uint32_t slot = (at.context + r / at.group) % p.ring, h = at.head * at.group + r % at.group;
      const uint32_t* pairs = reinterpret_cast<const uint32_t*>(
          p.queries + ((uint64_t(at.s) * p.ring + slot) * p.heads + h) * D) + lane % 4;
#pragma unroll
      for (uint32_t j = 0; j < D / 8; j++) q[i / 2][j / 2][i % 2 + j % 2 * 2] = r < at.rows ? pairs[j * 4] : 0;
    }
  }

  static __device__ __forceinline__ void multiply(const uint32_t (&q)[2][D / 16][4], uint32_t k, uint32_t half,
                                                  float (&scores)[2][4][4]) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t token = half * 32 + lane / 16 * 8 + lane % 8, column = lane / 8 % 2 * 8;
#pragma unroll
    for (uint32_t j = 0; j < D / 16; j++) {
#pragma unroll
      for (uint32_t n = 0; n < 2; n++) {
        uint32_t b[4];
        ldmatrix_x4(b, k + kv_offset(token + n * 16, j * 16 + column, D) * 2);
#pragma unroll
        for (uint32_t m = 0; m < 2; m++) {
          mma_16x8x16(scores[m][2 * n], q[m][j], b[0], b[1]);
          mma_16x8x16(scores[m][2 * n + 1], q[m][j], b[2], b[3]);
        }
      }
    }
  }
};

/// Folds a row's maximum and sum over some of its tokens into those over others.
__device__ __forceinline__ void fold(float& max, float& sum, float other_max, float other_sum) {
  const float top = fmaxf(max, other_max);
  sum = sum * exp2_approx(max - top) + other_sum * exp2_approx(other_max - top);
  max = top;
}

constexpr float kLowest = -3e38f;

/// First pass, a block a (chunk, KV head, sequence).
template <int D>
__device__ __forceinline__ void snap_normalise(const SnapScoreParams& p) {
  extern __shared__ __align__(128) uint8_t stages[];
  __shared__ uint32_t pages[kChunkTiles];
  launch_dependents();
  wait_prior();
  const SnapHead at(p, blockIdx.y, blockIdx.z);
  const uint32_t begin = blockIdx.x * kChunk;
  if (at.context == 0 || begin >= at.length) return;
  const SnapChunk<D> chunk(p, at, begin, min(begin + kChunk, at.length), pages, stages);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float octaves = p.scale * kLog2e;
  float2* partials = p.partials + (at.slot * p.chunks + blockIdx.x) * at.rows;

  for (uint32_t first = 0; first < at.rows; first += kBlockRows) {
    const uint32_t row = first + warp * kWarpRows;
    float max[4], sum[4];
#pragma unroll
    for (int i = 0; i < 4; i++) max[i] = kLowest, sum[i] = 0;
    chunk.for_each(row, [&](uint32_t tile, uint32_t half, float(&scores)[2][4][4]) {
      const uint32_t token = begin + tile * kKvTile + half * 32;
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        float(&x)[4][4] = scores[i / 2];
        const uint32_t e = i % 2 * 2;
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) x[n][e] *= octaves, x[n][e + 1] *= octaves;
        if (token + 32 > at.context + 1) {
          // Row r stands at context + r / group and sees what is up to there.
          const uint32_t position = at.context + (row + i * 8 + lane / 4) / at.group;
#pragma unroll
          for (uint32_t n = 0; n < 4; n++) {
            const uint32_t own = token + n * 8 + lane % 4 * 2;
            if (own > position) x[n][e] = -INFINITY;
            if (own + 1 > position) x[n][e + 1] = -INFINITY;
          }
        }
        float top = max[i];
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) top = fmaxf(top, fmaxf(x[n][e], x[n][e + 1]));
        sum[i] *= exp2_approx(max[i] - top);
        max[i] = top;
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) sum[i] += exp2_approx(x[n][e] - top) + exp2_approx(x[n][e + 1] - top);
      }
    });
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        const float other_max = __shfl_xor_sync(~0u, max[i], step), other_sum = __shfl_xor_sync(~0u, sum[i], step);
        fold(max[i], sum[i], other_max, other_sum);
      }
      const uint32_t r = row + i * 8 + lane / 4;
      if (lane % 4 == 0 && r < at.rows) partials[r] = make_float2(max[i], sum[i]);
    }
  }
}

/// Second pass: the weights, summed over the rows.
template <int D>
__device__ __forceinline__ void snap_sum(const SnapScoreParams& p) {
  extern __shared__ __align__(128) uint8_t stages[];
  __shared__ uint32_t pages[kChunkTiles];
  __shared__ float totals[kScoreWarps][kChunk];
  launch_dependents();
  wait_prior();
  const SnapHead at(p, blockIdx.y, blockIdx.z);
  const uint32_t begin = blockIdx.x * kChunk;
  if (begin >= at.context) return;
  const uint32_t end = min(begin + kChunk, at.context);
  const SnapChunk<D> chunk(p, at, begin, end, pages, stages);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float octaves = p.scale * kLog2e;
  const float* normalisers = p.normalisers + at.slot * at.rows;

  for (uint32_t first = 0; first < at.rows; first += kBlockRows) {
    const uint32_t row = first + warp * kWarpRows;
    float normaliser[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t r = row + i * 8 + lane / 4;
      normaliser[i] = r < at.rows ? normalisers[r] : INFINITY;
    }
    chunk.for_each(row, [&](uint32_t tile, uint32_t half, float(&scores)[2][4][4]) {
      float column[8];
#pragma unroll
      for (uint32_t j = 0; j < 8; j++) {
        column[j] = 0;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
          column[j] += exp2_approx(__fmaf_rn(scores[i / 2][j / 2][i % 2 * 2 + j % 2], octaves, -normaliser[i]));
      }
      // The eight lanes of a column add up and share out what they hold: each ends with one column.
#pragma unroll
      for (uint32_t width = 4; width > 0; width /= 2) {
        const bool upper = lane & (width * 4);
#pragma unroll
        for (uint32_t j = 0; j < width; j++) {
          const float given = upper ? column[j] : column[j + width];
          const float kept = upper ? column[j + width] : column[j];
          column[j] = kept + __shfl_xor_sync(~0u, given, width * 4);
        }
      }
      const uint32_t n = lane / 16 * 2 + lane / 8 % 2, e = lane / 4 % 2;
      float& total = totals[warp][tile * kKvTile + half * 32 + n * 8 + lane % 4 * 2 + e];
      total = first == 0 ? column[0] : total + column[0];
    });
  }
  const uint32_t warps = min((at.rows + kWarpRows - 1) / kWarpRows, kScoreWarps);
  float* out = p.scores + (uint64_t(at.s) * p.cache.kv_heads + at.head) * p.max_tokens;
  for (uint32_t i = threadIdx.x; i < end - begin; i += kScoreThreads) {
    float total = totals[0][i];
    for (uint32_t w = 1; w < warps; w++) total += totals[w][i];
    out[begin + i] = total;
  }
}

struct SnapSelectParams {
  const float* scores;   // (b, h_kv, max_tokens)
  const int32_t* lens;   // (b)
  int32_t* indices;      // (b, h_kv, n)
  int32_t* prefix_len;   // (b)
  int32_t* tail_start;   // (b)
  float* pooled;         // (b, h_kv, max_tokens)
  uint32_t kv_heads, max_tokens, n, budget, window, kernel, max_pooling, reserved;
};
static_assert(sizeof(SnapSelectParams) == 80);

constexpr uint32_t kSelectThreads = 1024, kSelectWarps = kSelectThreads / 32;
constexpr uint32_t kSelectBins = 2048;
/// Neighbouring scores that a thread takes when the chosen ones are written.
constexpr uint32_t kOwn = 4;

struct SelectShared {
  uint32_t histogram[kSelectBins];
  uint32_t warp_sums[kSelectWarps];
  uint32_t bin, wanted;
};

/// The sum of x over the block's threads before this one; `total` gets that over all.
__device__ __forceinline__ uint32_t sum_before(uint32_t x, SelectShared& shared, uint32_t& total) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t left = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += left;
  }
  if (lane == 31) shared.warp_sums[warp] = sum;
  __syncthreads();
  uint32_t warps = shared.warp_sums[lane];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t left = __shfl_up_sync(~0u, warps, step);
    if (lane >= step) warps += left;
  }
  total = __shfl_sync(~0u, warps, 31);
  const uint32_t before = __shfl_sync(~0u, warps, (warp + 31) % 32);
  // The sums may be written again.
  __syncthreads();
  return sum - x + (warp == 0 ? 0 : before);
}

/// out[i] = average or maximum of scores[i - kernel / 2 .. i + kernel / 2]; neighbours outside of the scores do not
/// count, neither in the sum nor in what it is divided by.
__device__ __forceinline__ void pool(const float* scores, uint32_t context, uint32_t kernel, bool maximum, float* out) {
  const uint32_t half = kernel / 2;
  for (uint32_t i = threadIdx.x; i < context; i += kSelectThreads) {
    const uint32_t begin = i > half ? i - half : 0, end = min(i + half + 1, context);
    float value = scores[begin];
    for (uint32_t j = begin + 1; j < end; j++) value = maximum ? fmaxf(value, scores[j]) : __fadd_rn(value, scores[j]);
    out[i] = maximum ? value : __fdiv_rn(value, float(end - begin));
  }
  __syncthreads();
}

/// The smallest of the `wanted` largest values, as bits, found by counting digit after digit; `wanted` becomes the
/// number of values equal to it that are to be taken.
__device__ __forceinline__ uint32_t find_threshold(const float* values, uint32_t count, uint32_t& wanted,
                                                   SelectShared& shared) {
  uint32_t threshold = 0, known = 0;
  for (uint32_t digit = 0; digit < 3; digit++) {
    const uint32_t shift = digit == 0 ? 21 : digit == 1 ? 10 : 0, mask = digit == 2 ? 1023 : 2047;
    for (uint32_t i = threadIdx.x; i < kSelectBins; i += kSelectThreads) shared.histogram[i] = 0;
    __syncthreads();
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < count; i += kSelectThreads) {
      const uint32_t bits = ordered_bits(values[i]);
      if ((bits & known) == threshold) atomicAdd(&shared.histogram[bits >> shift & mask], 1u);
    }
    __syncthreads();
    // From the largest digit down: thread t has the bins 2047 - 2 t and 2046 - 2 t.
    const uint32_t bin = kSelectBins - 1 - 2 * threadIdx.x;
    const uint32_t upper = shared.histogram[bin], lower = shared.histogram[bin - 1];
    uint32_t total;
    const uint32_t before = sum_before(upper + lower, shared, total);
    if (before < wanted && wanted <= before + upper + lower) {
      const bool is_upper = wanted <= before + upper;
      shared.bin = is_upper ? bin : bin - 1;
      shared.wanted = is_upper ? wanted - before : wanted - before - upper;
    }
    __syncthreads();
    threshold |= shared.bin << shift;
    wanted = shared.wanted;
    known |= mask << shift;
  }
  return threshold;
}

/// Writes the places of the values above `threshold` and of the first `wanted` ones equal to it, ascending.
__device__ __forceinline__ void write_chosen(const float* values, uint32_t count, uint32_t threshold, uint32_t wanted,
                                             int32_t* out, SelectShared& shared) {
  uint32_t written = 0, equal_before = 0;
  for (uint32_t begin = 0; begin < count; begin += kSelectThreads * kOwn) {
    const uint32_t first = begin + threadIdx.x * kOwn;
    // Above the threshold in the low half, equal to it in the high half: a step has 4096 values.
    uint32_t bits[kOwn], own = 0;
#pragma unroll
    for (uint32_t j = 0; j < kOwn; j++) {
      bits[j] = first + j < count ? ordered_bits(values[first + j]) : 0;
      own += first + j >= count ? 0 : bits[j] > threshold ? 1 : bits[j] == threshold ? 1 << 16 : 0;
    }
    uint32_t total;
    const uint32_t before = sum_before(own, shared, total);
    uint32_t above = written + (before & 0xffff), equal = equal_before + (before >> 16);
#pragma unroll
    for (uint32_t j = 0; j < kOwn; j++) {
      if (first + j >= count || bits[j] < threshold) continue;
      const bool is_equal = bits[j] == threshold;
      if (!is_equal || equal < wanted) out[above + min(equal, wanted)] = int32_t(first + j);
      if (is_equal) equal++;
      else above++;
    }
    written += total & 0xffff;
    equal_before += total >> 16;
  }
}

}  // namespace md

using namespace md;

#define MD_SNAP_SCORE(D, BLOCKS)                                                               \
  extern "C" __global__ void __launch_bounds__(kScoreThreads, BLOCKS)                          \
      md_snap_score_normalise_##D(const __grid_constant__ SnapScoreParams p) {                 \
    snap_normalise<D>(p);                                                                      \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(kScoreThreads, BLOCKS)                          \
      md_snap_score_sum_##D(const __grid_constant__ SnapScoreParams p) {                       \
    snap_sum<D>(p);                                                                            \
  }

MD_SNAP_SCORE(64, 3)
MD_SNAP_SCORE(96, 3)
MD_SNAP_SCORE(128, 3)
MD_SNAP_SCORE(256, 2)

/// The chunks' maxima and sums, merged in their order: a block a (KV head, sequence).
extern "C" __global__ void __launch_bounds__(kScoreThreads)
    md_snap_score_merge(const __grid_constant__ SnapScoreParams p) {
  launch_dependents();
  wait_prior();
  const SnapHead at(p, blockIdx.x, blockIdx.y);
  if (at.context == 0) return;
  const uint32_t chunks = (at.length + kChunk - 1) / kChunk;
  for (uint32_t row = threadIdx.x; row < at.rows; row += kScoreThreads) {
    const float2* partials = p.partials + at.slot * p.chunks * at.rows + row;
    float max = kLowest, sum = 0;
    for (uint32_t i = 0; i < chunks; i++) {
      const float2 part = partials[uint64_t(i) * at.rows];
      fold(max, sum, part.x, part.y);
    }
    p.normalisers[at.slot * at.rows + row] = max + log2f(sum);
  }
}

/// A block a (sequence, KV head).
extern "C" __global__ void __launch_bounds__(kSelectThreads, 1)
    md_snap_select_heads(const __grid_constant__ SnapSelectParams p) {
  launch_dependents();
  __shared__ SelectShared shared;
  wait_prior();
  const uint32_t item = blockIdx.x, s = item / p.kv_heads;
  const uint32_t length = max(p.lens[s], 0);
  const bool selects = length > p.budget;
  const uint32_t context = length > p.window ? length - p.window : 0;
  const uint32_t count = selects ? min(p.budget - p.window, context) : 0;
  if (item % p.kv_heads == 0 && threadIdx.x == 0) {
    p.prefix_len[s] = int32_t(count);
    p.tail_start[s] = selects ? int32_t(context) : 0;
  }
  if (count == 0) return;
  const uint64_t offset = uint64_t(item) * p.max_tokens;
  float* pooled = p.pooled + offset;
  pool(p.scores + offset, context, p.kernel, p.max_pooling != 0, pooled);
  uint32_t wanted = count;
  const uint32_t threshold = find_threshold(pooled, context, wanted, shared);
  write_chosen(pooled, context, threshold, wanted, p.indices + uint64_t(item) * p.n, shared);
}
