// md_sample and md_accept. A team of blocks (distribution.cuh) takes a row of logits, so a row's token and distribution
// depend on its own inputs only.
#include "distribution.cuh"

namespace md {

struct SampleParams {
  const float* logits;           // (b * r, v)
  const SamplingParams* params;  // (b)
  const int32_t* positions;      // (b * r), of the input tokens
  int32_t* out;                  // (b, r), rows at out_stride
  float* probs;                  // optional (b, r, v), rows at probs_stride * v
  uint32_t v, r, out_stride, probs_stride, stream;
  /// Entries of a block of the team, a multiple of 64.
  uint32_t share;
};
static_assert(sizeof(SampleParams) == 64);

/// What is kept of a target row between the two kernels of rejection.
struct RowResult {
  Softmax softmax;
  /// Drawn from the whole distribution with the recovery noise.
  uint32_t token;
  /// All mass is on `token`.
  uint32_t point;
  uint32_t reserved[2];
};
static_assert(sizeof(RowResult) == 32);

struct AcceptParams {
  int32_t* chain;                // (b, g + 2): previous, current, d1 .. dg
  const int32_t* target_tokens;  // match: (b, g + 1)
  const float* target_logits;    // rejection: (b * (g + 1), v)
  const float* draft_probs;      // rejection: (b, g, v)
  const SamplingParams* params;  // (b)
  const int32_t* active;         // (b)
  int32_t* lens;                 // (b)
  int32_t* count;                // (b)
  int32_t* out;                  // (b, g + 1)
  RowResult* rows;               // rejection: (b, g + 1)
  uint32_t g, v;
  /// Entries of a block of the team, a multiple of 64.
  uint32_t share, reserved;
};
static_assert(sizeof(AcceptParams) == 96);

extern __shared__ __align__(16) float resident[];

}  // namespace md

using namespace md;

extern "C" __global__ void MD_TEAM __launch_bounds__(kTeamThreads, 3)
    md_sample_rows(const __grid_constant__ SampleParams p) {
  launch_dependents();
  __shared__ TeamShared shared;
  Team team(shared);
  const uint32_t i = blockIdx.x / kTeam, s = i / p.r, j = i % p.r;
  wait_prior();

  const SamplingParams params = p.params[s];
  Row row(team, p.logits + uint64_t(i) * p.v, p.v, p.share, resident, params);
  const uint32_t token = row.draw(Noise(params, p.stream, p.positions[i] + 1));
  if (team.rank == 0 && threadIdx.x == 0) p.out[uint64_t(s) * p.out_stride + j] = int32_t(token);
  if (p.probs != nullptr) {
    row.normalise();
    float* probs = p.probs + (uint64_t(s) * p.probs_stride + j) * p.v + row.first;
    for (uint32_t k = threadIdx.x; k < row.count; k += kTeamThreads) probs[k] = row.probability(k);
  }
  team.part();
}

namespace md {

/// Everything that acceptance writes for one sequence of which n >= 1 tokens are emitted: n - 1 drafts, then `last`.
__device__ __forceinline__ void move_on(const AcceptParams& p, uint32_t s, uint32_t n, int32_t last) {
  int32_t* chain = p.chain + uint64_t(s) * (p.g + 2);
  int32_t* out = p.out + uint64_t(s) * (p.g + 1);
  for (uint32_t j = threadIdx.x; j <= p.g; j += blockDim.x) out[j] = j + 1 < n ? chain[2 + j] : j + 1 == n ? last : -1;
  if (threadIdx.x != 0) return;
  p.count[s] = int32_t(n);
  p.lens[s] += int32_t(n);
  // The token before the last one: a draft, or the one that was current.
  chain[0] = chain[n];
  chain[1] = last;
}

__device__ __forceinline__ void leave_alone(const AcceptParams& p, uint32_t s) {
  for (uint32_t j = threadIdx.x; j <= p.g; j += blockDim.x) p.out[uint64_t(s) * (p.g + 1) + j] = -1;
  if (threadIdx.x == 0) p.count[s] = 0;
}

/// The number of drafts before the first for which `stands(j)` is false; a warp's lanes look at 32 at a time.
template <class Stands>
__device__ __forceinline__ uint32_t leading(uint32_t g, Stands stands) {
  for (uint32_t begin = 0; begin < g; begin += 32) {
    const uint32_t j = begin + threadIdx.x % 32;
    const uint32_t fallen = __ballot_sync(~0u, j < g && !stands(j));
    if (fallen != 0) return begin + __ffs(int(fallen)) - 1;
  }
  return g;
}

/// u < p / q without the division.
__device__ __forceinline__ bool draft_stands(const AcceptParams& p, const SamplingParams& params, const RowResult& row,
                                             uint32_t s, uint32_t j, int32_t len) {
  const uint32_t draft = uint32_t(p.chain[uint64_t(s) * (p.g + 2) + 2 + j]);
  if (draft >= p.v) return false;
  if (row.point) return draft == row.token;
  const float kept = row.softmax.probability(p.target_logits[(uint64_t(s) * (p.g + 1) + j) * p.v + draft]);
  const float q = p.draft_probs[(uint64_t(s) * p.g + j) * p.v + draft];
  if (kept >= q) return kept > 0;
  return uniform(Noise(params, kAccept, len + 1 + int32_t(j)).word(0)) * q < kept;
}

/// A token from max(p - q, 0) of row j, or from p where the two are equal but for rounding.
__device__ uint32_t draw_residual(const AcceptParams& p, Team& team, const SamplingParams& params, const RowResult& row,
                                  uint32_t s, uint32_t j, int32_t len) {
  if (row.point) return row.token;
  const float* logits = p.target_logits + (uint64_t(s) * (p.g + 1) + j) * p.v;
  const float* q = p.draft_probs + (uint64_t(s) * p.g + j) * p.v;
  const Noise noise(params, kRecovery, len + 1 + int32_t(j));
  const uint32_t end = min((team.rank + 1) * p.share, p.v);
  Race race;
  for (uint32_t run = team.rank * p.share + (team.warp * 2 + team.lane / 16) * kRun; run < end;
       run += kTeamWarps * 2 * kRun) {
    const uint32_t i = run + team.lane % 16;
    float octaves[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint32_t at = i + 16 * k;
      const float kept = at < end ? row.softmax.probability(logits[at]) : 0;
      const float rest = kept > 0 ? kept - q[at] : 0;
      octaves[k] = rest >= FLT_MIN ? log2_of(rest) : -INFINITY;
    }
    race.offer(noise, i, octaves);
  }
  const uint32_t token = entry_of(team.max(race.rank()));
  return token == Race::kNobody ? row.token : token;
}

}  // namespace md

