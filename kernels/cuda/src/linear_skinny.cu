// Linear layers of up to 16 rows on Hopper: a stream of weights, read once at the speed of memory.
//
// A unit is 16 output columns: 16 weight rows, or 16 gate rows and the 16 up rows that meet them. No unit is split over
// blocks, so nothing is added up through global memory. The eight warps of a block take one segment of k each
// (linear_tiled.cu has the same eight), with rings of their own that they fill themselves: slabs of weights by bulk copies, the
// first of which start before the kernels ahead have ended, and x by cp.async. Loads run ahead over the units of a
// block; the warps meet once a pass, to add up the segments' sums in order.
#include "layout.cuh"
#include "linear_output.cuh"

namespace md {

struct LinearSkinnyParams {
  const bf16* x;         // (rows, k)
  const bf16* weight;    // packed (n, k)
  const bf16* bias;      // optional (n)
  const bf16* residual;  // optional (rows, columns), may be `out`
  void* out;             // (rows, columns) bf16 or f32
  uint32_t rows, k;
  uint32_t columns;  // n, or n / 2 with silu_mul: gate rows first, then up rows
  uint32_t units;    // columns / 16
  uint32_t out_f32, reserved;
};
static_assert(sizeof(LinearSkinnyParams) == 64);

#if __CUDA_ARCH__ >= 900

constexpr int kWarps = 8, kSlabBytes = kSlabElements * 2;

/// kTokenCount: rows of x, rounded up to 8 or 16. kUnitCount: units of a pass. The rings hold slabs of a warp.
template <int kTokenCount, int kUnitCount, bool kSiluMul>
struct SkinnyShape {
  static constexpr int kTokens = kTokenCount, kUnits = kUnitCount;
  static constexpr bool kSilu = kSiluMul;
  static constexpr int kSlabs = kUnits * (kSilu ? 2 : 1);  // of one k in a pass
  static constexpr int kTiles = kTokens / 8;
  static constexpr int kRing = kTokens == 8 ? 5 : 3, kXRing = 2;
  static constexpr int kXBytes = kTokens * kSlabK * 2;
  static constexpr int kSums = kSlabs * kTiles * 128;  // of a warp
};

/// Must be tiles.zig's linear_skinny.sharedBytes.
template <class S>
struct SkinnyShared {
  alignas(1024) char weights[kWarps][S::kRing][kSlabBytes];
  alignas(1024) char x[kWarps][S::kXRing][S::kXBytes];
  alignas(16) float sums[2][kWarps][S::kSums];
  uint64_t full[kWarps][S::kRing];
};

/// Slabs of k that a warp adds up: segment s of 8. Below 8 slabs some have none and take no part.
struct Segment {
  uint32_t begin, end;
  __device__ __forceinline__ Segment(uint32_t k, uint32_t s)
      : begin(s * k_slabs(k) / kWarps), end((s + 1) * k_slabs(k) / kWarps) {}
};

/// The slabs of a warp in the order in which it meets them: pass, k, slab of the pass.
template <class S>
struct SlabCursor {
  const LinearSkinnyParams& p;
  const Segment segment;
  uint32_t unit, k, slab = 0;

  __device__ __forceinline__ SlabCursor(const LinearSkinnyParams& p, Segment segment)
      : p(p), segment(segment), unit(blockIdx.x), k(segment.begin) {}

  __device__ __forceinline__ bool done() const { return unit >= p.units || segment.begin == segment.end; }

  /// The last units of a pass may lie past the end.
  __device__ __forceinline__ bool present() const { return unit + slab % S::kUnits * gridDim.x < p.units; }

  __device__ __forceinline__ const bf16* address() const {
    const uint32_t u = unit + slab % S::kUnits * gridDim.x;
    const uint32_t row = S::kSilu && slab >= S::kUnits ? u + p.units : u;
    return p.weight + (uint64_t(row) * k_slabs(p.k) + k) * kSlabElements;
  }

