// Attention of a few new rows a sequence over the paged cache, on Hopper: decode, verification and the sparse draft's
// reads. It is a stream of K and V, read once; everything here serves to keep the copies running.
//  - Blocks stay and take equal parts of all tiles of the call (attention_decode_plan.cuh); one warp of each only loads
//    (attention_decode_loads.cuh).
//  - Query rows x GQA group are rows of mma.m16n8k16. A warp scores 16 of a tile's 64 tokens; the maximum and the weights
//    go through shared memory, and then a warp sums V over all tokens for a quarter of the columns. So the block has
//    one softmax state (Milakov and Gimelshein 1805.02867), no warp repeats another's work, and nothing is merged after
//    the last tile. Sums of weights are a product with ones: they see the same rounded weights as V does.
//  - A row's bits do not depend on other rows: a product's row depends on that row alone, the maximum moves by the row's
//    own scores, a factor of 1 and a weight of 0 change nothing, and the tree of chunks and groups is fixed.
#include "attention_decode_loads.cuh"
#include "attention_decode_sums.cuh"

namespace md {

constexpr uint32_t kOnes = 0x3f803f80;  // bf16 1, 1

__device__ __forceinline__ void sync_warps(uint32_t barrier, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

template <class Shape>
struct Computer {
  static constexpr int kDim = Shape::kDim, kRowTiles = Shape::kRowTiles, kColumnTiles = Shape::kColumnTiles;
  using Result = Sums<kRowTiles, kColumnTiles>;
  using Stored = Partial<Shape::kRows, kDim>;

  const AttentionDecodeParams& p;
  DecodeShared<Shape>& shared;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t quarter = threadIdx.x / 32 % 4;  // of a tile's tokens, then of V's columns
  const uint32_t row_warp = threadIdx.x / 128;
  // Of the lane's first element of a result.
  const uint32_t row = row_warp * kRowTiles * 16 + lane / 4;
  const uint32_t column = quarter * Shape::kColumns + lane % 4 * 2;
  const uint32_t maxima = shared_address(shared.maxima[row_warp]), weights = shared_address(shared.weights[row_warp]);

  Place<Shape::kSlots> slot, freed;  // to be read, to be handed back
  bool owes_values = false;
  uint32_t q[kRowTiles][Shape::kHeld == 0 ? 1 : Shape::kHeld][4];
  Result chunk, group, total;
  float ones[kRowTiles][4];  // chunk's sums of weights while it is read: all columns of the product with ones

  __device__ __forceinline__ void work() {
    Place<kRuns> at;
    for (;;) {
      barrier_wait(&shared.run_full[at.index], at.parity);
      const Run& run = shared.runs[at.index];
      if (run.end == 0) return;
      attend(run);
      __syncwarp();
      if (lane == 0) barrier_arrive(&shared.run_empty[at.index]);
      at.next();
    }
  }

  // ---- The tree ------------------------------------------------------------------------------------------------

  __device__ __forceinline__ void attend(const Run& run) {
    const Job& job = run.job;
    uint32_t completed = 0;  // groups
    const bool flat = run.end - run.begin < job.chunks() && job.flat(shared.cut);
    for (uint32_t c = run.begin; c < run.end; ++c) {
      const bool prefix = c < job.prefix_chunks();
      if (c == run.begin || (c == job.prefix_chunks() && p.q_sink != p.q)) load_queries(run, prefix ? p.q_sink : p.q);
      read_chunk(run, c, prefix);
      if (flat) {
        store(run, chunk, blockIdx.x, Job::flat_slot(run.begin, c));
        continue;
      }
      const uint32_t first = job.group_begin(c), end = job.group_end(c);
      if (first < run.begin) {
        store(run, chunk, blockIdx.x, kChunkSlots + c - run.begin);
        if (c + 1 == min(end, run.end)) {
          completed += close_cut_group(run, first, c + 1 - run.begin);
          // So that they need no registers up to here.
          hold_queries();
          total.clear();
        }
        continue;
      }
      if (c == first) group.clear();
      group.fold(chunk);
      if (c + 1 == end) {
        ++completed;
        if (close_group(run, first)) return;
      } else if (c + 1 == run.end) {
        store(run, group, blockIdx.x, kGroupSlot);
        completed += close_cut_group(run, first, c + 1 - first);
      }
    }
    if (flat) return close_flat(run);
    close_job(run, completed);
  }

  /// Counts the chunks that this block has stored. The last to arrive folds them all, in the tree's order.
  __device__ __forceinline__ void close_flat(const Run& run) {
    const Job& job = run.job;
    const Cut cut = shared.cut;
    const uint32_t chunks = job.chunks();
    if (!arrive_last(p.tickets + gridDim.x + job.owner(cut, 0), run.end - run.begin, chunks)) return;
    const uint32_t c = min(lane, chunks - 1), block = job.owner(cut, c), begin = job.begin(cut, block);
    const uint32_t number = block * p.slots + Job::flat_slot(begin, c);
    const uint32_t first = __ballot_sync(~0u, job.group_begin(c) == c);
    group.clear();
    total.clear();
    constexpr uint32_t kAhead = kRowTiles * kColumnTiles < 4 ? 4 : kRowTiles * kColumnTiles == 4 ? 2 : 1;
#pragma unroll 1
    for (uint32_t i = 0; i < chunks; i += kAhead) {
      Result next[kAhead];
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) load(run, next[k], __shfl_sync(~0u, number, min(i + k, chunks - 1)));
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) {
        if (i + k >= chunks) continue;
        if (first >> (i + k) & 1) total.fold(group), group.clear();
        group.fold(next[k]);
      }
    }
    total.fold(group);
    write_out(run, total);
  }

