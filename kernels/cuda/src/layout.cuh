// Where elements lie in KV pages and packed weights on a GPU (kernels/cuda/layout.zig is the same for the host).
// Both are stored in the order that shared memory wants, so that a tile is one bulk copy and neither ldmatrix nor
// wgmma meets a bank conflict.
#pragma once
#include "common.cuh"

namespace md {

/// As in abi/types.zig: (layers, pages, 2, h_kv, page_size, d) bf16. page_size is a power of two from 64 on.
struct KvCache {
  bf16* data;
  uint32_t layers, pages, page_size, kv_heads, head_dim, dtype;
};

constexpr int kKvTile = 64;  // tokens

/// One (layer, page, k or v, head) block of page_size * d elements: a run of tiles.
__device__ __forceinline__ bf16* kv_block(const KvCache& c, uint32_t layer, uint32_t page, uint32_t is_v,
                                          uint32_t head) {
  const uint64_t block = uint64_t(c.page_size) * c.head_dim;
  return c.data + (((uint64_t(layer) * c.pages + page) * 2 + is_v) * c.kv_heads + head) * block;
}

/// Element offset of (token in page, i) in a block. A tile of 64 tokens is 64 * d elements in panels of 64 columns,
/// each (64 tokens, 64) with wgmma's 128-byte swizzle (16-byte chunk c of row t stands at c ^ (t % 8)). Head dim 96
/// ends in a panel of 32 columns with the 64-byte swizzle (c ^ (t / 2 % 4)).
__device__ __forceinline__ uint32_t kv_offset(uint32_t token, uint32_t i, uint32_t head_dim) {
  const uint32_t t = token % kKvTile, panel = i / 64, chunk = i % 64 / 8;
  const uint32_t tile = token / kKvTile * kKvTile * head_dim + panel * (kKvTile * 64);
  const bool narrow = head_dim - panel * 64 < 64;
  const uint32_t at = narrow ? t * 32 + ((chunk ^ (t / 2 % 4)) * 8) : t * 64 + ((chunk ^ (t % 8)) * 8);
  return tile + at + i % 8;
}

/// Packed weight (n, k) bf16: slabs of 16 rows x 128 k (4 KB), k fastest, padded with zeros; within a slab
/// (2 groups of 8 rows, 2 halves of 64 k, 8 rows, 64 k) with the 128-byte swizzle. So any 16 rows are one run of
/// memory, and groups of 8 rows of a stage of 128 k stand at a constant stride of 2 KB, as a wgmma descriptor wants.
constexpr int kSlabRows = 16, kSlabK = 128, kSlabElements = kSlabRows * kSlabK;

__host__ __device__ __forceinline__ uint32_t k_slabs(uint32_t k) { return (k + kSlabK - 1) / kSlabK; }

/// Element offset of (row, column) of a packed weight.
__device__ __forceinline__ uint64_t weight_offset(uint32_t row, uint32_t column, uint32_t k) {
  const uint64_t slab = uint64_t(row / kSlabRows) * k_slabs(k) + column / kSlabK;
  const uint32_t r = row % 8, group = row % kSlabRows / 8, half = column % kSlabK / 64, chunk = column % 64 / 8;
  return slab * kSlabElements + group * 1024 + half * 512 + r * 64 + ((chunk ^ r) * 8) + column % 8;
}

}  // namespace md
