// Row gathers, norms and single passes over arrays: kilobytes between two matrix products, so what counts is the
// number of dependent memory accesses. A thread takes 8 neighbouring values and, but for very long rows, has all
// its loads in flight at once. cast and copy may make constants, which kernels read before wait_prior: they do not
// let the next one start early, and end in a fence.
#include "eight.cuh"

namespace md {

constexpr uint32_t kFullWarp = 0xffffffffu;
constexpr uint32_t kCopyUnits = 4;  // units a thread of md_copy_* moves

// ---- embedding -------------------------------------------------------------------------------------------------

struct EmbeddingParams {
  const void* table;      // (v, n)
  const int32_t* ids;     // (b, columns), rows ids_stride apart
  void* out;              // (rows, n)
  uint32_t columns, ids_stride, vocabulary;
  uint32_t units;         // of one row
};
static_assert(sizeof(EmbeddingParams) == 40);

/// A block copies a row; an id outside of the table gives zeros.
template <typename Unit>
__device__ __forceinline__ void embedding(const EmbeddingParams& p) {
  launch_dependents();
  wait_prior();
  const uint32_t row = blockIdx.x;
  const int32_t id = p.ids[uint64_t(row / p.columns) * p.ids_stride + row % p.columns];
  const bool inside = id >= 0 && uint32_t(id) < p.vocabulary;
  const Unit* from = static_cast<const Unit*>(p.table) + uint64_t(inside ? id : 0) * p.units;
  Unit* to = static_cast<Unit*>(p.out) + uint64_t(row) * p.units;
  for (uint32_t i = threadIdx.x; i < p.units; i += blockDim.x) to[i] = inside ? from[i] : Unit{};
}

// ---- rms_norm --------------------------------------------------------------------------------------------------

struct RmsNormParams {
  bf16* x;             // (rows, n)
  const bf16* delta;   // (rows, n) or null
  const bf16* weight;  // (n)
  bf16* out;           // (rows, n)
  uint32_t n;
  float inverse_n, eps;
  uint32_t vector;     // n is a multiple of 8 and all rows are 16-byte aligned
};
static_assert(sizeof(RmsNormParams) == 48);

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kFullWarp, x, lanes);
  return x;
}

/// The sum over the block, the same bits in every thread.
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float sums[32];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x = warp_sum(x);
  if (lane == 0) sums[warp] = x;
  __syncthreads();
  return warp_sum(lane < blockDim.x / 32 ? sums[lane] : 0.0f);
}

/// x, after x += delta where there is one: the norm sees what the next residual addition will see.
template <bool kVector>
__device__ __forceinline__ uint4 load_row_part(const RmsNormParams& p, uint64_t at, uint32_t count) {
  uint4 x = load_eight<kVector>(p.x + at, count);
  if (p.delta == nullptr) return x;
  float sum[8], delta[8];
  const uint4 packed_delta = load_eight<kVector>(p.delta + at, count);
  unpack_eight(sum, x);
  unpack_eight(delta, packed_delta);
#pragma unroll
  for (int j = 0; j < 8; ++j) sum[j] += delta[j];
  x = pack_eight(sum);
  store_eight<kVector>(p.x + at, x, count);
  return x;
}

__device__ __forceinline__ float add_squares(const uint4& packed, float sum) {
  float x[8];
  unpack_eight(x, packed);
#pragma unroll
  for (int j = 0; j < 8; ++j) sum = fmaf(x[j], x[j], sum);
  return sum;
}

__device__ __forceinline__ float norm_factor(const RmsNormParams& p, float sum_of_squares) {
  return rsqrtf(fmaf(sum_of_squares, p.inverse_n, p.eps));
}

__device__ __forceinline__ uint4 scale_eight(const uint4& packed, const uint4& packed_weight, float factor) {
  float x[8], weight[8];
  unpack_eight(x, packed);
  unpack_eight(weight, packed_weight);
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = x[j] * factor * weight[j];
  return pack_eight(x);
}

/// A block takes a row, a thread 8 values of it: both this and the block's size follow from n alone, whichever way
/// the values are loaded, and so does the order of the sum.
template <bool kVector>
__device__ __forceinline__ void rms_norm(const RmsNormParams& p) {
  launch_dependents();
  const uint32_t i = threadIdx.x * 8, count = eight_below<kVector>(i, p.n);
  const uint64_t at = uint64_t(blockIdx.x) * p.n + i;
  uint4 weight{}, x{};
  if (count > 0) weight = load_eight<kVector>(p.weight + i, count);
  wait_prior();
  if (count > 0) x = load_row_part<kVector>(p, at, count);
  const float factor = norm_factor(p, block_sum(add_squares(x, 0.0f)));
  if (count > 0) store_eight<kVector>(p.out + at, scale_eight(x, weight, factor), count);
}

