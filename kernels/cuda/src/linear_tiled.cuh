// What linear_tiled.cu and linear_cluster.cu share (sm_90a): warpgroup products of 64 weight rows and n tokens, both in
// shared memory with k along the rows and the 128-byte swizzle.
#pragma once
#include "attention_wgmma.cuh"
#include "layout.cuh"

namespace md {

struct alignas(64) TensorMap {
  uint64_t words[16];
};

constexpr int kTileRows = 128, kSlabBytes = kSlabElements * 2, kTileSlabs = kTileRows / kSlabRows, kBoxK = 64;

#if __CUDA_ARCH__ >= 900

#define MD_OUT8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MD_OUT16(d, i) MD_OUT8(d, i), MD_OUT8(d, i + 8)
#define MD_OUT32(d, i) MD_OUT16(d, i), MD_OUT16(d, i + 16)
#define MD_NAMES16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define MD_NAMES32 MD_NAMES16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define MD_NAMES64                                                                                                   \
  MD_NAMES32                                                                                                         \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59" \
  ",%60,%61,%62,%63"
#define MD_PRODUCT(names, n, a, b) \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" names "}, " a ", " b ", 1, 1, 1, 0, 0;"

/// d (64 x n, f32) += a (64 x 16) b (n x 16)^T, bf16; n = 2 * kCount.
template <int kCount>
__device__ __forceinline__ void wgmma_rows(float (&d)[kCount], uint64_t a, uint64_t b) {
  static_assert(kCount == 16 || kCount == 32 || kCount == 64);
  if constexpr (kCount == 16) {
    asm volatile(MD_PRODUCT(MD_NAMES16, "32", "%16", "%17")
                 : MD_OUT16(d, 0)
                 : "l"(a), "l"(b));
  } else if constexpr (kCount == 32) {
    asm volatile(MD_PRODUCT(MD_NAMES32, "64", "%32", "%33")
                 : MD_OUT32(d, 0)
                 : "l"(a), "l"(b));
  } else {
    asm volatile(MD_PRODUCT(MD_NAMES64, "128", "%64", "%65")
                 : MD_OUT32(d, 0), MD_OUT32(d, 32)
                 : "l"(a), "l"(b));
  }
}

/// Counts arrivals after everything that this warp has written, in memory; the other end reads that afterwards.
__device__ __forceinline__ void add_arrivals(uint32_t* at, uint32_t count) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(count) : "memory");
}
__device__ __forceinline__ void await_arrivals(const uint32_t* at, uint32_t count) {
  uint32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(at) : "memory");
  } while (seen != count);
}

/// A place in a ring of stages; `phase` is the parity of the rounds before.
template <int kStages>
struct Ring {
  uint32_t stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

/// One of eight warps, two warpgroups of 64 weight rows, that multiply a tile's weights with its tokens from rings in shared
/// memory that other warps fill. A thread holds two weight rows (g = lane / 4, and g + 8 of the warp's 16); in each 8
/// tokens its pair 2 * (lane % 4).
template <class S, class Shared>
struct TileProduct {
  Shared& shared;
  const uint32_t warp, lane;
  Ring<S::kWeightStages> weights;
  Ring<S::kTokenStages> tokens;

  __device__ __forceinline__ void release(uint64_t* barriers, uint32_t stage) {
    if (lane == 0) barrier_arrive(barriers + stage);
  }

  /// sums = one segment's chain, which nothing may touch until it has ended: it has on return.
  __device__ __forceinline__ void multiply(float (&sums)[S::kSums], uint32_t slabs) {
    const uint32_t warpgroup_offset = warp / 4 * (S::kWeightBytes / 2);
    uint32_t weights_used = 0, tokens_used = 0;
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) sums[i] = 0.f;
    for (uint32_t i = 0; i < slabs; ++i) {
      barrier_wait(&shared.weights_full[weights.stage], weights.phase);
      const uint64_t a =
          panel_descriptor(shared_address(shared.weights[weights.stage]) + warpgroup_offset, 2 * 8 * 128, 16);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        barrier_wait(&shared.tokens_full[tokens.stage], tokens.phase);
        const uint64_t b = panel_descriptor(shared_address(shared.tokens[tokens.stage]), 8 * 128, 16);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          wgmma_rows(sums, a + half * (1024 >> 4) + step * (32 >> 4), b + step * (32 >> 4));
        }
        wgmma_commit();
        wgmma_wait<1>();  // the half before has ended
        if (half > 0 || i > 0) release(shared.tokens_empty, tokens_used);
        if (half == 0 && i > 0) release(shared.weights_empty, weights_used);
        tokens_used = tokens.stage;
        tokens.next();
      }
      weights_used = weights.stage;
      weights.next();
    }
    wgmma_wait<0>();
    pin(sums);
    release(shared.tokens_empty, tokens_used);
    release(shared.weights_empty, weights_used);
  }
};

#undef MD_OUT8
#undef MD_OUT16
#undef MD_OUT32
#undef MD_NAMES16
#undef MD_NAMES32
#undef MD_NAMES64
#undef MD_PRODUCT

#endif

}  // namespace md
