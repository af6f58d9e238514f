//! Draws a token from every row of logits.
const std = @import("std");
const types = @import("../../abi/types.zig");
const simd = @import("../simd.zig");
const kernel_mod = @import("../kernel.zig");
const distribution = @import("distribution.zig");
const philox = @import("philox.zig");

const W = simd.W;
const Distribution = distribution.Distribution;
const run_entries = distribution.run_entries;

pub const sample: kernel_mod.Kernel = kernel_mod.kernel(types.SampleDesc, &.{Draw});

/// An item a row, whatever the vocabulary: a row costs about as much as the language model head
/// spends on a few hundred rows of its weight, so cutting rows would save nothing that shows.
const Draw = struct {
    pub fn plan(desc: *types.SampleDesc, _: u32) u32 {
        return desc.logits.shape[0];
    }

    pub fn run(desc: *const types.SampleDesc, row: u32, scratch: *const kernel_mod.Scratch) void {
        const v = desc.logits.shape[1];
        const r = desc.logits.shape[0] / desc.params.shape[0];
        const s = row / r;
        const params = &kernel_mod.pointer(types.SamplingParams, desc.params)[s];
        const logits = kernel_mod.pointer(f32, desc.logits) + @as(usize, row) * v;
        const position = kernel_mod.pointer(i32, desc.positions)[row] + 1;

        var dist: Distribution = .init(logits, v, params, scratch);
        const token = dist.draw(.init(params, desc.stream, position));
        const out = kernel_mod.pointer(i32, desc.out);
        out[@as(usize, s) * desc.out_stride + row % r] = @intCast(token);
        if (kernel_mod.optional(f32, desc.probs)) |probs| {
            dist.normalise();
            writeProbabilities(&dist, probs + (@as(usize, s) * desc.probs_stride + row % r) * v);
        }
    }
};

fn writeProbabilities(dist: *const Distribution, out: [*]f32) void {
    var base: u32 = 0;
    while (base < dist.v) : (base += run_entries) {
        const run = dist.probabilities(base);
        if (dist.v - base >= run_entries) {
            inline for (run, 0..) |x, i| simd.storeF(out + base + i * W, x);
        } else {
            const values: [run_entries]f32 = @bitCast(run);
            @memcpy(out[base..dist.v], values[0 .. dist.v - base]);
        }
    }
}

test {
    _ = @import("../../tests/sampling_test.zig");
}
