//! RMS norm, with the residual addition before it where `delta` is given.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");
const simd = @import("../simd.zig");

const W = simd.W;
const F = simd.F;

/// Elements of one item: a decode step of a small model is one item, a prefill chunk is many.
const item_elements: u32 = 16 * 1024;

/// Partial sums of squares; the shape of the reduction is fixed by n alone.
const chains = 4;

pub const rms_norm = kernel_mod.kernel(types.RmsNormDesc, &.{RmsNorm});

fn rowsPerItem(n: u32) u32 {
    return @max(1, item_elements / n);
}

const RmsNorm = struct {
    pub fn plan(desc: *types.RmsNormDesc, _: u32) u32 {
        const step = rowsPerItem(desc.x.shape[1]);
        return std.math.divCeil(u32, desc.x.shape[0], step) catch unreachable;
    }

    pub fn run(desc: *const types.RmsNormDesc, item: u32, _: *const kernel_mod.Scratch) void {
        const n: usize = desc.x.shape[1];
        const step: usize = rowsPerItem(desc.x.shape[1]);
        const x = kernel_mod.pointer(u16, desc.x);
        const out = kernel_mod.pointer(u16, desc.out);
        const weight = kernel_mod.pointer(u16, desc.weight);
        const delta = kernel_mod.optional(u16, desc.delta);
        for (item * step..@min(desc.x.shape[0], (item + 1) * step)) |row| {
            const x_row = x + row * n;
            if (delta) |d| addRow(x_row, d + row * n, n);
            const mean = sumOfSquares(x_row, n) / @as(f32, @floatFromInt(n));
            scaleRow(x_row, weight, out + row * n, n, 1 / @sqrt(mean + desc.eps));
        }
    }
};

/// x += delta, rounded to bf16: the norm then sees what the next residual addition will see.
fn addRow(x: [*]u16, delta: [*]const u16, n: usize) void {
    var i: usize = 0;
    while (i + W <= n) : (i += W) {
        simd.storeBf16(x + i, simd.loadBf16(x + i) + simd.loadBf16(delta + i));
    }
    while (i < n) : (i += 1) x[i] = simd.f32ToBf16(simd.bf16ToF32(x[i]) + simd.bf16ToF32(delta[i]));
}

fn sumOfSquares(x: [*]const u16, n: usize) f32 {
    var sums: [chains]F = @splat(simd.splat(0));
    var i: usize = 0;
    while (i + chains * W <= n) : (i += chains * W) {
        inline for (&sums, 0..) |*sum, c| {
            const value = simd.loadBf16(x + i + c * W);
            sum.* = simd.mulAdd(value, value, sum.*);
        }
    }
    while (i < n) : (i += W) {
        const value = if (i + W <= n) simd.loadBf16(x + i) else simd.loadBf16Partial(x + i, n - i);
        sums[0] = simd.mulAdd(value, value, sums[0]);
    }
    return @reduce(.Add, (sums[0] + sums[1]) + (sums[2] + sums[3]));
}

fn scaleRow(x: [*]const u16, weight: [*]const u16, out: [*]u16, n: usize, factor: f32) void {
    const scale = simd.splat(factor);
    var i: usize = 0;
    while (i + W <= n) : (i += W) {
        simd.storeBf16(out + i, simd.loadBf16(x + i) * scale * simd.loadBf16(weight + i));
    }
    while (i < n) : (i += 1) {
        out[i] = simd.f32ToBf16(simd.bf16ToF32(x[i]) * factor * simd.bf16ToF32(weight[i]));
    }
}

const testing = @import("../testing.zig");
const reference = @import("../../tests/reference_dense.zig");

test "rms_norm against f64, with and without delta; rows alone give the same bits" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();
    for ([_]u32{ 1, 3, 16, 63, 64, 257, 768, 20000 }) |n| for ([_]u32{ 1, 2, 70 }) |rows| {
        const x = try testing.randomBf16(random, rows * n, 3);
        defer gpa.free(x);
        const delta = try testing.randomBf16(random, rows * n, 1);
        defer gpa.free(delta);
        const weight = try testing.randomBf16(random, n, 1);
        defer gpa.free(weight);
        const sum = try gpa.alloc(u16, rows * n);
        defer gpa.free(sum);
        for (sum, x, delta) |*s, a, b| s.* = simd.f32ToBf16(simd.bf16ToF32(a) + simd.bf16ToF32(b));
        const out = try gpa.alloc(u16, rows * n);
        defer gpa.free(out);
        const alone = try gpa.alloc(u16, n);
        defer gpa.free(alone);
        const want = try gpa.alloc(f64, n);
        defer gpa.free(want);

        var desc: types.RmsNormDesc = .{
            .x = testing.tensor(x, &.{ rows, n }),
            .delta = testing.tensor(delta, &.{ rows, n }),
            .weight = testing.tensor(weight, &.{n}),
            .out = testing.tensor(out, &.{ rows, n }),
            .eps = 1e-5,
        };
        try testing.run(rms_norm, &desc, 2);
        try std.testing.expectEqualSlices(u16, sum, x);
        for (0..rows) |row| {
            const x_row = x[row * n ..][0..n];
            reference.rmsNorm(x_row, weight, 1e-5, want);
            try testing.expectClose(want, out[row * n ..][0..n], 4.1e-3, 1e-30);
            desc.x = testing.tensor(x_row, &.{ 1, n });
            desc.delta = .{};
            desc.out = testing.tensor(alone, &.{ 1, n });
            try testing.run(rms_norm, &desc, 1);
            try std.testing.expectEqualSlices(u16, alone, out[row * n ..][0..n]);
        }
    };
}