  /// Puts a group that this block has read whole where it belongs. True where that ended the job.
  __device__ __forceinline__ bool close_group(const Run& run, uint32_t first) {
    const Job& job = run.job;
    const uint32_t end = job.group_end(first);
    if (run.begin > 0) {
      store(run, group, blockIdx.x, job.group_slot(run.begin, run.end, first));
      return false;
    }
    if (first == 0) {
      total.clear();
    } else if (!Shape::kHoldsTotal) {
      load(run, total, blockIdx.x * p.slots + kTotalSlot);
      sync_rows();  // all have read what is written next
    }
    total.fold(group);
    if (end == job.chunks()) {
      write_out(run, total);
      return true;
    }
    // The next whole group, if there is one, finds the total in registers or in the workspace.
    if (!Shape::kHoldsTotal || job.group_end(end) > run.end) store(run, total, blockIdx.x, kTotalSlot);
    return false;
  }

  /// Counts `chunks` of a group that several blocks share. The last to arrive folds it, and gets 1.
  __device__ __forceinline__ uint32_t close_cut_group(const Run& run, uint32_t first, uint32_t chunks) {
    const Job& job = run.job;
    const Cut cut = shared.cut;
    const uint32_t owner = job.owner(cut, first), end = job.group_end(first);
    if (!arrive_last(p.tickets + owner, chunks, end - first)) return 0;
    // A lane finds a partial: the first block's, then a chunk each.
    const uint32_t there = job.begin(cut, owner + 1), c = min(there + lane - 1, end - 1);
    uint32_t block = owner, index = kGroupSlot;
    if (lane > 0) {
      block = job.owner(cut, c);
      index = kChunkSlots + c - job.begin(cut, block);
    }
    group.clear();
    fold_partials(run, group, block * p.slots + index, 1 + end - there);
    sync_rows();  // all have read what is written next
    store(run, group, owner, kGroupSlot);
    return 1;
  }

  /// Counts the groups that this block has completed. The last to arrive folds them and writes the job's result.
  __device__ __forceinline__ void close_job(const Run& run, uint32_t completed) {
    const Job& job = run.job;
    const Cut cut = shared.cut;
    if (completed == 0) return;
    const uint32_t owner = job.owner(cut, 0), groups = job.groups();
    if (!arrive_last(p.tickets + gridDim.x + owner, completed, groups)) return;
    // The first block has folded its whole groups; a lane finds that total, or one of the other groups.
    const uint32_t there = job.begin(cut, owner + 1);
    const uint32_t known = there == job.chunks() ? groups : job.group(there);
    const uint32_t skip = known > 0 ? 1 : 0;
    group.clear();
    for (uint32_t i = 0; i < groups - known + skip; i += 32) {
      uint32_t block = owner, index = kTotalSlot;
      if (i + lane >= skip) {
        const uint32_t c = job.group_chunk(min(known + i + lane - skip, groups - 1));
        block = job.owner(cut, c);
        index = job.group_slot(job.begin(cut, block), job.begin(cut, block + 1), c);
      }
      fold_partials(run, group, block * p.slots + index, min(groups - known + skip - i, 32u));
    }
    write_out(run, group);
  }

