// A row of logits under a sequence's SamplingParams: the distribution that sampling draws from and rejection compares
// (kernels/cpu/ops/distribution.zig and filters.zig define it). Depth is measured in octaves below the largest logit,
// and every filter comes down to one floor on it.
//
// A row is shared out to a team of blocks: on Hopper a cluster, which holds it in shared memory, so that however many
// passes the filters need, the row is read once; elsewhere one block, which reads it again. What blocks add up are
// integers, so that no order of additions and no size of the team shows in a result.
#pragma once
#include "noise.cuh"

namespace md {

constexpr uint32_t kTeamThreads = 256, kTeamWarps = kTeamThreads / 32;
#if __CUDA_ARCH__ >= 900
constexpr uint32_t kTeam = 8;
#define MD_TEAM __cluster_dims__(8, 1, 1)
#else
constexpr uint32_t kTeam = 1;
#define MD_TEAM
#endif
/// Whether a team's share of a row lies in shared memory.
constexpr bool kResident = kTeam > 1;

/// Mass is counted in units of 2^-44 of the largest entry's: 2^18 entries leave room in 64 bits, and their rounding
/// adds up to 2^-27 at most.
constexpr float kUnitsOfMass = 0x1p44f;

constexpr float kDeepest = -126;

constexpr uint32_t kBins = 1024;

struct TeamShared {
  /// 64-bit sums as (low, high)
  alignas(16) uint2 histogram[kBins];
  u64 parts[2][kTeamWarps];
  u64 warp_sums[kTeamWarps];
  u64 before;
  uint32_t bin;
};

struct Max {
  __device__ __forceinline__ u64 operator()(u64 a, u64 b) const { return a > b ? a : b; }
};
struct Sum {
  __device__ __forceinline__ u64 operator()(u64 a, u64 b) const { return a + b; }
};

/// The blocks that share a row.
class Team {
 public:
  TeamShared& shared;
  const uint32_t rank = blockIdx.x % kTeam, warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  explicit __device__ Team(TeamShared& memory) : shared(memory) {}

  /// For all threads of the team, with what they have written to shared memory.
  __device__ __forceinline__ void sync() const {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
  }

  /// All threads of the team have read what they need: before a block ends, and its shared memory with it, or memory
  /// that all of them read is written.
  __device__ __forceinline__ void part() const {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
  }

  /// `op` over the team's threads, known to all of them; 0 is neutral.
  template <class Op>
  __device__ __forceinline__ u64 reduce(u64 x, Op op) {
    // Two buffers: whoever writes to one again has passed the barrier behind all reads of it.
    u64* parts = shared.parts[phase_];
    phase_ ^= 1;
    x = of_warp(x, op);
    if (lane == 0) parts[warp] = x;
    sync();
    u64 result = 0;
#pragma unroll
    for (uint32_t i = lane; i < kTeam * kTeamWarps; i += 32)
      result = op(result, load(parts + i % kTeamWarps, i / kTeamWarps));
    return of_warp(result, op);
  }

  __device__ __forceinline__ u64 max(u64 x) { return reduce(x, Max()); }
  __device__ __forceinline__ u64 sum(u64 x) { return reduce(x, Sum()); }

  __device__ __forceinline__ void clear_histogram() const {
    uint4* words = reinterpret_cast<uint4*>(shared.histogram);
    for (uint32_t i = threadIdx.x; i < kBins / 2; i += kTeamThreads) words[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
  }

  __device__ __forceinline__ void count(uint32_t bin) const { atomicAdd(&shared.histogram[bin].x, 1u); }

  __device__ __forceinline__ void add(uint32_t bin, u64 amount) const {
    uint2& sum = shared.histogram[bin];
    const uint32_t low = uint32_t(amount), old = atomicAdd(&sum.x, low);
    const uint32_t high = uint32_t(amount >> 32) + (old + low < old);
    if (high != 0) atomicAdd(&sum.y, high);
  }

  /// The first bin up to which the team's histograms sum to `goal`, which then is what that bin has to add. False
  /// where all of them do not sum to it.
  __device__ bool find(u64& goal, uint32_t& bin) const {
    constexpr uint32_t kOwn = kBins / kTeamThreads;
    static_assert(kOwn == 4);
    if (threadIdx.x == 0) shared.bin = kBins;
    sync();
    u64 sums[kOwn] = {};
#pragma unroll 2
    for (uint32_t i = 0; i < kTeam; i++) {
      const uint4 a = load(reinterpret_cast<const uint4*>(shared.histogram) + threadIdx.x * 2, i);
      const uint4 b = load(reinterpret_cast<const uint4*>(shared.histogram) + threadIdx.x * 2 + 1, i);
      sums[0] += u64(a.y) << 32 | a.x;
      sums[1] += u64(a.w) << 32 | a.z;
      sums[2] += u64(b.y) << 32 | b.x;
      sums[3] += u64(b.w) << 32 | b.z;
    }
    const u64 own = sums[0] + sums[1] + sums[2] + sums[3];
    u64 before = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const u64 left = __shfl_up_sync(~0u, before, step);
      if (lane >= step) before += left;
    }
    if (lane == 31) shared.warp_sums[warp] = before;
    before -= own;
    __syncthreads();
    for (uint32_t i = 0; i < warp; i++) before += shared.warp_sums[i];
    if (before < goal && goal <= before + own) {
      uint32_t j = 0;
#pragma unroll
      for (uint32_t i = 0; i + 1 < kOwn; i++) {
        if (j == i && goal > before + sums[i]) {
          before += sums[i];
          j = i + 1;
        }
      }
      shared.bin = threadIdx.x * kOwn + j;
      shared.before = before;
    }
    // Also: the histograms may be cleared.
    sync();
    bin = shared.bin;
    if (bin == kBins) return false;
    goal -= shared.before;
    return true;
  }

