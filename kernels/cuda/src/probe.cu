// What a GPU can do at most: plain reads, fp32 multiply-adds and bf16 matrix products with operands in registers or
// shared memory. Launch shapes and work per thread are probe.zig's.
#include "common.cuh"

namespace md {

struct FillParams {
  uint4* data;
  uint64_t chunks;
};
static_assert(sizeof(FillParams) == 16);

struct ReadParams {
  const uint4* data;
  uint32_t* sink;
  uint64_t chunks;
};
static_assert(sizeof(ReadParams) == 24);

struct PeakParams {
  uint32_t* sink;
  uint32_t rounds;
  uint32_t reserved;
};
static_assert(sizeof(PeakParams) == 16);

constexpr int kReadBlock = 512;
constexpr int kReadsInFlight = 8;
constexpr int kFmaBlock = 256;
constexpr int kFmaChains = 16;
constexpr int kDotBlock = 128;

/// Bits without a pattern: what is all alike moves, and multiplies, with less power.
__device__ __forceinline__ uint32_t scramble(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

/// Two bf16 of magnitude 0.5 to 2 from scrambled bits.
__device__ __forceinline__ uint32_t scrambled_pair(uint32_t x) { return (scramble(x) & 0x80ff80ffu) | 0x3f003f00u; }

/// Keeps `value` from being optimised away; what it may write is what stands there.
__device__ __forceinline__ void consume(uint32_t value, uint32_t* sink) {
  if (value == 0x9e3779b9u) *sink = 0;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// acc (64 x 256, f32) += a (64 x 16, registers) b (16 x 256, shared), bf16, by a warpgroup.
__device__ __forceinline__ void wgmma_64x256x16(float (&acc)[128], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
      "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
      "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
      "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
      "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127},"
      "{%128,%129,%130,%131}, %132, 1, 1, 1, 0;"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]), "+f"(acc[4]), "+f"(acc[5]),
        "+f"(acc[6]), "+f"(acc[7]), "+f"(acc[8]), "+f"(acc[9]), "+f"(acc[10]), "+f"(acc[11]),
        "+f"(acc[12]), "+f"(acc[13]), "+f"(acc[14]), "+f"(acc[15]), "+f"(acc[16]), "+f"(acc[17]),
        "+f"(acc[18]), "+f"(acc[19]), "+f"(acc[20]), "+f"(acc[21]), "+f"(acc[22]), "+f"(acc[23]),
        "+f"(acc[24]), "+f"(acc[25]), "+f"(acc[26]), "+f"(acc[27]), "+f"(acc[28]), "+f"(acc[29]),
        "+f"(acc[30]), "+f"(acc[31]), "+f"(acc[32]), "+f"(acc[33]), "+f"(acc[34]), "+f"(acc[35]),
        "+f"(acc[36]), "+f"(acc[37]), "+f"(acc[38]), "+f"(acc[39]), "+f"(acc[40]), "+f"(acc[41]),
        "+f"(acc[42]), "+f"(acc[43]), "+f"(acc[44]), "+f"(acc[45]), "+f"(acc[46]), "+f"(acc[47]),
        "+f"(acc[48]), "+f"(acc[49]), "+f"(acc[50]), "+f"(acc[51]), "+f"(acc[52]), "+f"(acc[53]),
        "+f"(acc[54]), "+f"(acc[55]), "+f"(acc[56]), "+f"(acc[57]), "+f"(acc[58]), "+f"(acc[59]),
        "+f"(acc[60]), "+f"(acc[61]), "+f"(acc[62]), "+f"(acc[63]), "+f"(acc[64]), "+f"(acc[65]),
        "+f"(acc[66]), "+f"(acc[67]), "+f"(acc[68]), "+f"(acc[69]), "+f"(acc[70]), "+f"(acc[71]),
        "+f"(acc[72]), "+f"(acc[73]), "+f"(acc[74]), "+f"(acc[75]), "+f"(acc[76]), "+f"(acc[77]),
        "+f"(acc[78]), "+f"(acc[79]), "+f"(acc[80]), "+f"(acc[81]), "+f"(acc[82]), "+f"(acc[83]),
        "+f"(acc[84]), "+f"(acc[85]), "+f"(acc[86]), "+f"(acc[87]), "+f"(acc[88]), "+f"(acc[89]),
        "+f"(acc[90]), "+f"(acc[91]), "+f"(acc[92]), "+f"(acc[93]), "+f"(acc[94]), "+f"(acc[95]),
        "+f"(acc[96]), "+f"(acc[97]), "+f"(acc[98]), "+f"(acc[99]), "+f"(acc[100]), "+f"(acc[101]),
        "+f"(acc[102]), "+f"(acc[103]), "+f"(acc[104]), "+f"(acc[105]), "+f"(acc[106]), "+f"(acc[107]),
        "+f"(acc[108]), "+f"(acc[109]), "+f"(acc[110]), "+f"(acc[111]), "+f"(acc[112]), "+f"(acc[113]),
        "+f"(acc[114]), "+f"(acc[115]), "+f"(acc[116]), "+f"(acc[117]), "+f"(acc[118]), "+f"(acc[119]),
        "+f"(acc[120]), "+f"(acc[121]), "+f"(acc[122]), "+f"(acc[123]), "+f"(acc[124]), "+f"(acc[125]),
        "+f"(acc[126]), "+f"(acc[127])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ float dot_rounds(uint32_t rounds) {
  // 16 x 256 without a swizzle: core matrices of 8 rows x 16 bytes, each 128 bytes in one piece.
  __shared__ __align__(128) uint32_t b[16 * 256 / 2];
  for (uint32_t i = threadIdx.x; i < 16 * 256 / 2; i += kDotBlock) b[i] = scrambled_pair(i);
  async_proxy_fence();
  __syncthreads();
  const uint64_t address = (shared_address(b) & 0x3ffff) >> 4;
  const uint64_t along_k = 128 >> 4, along_n = 256 >> 4;
  const uint64_t descriptor = address | along_k << 16 | along_n << 32;
  uint32_t a[4];
  for (int i = 0; i < 4; i++) a[i] = scrambled_pair(threadIdx.x * 4 + i);
  float acc[128];
#pragma unroll
  for (int i = 0; i < 128; i++) acc[i] = 0;
  constexpr uint32_t kBatch = 8;
#pragma unroll 1
  for (uint32_t round = 0; round < rounds; round += kBatch) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (uint32_t i = 0; i < kBatch; i++) wgmma_64x256x16(acc, a, descriptor);
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 128; i++) sum += acc[i];
  return sum;
}

#else

/// As many operations as one wgmma of 64 x 256 x 16: 32 products a round in each of the four warps.
__device__ __forceinline__ float dot_rounds(uint32_t rounds) {
  constexpr int kTiles = 8;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; i++) a[i] = scrambled_pair(threadIdx.x * 6 + i);
  for (int i = 0; i < 2; i++) b[i] = scrambled_pair(threadIdx.x * 6 + 4 + i);
  float acc[kTiles][4] = {};
  for (uint32_t round = 0; round < rounds * 4; round++) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) mma_16x8x16(acc[tile], a, b[0], b[1]);
  }
  float sum = 0;
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++) sum += acc[tile][0] + acc[tile][1] + acc[tile][2] + acc[tile][3];
  return sum;
}