  /// Folds `count` partials, whose numbers the lanes hold, into x; several at a time are on their way.
  __device__ __forceinline__ void fold_partials(const Run& run, Result& x, uint32_t number, uint32_t count) {
    constexpr uint32_t kAhead = kRowTiles * kColumnTiles < 4 ? 4 : kRowTiles * kColumnTiles == 4 ? 3 : 2;
#pragma unroll 1
    for (uint32_t i = 0; i < count; i += kAhead) {
      Result next[kAhead];
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) {
        load(run, next[k], __shfl_sync(~0u, number, min(i + k, count - 1)));
      }
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) {
        if (i + k < count) x.fold(next[k]);
      }
    }
  }

  /// After the block's stores. `count` arrives at a ticket that is complete at `whole`, and is left at 0 then.
  __device__ __forceinline__ bool arrive_last(uint32_t* ticket, uint32_t count, uint32_t whole) {
    sync_all();
    if (threadIdx.x == 0) {
      __threadfence();
      const bool last = atomicAdd(ticket, count) + count == whole;
      if (last) *ticket = 0;
      __threadfence();
      shared.is_last = last;
    }
    sync_all();
    return shared.is_last != 0;
  }

  __device__ __forceinline__ void sync_rows() { sync_warps(1 + row_warp, 128); }
  __device__ __forceinline__ void sync_all() { sync_warps(1 + Shape::kRowWarps, Shape::kConsumers); }

  __device__ __forceinline__ void store(const Run& run, const Result& x, uint32_t block, uint32_t index) const {
    Stored{p.partials + (uint64_t(block) * p.slots + index) * Stored::kFloats, run.rows, threadIdx.x / 32, lane}.store(x, row);
  }
  __device__ __forceinline__ void load(const Run& run, Result& x, uint32_t number) const {
    Stored{p.partials + uint64_t(number) * Stored::kFloats, run.rows, threadIdx.x / 32, lane}.load(x, row);
  }

  // ---- Rows ----------------------------------------------------------------------------------------------------

  /// Of the sequence's packed rows; rows that do not exist repeat the last one.
  __device__ __forceinline__ uint32_t packed_row(const Run& run, int m, int half) const {
    return run.row + min(row + m * 16 + half * 8, run.rows - 1);
  }
  __device__ __forceinline__ uint64_t row_offset(const Run& run, uint32_t packed) const {
    const uint32_t per_head = p.heads / p.cache.kv_heads;
    const uint32_t head = run.head * per_head + packed % per_head;
    return (uint64_t(run.first_row + packed / per_head) * p.heads + head) * kDim;
  }

  /// Each of the row's four warps fetches a quarter.
  __device__ __forceinline__ void load_queries(const Run& run, const bf16* from) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const bf16* upper = from + row_offset(run, packed_row(run, m, 0)) + lane % 4 * 2;
      const bf16* lower = from + row_offset(run, packed_row(run, m, 1)) + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < (Shape::kSteps + 3) / 4; ++i) {
        const uint32_t k = i * 4 + quarter;
        if (k >= Shape::kSteps) continue;
        const auto two = [&](const bf16* at) { return __ldcg(reinterpret_cast<const uint32_t*>(at + k * 16)); };
        shared.queries[row_warp][m][k][lane] = make_uint4(two(upper), two(lower), two(upper + 8), two(lower + 8));
      }
    }
    sync_rows();
    hold_queries();
  }
  __device__ __forceinline__ void hold_queries() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int k = 0; k < Shape::kHeld; ++k) read_query(q[m][k], m, k);
    }
  }
  __device__ __forceinline__ void read_query(uint32_t (&a)[4], int m, int k) const {
    const uint4 x = shared.queries[row_warp][m][k][lane];
    a[0] = x.x, a[1] = x.y, a[2] = x.z, a[3] = x.w;
  }

  /// Zeros for a row that saw no token.
  __device__ __forceinline__ void write_out(const Run& run, const Result& x) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (row + m * 16 + half * 8 >= run.rows) continue;
        const float scale = x.total[m][half] > 0 ? 1 / x.total[m][half] : 0;
        auto* to = reinterpret_cast<uint32_t*>(p.out + row_offset(run, packed_row(run, m, half)) + column);
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          // + 0 makes a zero positive, whichever way it came about.
          to[j * 4] = pack_bf16(x.o[m][j][2 * half] * scale + 0.0f, x.o[m][j][2 * half + 1] * scale + 0.0f);
        }
      }
    }
  }

  // ---- Tiles ---------------------------------------------------------------------------------------------------

  __device__ __forceinline__ void read_chunk(const Run& run, uint32_t c, bool prefix) {
    const Job& job = run.job;
    chunk.clear();
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) ones[m][0] = ones[m][1] = ones[m][2] = ones[m][3] = 0;
    // Tokens that every row sees: those of the last row's start to the first row's end.
    const uint32_t per_head = p.heads / p.cache.kv_heads;
    const uint32_t low_row = run.position + run.row / per_head;
    const uint32_t high_row = run.position + (run.row + run.rows - 1) / per_head;
    const uint32_t low = first_token(run, prefix, high_row), high = end_token(run, prefix, low_row);
    const uint32_t shift = prefix ? 0 : job.main_first - job.prefix_tiles;
    const uint32_t end = job.chunk_tile(c + 1) + shift;
    uint32_t start = (job.chunk_tile(c) + shift) * kKvTile;
    const uint32_t stop = end * kKvTile;
    float s[kRowTiles][2][4];
    score(s);
    for (; start < stop; start += kKvTile) {
      const bool edge = start < low || start + kKvTile > high, more = start + kKvTile < stop;
      if (edge) mask(run, prefix, start, s);
      weigh(s);
      if (edge) {
        // What was not copied, or not written yet, may be anything: V is taken as 0 there.
        const uint32_t begin = prefix ? 0 : run.start, last = prefix ? run.prefix_tokens : run.length;
        accumulate<true, false>(s, max(begin, start) - start, min(last - start, uint32_t(kKvTile)));
        if (more) score(s);
      } else if (more) {
        accumulate<false, true>(s, 0, kKvTile);
      } else {
        accumulate<false, false>(s, 0, kKvTile);
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) chunk.total[m][0] = ones[m][0], chunk.total[m][1] = ones[m][2];
  }

  /// What a row at `position` reads of a source: [first_token, end_token).
  __device__ __forceinline__ uint32_t first_token(const Run& run, bool prefix, uint32_t position) const {
    if (prefix) return 0;
    if (p.window == 0) return run.start;
    return slides(p, position) ? position + 1 - p.window : 0;
  }
  __device__ __forceinline__ uint32_t end_token(const Run& run, bool prefix, uint32_t position) const {
    if (!prefix) return position + 1;
    return p.window == 0 || slides(p, position) ? run.prefix_tokens : 0;
  }

  /// s (rows, 16 tokens of this warp) = q k^T * scale * log2(e), of the next tile.
  __device__ __forceinline__ void score(float (&s)[kRowTiles][2][4]) {
    clear(s);
    barrier_wait(&shared.full[slot.index], slot.parity);
    const uint32_t tile = shared_address(shared.tiles[slot.index]);
#pragma unroll
    for (int k = 0; k < Shape::kSteps; ++k) score_step(s, tile, k);
    slot.next();
    scale(s);
  }
  __device__ __forceinline__ void clear(float (&s)[kRowTiles][2][4]) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0;
    }
  }
  __device__ __forceinline__ void score_step(float (&s)[kRowTiles][2][4], uint32_t tile, int k) {
    const uint32_t token = quarter * 16 + lane / 16 * 8 + lane % 8, odd = lane / 8 % 2;
    uint32_t b[4];
    ldmatrix_x4(b, tile + chunk_offset<kDim>(token, k / 4, k % 4 * 2 + odd));
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      uint32_t fresh[4];
      if (k >= Shape::kHeld) read_query(fresh, m, k);
      const auto& a = k >= Shape::kHeld ? fresh : q[m][k < Shape::kHeld ? k : 0];
      mma_16x8x16(s[m][0], a, b[0], b[1]);
      mma_16x8x16(s[m][1], a, b[2], b[3]);
    }
  }
  __device__ __forceinline__ void scale(float (&s)[kRowTiles][2][4]) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][j][i] *= p.scale_log2;
      }
    }
  }

  __device__ __forceinline__ void mask(const Run& run, bool prefix, uint32_t start, float (&s)[kRowTiles][2][4]) {
    const uint32_t per_head = p.heads / p.cache.kv_heads;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t position = run.position + packed_row(run, m, half) / per_head;
        const uint32_t low = first_token(run, prefix, position), high = end_token(run, prefix, position);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t token = start + quarter * 16 + j * 8 + lane % 4 * 2 + i;
            if (token < low || token >= high) s[m][j][2 * half + i] = -INFINITY;
          }
        }
      }
    }
  }

  /// Moves the maxima on, and writes the tile's weights 2^(s - maximum) for all four warps.
  __device__ __forceinline__ void weigh(float (&s)[kRowTiles][2][4]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = fmaxf(fmaxf(s[m][0][2 * half], s[m][0][2 * half + 1]), fmaxf(s[m][1][2 * half], s[m][1][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const uint32_t at = maxima + (m * 16 + half * 8 + lane / 4) * 16 + quarter * 4;
        if (lane % 4 == 0) asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(top) : "memory");
      }
    }
    sync_rows();
    release();
    float keep[kRowTiles][2];
    bool moved = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t r = m * 16 + half * 8 + lane / 4;
        float4 x;
        asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                     : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                     : "r"(maxima + r * 16)
                     : "memory");
        const float before = chunk.maximum[m][half];
        const float now = fmaxf(fmaxf(before, fmaxf(x.x, x.y)), fmaxf(x.z, x.w));
        chunk.maximum[m][half] = now;
        keep[m][half] = exp2_approx(before - now);
        moved |= now > before;
        const uint32_t line = weights + r * 128 + lane % 4 * 4;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t two = pack_bf16(exp2_approx(s[m][j][2 * half] - now), exp2_approx(s[m][j][2 * half + 1] - now));
          const uint32_t at = line + (((quarter * 2 + j) ^ (r % 8)) * 16);
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(two) : "memory");
        }
      }
    }
    if (__any_sync(~0u, moved)) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          ones[m][i] *= keep[m][i / 2];
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) chunk.o[m][j][i] *= keep[m][i / 2];
        }
      }
    }
    sync_rows();
  }

  /// chunk.o (rows, columns of this warp) += weights (rows, 64 tokens) v. Of v, tokens [low, high) are there. With kScore
  /// also scores the next tile: two chains of products that hide each other's latency.
  template <bool kEdge, bool kScore>
  __device__ __forceinline__ void accumulate(float (&s)[kRowTiles][2][4], uint32_t low, uint32_t high) {
    static_assert(Shape::kSteps == 2 * kColumnTiles);
    const uint32_t v = shared_address(shared.tiles[slot.index]);
    uint32_t k = 0;
    auto later = slot;
    if (kScore) {
      clear(s);
      later.next();
      barrier_wait(&shared.full[slot.index], slot.parity);
      barrier_wait(&shared.full[later.index], later.parity);
      k = shared_address(shared.tiles[later.index]);
    } else {
      barrier_wait(&shared.full[slot.index], slot.parity);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][kRowTiles][4], there[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          const uint32_t line = weights + (m * 16 + lane % 16) * 128;
          ldmatrix_x4(a[i][m], line + (((half * 4 + i * 2 + lane / 16) ^ (lane % 8)) * 16));
          mma_16x8x16(ones[m], a[i][m], kOnes, kOnes);
        }
      }
      if (kEdge) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t token = half * 32 + i * 8 + lane % 4 * 2;
          there[i] = (token >= low && token < high ? 0xffffu : 0) | (token + 1 >= low && token + 1 < high ? 0xffff0000u : 0);
        }
      }
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        if (kScore) score_step(s, k, half * kColumnTiles + j);
        const uint32_t c = quarter * kColumnTiles + j;
        uint32_t b[4];
        ldmatrix_x4_trans(b, v + chunk_offset<kDim>(half * 32 + lane, c / 8, c % 8));
        if (kEdge) {
#pragma unroll
          for (int i = 0; i < 4; ++i) b[i] &= there[i];
        }
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_16x8x16(chunk.o[m][j], a[0][m], b[0], b[1]);
          mma_16x8x16(chunk.o[m][j], a[1][m], b[2], b[3]);
        }
      }
    }
    slot.next();
    if (kScore) {
      slot.next();
      scale(s);
    }
  }

  /// After the barrier that follows a tile's scores: hands back the slots of its keys and of the last tile's values.
  /// Not before, for an arrival, and then the next copy, may overtake ldmatrix reads that wait behind another block's
  /// stores; here each warp has stored what depends on those reads, and a barrier has seen it.
  __device__ __forceinline__ void release() {
    if (owes_values) {
      if (lane == 0) barrier_arrive(&shared.empty[freed.index]);
      freed.next();
    }
    if (lane == 0) barrier_arrive(&shared.empty[freed.index]);
    freed.next();
    owes_values = true;
  }
};

