// The end of a linear layer where a thread has single outputs.
#pragma once
#include "common.cuh"

namespace md {

/// Bias, SiLU of `value` times `up`, residual and one output, each rounded by itself, as linear_tiled.cu does too: a fused
/// multiply-add would give other bits.
template <class Params>
__device__ __forceinline__ void write_output(const Params& p, bool silu_mul, uint32_t row, uint32_t column, float value,
                                             float up) {
  const uint64_t at = uint64_t(row) * p.columns + column;
  if (p.bias != nullptr) value = __fadd_rn(value, __bfloat162float(p.bias[column]));
  if (silu_mul) {
    if (p.bias != nullptr) up = __fadd_rn(up, __bfloat162float(p.bias[p.columns + column]));
    value = __fmul_rn(__fdiv_rn(value, __fadd_rn(1.0f, __expf(-value))), up);
  }
  if (p.residual != nullptr) value = __fadd_rn(value, __bfloat162float(p.residual[at]));
  if (p.out_f32) {
    static_cast<float*>(p.out)[at] = value;
  } else {
    static_cast<bf16*>(p.out)[at] = __float2bfloat16(value);
  }
}

}  // namespace md