  __device__ __forceinline__ void advance() {
    if (++slab < S::kSlabs) return;
    slab = 0;
    if (++k < segment.end) return;
    k = segment.begin;
    unit += S::kUnits * gridDim.x;
  }
};

/// Copies a slab of x (kTokens x 128 k) to shared memory, swizzled like a slab of weights; zeros outside of x.
template <class S>
__device__ __forceinline__ void load_x(const LinearSkinnyParams& p, uint32_t shared, uint32_t k_slab) {
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < S::kTokens / 2; ++i) {
    const uint32_t at = i * 32 + lane, token = at / 16, chunk = at % 16, k = k_slab * kSlabK + chunk * 8;
    const bool valid = token < p.rows && k < p.k;
    const bf16* from = valid ? p.x + uint64_t(token) * p.k + k : p.x;
    const uint32_t to = chunk / 8 * (S::kTokens * 128) + token * 128 + ((chunk % 8) ^ (token % 8)) * 16;
    cp_async_16(shared + to, from, valid);
  }
}

/// b[step][tile]: the B operand of each step of 16 k.
template <class S>
__device__ __forceinline__ void read_x(uint32_t shared, uint32_t (&b)[8][S::kTiles][2]) {
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < 8; step += 2) {
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      const uint32_t token = tile * 8 + lane % 8, chunk = step * 2 + lane / 8;
      uint32_t r[4];
      ldmatrix_x4(r, shared + chunk / 8 * (S::kTokens * 128) + token * 128 + ((chunk % 8) ^ (token % 8)) * 16);
      b[step][tile][0] = r[0], b[step][tile][1] = r[1];
      b[step + 1][tile][0] = r[2], b[step + 1][tile][1] = r[3];
    }
  }
}

/// sums[tile] (16 weight rows x 8 tokens) += one slab of weights.
template <class S>
__device__ __forceinline__ void multiply_slab(uint32_t slab, const uint32_t (&b)[8][S::kTiles][2],
                                              float (&sums)[S::kTiles][4]) {
  const uint32_t lane = threadIdx.x % 32, row = lane % 8, group = lane / 8 % 2;
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    uint32_t a[4];
    const uint32_t chunk = step % 4 * 2 + lane / 16;
    ldmatrix_x4(a, slab + group * 2048 + step / 4 * 1024 + row * 128 + (chunk ^ row) * 16);
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      mma_16x8x16(sums[tile], a, b[step][tile][0], b[step][tile][1]);
    }
  }
}

/// The sums of the segments, left to right.
template <class S>
__device__ __forceinline__ float4 fold_segments(const LinearSkinnyParams& p, const float (*sums)[S::kSums],
                                                uint32_t at) {
  float4 total = {};
  bool first = true;
#pragma unroll
  for (int s = 0; s < kWarps; ++s) {
    const Segment segment(p.k, s);
    if (segment.begin == segment.end) continue;
    const float4 v = *reinterpret_cast<const float4*>(&sums[s][at]);
    total = first ? v : float4{__fadd_rn(total.x, v.x), __fadd_rn(total.y, v.y), __fadd_rn(total.z, v.z),
                               __fadd_rn(total.w, v.w)};
    first = false;
  }
  return total;
}

/// Adds up the segments of a pass and writes its columns; a thread takes four outputs at a time.
template <class S>
__device__ __forceinline__ void finish_pass(const LinearSkinnyParams& p, const float (*sums)[S::kSums],
                                            uint32_t first_unit) {
  for (int item = threadIdx.x; item < S::kUnits * S::kTiles * 32; item += kWarps * 32) {
    const uint32_t lane = item % 32, tile = item / 32 % S::kTiles, slab = item / 32 / S::kTiles;
    const uint32_t unit = first_unit + slab * gridDim.x;
    if (unit >= p.units) continue;
    const auto total = [&](uint32_t s) { return fold_segments<S>(p, sums, ((s * S::kTiles + tile) * 32 + lane) * 4); };
    const float4 value = total(slab), up = S::kSilu ? total(slab + S::kUnits) : float4{};
    const float values[4] = {value.x, value.y, value.z, value.w}, ups[4] = {up.x, up.y, up.z, up.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t column = unit * 16 + lane / 4 + i / 2 * 8, token = tile * 8 + lane % 4 * 2 + i % 2;
      if (token < p.rows) write_output(p, S::kSilu, token, column, values[i], ups[i]);
    }
  }
}