 private:
  uint32_t phase_ = 0;

  template <class Op>
  __device__ __forceinline__ u64 of_warp(u64 x, Op op) const {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = op(x, __shfl_xor_sync(~0u, x, step));
    return x;
  }

  /// What stands at this shared address in another block of the team.
#if __CUDA_ARCH__ >= 900
  static __device__ __forceinline__ uint32_t address_in(const void* mine, uint32_t rank) {
    uint32_t address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(mine)), "r"(rank));
    return address;
  }
  static __device__ __forceinline__ u64 load(const u64* mine, uint32_t rank) {
    u64 x;
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(x) : "r"(address_in(mine, rank)) : "memory");
    return x;
  }
  static __device__ __forceinline__ uint4 load(const uint4* mine, uint32_t rank) {
    uint4 x;
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address_in(mine, rank))
                 : "memory");
    return x;
  }
#else
  template <class T>
  static __device__ __forceinline__ T load(const T* mine, uint32_t) {
    return *mine;
  }
#endif
};

/// What turns a logit into its probability.
struct Softmax {
  float max;
  /// octaves a unit of logit
  float scale;
  float floor = kDeepest;
  /// 1 / mass of what the floor leaves
  float inverse = 1;

  __device__ __forceinline__ float unfiltered(float logit) const { return __fmul_rn(__fsub_rn(logit, max), scale); }
  /// -inf where filtered; NaN too.
  __device__ __forceinline__ float depth(float logit) const {
    const float x = unfiltered(logit);
    return x >= floor ? x : -INFINITY;
  }
  /// Rounded before anything is done with it, so that equal rows leave nothing of p - q.
  __device__ __forceinline__ float probability(float logit) const {
    return __fmul_rn(exp2_approx(depth(logit)), inverse);
  }
};

/// A team's row. `first`, a multiple of 64, and `count` tell the entries of this block.
class Row {
 public:
  Softmax softmax;
  /// Lowest entry that has the largest logit; 0 where there is none.
  uint32_t mode;
  /// All mass is on `mode`: temperature 0, or no finite largest logit.
  bool point;
  const uint32_t first, count;

  /// `logits` (v); `resident` has room for `share` of them, a multiple of 64.
  __device__ Row(Team& team, const float* logits, uint32_t v, uint32_t share, float* resident,
                 const SamplingParams& params)
      : first(min(team.rank * share, v)), count(min(share, v - first)), source_(logits + first), resident_(resident),
        team_(team), v_(v) {
    if (kResident) fetch();
    const u64 rank = team.max(largest());
    mode = entry_of(rank);
    const uint32_t top = uint32_t(rank >> 32);
    softmax.max = __uint_as_float(top >> 31 ? top & 0x7fffffffu : ~top);
    softmax.scale = fminf(__fdiv_rn(kLog2e, params.temperature), 1e30f);
    point = !(params.temperature > 0) || isinf(softmax.max);
    if (!point) filter(params);
  }

  /// This block's entry i, -inf from `count` on up to the end of a run.
  __device__ __forceinline__ float logit(uint32_t i) const {
    if (kResident) return resident_[i];
    return i < count ? source_[i] : -INFINITY;
  }

  /// Draws a token with this noise.
  __device__ uint32_t draw(const Noise& noise) {
    if (point) return mode;
    // The likeliest entry first: its score lets most others go without noise.
    Race race;
    race.best = gumbel(noise.word(mode));
    race.token = mode;
    for (uint32_t run = team_.warp * 2 + team_.lane / 16; run * kRun < count; run += kTeamWarps * 2) {
      const uint32_t i = run * kRun + team_.lane % 16;
      float octaves[4];
#pragma unroll
      for (int j = 0; j < 4; j++) octaves[j] = softmax.depth(logit(i + 16 * j));
      race.offer(noise, first + i, octaves);
    }
    return entry_of(team_.max(race.rank()));
  }

  /// Must come before probabilities.
  __device__ void normalise() {
    if (!point) softmax.inverse = __fdiv_rn(1, as_float(mass(softmax.floor)));
  }

  __device__ __forceinline__ float probability(uint32_t i) const {
    if (point) return first + i == mode;
    return softmax.probability(logit(i));
  }