/// Rows of more than 8 values a thread are read again, from the cache, once the sum is known.
template <bool kVector>
__device__ __forceinline__ void rms_norm_long(const RmsNormParams& p) {
  launch_dependents();
  const uint32_t step = blockDim.x * 8;
  const uint64_t row = uint64_t(blockIdx.x) * p.n;
  wait_prior();
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x * 8; i < p.n; i += step) {
    sum = add_squares(load_row_part<kVector>(p, row + i, eight_below<kVector>(i, p.n)), sum);
  }
  const float factor = norm_factor(p, block_sum(sum));
  for (uint32_t i = threadIdx.x * 8; i < p.n; i += step) {
    const uint32_t count = eight_below<kVector>(i, p.n);
    const uint4 x = load_eight<kVector>(p.x + row + i, count);
    const uint4 weight = load_eight<kVector>(p.weight + i, count);
    store_eight<kVector>(p.out + row + i, scale_eight(x, weight, factor), count);
  }
}

// ---- silu_mul, add, cast ---------------------------------------------------------------------------------------

struct SiluMulParams {
  const bf16* gate_up;  // (rows, 2 n)
  bf16* out;            // (rows, n)
  uint32_t n, vector;   // vector: as in RmsNormParams
};
static_assert(sizeof(SiluMulParams) == 24);

/// For large negative x the exponential is infinite and the quotient 0.
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + exp2_approx(-kLog2e * x)); }

template <bool kVector>
__device__ __forceinline__ void silu_mul(const SiluMulParams& p) {
  launch_dependents();
  const uint32_t i = (blockIdx.y * blockDim.x + threadIdx.x) * 8, count = eight_below<kVector>(i, p.n);
  wait_prior();
  if (count == 0) return;
  const bf16* row = p.gate_up + uint64_t(blockIdx.x) * 2 * p.n;
  const uint4 packed_gate = load_eight<kVector>(row + i, count);
  const uint4 packed_up = load_eight<kVector>(row + p.n + i, count);
  float gate[8], up[8];
  unpack_eight(gate, packed_gate);
  unpack_eight(up, packed_up);
#pragma unroll
  for (int j = 0; j < 8; ++j) gate[j] = silu(gate[j]) * up[j];
  store_eight<kVector>(p.out + uint64_t(blockIdx.x) * p.n + i, pack_eight(gate), count);
}

struct AddParams {
  const bf16* a;
  const bf16* b;
  bf16* out;  // may be a or b
  uint64_t elements;
  uint64_t vector;  // all three are 16-byte aligned
};
static_assert(sizeof(AddParams) == 40);

__device__ __forceinline__ uint64_t flat_eight() { return (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8; }

template <bool kVector>
__device__ __forceinline__ void add(const AddParams& p) {
  launch_dependents();
  const uint64_t at = flat_eight();
  const uint32_t count = eight_below(at, p.elements);
  wait_prior();
  if (count == 0) return;
  const uint4 packed_a = load_eight<kVector>(p.a + at, count), packed_b = load_eight<kVector>(p.b + at, count);
  float a[8], b[8];
  unpack_eight(a, packed_a);
  unpack_eight(b, packed_b);
#pragma unroll
  for (int j = 0; j < 8; ++j) a[j] += b[j];
  store_eight<kVector>(p.out + at, pack_eight(a), count);
}

struct CastParams {
  const void* source;
  void* out;
  uint64_t elements;
  uint64_t vector;  // both are 16-byte aligned
};
static_assert(sizeof(CastParams) == 32);

template <bool kVector>
__device__ __forceinline__ void narrow(const CastParams& p) {
  const uint64_t at = flat_eight();
  const uint32_t count = eight_below(at, p.elements);
  wait_prior();
  if (count == 0) return;
  float v[8];
  load_eight<kVector>(v, static_cast<const float*>(p.source) + at, count);
  store_eight<kVector>(static_cast<bf16*>(p.out) + at, pack_eight(v), count);
  __threadfence();
}

template <bool kVector>
__device__ __forceinline__ void widen(const CastParams& p) {
  const uint64_t at = flat_eight();
  const uint32_t count = eight_below(at, p.elements);
  wait_prior();
  if (count == 0) return;
  float v[8];
  unpack_eight(v, load_eight<kVector>(static_cast<const bf16*>(p.source) + at, count));
  store_eight<kVector>(static_cast<float*>(p.out) + at, v, count);
  __threadfence();
}

// ---- copy ------------------------------------------------------------------------------------------------------

struct CopyParams {
  const char* source;
  char* out;
  uint64_t run_units, source_stride, out_stride;  // units a run; bytes from run to run
  uint64_t units;                                 // of all runs together
};
static_assert(sizeof(CopyParams) == 48);

/// Units are numbered through all runs, so that many short runs fill blocks as well as one long one.
template <typename Unit>
__device__ __forceinline__ void copy(const CopyParams& p) {
  wait_prior();
  const uint64_t first = uint64_t(blockIdx.x) * blockDim.x * kCopyUnits + threadIdx.x;
  Unit values[kCopyUnits];
#pragma unroll
  for (uint32_t j = 0; j < kCopyUnits; ++j) {
    const uint64_t unit = first + j * blockDim.x, run = unit / p.run_units;
    const auto* from = reinterpret_cast<const Unit*>(p.source + run * p.source_stride);
    if (unit < p.units) values[j] = from[unit - run * p.run_units];
  }
#pragma unroll
  for (uint32_t j = 0; j < kCopyUnits; ++j) {
    const uint64_t unit = first + j * blockDim.x, run = unit / p.run_units;
    auto* to = reinterpret_cast<Unit*>(p.out + run * p.out_stride);
    if (unit < p.units) to[unit - run * p.run_units] = values[j];
  }
  __threadfence();
}

// ---- positions, publish, timestamp -----------------------------------------------------------------------------

struct PositionsParams {
  const int32_t* lens;  // (b)
  int32_t* positions;   // (b * r)
  int32_t* kv_len;      // (b)
  uint32_t rows, r;     // rows = b * r
  int32_t offset;
  uint32_t reserved;
};
static_assert(sizeof(PositionsParams) == 40);

struct PublishParams {
  const char* record;  // (bytes)
  char* ring;          // (slots, bytes), memory that the host reads
  uint32_t* counter;   // (1)
  uint32_t slots, bytes;
  uint32_t unit_bytes;  // what the record and every slot are aligned to and a multiple of: 16, 4 or 1
  uint32_t reserved;
};
static_assert(sizeof(PublishParams) == 40);

template <typename Unit>
__device__ __forceinline__ void copy_record(char* to, const char* from, uint32_t bytes) {
  for (uint32_t i = threadIdx.x; i < bytes / sizeof(Unit); i += blockDim.x) {
    reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
  }
}

__device__ __forceinline__ uint32_t load_system(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

__device__ __forceinline__ void store_release_system(uint32_t* p, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

__device__ __forceinline__ uint64_t global_nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time)::"memory");
  return time;
}

