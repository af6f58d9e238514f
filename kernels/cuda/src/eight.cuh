// Eight neighbouring bf16 values: what one 16-byte access moves, and one chunk of the swizzled layouts.
#pragma once
#include "common.cuh"

namespace md {

/// The first `count` of 8 values from p on, the others 0. kVector: p is 16-byte aligned.
template <bool kVector>
__device__ __forceinline__ uint4 load_eight(const bf16* p, uint32_t count = 8) {
  if (kVector && count == 8) return *reinterpret_cast<const uint4*>(p);
  const auto* bits = reinterpret_cast<const uint16_t*>(p);
  uint32_t words[4];
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t low = 2 * j < count ? bits[2 * j] : 0, high = 2 * j + 1 < count ? bits[2 * j + 1] : 0;
    words[j] = high << 16 | low;
  }
  return {words[0], words[1], words[2], words[3]};
}

/// One access, where the compiler would at times make four of an assignment.
__device__ __forceinline__ void store_16(void* p, const uint4& v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

template <bool kVector>
__device__ __forceinline__ void store_eight(bf16* p, const uint4& values, uint32_t count = 8) {
  if (kVector && count == 8) {
    store_16(p, values);
    return;
  }
  auto* bits = reinterpret_cast<uint16_t*>(p);
  const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
  for (uint32_t j = 0; j < 8; ++j) {
    if (j < count) bits[j] = static_cast<uint16_t>(words[j / 2] >> (j % 2 * 16));
  }
}

/// The same of floats, which take two accesses.
template <bool kVector>
__device__ __forceinline__ void load_eight(float (&v)[8], const float* p, uint32_t count = 8) {
  if (kVector && count == 8) {
    const auto* quads = reinterpret_cast<const float4*>(p);
    const float4 a = quads[0], b = quads[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    return;
  }
#pragma unroll
  for (uint32_t j = 0; j < 8; ++j) v[j] = j < count ? p[j] : 0.0f;
}

template <bool kVector>
__device__ __forceinline__ void store_eight(float* p, const float (&v)[8], uint32_t count = 8) {
  if (kVector && count == 8) {
    auto* quads = reinterpret_cast<float4*>(p);
    quads[0] = {v[0], v[1], v[2], v[3]};
    quads[1] = {v[4], v[5], v[6], v[7]};
    return;
  }
#pragma unroll
  for (uint32_t j = 0; j < 8; ++j) {
    if (j < count) p[j] = v[j];
  }
}

__device__ __forceinline__ void unpack_eight(float (&v)[8], const uint4& values) {
  const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) v[2 * j] = low_bf16(words[j]), v[2 * j + 1] = high_bf16(words[j]);
}

/// Rounds to nearest even.
__device__ __forceinline__ uint4 pack_eight(const float (&v)[8]) {
  return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

/// How many of the 8 values from `at` on, a multiple of 8, lie below n. kWhole: n is a multiple of 8.
template <bool kWhole = false>
__device__ __forceinline__ uint32_t eight_below(uint64_t at, uint64_t n) {
  if (at >= n) return 0;
  return kWhole || n - at > 8 ? 8 : static_cast<uint32_t>(n - at);
}

}  // namespace md