 private:
  const float* source_;
  float* resident_;
  Team& team_;
  const uint32_t v_;

  /// Entries i .. i + 3, for an i that 4 divides.
  __device__ __forceinline__ float4 four(uint32_t i) const {
    if (kResident) return *reinterpret_cast<const float4*>(resident_ + i);
    return make_float4(logit(i), logit(i + 1), logit(i + 2), logit(i + 3));
  }

  /// Brings this block's share to shared memory, filled with -inf to a whole run.
  __device__ void fetch() {
    const uint32_t to = shared_address(resident_);
    if (reinterpret_cast<uint64_t>(source_) % 16 == 0) {
      for (uint32_t i = threadIdx.x * 4; i + 4 <= count; i += kTeamThreads * 4)
        cp_async_16(to + i * 4, source_ + i, true);
      fetch_words(count / 4 * 4, to);
    } else {
      fetch_words(0, to);
    }
    cp_async_commit();
    const uint32_t end = (count + kRun - 1) / kRun * kRun;
    if (count + threadIdx.x < end) resident_[count + threadIdx.x] = -INFINITY;
    cp_async_wait<0>();
    __syncthreads();
  }

  __device__ __forceinline__ void fetch_words(uint32_t begin, uint32_t to) const {
    for (uint32_t i = begin + threadIdx.x; i < count; i += kTeamThreads)
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to + i * 4), "l"(source_ + i) : "memory");
  }

  /// The rank of this thread's largest logit, NaN apart.
  __device__ __forceinline__ u64 largest() const {
    float top = -INFINITY;
    uint32_t at = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x * 4; i < count; i += kTeamThreads * 4) {
      const float4 x = four(i);
      const float highest = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
      if (highest > top) {
        top = highest;
        at = i;
      }
    }
    if (top == -INFINITY) return rank_of(top, 0);
    for (uint32_t end = at + 3; at < end && logit(at) != top;) at++;
    return rank_of(top, first + at);
  }

  /// Temperature is done; top-k, of what that leaves top-p, then min-p.
  __device__ void filter(const SamplingParams& params) {
    float& floor = softmax.floor;
    if (params.top_k != 0 && params.top_k < v_) floor = threshold<false>(params.top_k, floor);
    if (params.top_p < 1) {
      const float top_p = fmaxf(params.top_p, 0);
      const u64 total = mass(floor);
      // Entries this far down sum to less than the share that may go, so none of them is kept.
      const float share = (1 - top_p) * as_float(total) / float(v_);
      const float lowest = fmaxf(floor, log2_of(fmaxf(share, FLT_MIN)) - 0.01f);
      floor = threshold<true>(u64(ceil(double(top_p) * double(total))), lowest);
    }
    if (params.min_p > 0) floor = fmaxf(floor, fminf(log2_of(fmaxf(params.min_p, FLT_MIN)), 0));
  }

  static __device__ __forceinline__ u64 units(float depth) {
    return __float2ull_rn(exp2_approx(depth) * kUnitsOfMass);
  }
  static __device__ __forceinline__ float as_float(u64 units) { return __ull2float_rn(units) / kUnitsOfMass; }

  /// Of the entries that are at least `lowest`, in units, the whole row's.
  __device__ u64 mass(float lowest) {
    u64 sum = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < count; i += kTeamThreads) {
      const float x = softmax.unfiltered(logit(i));
      if (x >= lowest) sum += units(x);
    }
    return team_.sum(sum);
  }

  /// The largest depth, not under `lowest`, at and above which entries sum to `goal` (their mass, or their number);
  /// `lowest` where none does. A depth's magnitude as an integer is in the order of depths: a histogram over it
  /// narrows the range where the sum passes the goal down to one value.
  template <bool kMass>
  __device__ float threshold(u64 goal, float lowest) {
    if (goal == 0) goal = 1;
    uint32_t low = 0, high = __float_as_uint(fabsf(lowest));
    // Eighths of octaves first: they spread what logits are like over the bins best.
    bool linear = true;
    uint32_t shift = 0;
    for (;;) {
      team_.clear_histogram();
#pragma unroll 2
      for (uint32_t i = threadIdx.x; i < count; i += kTeamThreads) {
        const float x = fabsf(softmax.unfiltered(logit(i)));
        const uint32_t key = __float_as_uint(x);
        if (key < low || key > high) continue;
        const uint32_t bin = linear ? uint32_t(x * 8) : (key - low) >> shift;
        if constexpr (kMass) {
          team_.add(bin, units(-x));
        } else {
          team_.count(bin);
        }
      }
      uint32_t bin;
      if (!team_.find(goal, bin)) return lowest;
      if (linear) {
        low = __float_as_uint(float(bin) / 8);
        high = min(high, __float_as_uint(float(bin + 1) / 8) - 1);
        linear = false;
      } else {
        low += bin << shift;
        high = min(high, low + (1u << shift) - 1);
      }
      if (low == high) return -__uint_as_float(low);
      shift = uint32_t(max(0, 22 - __clz(int(high - low))));
    }
  }
};

}  // namespace md
