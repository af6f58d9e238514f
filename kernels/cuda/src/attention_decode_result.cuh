// Partial results of the decode kernel: how they are folded, left in memory and taken up again (attention_decode.cu).
#pragma once
#include "attention_decode_load.cuh"

namespace md {

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

}  // namespace md