struct TimestampParams {
  double* out;
};
static_assert(sizeof(TimestampParams) == 8);

}  // namespace md

// One kernel a width of access: a copy's bits do not depend on it.
#define MD_UNIT_KERNELS(op, Params)                                                                            \
  extern "C" __global__ void md_##op##_16(const __grid_constant__ md::Params p) { md::op<uint4>(p); }         \
  extern "C" __global__ void md_##op##_2(const __grid_constant__ md::Params p) { md::op<uint16_t>(p); }
MD_UNIT_KERNELS(embedding, EmbeddingParams)
MD_UNIT_KERNELS(copy, CopyParams)
extern "C" __global__ void md_copy_4(const __grid_constant__ md::CopyParams p) { md::copy<uint32_t>(p); }
extern "C" __global__ void md_copy_1(const __grid_constant__ md::CopyParams p) { md::copy<uint8_t>(p); }

#define MD_VECTOR_KERNEL(name, function, Params, threads)                                              \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ md::Params p) { \
    if (p.vector) {                                                                                    \
      md::function<true>(p);                                                                           \
    } else {                                                                                           \
      md::function<false>(p);                                                                          \
    }                                                                                                  \
  }
MD_VECTOR_KERNEL(md_rms_norm, rms_norm, RmsNormParams, 1024)
MD_VECTOR_KERNEL(md_rms_norm_long, rms_norm_long, RmsNormParams, 1024)
MD_VECTOR_KERNEL(md_silu_mul, silu_mul, SiluMulParams, 256)
MD_VECTOR_KERNEL(md_add, add, AddParams, 256)
MD_VECTOR_KERNEL(md_cast_narrow, narrow, CastParams, 256)
MD_VECTOR_KERNEL(md_cast_widen, widen, CastParams, 256)

extern "C" __global__ void __launch_bounds__(256) md_positions(const __grid_constant__ md::PositionsParams p) {
  md::launch_dependents();
  md::wait_prior();
  const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= p.rows) return;
  const uint32_t s = row / p.r, i = row % p.r;
  const int32_t first = p.lens[s] + p.offset;
  p.positions[row] = first + int32_t(i);
  if (i == 0) p.kv_len[s] = first + int32_t(p.r);
}

/// One block. The counter moves when the whole record is out (the release after the barrier covers all threads'
/// writes), for a host that looks without waiting for an event.
extern "C" __global__ void __launch_bounds__(256) md_publish(const __grid_constant__ md::PublishParams p) {
  md::launch_dependents();
  md::wait_prior();
  const uint32_t count = md::load_system(p.counter);
  char* slot = p.ring + uint64_t(count % p.slots) * p.bytes;
  switch (p.unit_bytes) {
    case 16: md::copy_record<uint4>(slot, p.record, p.bytes); break;
    case 4: md::copy_record<uint32_t>(slot, p.record, p.bytes); break;
    default: md::copy_record<uint8_t>(slot, p.record, p.bytes);
  }
  __syncthreads();
  if (threadIdx.x == 0) md::store_release_system(p.counter, count + 1);
}

/// Nanoseconds, when everything before has finished.
extern "C" __global__ void md_timestamp(const __grid_constant__ md::TimestampParams p) {
  md::launch_dependents();
  md::wait_prior();
  if (threadIdx.x == 0) *p.out = double(md::global_nanoseconds());
}
