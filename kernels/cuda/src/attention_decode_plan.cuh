// How decode attention is cut into work for a fixed number of blocks (plan.zig is the same for the host).
//
// A job is one KV head of one sequence and one block of its query rows. Its tokens are those of a prefix, then those of
// the main range, each in tiles of 64. Two things are kept apart:
//  - the reduction tree: tiles make chunks, chunks are folded in order into groups, groups in order into the result.
//    Where these begin depends on a tile's place in its source alone, so the tree says what a row's bits are;
//  - the cut: all jobs' tiles stand in one line, which is cut evenly; a block owns the chunks whose first tile lies in
//    its part. Whatever a chunk or group owes to several blocks is folded by the last of them to arrive.
#pragma once
#include <cstdint>

namespace md {

/// The tree. Another value gives other bits.
constexpr uint32_t kChunkTiles = 8;
constexpr uint32_t kGroupChunks = 8;
/// A job of up to so many chunks may be folded at once.
constexpr uint32_t kFlatChunks = 8;

/// Partials of one block, in its slots of the workspace.
enum Slot : uint32_t {
  kTotalSlot = 0,  // all groups from the job's first to the last that this block completed
  kGroupSlot = 1,  // the group that begins here and ends in another block
  kChunkSlots = 2, // chunks of a group that began in another block
  kGroupSlots = kChunkSlots + kGroupChunks - 1,  // whole groups of a job that began in another block
};

__device__ __forceinline__ uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }
__device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
__device__ __forceinline__ uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

/// All tiles of a call, shared out over its blocks.
struct Cut {
  uint32_t tiles, blocks;

  __device__ __forceinline__ uint32_t begin(uint32_t block) const {
    return fits() ? tiles * block / blocks : uint32_t(uint64_t(tiles) * block / blocks);
  }
  /// The block in whose part a tile lies.
  __device__ __forceinline__ uint32_t owner(uint32_t tile) const {
    return fits() ? ((tile + 1) * blocks - 1) / tiles : uint32_t(((uint64_t(tile) + 1) * blocks - 1) / tiles);
  }

 private:
  /// Long division costs hundreds of cycles.
  __device__ __forceinline__ bool fits() const { return tiles < (1u << 20) && blocks < (1u << 12); }
};

struct Job {
  uint32_t base;          // tiles of the jobs before it
  uint32_t prefix_tiles;  // from the prefix's start
  uint32_t main_first;    // the first tile that is read of the main cache
  uint32_t main_tiles;

  __device__ __forceinline__ uint32_t tiles() const { return prefix_tiles + main_tiles; }
  __device__ __forceinline__ uint32_t prefix_chunks() const { return ceil_div(prefix_tiles, kChunkTiles); }
  /// Number in the main cache of the job's first main chunk.
  __device__ __forceinline__ uint32_t main_chunk() const { return main_first / kChunkTiles; }
  __device__ __forceinline__ uint32_t main_chunks() const {
    return main_tiles == 0 ? 0 : ceil_div(main_first + main_tiles, kChunkTiles) - main_chunk();
  }
  __device__ __forceinline__ uint32_t chunks() const { return prefix_chunks() + main_chunks(); }

  /// Chunk c's first tile, counted from the job's first; chunks() gives tiles().
  __device__ __forceinline__ uint32_t chunk_tile(uint32_t c) const {
    const uint32_t before = prefix_chunks();
    if (c < before) return c * kChunkTiles;
    const uint32_t at = (c - before + main_chunk()) * kChunkTiles;
    return prefix_tiles + smaller(larger(at, main_first) - main_first, main_tiles);
  }
  /// The first chunk that begins at or after a tile of the whole call.
  __device__ __forceinline__ uint32_t chunk_from(uint32_t tile) const {
    if (tile <= base) return 0;
    const uint32_t offset = tile - base;
    if (offset > (prefix_chunks() - 1) * kChunkTiles || prefix_tiles == 0) {
      const uint32_t into = offset > prefix_tiles ? offset - prefix_tiles : 0;
      if (into == 0) return prefix_chunks();
      const uint32_t c = prefix_chunks() + ceil_div(main_first + into, kChunkTiles) - main_chunk();
      return smaller(c, chunks());
    }
    return ceil_div(offset, kChunkTiles);
  }

  /// The chunks of the group that holds chunk c: [group_begin, group_end).
  __device__ __forceinline__ uint32_t group_begin(uint32_t c) const {
    const uint32_t before = prefix_chunks();
    if (c < before) return c / kGroupChunks * kGroupChunks;
    const uint32_t first = (c - before + main_chunk()) / kGroupChunks * kGroupChunks;
    return before + larger(first, main_chunk()) - main_chunk();
  }
  __device__ __forceinline__ uint32_t group_end(uint32_t c) const {
    const uint32_t before = prefix_chunks();
    if (c < before) return smaller((c / kGroupChunks + 1) * kGroupChunks, before);
    const uint32_t end = ((c - before + main_chunk()) / kGroupChunks + 1) * kGroupChunks;
    return smaller(before + end - main_chunk(), chunks());
  }
  /// The number of chunk c's group in the job.
  __device__ __forceinline__ uint32_t group(uint32_t c) const {
    const uint32_t before = prefix_chunks();
    if (c < before) return c / kGroupChunks;
    return ceil_div(before, kGroupChunks) + (c - before + main_chunk()) / kGroupChunks - main_chunk() / kGroupChunks;
  }
  __device__ __forceinline__ uint32_t groups() const { return group(chunks() - 1) + 1; }

  /// Whether this job is folded at once where it is cut: one wait, not two, where a block's part is short.
  __device__ __forceinline__ bool flat(const Cut& cut) const {
    return chunks() <= kFlatChunks && cut.tiles <= 2 * kChunkTiles * cut.blocks;
  }
  /// The slot of a flat job's chunk in the block whose chunks of the job begin at `begin`. A block may have one such job's
  /// end, from the front, and another's beginning, from the back: at most seven chunks, for its part is two long.
  __device__ __forceinline__ static uint32_t flat_slot(uint32_t begin, uint32_t c) {
    return begin > 0 ? kChunkSlots + c - begin : kGroupSlots - 1 - c;
  }

  __device__ __forceinline__ uint32_t owner(const Cut& cut, uint32_t c) const { return cut.owner(base + chunk_tile(c)); }
  /// Where the chunks of `block` begin in this job; those of block + 1 are their end.
  __device__ __forceinline__ uint32_t begin(const Cut& cut, uint32_t block) const { return chunk_from(cut.begin(block)); }

  /// The first chunk of group g.
  __device__ __forceinline__ uint32_t group_chunk(uint32_t g) const {
    const uint32_t before = prefix_chunks(), groups_before = ceil_div(before, kGroupChunks);
    if (g < groups_before) return g * kGroupChunks;
    const uint32_t first = (g - groups_before + main_chunk() / kGroupChunks) * kGroupChunks;
    return before + larger(first, main_chunk()) - main_chunk();
  }
  /// The slot of the group that begins at chunk c, in the block that has chunks [begin, end) of this job.
  __device__ __forceinline__ uint32_t group_slot(uint32_t begin, uint32_t end, uint32_t c) const {
    if (group_end(c) > end) return kGroupSlot;
    const uint32_t first_whole = group_begin(begin) == begin ? group(begin) : group(begin) + 1;
    return kGroupSlots + group(c) - first_whole;
  }
};

}  // namespace md