#endif

}  // namespace md

extern "C" __global__ void __launch_bounds__(md::kReadBlock) md_probe_fill(const __grid_constant__ md::FillParams p) {
  md::launch_dependents();
  md::wait_prior();
  const uint64_t stride = uint64_t(gridDim.x) * md::kReadBlock;
  for (uint64_t i = uint64_t(blockIdx.x) * md::kReadBlock + threadIdx.x; i < p.chunks; i += stride) {
    const uint32_t x = uint32_t(i) * 4;
    p.data[i] = make_uint4(md::scramble(x), md::scramble(x + 1), md::scramble(x + 2), md::scramble(x + 3));
  }
}

extern "C" __global__ void __launch_bounds__(md::kReadBlock, 2)
    md_probe_read(const __grid_constant__ md::ReadParams p) {
  md::launch_dependents();
  md::wait_prior();
  constexpr uint64_t kPiece = md::kReadBlock * md::kReadsInFlight;
  uint32_t sum = 0;
  uint64_t piece = blockIdx.x;
  for (; (piece + 1) * kPiece <= p.chunks; piece += gridDim.x) {
    const uint4* data = p.data + piece * kPiece + threadIdx.x;
    uint4 read[md::kReadsInFlight];
#pragma unroll
    for (int i = 0; i < md::kReadsInFlight; i++) read[i] = __ldcs(data + i * md::kReadBlock);
#pragma unroll
    for (int i = 0; i < md::kReadsInFlight; i++) sum ^= read[i].x ^ read[i].y ^ read[i].z ^ read[i].w;
  }
  for (uint64_t i = piece * kPiece + threadIdx.x; i < p.chunks; i += md::kReadBlock) sum ^= __ldcs(p.data + i).x;
  md::consume(sum, p.sink);
}

extern "C" __global__ void __launch_bounds__(md::kFmaBlock) md_probe_fma(const __grid_constant__ md::PeakParams p) {
  md::launch_dependents();
  md::wait_prior();
  float acc[md::kFmaChains];
#pragma unroll
  for (int i = 0; i < md::kFmaChains; i++) acc[i] = float(threadIdx.x + i);
  const float a = 1 + 1e-7f * threadIdx.x, b = 1e-3f * blockIdx.x;
#pragma unroll 4
  for (uint32_t round = 0; round < p.rounds; round++) {
#pragma unroll
    for (int i = 0; i < md::kFmaChains; i++) acc[i] = fmaf(acc[i], a, b);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < md::kFmaChains; i++) sum += acc[i];
  md::consume(__float_as_uint(sum), p.sink);
}

extern "C" __global__ void __launch_bounds__(md::kDotBlock) md_probe_dot(const __grid_constant__ md::PeakParams p) {
  md::launch_dependents();
  md::wait_prior();
  md::consume(__float_as_uint(md::dot_rounds(p.rounds)), p.sink);
}
