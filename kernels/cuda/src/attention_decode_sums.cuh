// What a warp holds of its query rows' softmax: weighted sums of V, sums of weights and the maximum that the weights are
// relative to; how two such results are folded, stored as a partial and written out.
//
// A warp has kRowTiles tiles of 16 rows and kColumnTiles tiles of 8 columns, in the accumulator layout of
// mma.m16n8k16: lane l holds of each tile rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
#pragma once
#include "common.cuh"

namespace md {

/// Where a maximum starts: finite, so that no difference of two maxima is NaN.
constexpr float kLowest = -3.0e38f;

template <int kRowTiles, int kColumnTiles>
struct Sums {
  float o[kRowTiles][kColumnTiles][4];
  float maximum[kRowTiles][2];  // of scores * log2(e)
  float total[kRowTiles][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) o[m][j][0] = o[m][j][1] = o[m][j][2] = o[m][j][3] = 0;
      maximum[m][0] = maximum[m][1] = kLowest;
      total[m][0] = total[m][1] = 0;
    }
  }

  /// This followed by `next`. What saw no token changes nothing, to the bit: its weights are 2^(lowest - maximum) = 0.
  __device__ __forceinline__ void fold(const Sums& next) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float top = fmaxf(maximum[m][half], next.maximum[m][half]);
        const float mine = exp2_approx(maximum[m][half] - top), other = exp2_approx(next.maximum[m][half] - top);
        maximum[m][half] = top;
        total[m][half] = __fmaf_rn(total[m][half], mine, __fmul_rn(next.total[m][half], other));
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            o[m][j][i] = __fmaf_rn(o[m][j][i], mine, __fmul_rn(next.o[m][j][i], other));
          }
        }
      }
    }
  }
};

/// A partial in the workspace: each warp's sums in the order of its lanes, so that they come and go in whole lines, then
/// (rows, 2) maximum and total.
template <int kRows, int kDim>
struct Partial {
  static constexpr int kFloats = kRows * (kDim + 2);

  float* data;
  uint32_t rows;  // that exist
  uint32_t warp, lane;

  /// `row` is that of the lane's first element.
  template <int kRowTiles, int kColumnTiles>
  __device__ __forceinline__ void store(const Sums<kRowTiles, kColumnTiles>& x, uint32_t row) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t r = row + m * 16 + half * 8;
        if (r >= rows) continue;
        float* to = sums<kRowTiles, kColumnTiles>(warp, m, half, lane);
        if constexpr (kColumnTiles % 2 == 0) {
#pragma unroll
          for (int j = 0; j < kColumnTiles; j += 2) {
            const float* low = &x.o[m][j][2 * half];
            const float* high = &x.o[m][j + 1][2 * half];
            __stcg(reinterpret_cast<float4*>(to + j * 64), make_float4(low[0], low[1], high[0], high[1]));
          }
        } else {
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) {
            __stcg(reinterpret_cast<float2*>(to + j * 64), make_float2(x.o[m][j][2 * half], x.o[m][j][2 * half + 1]));
          }
        }
        // All lanes and warps of a row hold the same two.
        if (warp % 4 == 0 && lane % 4 == 0) __stcg(ends(r), make_float2(x.maximum[m][half], x.total[m][half]));
      }
    }
  }

  template <int kRowTiles, int kColumnTiles>
  __device__ __forceinline__ void load(Sums<kRowTiles, kColumnTiles>& x, uint32_t row) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Rows that do not exist are read where the first is, so that nothing branches around the loads.
        const uint32_t r = row + m * 16 + half * 8;
        const bool there = r < rows;
        const float* from = there ? sums<kRowTiles, kColumnTiles>(warp, m, half, lane)
                                  : sums<kRowTiles, kColumnTiles>(warp % 4, 0, 0, lane % 4);
        const float2 e = __ldcg(ends(there ? r : 0));
        x.maximum[m][half] = e.x;
        x.total[m][half] = e.y;
        if constexpr (kColumnTiles % 2 == 0) {
#pragma unroll
          for (int j = 0; j < kColumnTiles; j += 2) {
            const float4 four = __ldcg(reinterpret_cast<const float4*>(from + j * 64));
            x.o[m][j][2 * half] = four.x, x.o[m][j][2 * half + 1] = four.y;
            x.o[m][j + 1][2 * half] = four.z, x.o[m][j + 1][2 * half + 1] = four.w;
          }
        } else {
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) {
            const float2 two = __ldcg(reinterpret_cast<const float2*>(from + j * 64));
            x.o[m][j][2 * half] = two.x, x.o[m][j][2 * half + 1] = two.y;
          }
        }
      }
    }
  }

 private:
  template <int kRowTiles, int kColumnTiles>
  __device__ __forceinline__ float* sums(uint32_t of_warp, int m, int half, uint32_t of_lane) const {
    constexpr int kVector = kColumnTiles % 2 == 0 ? 4 : 2;
    return data + ((of_warp * kRowTiles + m) * 2 + half) * (kColumnTiles * 64) + of_lane * kVector;
  }
  __device__ __forceinline__ float2* ends(uint32_t r) const {
    return reinterpret_cast<float2*>(data + kRows * kDim) + r;
  }
};

}  // namespace md