template <class S>
__device__ __forceinline__ void linear_skinny(const LinearSkinnyParams& p) {
  extern __shared__ __align__(1024) char memory[];
  launch_dependents();
  auto& shared = *reinterpret_cast<SkinnyShared<S>*>(memory);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint64_t* full = shared.full[warp];
  const uint32_t weights = shared_address(shared.weights[warp]), x = shared_address(shared.x[warp]);

  const Segment segment(p.k, warp);
  SlabCursor<S> ahead(p, segment);
  const auto load_next = [&](uint32_t slot) __attribute__((always_inline)) {
    while (!ahead.done() && !ahead.present()) ahead.advance();
    if (ahead.done()) return;
    barrier_expect(full + slot, kSlabBytes);
    bulk_load_once(shared.weights[warp][slot], ahead.address(), kSlabBytes, full + slot);
    ahead.advance();
  };
  if (lane == 0) {
    for (int s = 0; s < S::kRing; ++s) barrier_init(full + s, 1);
    barrier_init_fence();
    for (int s = 0; s < S::kRing; ++s) load_next(s);
  }
  __syncwarp();
  wait_prior();

  const uint32_t steps = segment.end - segment.begin;
  uint32_t slot = 0, parity = 0, buffer = 0;
  for (uint32_t unit = blockIdx.x; unit < p.units; unit += S::kUnits * gridDim.x) {
    float sums[S::kSlabs][S::kTiles][4] = {};
    if (steps > 0) load_x<S>(p, x, segment.begin);
    cp_async_commit();
    for (uint32_t j = 0; j < steps; ++j) {
      if (j + 1 < steps) load_x<S>(p, x + (j + 1) % 2 * S::kXBytes, segment.begin + j + 1);
      cp_async_commit();
      cp_async_wait<1>();
      __syncwarp();
      uint32_t b[8][S::kTiles][2];
      read_x<S>(x + j % 2 * S::kXBytes, b);
#pragma unroll
      for (int s = 0; s < S::kSlabs; ++s) {
        if (unit + s % S::kUnits * gridDim.x >= p.units) continue;
        barrier_wait(full + slot, parity);
        multiply_slab<S>(weights + slot * kSlabBytes, b, sums[s]);
        async_proxy_fence();  // or the next copy may overtake reads of ldmatrix
        __syncwarp();
        if (lane == 0) load_next(slot);
        if (++slot == S::kRing) slot = 0, parity ^= 1;
      }
    }
    float* mine = shared.sums[buffer][warp];
#pragma unroll
    for (int s = 0; s < S::kSlabs; ++s) {
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
        const float(&c)[4] = sums[s][tile];
        *reinterpret_cast<float4*>(mine + ((s * S::kTiles + tile) * 32 + lane) * 4) = {c[0], c[1], c[2], c[3]};
      }
    }
    // Two buffers: whoever still adds up the pass before has not come to this barrier, and the one before that is done.
    __syncthreads();
    finish_pass<S>(p, shared.sums[buffer], unit);
    buffer ^= 1;
  }
}

#define MD_LINEAR_SKINNY(name, tokens, units, silu)                                            \
  extern "C" __global__ void __launch_bounds__(kWarps * 32)                                    \
      name(const __grid_constant__ LinearSkinnyParams p) {                                     \
    static_assert(sizeof(SkinnyShared<SkinnyShape<tokens, units, silu>>) <= 227 * 1024);       \
    linear_skinny<SkinnyShape<tokens, units, silu>>(p);                                        \
  }

MD_LINEAR_SKINNY(md_linear_skinny_8_1, 8, 1, false)
MD_LINEAR_SKINNY(md_linear_skinny_8_2, 8, 2, false)
MD_LINEAR_SKINNY(md_linear_skinny_8_3, 8, 3, false)
MD_LINEAR_SKINNY(md_linear_skinny_8_silu, 8, 1, true)
MD_LINEAR_SKINNY(md_linear_skinny_16_1, 16, 1, false)
MD_LINEAR_SKINNY(md_linear_skinny_16_2, 16, 2, false)
MD_LINEAR_SKINNY(md_linear_skinny_16_3, 16, 3, false)
MD_LINEAR_SKINNY(md_linear_skinny_16_silu, 16, 1, true)

#endif

}  // namespace md
