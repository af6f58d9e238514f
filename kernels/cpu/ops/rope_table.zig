//! cos and sin of the rotary embedding's angles.
//!
//! The angle itself is an f32 product, as in Hugging Face transformers, so that long positions
//! round the same way; its reduction and the two series are f64, so that the table is right to the
//! last f32 bit or so at any position.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");
const simd = @import("../simd.zig");

const W = simd.W;
const F = simd.F;
const D = @Vector(W, f64);

/// Angles of one item.
const item_angles: u32 = 2048;

pub const rope_table = kernel_mod.kernel(types.RopeTableDesc, &.{RopeTable});

fn rowsPerItem(half: u32) u32 {
    return @max(1, item_angles / half);
}

const RopeTable = struct {
    pub fn plan(desc: *types.RopeTableDesc, _: u32) u32 {
        const step = rowsPerItem(desc.inv_freq.shape[0]);
        return std.math.divCeil(u32, desc.positions.shape[0], step) catch unreachable;
    }

    pub fn run(desc: *const types.RopeTableDesc, item: u32, _: *const kernel_mod.Scratch) void {
        const half: usize = desc.inv_freq.shape[0];
        const step: usize = rowsPerItem(desc.inv_freq.shape[0]);
        const positions = kernel_mod.pointer(i32, desc.positions);
        const inv_freq = kernel_mod.pointer(f32, desc.inv_freq);
        const out = kernel_mod.pointer(f32, desc.out);
        for (item * step..@min(desc.positions.shape[0], (item + 1) * step)) |row| {
            var position = positions[row];
            if (desc.view_tokens > 0) position = @intCast(@min(position, desc.view_tokens - 1));
            fillRow(@floatFromInt(position), inv_freq, half, desc.scale, out + row * 2 * half);
        }
    }
};

fn fillRow(position: f32, inv_freq: [*]const f32, half: usize, scale: f32, out: [*]f32) void {
    const p = simd.splat(position);
    const s = simd.splat(scale);
    var i: usize = 0;
    while (i + W <= half) : (i += W) {
        const turn = cosSin(p * simd.loadF(inv_freq + i));
        simd.storeF(out + i, turn.cos * s);
        simd.storeF(out + half + i, turn.sin * s);
    }
    if (i == half) return;
    var tail: [W]f32 = @splat(0);
    @memcpy(tail[0 .. half - i], inv_freq[i..half]);
    const turn = cosSin(p * simd.loadF(&tail));
    const cos: [W]f32 = turn.cos * s;
    const sin: [W]f32 = turn.sin * s;
    @memcpy(out[i..half], cos[0 .. half - i]);
    @memcpy(out[half + i .. 2 * half], sin[0 .. half - i]);
}

/// cos and sin of angles of magnitude below 2^23: subtracts the nearest multiple of pi / 2, sums
/// the Taylor series (error below 1e-11 on [-pi / 4, pi / 4]), and turns the result by the
/// quadrant.
fn cosSin(angle: F) struct { cos: F, sin: F } {
    // The high part has 30 bits, so that its product with any quadrant number is exact.
    const quarter_high: f64 = 1.570796325802803;
    const quarter_low: f64 = 9.920935796805403e-10;
    const x: D = angle;
    const quadrant: D = @round(x * @as(D, @splat(2.0 / std.math.pi)));
    const high = x - quadrant * @as(D, @splat(quarter_high));
    const r = high - quadrant * @as(D, @splat(quarter_low));
    const r2 = r * r;
    const sin = r * alternating(r2, &.{ 1, 6, 120, 5040, 362880, 39916800 });
    const cos = alternating(r2, &.{ 1, 2, 24, 720, 40320, 3628800, 479001600 });

    const q: @Vector(W, i32) = @intFromFloat(quadrant);
    const one: @Vector(W, i32) = @splat(1);
    const two: @Vector(W, i32) = @splat(2);
    const zero: @Vector(W, i32) = @splat(0);
    const swap = (q & one) != zero;
    const cos_turned = @select(f64, swap, sin, cos);
    const sin_turned = @select(f64, swap, cos, sin);
    return .{
        .cos = @floatCast(@select(f64, ((q + one) & two) != zero, -cos_turned, cos_turned)),
        .sin = @floatCast(@select(f64, (q & two) != zero, -sin_turned, sin_turned)),
    };
}

/// 1 / divisors[0] - r2 / divisors[1] + r2^2 / divisors[2] - ...
inline fn alternating(r2: D, comptime divisors: []const f64) D {
    const last = divisors.len - 1;
    var sum: D = @splat(coefficient(divisors, last));
    inline for (1..divisors.len) |i| {
        const next: D = @splat(coefficient(divisors, last - i));
        sum = if (simd.has_fma) @mulAdd(D, sum, r2, next) else sum * r2 + next;
    }
    return sum;
}

fn coefficient(comptime divisors: []const f64, comptime i: usize) f64 {
    return (if (i % 2 == 0) 1.0 else -1.0) / divisors[i];
}

const testing = @import("../testing.zig");
const reference = @import("../../tests/reference_dense.zig");

test "rope_table against f64 at any position, clamped to a view, rows alone the same bits" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();
    for ([_]u32{ 1, 5, 16, 32, 48, 64, 128 }) |half| for ([_]u32{ 1, 40, 200 }) |rows| {
        const positions = try gpa.alloc(i32, rows);
        defer gpa.free(positions);
        for (positions, 0..) |*position, i| {
            const limit: u32 = if (i % 3 == 0) 1 << 20 else 1 << 13;
            position.* = random.intRangeLessThan(i32, 0, @intCast(limit));
        }
        positions[0] = 0;
        const inv_freq = try gpa.alloc(f32, half);
        defer gpa.free(inv_freq);
        for (inv_freq, 0..) |*frequency, i| {
            const exponent = @as(f32, @floatFromInt(i)) / @as(f32, @floatFromInt(half));
            frequency.* = std.math.pow(f32, 10000, -exponent);
        }
        const out = try gpa.alloc(f32, rows * 2 * half);
        defer gpa.free(out);
        const alone = try gpa.alloc(f32, 2 * half);
        defer gpa.free(alone);
        const want = try gpa.alloc(f64, 2 * half);
        defer gpa.free(want);
        for ([_]u32{ 0, 300 }) |view_tokens| {
            var desc: types.RopeTableDesc = .{
                .positions = testing.tensor(positions, &.{rows}),
                .inv_freq = testing.tensor(inv_freq, &.{half}),
                .out = testing.tensor(out, &.{ rows, 2 * half }),
                .scale = 1.25,
                .view_tokens = view_tokens,
            };
            try testing.run(rope_table, &desc, 2);
            for (0..rows) |row| {
                const position = if (view_tokens > 0) @min(positions[row], 299) else positions[row];
                reference.ropeRow(position, inv_freq, 1.25, want);
                const row_out = out[row * 2 * half ..][0 .. 2 * half];
                try testing.expectClose(want, row_out, 0, 1.6e-7);
                desc.positions = testing.tensor(positions[row..][0..1], &.{1});
                desc.out = testing.tensor(alone, &.{ 1, 2 * half });
                try testing.run(rope_table, &desc, 1);
                try std.testing.expectEqualSlices(f32, alone, row_out);
            }
        }
    };
}
