// Linear layers on any GPU from sm_80 on, any n, k and alignment: what the Hopper kernels decline. Each output is one
// chain of tensor-core steps over k in order, so a row's bits depend on nothing but the row.
#include "layout.cuh"

namespace md {

struct LinearPortableParams {
  const bf16* x;         // (rows, k)
  const bf16* weight;    // packed (n, k)
  const bf16* bias;      // optional (n)
  const bf16* residual;  // optional (rows, columns)
  void* out;             // (rows, columns) bf16 or f32
  uint32_t rows, n, k;
  uint32_t columns;  // n, or n / 2 with silu_mul
  uint32_t silu_mul, out_f32;
};
static_assert(sizeof(LinearPortableParams) == 64);

constexpr int kWarps = 4;
constexpr int kTokenTiles = 4;  // of 8 tokens

/// Two neighbouring k of a token, zero outside of x. A pair is one access where rows start on 4 bytes.
__device__ __forceinline__ uint32_t x_pair(const LinearPortableParams& p, uint32_t token, uint32_t k) {
  if (token >= p.rows || k >= p.k) return 0;
  const auto* bits = reinterpret_cast<const uint16_t*>(p.x) + uint64_t(token) * p.k + k;
  if (reinterpret_cast<uint64_t>(bits) % 4 == 0 && k + 1 < p.k) return *reinterpret_cast<const uint32_t*>(bits);
  return bits[0] | (k + 1 < p.k ? uint32_t(bits[1]) << 16 : 0);
}

/// Two neighbouring k of a weight row; the packed k is padded with zeros.
__device__ __forceinline__ uint32_t weight_pair(const LinearPortableParams& p, uint32_t row, uint32_t k) {
  if (row >= p.n) return 0;
  return *reinterpret_cast<const uint32_t*>(p.weight + weight_offset(row, k, p.k));
}

/// sums[j] (16 weight rows from `first` on x 8 tokens) of a warp.
__device__ __forceinline__ void accumulate(const LinearPortableParams& p, uint32_t first, uint32_t limit,
                                           uint32_t token, float (&sums)[kTokenTiles][4]) {
  const uint32_t lane = threadIdx.x % 32, row = first + lane / 4, pair = lane % 4 * 2;
  const uint32_t low = row < limit ? row : p.n, high = row + 8 < limit ? row + 8 : p.n;
  for (uint32_t k = 0; k < p.k; k += 16) {
    const uint32_t a[4] = {weight_pair(p, low, k + pair), weight_pair(p, high, k + pair),
                           weight_pair(p, low, k + pair + 8), weight_pair(p, high, k + pair + 8)};
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      const uint32_t t = token + j * 8 + lane / 4;
      mma_16x8x16(sums[j], a, x_pair(p, t, k + pair), x_pair(p, t, k + pair + 8));
    }
  }
}

__device__ __forceinline__ float with_bias(const LinearPortableParams& p, float sum, uint32_t row) {
  return p.bias == nullptr ? sum : sum + __bfloat162float(p.bias[row]);
}

extern "C" __global__ void __launch_bounds__(kWarps * 32)
    md_linear_portable(const __grid_constant__ LinearPortableParams p) {
  launch_dependents();
  wait_prior();
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t first = (blockIdx.x * kWarps + threadIdx.x / 32) * 16, token = blockIdx.y * kTokenTiles * 8;
  if (first >= p.columns) return;
  float sums[kTokenTiles][4] = {}, up[kTokenTiles][4] = {};
  accumulate(p, first, p.columns, token, sums);
  if (p.silu_mul) accumulate(p, p.columns + first, p.n, token, up);
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t column = first + lane / 4 + i / 2 * 8, row = token + j * 8 + lane % 4 * 2 + i % 2;
      if (column >= p.columns || row >= p.rows) continue;
      float value = with_bias(p, sums[j][i], column);
      if (p.silu_mul) value = value / (1.0f + __expf(-value)) * with_bias(p, up[j][i], p.columns + column);
      const uint64_t at = uint64_t(row) * p.columns + column;
      if (p.residual != nullptr) value += __bfloat162float(p.residual[at]);
      if (p.out_f32) {
        static_cast<float*>(p.out)[at] = value;
      } else {
        static_cast<bf16*>(p.out)[at] = __float2bfloat16(value);
      }
    }
  }
}

}  // namespace md
