// The noise of a draw and the race that it decides, bit for bit those of the CPU backend (kernels/cpu/ops/philox.zig
// and race.zig say why they are so): the same token for the same seed, sequence, position and logits on any device.
#pragma once
#include <cfloat>
#include "common.cuh"

namespace md {

using u64 = unsigned long long;

/// As in abi/types.zig.
struct SamplingParams {
  float temperature, top_p, min_p;
  uint32_t top_k, seed_low, seed_high, sequence, reserved;
};
static_assert(sizeof(SamplingParams) == 32);

enum NoiseStream : uint32_t { kTarget = 0, kDraft = 1, kAccept = 2, kRecovery = 3 };

/// Vocabulary entries that 16 counters cover.
constexpr uint32_t kRun = 64;

/// What keys the noise of one token; `position` is the drawn token's own.
struct Noise {
  uint32_t key_low, key_high, position, sequence, stream;

  __device__ __forceinline__ Noise(const SamplingParams& p, uint32_t stream, int32_t position)
      : key_low(p.seed_low), key_high(p.seed_high), position(position), sequence(p.sequence), stream(stream) {}

  /// Philox4x32-10 of counter (c, position, sequence, stream).
  __device__ __forceinline__ uint4 words(uint32_t c) const {
    uint32_t c0 = c, c1 = position, c2 = sequence, c3 = stream, k0 = key_low, k1 = key_high;
#pragma unroll
    for (int round = 0; round < 10; round++) {
      const u64 p0 = u64(0xd2511f53u) * c0, p1 = u64(0xcd9e8d57u) * c2;
      c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
      c1 = uint32_t(p1);
      c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
      c3 = uint32_t(p0);
      k0 += 0x9e3779b9u;
      k1 += 0xbb67ae85u;
    }
    return make_uint4(c0, c1, c2, c3);
  }

  /// The counter of the entries first + 0, 16, 32, 48, for a `first` of 64 n + m, m < 16.
  static __device__ __forceinline__ uint32_t counter(uint32_t first) { return first / kRun * 16 + first % 16; }

  __device__ __forceinline__ uint32_t word(uint32_t entry) const {
    const uint4 w = words(counter(entry));
    const uint32_t j = entry / 16 % 4;
    return j == 0 ? w.x : j == 1 ? w.y : j == 2 ? w.z : w.w;
  }
};

/// u in [2^-33, 1]: (x + 1/2) 2^-32, with full relative precision at the lower end.
__device__ __forceinline__ float uniform(uint32_t x) { return __fmaf_rn(__uint2float_rn(x), 0x1p-32f, 0x1p-33f); }

/// x = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
__device__ __forceinline__ float split_exponent(float x, float& exponent) {
  const int32_t bits = __float_as_int(x), e = (bits - 0x3f3504f3) >> 23;
  exponent = __int2float_rn(e);
  return __fsub_rn(__int_as_float(bits - (e << 23)), 1.0f);
}

/// ln(1 + f) = f - f^2 / 2 + f^3 p(f) on the range of `split_exponent`.
__device__ __forceinline__ float log_one_plus(float f) {
  float p = -0.0786018213f;
  p = __fmaf_rn(p, f, 0.128813958f);
  p = __fmaf_rn(p, f, -0.131284093f);
  p = __fmaf_rn(p, f, 0.141812154f);
  p = __fmaf_rn(p, f, -0.166245958f);
  p = __fmaf_rn(p, f, 0.200022859f);
  p = __fmaf_rn(p, f, -0.250008090f);
  p = __fmaf_rn(p, f, 0.333333167f);
  const float square = __fmul_rn(f, f);
  return __fadd_rn(f, __fmaf_rn(square, -0.5f, __fmul_rn(__fmul_rn(square, f), p)));
}

/// log2 of a normal positive x.
__device__ __forceinline__ float log2_of(float x) {
  float exponent;
  const float f = split_exponent(x, exponent);
  return __fmaf_rn(log_one_plus(f), kLog2e, exponent);
}

/// Gumbel noise in octaves: -log2(E), E = -ln(1 - u). 1 - u is taken from ~x, and next to 1, where that has lost its
/// last bits, from u.
__device__ __forceinline__ float gumbel(uint32_t x) {
  float exponent;
  float f = split_exponent(uniform(~x), exponent);
  if (exponent == 0) f = -uniform(x);
  return -log2_of(-__fmaf_rn(exponent, 0.693147181f, log_one_plus(f)));
}

/// No noise is above this.
constexpr float kGumbelBound = 33.001f;

/// The largest value first, of equal ones the lowest entry.
__device__ __forceinline__ u64 rank_of(float value, uint32_t entry) { return u64(ordered_bits(value)) << 32 | ~entry; }
__device__ __forceinline__ uint32_t entry_of(u64 rank) { return ~uint32_t(rank); }

/// Gumbel-max: the entry with the largest octaves + noise. Equal scores: the lowest entry.
struct Race {
  float best = -FLT_MAX;
  uint32_t token = kNobody;

  static constexpr uint32_t kNobody = 0xffffffffu;

  /// Lets the entries first + 0, 16, 32, 48 run, whose octaves are given (-inf or NaN: excluded). Entries that cannot
  /// win draw no noise, which changes nothing but time.
  __device__ __forceinline__ void offer(const Noise& noise, uint32_t first, const float (&octaves)[4]) {
    const float top = fmaxf(fmaxf(octaves[0], octaves[1]), fmaxf(octaves[2], octaves[3]));
    if (!(top >= best - kGumbelBound)) return;
    const uint4 words = noise.words(Noise::counter(first));
    try_entry(first, octaves[0], words.x);
    try_entry(first + 16, octaves[1], words.y);
    try_entry(first + 32, octaves[2], words.z);
    try_entry(first + 48, octaves[3], words.w);
  }

  __device__ __forceinline__ u64 rank() const { return rank_of(best, token); }

 private:
  /// E >= u, so only where u <= 2^(octaves - best) can the score reach the best. 1 + u is compared, cut to the
  /// mantissa's bits, with as much slack as the approximations need.
  __device__ __forceinline__ void try_entry(uint32_t entry, float octaves, uint32_t word) {
    const float least = __uint_as_float(0x3f800000u | word >> 9);
    if (!(least <= 1 + exp2_approx(octaves - best + 0.001f))) return;
    const float score = __fadd_rn(octaves, gumbel(word));
    if (score > best || (score == best && entry < token)) {
      best = score;
      token = entry;
    }
  }
};

}  // namespace md
