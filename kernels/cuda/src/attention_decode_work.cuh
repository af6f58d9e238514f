// How the decode kernel's work is cut: which block reads which tokens, and in which order partial results are folded.
// kernels/cuda/plan.zig has the same arithmetic, with its tests.
//
// A row's tokens come in up to two parts (a prefix, then the main part), each cut at multiples of a chunk of its own
// tokens. Chunks are folded into groups and groups into the total, left to right, wherever they were computed: so a
// row's bits depend on neither the batch nor the number of blocks.
#pragma once
#include "layout.cuh"

namespace md {

struct AttentionDecodeParams {
  const bf16* q;                // (rows, h, d)
  const bf16* q_sink;           // optional (rows, h, d)
  bf16* out;                    // (rows, h, d)
  const int32_t* q_start;       // (b + 1)
  const int32_t* kv_len;        // (b)
  const int32_t* block_table;   // (b, max_pages)
  const int32_t* prefix_table;  // optional (b, max_prefix_pages)
  const int32_t* prefix_len;    // optional (b)
  const int32_t* tail_start;    // optional (b)
  float4* partials;             // (blocks, slots) of Shape::kPartialVectors
  uint32_t* tickets;            // zeros, and zeros again at the end
  KvCache cache, prefix_cache;
  uint32_t layer, prefix_layer, sinks, window;
  uint32_t sequences, group, max_pages, max_prefix_pages;  // group: query heads of a KV head
  uint32_t slots;
  float scale_log2;
};
static_assert(sizeof(AttentionDecodeParams) == 192);

constexpr uint32_t kChunkTiles = 8;
constexpr uint32_t kChunk = kChunkTiles * kKvTile;
constexpr uint32_t kGroupChunks = 8;

__device__ __forceinline__ uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

/// First main token of a row that sees `tokens` tokens; not 0 only where it reads the sinks apart.
__device__ __forceinline__ uint32_t view_start(const AttentionDecodeParams& p, uint32_t tokens) {
  return p.window > 0 && tokens > p.sinks + p.window ? tokens - p.window : 0;
}

struct Sequence {
  uint32_t first_row, rows, length;
  uint32_t prefix_tokens;
  uint32_t main_start;  // the first token of the main part that some row reads
  uint32_t prefix_chunks, chunks;

  /// Tokens that its first row sees.
  __device__ uint32_t least() const { return length - rows + 1; }

  /// The chunks of a group are [group_begin, group_end) of any of them.
  __device__ uint32_t group_begin(uint32_t chunk) const {
    if (chunk < prefix_chunks) return chunk / kGroupChunks * kGroupChunks;
    const uint32_t base = main_start / kChunk, at = base + chunk - prefix_chunks;
    return prefix_chunks + max(at / kGroupChunks * kGroupChunks, base) - base;
  }
  __device__ uint32_t group_end(uint32_t chunk) const {
    if (chunk < prefix_chunks) return min((chunk / kGroupChunks + 1) * kGroupChunks, prefix_chunks);
    const uint32_t base = main_start / kChunk, at = base + chunk - prefix_chunks;
    return min(prefix_chunks + (at / kGroupChunks + 1) * kGroupChunks - base, chunks);
  }
  /// Tiles [first, last) of a part that chunks [from, to) of the part's own cover.
  __device__ uint2 prefix_tiles(uint32_t from, uint32_t to) const {
    return {from * kChunkTiles, min(to * kChunkTiles, ceil_div(prefix_tokens, kKvTile))};
  }
  __device__ bool starts_group(uint32_t chunk) const { return group_begin(chunk) == chunk; }
  __device__ bool ends_group(uint32_t chunk) const { return group_end(chunk) == chunk + 1; }
  __device__ uint2 main_tiles(uint32_t from, uint32_t to) const {
    const uint32_t base = main_start / kChunk;
    return {max((base + from) * kChunkTiles, main_start / kKvTile),
            min((base + to) * kChunkTiles, ceil_div(length, kKvTile))};
  }
};

__device__ __forceinline__ Sequence load_sequence(const AttentionDecodeParams& p, uint32_t s) {
  Sequence q = {};
  const int32_t first = p.q_start[s], end = p.q_start[s + 1], length = p.kv_len[s];
  if (end <= first || length <= 0) return q;
  q.first_row = first, q.rows = end - first, q.length = length;
  if (p.prefix_len != nullptr) {
    q.prefix_tokens = p.prefix_len[s], q.main_start = p.tail_start[s];
  } else {
    q.prefix_tokens = view_start(p, q.length) > 0 ? p.sinks : 0, q.main_start = view_start(p, q.least());
  }
  q.prefix_chunks = ceil_div(q.prefix_tokens, kChunk);
  q.chunks = q.prefix_chunks + ceil_div(q.length, kChunk) - q.main_start / kChunk;
  return q;
}

/// Units in equal runs, the first `more` blocks one longer.
struct Cut {
  uint32_t each, more;
  __device__ uint32_t start(uint32_t block) const { return block * each + min(block, more); }
  __device__ uint32_t owner(uint32_t unit) const {
    const uint32_t longer = more * (each + 1);
    return unit < longer ? unit / (each + 1) : more + (unit - longer) / each;
  }
};

/// The items of a batch (a sequence, a KV head and a block of its rows), in order. A unit is a chunk of an item, or a
/// whole item where dealing out whole items is about as even: nothing is merged then.
struct Schedule {
  static constexpr uint32_t kEntries = 256;
  uint32_t before[kEntries];  // units before each run of `span` sequences
  uint32_t items[kEntries];
  uint32_t longest, total, whole;
};

__device__ __forceinline__ uint32_t warp_scan(uint32_t x) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t y = __shfl_up_sync(~0u, x, offset);
    if (threadIdx.x % 32 >= offset) x += y;
  }
  return x;
}

