// Warpgroup products for attention (sm_90a): S = Q K^T with both operands in shared memory, O += P V with P in
// registers. Operands in shared memory stand in panels of 64 columns, rows of 128 bytes, 128-byte swizzle.
#pragma once
#include "common.cuh"

#if __CUDA_ARCH__ >= 900

namespace md {

/// Descriptor of a swizzled panel. `step` is the distance in bytes between groups of 8 rows; `panel` the distance
/// between panels of 64 columns, which only an operand whose columns are n (V) needs.
__device__ __forceinline__ uint64_t panel_descriptor(uint32_t address, uint32_t step, uint32_t panel) {
  constexpr uint64_t kSwizzle128 = 1ull << 62;
  return kSwizzle128 | uint64_t(step >> 4) << 32 | uint64_t(panel >> 4) << 16 | (address & 0x3ffff) >> 4;
}

/// Registers that ordinary code wrote, before the products that read or accumulate in them.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from moving uses of registers across a wait for the products that work on them.
template <int kCount>
__device__ __forceinline__ void pin(float (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

#define MD_OUT4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MD_OUT8(d, i) MD_OUT4(d, i), MD_OUT4(d, i + 4)
#define MD_OUT32(d, i) MD_OUT8(d, i), MD_OUT8(d, i + 8), MD_OUT8(d, i + 16), MD_OUT8(d, i + 24)
#define MD_NAMES32                                                                                             \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
  "%29,%30,%31"
#define MD_NAMES64                                                                                               \
  MD_NAMES32                                                                                                     \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58," \
  "%59,%60,%61,%62,%63"

/// d (64 x 128, f32) = or += a (64 x 16) b (128 x 16)^T, bf16, both with k along the rows.
template <bool kAccumulate>
__device__ __forceinline__ void wgmma_scores(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MD_NAMES64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
      : MD_OUT32(d, 0), MD_OUT32(d, 32)
      : "l"(a), "l"(b), "n"(kAccumulate));
}

/// d (64 x n, f32) += a (64 x 16, fragments as mma.m16n8k16 has them, 16 rows a warp) b (16 x n), bf16, b with n along
/// its rows. n = 2 * kCount.
template <int kCount>
__device__ __forceinline__ void wgmma_values(float (&d)[kCount], const uint32_t* a, uint64_t b) {
  static_assert(kCount == 32 || kCount == 64);
  if constexpr (kCount == 64) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MD_NAMES64
        "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
        : MD_OUT32(d, 0), MD_OUT32(d, 32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MD_NAMES32
        "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
        : MD_OUT32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}

#undef MD_OUT4
#undef MD_OUT8
#undef MD_OUT32
#undef MD_NAMES32
#undef MD_NAMES64

/// Moves registers between the warpgroups of a block; each is a compile-time total that fits the block's own.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Named barriers between two warpgroups: one waits, the other only announces.
__device__ __forceinline__ void turn_wait(int barrier) {
  asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void turn_pass(int barrier) {
  asm volatile("bar.arrive %0, 256;" ::"r"(barrier) : "memory");
}

/// A box of a 2-D tensor map at (column, row); what lies outside the tensor arrives as zeros.
__device__ __forceinline__ void tensor_load(void* shared, const void* map, uint32_t column, uint32_t row,
                                            uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(shared_address(shared)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
__device__ __forceinline__ void tensor_prefetch(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace md

#endif
