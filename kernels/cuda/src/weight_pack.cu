// Row-major weight rows into the slabs of layout.cuh.
#include "eight.cuh"
#include "layout.cuh"

namespace md {

struct WeightPackParams {
  const void* source;   // (rows, k) in device memory, or in host memory that the device reads
  bf16* weight;
  uint32_t rows, k;
  uint32_t row_offset;  // the packed row that source row 0 becomes
  uint32_t vector;      // source rows are 16-byte aligned
};
static_assert(sizeof(WeightPackParams) == 32);


template <bool kVector>
__device__ __forceinline__ uint4 load_as_bf16(const bf16* p, uint32_t count) {
  return load_eight<kVector>(p, count);
}
template <bool kVector>
__device__ __forceinline__ uint4 load_as_bf16(const float* p, uint32_t count) {
  float v[8];
  load_eight<kVector>(v, p, count);
  return pack_eight(v);
}

/// A block takes a part of one row, a thread a chunk of 8 k, zeros where k has ended; the rows beyond the source's
/// that the grid may have are the zeros below a weight's last row. It does not let the next kernel start early:
/// matrix products read their weights without waiting for what came before them.
template <typename Source, bool kVector>
__device__ __forceinline__ void weight_pack(const WeightPackParams& p) {
  const uint32_t row = blockIdx.x, column = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  wait_prior();
  if (column < k_slabs(p.k) * kSlabK) {
    const uint32_t count = row < p.rows ? eight_below<kVector>(column, p.k) : 0;
    const Source* from = static_cast<const Source*>(p.source) + uint64_t(row) * p.k + column;
    uint4 values{};
    if (count > 0) values = load_as_bf16<kVector>(from, count);
    store_eight<true>(p.weight + weight_offset(p.row_offset + row, column, p.k), values);
  }
  __threadfence();
}

}  // namespace md

extern "C" __global__ void __launch_bounds__(256) md_weight_pack_bf16(const __grid_constant__ md::WeightPackParams p) {
  if (p.vector) {
    md::weight_pack<md::bf16, true>(p);
  } else {
    md::weight_pack<md::bf16, false>(p);
  }
}

extern "C" __global__ void __launch_bounds__(256) md_weight_pack_f32(const __grid_constant__ md::WeightPackParams p) {
  if (p.vector) {
    md::weight_pack<float, true>(p);
  } else {
    md::weight_pack<float, false>(p);
  }
}