/// Drafts stand while they are what the target chose; the target's next choice follows. One warp a sequence.
extern "C" __global__ void __launch_bounds__(32) md_accept_match(const __grid_constant__ AcceptParams p) {
  launch_dependents();
  wait_prior();
  const uint32_t s = blockIdx.x;
  if (p.active[s] == 0) return leave_alone(p, s);
  const int32_t* drafts = p.chain + uint64_t(s) * (p.g + 2) + 2;
  const int32_t* chosen = p.target_tokens + uint64_t(s) * (p.g + 1);
  const uint32_t standing = leading(p.g, [&](uint32_t j) { return drafts[j] == chosen[j]; });
  move_on(p, s, standing + 1, chosen[standing]);
}

/// The target's distribution at every chain token. Nearly always one of these rows is what follows the accepted drafts,
/// so its draw is made here as well.
extern "C" __global__ void MD_TEAM __launch_bounds__(kTeamThreads, 3)
    md_accept_rows(const __grid_constant__ AcceptParams p) {
  launch_dependents();
  __shared__ TeamShared shared;
  Team team(shared);
  const uint32_t i = blockIdx.x / kTeam, s = i / (p.g + 1), j = i % (p.g + 1);
  wait_prior();
  if (p.active[s] == 0) return;

  const SamplingParams params = p.params[s];
  Row row(team, p.target_logits + uint64_t(i) * p.v, p.v, p.share, resident, params);
  row.normalise();
  const uint32_t token = row.draw(Noise(params, kRecovery, p.lens[s] + 1 + int32_t(j)));
  if (team.rank == 0 && threadIdx.x == 0) p.rows[i] = {row.softmax, token, row.point, {0, 0}};
  team.part();
}

/// Rejection sampling (Leviathan et al. 2211.17192, Chen et al. 2302.01318), a team a sequence: every block finds the
/// first draft that falls by itself, then the team draws what replaces it.
extern "C" __global__ void MD_TEAM __launch_bounds__(kTeamThreads, 3)
    md_accept_rejection(const __grid_constant__ AcceptParams p) {
  launch_dependents();
  __shared__ TeamShared shared;
  Team team(shared);
  const uint32_t s = blockIdx.x / kTeam;
  wait_prior();
  if (p.active[s] == 0) {
    if (team.rank == 0) leave_alone(p, s);
    return;
  }
  const SamplingParams params = p.params[s];
  const RowResult* rows = p.rows + uint64_t(s) * (p.g + 1);
  const int32_t len = p.lens[s];
  const uint32_t standing =
      leading(p.g, [&](uint32_t j) { return draft_stands(p, params, rows[j], s, j, len); });
  const RowResult row = rows[standing];
  const uint32_t token = standing < p.g ? draw_residual(p, team, params, row, s, standing, len) : row.token;
  // No block reads the lengths or the chain any more.
  team.part();
  if (team.rank == 0) move_on(p, s, standing + 1, int32_t(token));
}