/// By all threads; `longest` is 0 before. Whole items are taken up to an eighth of the even share above it, or a chunk.
template <uint32_t kThreads>
__device__ __forceinline__ void make_schedule(const AttentionDecodeParams& p, uint32_t block_rows, Schedule& plan) {
  const uint32_t span = ceil_div(p.sequences, Schedule::kEntries);
  for (uint32_t e = threadIdx.x; e < Schedule::kEntries; e += kThreads) {
    uint32_t units = 0, items = 0;
    for (uint32_t s = e * span; s < min(p.sequences, (e + 1) * span); ++s) {
      const Sequence q = load_sequence(p, s);
      const uint32_t n = p.cache.kv_heads * ceil_div(q.rows * p.group, block_rows);
      items += n, units += n * q.chunks;
      atomicMax(&plan.longest, q.chunks);
    }
    plan.before[e] = units, plan.items[e] = items;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    constexpr uint32_t kEach = Schedule::kEntries / 32;
    const uint32_t lane = threadIdx.x;
    uint32_t units = 0, items = 0;
    for (uint32_t i = 0; i < kEach; ++i) units += plan.before[lane * kEach + i], items += plan.items[lane * kEach + i];
    const uint32_t units_end = warp_scan(units), items_end = warp_scan(items);
    const uint32_t all_units = __shfl_sync(~0u, units_end, 31), all_items = __shfl_sync(~0u, items_end, 31);
    const uint64_t whole_cost = uint64_t(ceil_div(all_items, gridDim.x)) * plan.longest * gridDim.x;
    const bool whole = whole_cost <= uint64_t(all_units) + all_units / 8 + gridDim.x;
    uint32_t at = whole ? items_end - items : units_end - units;
    for (uint32_t i = 0; i < kEach; ++i) {
      const uint32_t e = lane * kEach + i, n = whole ? plan.items[e] : plan.before[e];
      plan.before[e] = at;
      at += n;
    }
    if (lane == 0) plan.total = whole ? all_items : all_units, plan.whole = whole;
  }
  __syncthreads();
}

/// What a block reads in one go: chunks [first, last) of an item.
struct Segment {
  uint32_t head, row_block, first, last;
  uint32_t item_unit;  // the item's first unit
};

/// A block's segments in order, by a whole warp in its shared memory.
struct Walk {
  uint32_t total, whole;
  uint32_t unit, end;       // still to read
  uint32_t s, units, past;  // the sequence, its units, those of them before `unit`
  uint32_t row_blocks;
  Sequence sequence;
  Segment segment;

  __device__ void load(const AttentionDecodeParams& p, uint32_t block_rows) {
    sequence = load_sequence(p, s);
    row_blocks = ceil_div(sequence.rows * p.group, block_rows);
    units = p.cache.kv_heads * row_blocks * (whole ? 1 : sequence.chunks);
  }
  __device__ Cut cut() const { return {total / gridDim.x, total % gridDim.x}; }

  __device__ void begin(const AttentionDecodeParams& p, const Schedule& plan, uint32_t block_rows) {
    Walk walk = {};
    walk.total = plan.total, walk.whole = plan.whole;
    walk.unit = walk.cut().start(blockIdx.x), walk.end = walk.cut().start(blockIdx.x + 1);
    if (walk.unit < walk.end) {
      const uint32_t lane = threadIdx.x % 32;
      const uint32_t eight = __popc(__ballot_sync(~0u, plan.before[lane * 8] <= walk.unit)) - 1;
      const uint32_t one = __popc(__ballot_sync(~0u, lane < 8 && plan.before[eight * 8 + lane % 8] <= walk.unit)) - 1;
      const uint32_t entry = eight * 8 + one;
      walk.s = entry * ceil_div(p.sequences, Schedule::kEntries), walk.past = walk.unit - plan.before[entry];
      walk.load(p, block_rows);
    }
    *this = walk;
  }

  __device__ bool next(const AttentionDecodeParams& p, uint32_t block_rows) {
    __syncwarp();
    Walk walk = *this;
    if (walk.unit == walk.end) return false;
    while (walk.past >= walk.units) {
      walk.past -= walk.units, ++walk.s;
      walk.load(p, block_rows);
    }
    const uint32_t chunks = walk.sequence.chunks, size = whole ? 1 : chunks;
    const uint32_t item = walk.past / size, chunk = walk.past % size;
    walk.segment.head = item / walk.row_blocks, walk.segment.row_block = item % walk.row_blocks;
    walk.segment.item_unit = walk.unit - chunk;
    walk.segment.first = chunk, walk.segment.last = whole ? chunks : min(chunks, chunk + walk.end - walk.unit);
    const uint32_t taken = whole ? 1 : walk.segment.last - chunk;
    walk.unit += taken, walk.past += taken;
    __syncwarp();  // all lanes have read what all now write
    *this = walk;
    asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");  // and from here on it is read from there
    return true;
  }

  /// Counts the blocks of this item that are done; no other item of the batch has it.
  __device__ uint32_t ticket(const AttentionDecodeParams& p, uint32_t block_rows) const {
    const uint32_t before = sequence.first_row * p.group / block_rows + s;
    return (before + segment.row_block) * p.cache.kv_heads + segment.head;
  }
};

}  // namespace md