template <class Shape>
__device__ __forceinline__ void attention_decode(const AttentionDecodeParams& p) {
  static_assert(sizeof(DecodeShared<Shape>) == Shape::kSharedBytes);
  static_assert(Shape::kBlocks * (sizeof(DecodeShared<Shape>) + 1024) <= 228 * 1024);
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  auto& shared = *reinterpret_cast<DecodeShared<Shape>*>(dynamic_shared);
  launch_dependents();
  if (threadIdx.x == 0) {
    constexpr uint32_t kConsumerWarps = Shape::kConsumers / 32;
    for (int i = 0; i < Shape::kSlots; ++i) {
      barrier_init(&shared.full[i], kLanes);
      barrier_init(&shared.empty[i], kConsumerWarps);
    }
    for (int i = 0; i < kRuns; ++i) {
      barrier_init(&shared.run_full[i], 1);
      barrier_init(&shared.run_empty[i], kConsumerWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  wait_prior();
  if (threadIdx.x < Shape::kConsumers) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::kComputeRegisters));
    Computer<Shape>{p, shared}.work();
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Shape::kLoadRegisters));
    if (threadIdx.x < Shape::kConsumers + kLanes) Loader<Shape>{p, shared}.work();
  }
}

}  // namespace md

// Row tiles of a warp, row warps, slots, blocks on a multiprocessor: tiles.zig says why.
#define MD_DECODE(d, rows, tiles, warps, slots, blocks)                                                                \
  extern "C" __global__ void __launch_bounds__(md::DecodeShape<d, tiles, warps, slots, blocks>::kThreads, blocks)      \
      md_attention_decode_d##d##_r##rows(const __grid_constant__ md::AttentionDecodeParams p) {                        \
    static_assert(md::DecodeShape<d, tiles, warps, slots, blocks>::kRows == rows);                                     \
    md::attention_decode<md::DecodeShape<d, tiles, warps, slots, blocks>>(p);                                          \
  }
MD_DECODE(64, 16, 1, 1, 12, 2)
MD_DECODE(64, 32, 1, 2, 24, 1)
MD_DECODE(64, 64, 2, 2, 24, 1)
MD_DECODE(96, 16, 1, 1, 8, 2)
MD_DECODE(96, 32, 1, 2, 16, 1)
MD_DECODE(96, 64, 2, 2, 16, 1)
MD_DECODE(128, 16, 1, 1, 6, 2)
MD_DECODE(128, 32, 1, 2, 12, 1)
MD_DECODE(128, 64, 2, 2, 12, 1)
MD_DECODE(256, 16, 1, 1, 6, 1)
MD_DECODE(256, 32, 1, 2, 6, 1)
